"""Log-likelihoods of lm-eval's own ONNX models: FOLDER MODEL TEXTS(json) -> a JSON list, nats a text."""

import json
import sys

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

folder, name, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = get_model(name).create_from_arg_string(f"pretrained={folder}")
asked = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
print(json.dumps(model.loglikelihood_rolling(asked, disable_tqdm=True)))
