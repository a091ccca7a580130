"""README.md of an artifact: a model card in the hub's form, with what was proved and how to run it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ..base.version import __version__
from ..recipe import Recipe, parse_recipe
from ..records.manifest import Origin, Source
from ..records.parity import Parity
from ..records.quantization import Quantization
from . import findings, words
from .markdown import parity_tables, plain, table

_ONNXRUNTIME = """\
import json

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder = "."  # of this artifact
config = json.load(open(f"{folder}/config.json"))
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])

heads, types = config["num_attention_heads"], {"float": "f4", "float16": "f2", "int8": "i1"}
past = {
    value.name: np.zeros((1, heads, 0, *value.shape[3:]), types[value.type[7:-1]])  # tensor(float), say
    for value in session.get_inputs() if value.name.startswith("past_key_values")
}
names = [name.replace("past_key_values", "present") for name in past]

tokens = tokenizer.encode("PROMPT").ids
new, seen = tokens, 0
for _ in range(32):
    feeds = {
        "input_ids": np.array([new], np.int64),
        "attention_mask": np.ones((1, seen + len(new)), np.int64),
        "position_ids": np.arange(seen, seen + len(new), dtype=np.int64)[None],
    }
    logits, *present = session.run(["logits", *names], feeds | past)
    past, seen = dict(zip(past, present)), seen + len(new)
    new = [int(logits[0, -1].argmax())]
    if new[0] in np.atleast_1d(config["eos_token_id"]):  # one token, several, or null
        break
    tokens += new
print(tokenizer.decode(tokens))
"""

_OPTIMUM = """\
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer

folder = "."  # of this artifact
model = ORTModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
prompt = tokenizer("PROMPT", return_tensors="pt")
ids = model.generate(prompt.input_ids, attention_mask=prompt.attention_mask, max_new_tokens=32)
print(tokenizer.decode(ids[0]))
"""

_GENAI = """\
import onnxruntime_genai as og

model = og.Model(".")  # the folder of this artifact
tokenizer, params = og.Tokenizer(model), og.GeneratorParams(model)
params.set_search_options(max_length=64)
generator = og.Generator(model, params)
generator.append_tokens(tokenizer.encode("PROMPT"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
"""

_TRANSFORMERS_JS = """\
import { AutoModelForCausalLM, AutoTokenizer, env } from "@huggingface/transformers";

env.localModelPath = "../";  // where the folder of this artifact lies; in a browser, its address
const tokenizer = await AutoTokenizer.from_pretrained("FOLDER");
const model = await AutoModelForCausalLM.from_pretrained("FOLDER");
const ids = await model.generate({ ...tokenizer("PROMPT"), max_new_tokens: 32 });
console.log(tokenizer.batch_decode(ids)[0]);
"""

_SUITE = (
    "Pythia is a suite for research on how language models learn and what they hold, interpretability above all. This "
    "artifact is for the same: to run, measure and compare a checkpoint of the suite cheaply."
)
_DEMO = (
    "The demo checkpoint is a small GPT-NeoX model trained on Python's standard library. It exists to show and test "
    "pythia-export; it is of no use as an assistant for code."
)
_BASE = (
    "It is a base model, not a chat model: it continues text, and was never taught to follow instructions, to refuse, "
    "or to be safe to put before people. Do not deploy it as it is."
)
_PILE = "It inherits what its training text holds: English above all, with errors, bias and offensive content."
_DEMO_TEXT = "It has seen Python's standard library and little else."
_FIGURES = (
    "The figures above are for the held-out text named there. Other text, and abilities other than predicting it, may "
    "lose more or less by quantisation."
)


def model_card(origin: Origin, quantization: Quantization, parity: Parity) -> str:
    """Return Markdown with the hub's metadata; `origin` is the artifact's manifest, published or not."""
    source, recipe = origin.source, parse_recipe(origin.recipe)
    name, treatment = source.name, words.treatment(quantization)
    demo = recipe.model.id == "demo"
    prompt = "def main(" if demo else "The Pile is"
    title = f"{name.rstrip('/').rsplit('/', 1)[-1]}, {treatment}, ONNX"
    parts = [
        _front_matter(recipe, quantization),
        f"# {plain(title)}",
        f"{_origin(source, recipe)}, exported to ONNX with a KV cache by pythia-export {__version__}"
        + (f" at {quantization.bits_per_weight:.2f} bits a weight (scales included)." if quantization.linears else "."),
        "**{}**: {}. {} {}".format(
            *words.verdict(parity),
            words.export_sentence(parity),
            words.cost_sentence(parity, quantization.method != "none"),
        ),
        "`report.html` beside this file shows the whole proof.",
        "## Parity",
        *parity_tables(parity),
        *_findings(quantization),
        "## Use",
        "With pythia-export, from this folder:",
        _fence(f"pythia-export generate . --prompt '{prompt}'\n{_verify(recipe)}   # prove it again", "sh"),
        "With ONNX Runtime alone, 1.24 or newer (`pip install 'onnxruntime>=1.24' tokenizers`):",
        _fence(_ONNXRUNTIME.replace("PROMPT", prompt), "python"),
        *(_optimum(prompt) if origin.layout.kv_dtype == recipe.export.dtype else ()),
        *(_genai(prompt) if origin.layout.kv_dtype != "int8" else ()),
        *(_transformers_js(prompt) if recipe.export.layout == "transformers.js" else ()),
        "## Intended use and limitations",
        _DEMO if demo else _SUITE,
        "\n".join(f"- {limit}" for limit in (_BASE, _DEMO_TEXT if demo else _PILE, _FIGURES)),
        "## Recipe",
        _fence(words.recipe_toml(recipe.model_dump(mode="json")), "toml"),
        "## Provenance",
        table(("", ""), _provenance(origin, parity)),
    ]
    if _licence(recipe) is None:
        parts.append("The licence is that of the source checkpoint.")
    return "\n\n".join(parts) + "\n"


def _verify(recipe: Recipe) -> str:
    """With a place for each source that the reader has to have."""
    model = recipe.model
    sources = (("checkpoint", model.path), ("adapter", model.adapter), ("text", recipe.verify.path))
    return "".join(("pythia-export verify .", *(f" --{option} {path}" for option, path in sources if path)))


def _front_matter(recipe: Recipe, quantization: Quantization) -> str:
    model = recipe.model.id
    on_hub = model is not None and "/" in model
    pythia = model is not None and model.startswith("EleutherAI/")
    bits = {f"int{x.bits}" for x in quantization.linears if x.layer is not None}
    fields: dict[str, Any] = {
        "license": _licence(recipe),
        "library_name": "onnx",
        "pipeline_tag": "text-generation",
        "language": ["code" if model == "demo" else "en"],
        "base_model": model if on_hub else None,
        "base_model_relation": "quantized" if on_hub else None,
        "datasets": ["EleutherAI/pile"] if on_hub and pythia else None,
        "tags": ["onnx", "onnxruntime", "pythia", "gpt_neox", "causal-lm", "pythia-export"]
        + ([quantization.method] if quantization.method != "none" else [])
        + sorted(bits),
    }
    # JSON's strings and lists are YAML's.
    lines = [f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in fields.items() if v is not None]
    return "\n".join(["---", *lines, "---"])


def _licence(recipe: Recipe) -> str | None:
    """Return the licence of the suite and the demo; a local checkpoint's and an adapter's are not ours to state."""
    model = recipe.model.id
    if recipe.model.adapter is not None:
        return None
    return "apache-2.0" if model is not None and (model == "demo" or model.startswith("EleutherAI/")) else None


def _origin(source: Source, recipe: Recipe) -> str:
    model, revision, adapter = recipe.model.id, _code(source.revision), source.adapter
    merged = f", merged with the adapter {_code(adapter.name)}" if adapter else ""
    if model is None or "/" not in model:
        return f"{_code(source.name)} at {revision}{merged}"
    commit = source.commit.partition("+")[0]
    return f"[{plain(model)}](https://huggingface.co/{plain(model)}) at {revision} (commit {_code(commit)}){merged}"


def _optimum(prompt: str) -> tuple[str, str]:
    """For a cache of the activations' type: Optimum knows no other."""
    return "With Optimum (`pip install optimum-onnx`):", _fence(_OPTIMUM.replace("PROMPT", prompt), "python")


def _genai(prompt: str) -> tuple[str, str]:
    """It has no place for the scales of an int8 cache."""
    return "With onnxruntime-genai (`pip install onnxruntime-genai`):", _fence(
        _GENAI.replace("PROMPT", prompt), "python"
    )


def _transformers_js(prompt: str) -> tuple[str, str]:
    return "With transformers.js, in Node or a browser (`npm install @huggingface/transformers`):", _fence(
        _TRANSFORMERS_JS.replace("PROMPT", prompt), "js"
    )


def _findings(quantization: Quantization) -> Iterator[str]:
    sentences = findings.sentences(quantization)
    if sentences:
        yield "## Where the error is"
        yield "\n".join(f"- {plain(sentence)}" for sentence in sentences)


def _provenance(origin: Origin, parity: Parity) -> list[list[str]]:
    source, corpus, calibration = origin.source, parity.corpus, origin.calibration
    rows = [
        ["Source", _code(source.name)],
        ["Revision", _code(source.revision)],
        ["Commit", _code(source.commit)],
        *([name, plain(value)] for name, value in words.imported_facts(origin).items()),
        ["Held-out text", f"{plain(corpus.source)}, SHA-256 {_code(corpus.sha256)}"],
    ]
    if calibration:
        rows.append(["Calibration text", f"{plain(calibration.source)}, SHA-256 {_code(calibration.sha256)}"])
    rows.append(["Versions", plain(", ".join(f"{package} {version}" for package, version in parity.versions.items()))])
    return rows


def _code(text: str) -> str:
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "/") + "`"


def _fence(text: str, language: str) -> str:
    """A block that nothing inside can close."""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"
