"""Token ids by onnxruntime-genai: TEXTS(json file) FOLDER... -> a JSON list a folder."""

import json
import sys
from pathlib import Path

import onnxruntime_genai as og

texts = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
found = []
for folder in sys.argv[2:]:
    tokenizer = og.Tokenizer(og.Model(folder))
    found.append([[int(token) for token in tokenizer.encode(text)] for text in texts])
print(json.dumps(found))
