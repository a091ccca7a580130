"""Which files of an artifact hold graphs and weights, by the recipe's `export.layout`.

"flat": model.onnx beside model.onnx_data. "transformers.js": that library looks for ``onnx/model_q4.onnx``, by the
bits, with its data in ``onnx/model_q4.onnx_data``; a second graph, model.onnx at the root, reads the same data, so that
every other consumer finds what it expects and no weight is stored twice. Links would do the same; onnx refuses them.
"""

from __future__ import annotations

from ..recipe import Recipe

MODEL = "model.onnx"
TAPS = "taps.onnx"  # of every layout: the same decoder, with values from inside it as outputs
DATA_FILE = "model.onnx_data"  # in a flat layout, and while an artifact is being made


def dtype_name(recipe: Recipe) -> str:
    """What transformers.js calls the weights: its `dtype`."""
    q, half = recipe.quantize, recipe.export.dtype == "float16"
    if q.method == "none":
        return "fp16" if half else "fp32"
    if q.bits == 8:
        return "q8"
    return f"q{2 if q.bits == 2 else 4}" + ("f16" if half else "")


def graph_name(recipe: Recipe) -> str | None:
    """Path of the graph that transformers.js opens; None in a flat layout."""
    if recipe.export.layout == "flat":
        return None
    name = dtype_name(recipe)
    return f"onnx/model{ {'fp32': '', 'q8': '_quantized'}.get(name, f'_{name}') }.onnx"


def data_name(recipe: Recipe) -> str:
    """Path of the weights."""
    graph = graph_name(recipe)
    return DATA_FILE if graph is None else f"{graph}_data"
