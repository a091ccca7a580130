"""Token ids by transformers 5, in an environment of its own: TEXTS(json file) FOLDER... -> JSON, an object a folder."""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer

texts = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
found = []
for folder in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found.append(
        {
            "ids": [tokenizer(text)["input_ids"] for text in texts],
            "length": len(tokenizer),
            "special": tokenizer.special_tokens_map,
            "chat": tokenizer.chat_template,
            "names": sorted(tokenizer("a")),
        }
    )
print(json.dumps(found))
