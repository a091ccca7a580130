"""Greedy continuations by onnxruntime-genai: FOLDER PROMPTS(json) NEW -> a JSON list of token ids a prompt."""

import json
import sys

import onnxruntime_genai as og

folder, prompts, new = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model = og.Model(folder)
tokenizer = og.Tokenizer(model)
found = []


def run(batch: list[str]) -> list[list[int]]:
    ids = tokenizer.encode_batch(batch) if len(batch) > 1 else tokenizer.encode(batch[0])
    longest = max(len(tokenizer.encode(prompt)) for prompt in batch)
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=longest + new, batch_size=len(batch))
    generator = og.Generator(model, params)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    return [[int(i) for i in generator.get_sequence(row)[longest:]] for row in range(len(batch))]


alone = [run([prompt])[0] for prompt in prompts]
together = run(prompts)
print(json.dumps({"alone": alone, "together": together}))
