"""What one tool makes of one artifact: FORM_FOLDER TOOL -> JSON: what became of its logits, and the tools' versions.

Runs in an environment of its own, with nothing of ours. The folder has model.onnx, model.onnx_data and feeds.npz: the
inputs of a prompt. A tool that raises refused; a graph that no longer opens, or computes something else, is broken.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

KEEP = "num_logits_to_keep"
EQUAL = 1e-4  # of the largest logit: float32's rounding through two layers is a hundredth of it
ROUNDED = 2e-2  # activations of int8 fall to the other side of a half here and there


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Save a model whose weights may still lie in the folder that it came from."""
    onnx.save_model(model, str(path), save_as_external_data=True, location="weights.data", size_threshold=1024)
    return path


def onnxslim(graph: Path, out: Path) -> Path:
    import onnxslim

    return save(onnxslim.slim(str(graph)), out)


def onnxsim(graph: Path, out: Path) -> Path:
    import onnxsim

    model, checked = onnxsim.simplify(str(graph))
    if not checked:
        raise RuntimeError("its own check failed")
    return save(model, out)


def inliner(graph: Path, out: Path) -> Path:
    from onnx import inliner

    return save(inliner.inline_local_functions(onnx.load(graph)), out)


def inline_pass(graph: Path, out: Path) -> Path:
    import onnx_ir
    from onnx_ir.passes.common import InlinePass

    model = onnx_ir.load(graph)
    InlinePass()(model)
    onnx_ir.save(model, out, external_data="weights.data")
    return out


def onnxscript_optimizer(graph: Path, out: Path) -> Path:
    import onnx_ir
    import onnxscript.optimizer

    model = onnx_ir.load(graph)
    onnxscript.optimizer.optimize(model)
    onnx_ir.save(model, out, external_data="weights.data")
    return out


def onnxscript_versions(graph: Path, out: Path) -> Path:
    import onnx_ir
    from onnxscript import version_converter

    model = onnx_ir.load(graph)
    version_converter.convert_version(model, target_version=23)
    onnx_ir.save(model, out, external_data="weights.data")
    return out


def version_converter(graph: Path, out: Path) -> Path:
    from onnx import version_converter

    return save(version_converter.convert_version(onnx.load(graph), 21), out)


def add_prefix(graph: Path, out: Path) -> Path:
    from onnx import compose

    return save(compose.add_prefix(onnx.load(graph), "p/"), out)


def ort_format(graph: Path, out: Path) -> Path:
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    convert_onnx_models_to_ort(graph, out.parent, optimization_styles=[OptimizationStyle.Fixed])
    return next(out.parent.glob("*.ort"))


def _optimised(level: str) -> Callable[[Path, Path], Path]:
    def save_optimised(graph: Path, out: Path) -> Path:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath = str(graph.with_name("optimised.onnx"))  # it names the weights beside it
        onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        return graph.with_name("optimised.onnx")

    return save_optimised


def float16_of_onnxruntime(graph: Path, out: Path) -> Path:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return save(convert_float_to_float16(onnx.load(graph), keep_io_types=True), out)


def float16_of_converter_common(graph: Path, out: Path) -> Path:
    from onnxconverter_common.float16 import convert_float_to_float16

    # It takes an embedding of float16 for a sign that all is float16 already.
    return save(convert_float_to_float16(onnx.load(graph), keep_io_types=True, check_fp16_ready=False), out)


def quantize_dynamic(graph: Path, out: Path) -> Path:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(graph, out, use_external_data_format=True)
    return out


def _olive(module: str, name: str, settings: dict[str, str | int]) -> Callable[[Path, Path], Path]:
    def run_pass(graph: Path, out: Path) -> Path:
        os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
        from olive.model import ONNXModelHandler
        from olive.passes.olive_pass import create_pass_from_dict

        of = getattr(importlib.import_module(f"olive.passes.onnx.{module}"), name)
        made = create_pass_from_dict(of, settings, disable_search=True).run(ONNXModelHandler(str(graph)), str(out))
        return Path(made.model_path)

    return run_pass


# Each with the distribution whose version the table names.
TOOLS: dict[str, tuple[str, Callable[[Path, Path], Path]]] = {
    "onnxslim": ("onnxslim", onnxslim),
    "onnxsim": ("onnxsim", onnxsim),
    "onnx.inliner": ("onnx", inliner),
    "onnx_ir InlinePass": ("onnx-ir", inline_pass),
    "onnxscript.optimizer": ("onnxscript", onnxscript_optimizer),
    "onnxscript.version_converter, to 23": ("onnxscript", onnxscript_versions),
    "onnx.version_converter, 21 to 21": ("onnx", version_converter),
    "onnx.compose.add_prefix": ("onnx", add_prefix),
    ".ort conversion": ("onnxruntime", ort_format),
    "optimized_model_filepath, basic": ("onnxruntime", _optimised("BASIC")),
    "optimized_model_filepath, all": ("onnxruntime", _optimised("ALL")),
    "Olive, OnnxPeepholeOptimizer": ("olive-ai", _olive("peephole_optimizer", "OnnxPeepholeOptimizer", {})),
    "Olive, OrtTransformersOptimization": (
        "olive-ai",
        _olive("transformer_optimization", "OrtTransformersOptimization", {"model_type": "gpt2", "opt_level": 0}),
    ),
    "float16 of onnxruntime.transformers": ("onnxruntime", float16_of_onnxruntime),
    "float16 of onnxconverter-common": ("onnxconverter-common", float16_of_converter_common),
    "quantize_dynamic": ("onnxruntime", quantize_dynamic),
}


def logits(graph: Path, feeds: dict[str, np.ndarray], prefix: str = "") -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return session.run([prefix + "logits"], {prefix + name: value for name, value in feeds.items()})[0]


def keeps(graph: Path, feeds: dict[str, np.ndarray], whole: np.ndarray, prefix: str) -> bool:
    """Whether num_logits_to_keep can still be declared as an input, and does what it says."""
    model = onnx.load(graph, load_external_data=False)
    name = prefix + KEEP
    if name not in {tensor.name for tensor in model.graph.initializer}:
        return False
    model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, []))
    settable = graph.with_name("settable.onnx")
    settable.write_bytes(model.SerializeToString())
    got = logits(settable, feeds | {KEEP: np.array(2)}, prefix)
    return got.shape[1] == 2 and np.abs(got - whole[:, -2:]).max() <= ROUNDED * np.abs(whole).max()


def became(folder: Path, tool: str) -> str:
    """Return `equal`, `moved by ...`, `refused: ...` or `broken: ...`, and what else is no longer there."""
    feeds = dict(np.load(folder / "feeds.npz"))
    before = logits(folder / "model.onnx", feeds)
    functions = {function.name for function in onnx.load(folder / "model.onnx", load_external_data=False).functions}
    with tempfile.TemporaryDirectory() as temporary:
        source, made = Path(temporary) / "source", Path(temporary) / "made"
        shutil.copytree(folder, source)
        made.mkdir()
        try:
            graph = TOOLS[tool][1](source / "model.onnx", made / "model.onnx")
        except Exception as e:
            return f"refused: {_first_line(e)}"
        prefix = "p/" if tool.endswith("add_prefix") else ""
        try:
            after = logits(graph, feeds, prefix)
        except Exception as e:
            return f"broken: {_first_line(e)}"
        moved = float(np.abs(after - before).max() / np.abs(before).max())
        said = "equal" if moved <= EQUAL else f"moved by {moved:.1g}"
        if graph.suffix == ".onnx":
            left = {function.name for function in onnx.load(graph, load_external_data=False).functions}
            inlined = functions and not left
            said += ", inlined" * bool(inlined) + f", no {KEEP}" * (not keeps(graph, feeds, after, prefix))
        return said


def _first_line(error: Exception) -> str:
    words = re.sub(r"\S*/(made|source)/", "", " ".join(str(error).split()))  # a temporary folder
    return words.replace("[ONNXRuntimeError] : ", "")[:160] or type(error).__name__


def main() -> None:
    folder, tool = sys.argv[1:]
    version = importlib.metadata.version(TOOLS[tool][0])
    print(json.dumps({"became": became(Path(folder), tool), "tool": f"{TOOLS[tool][0]} {version}"}))


if __name__ == "__main__":
    main()
