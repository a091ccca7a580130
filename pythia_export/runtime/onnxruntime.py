"""The ONNX Runtime that is installed: found, imported, and made to open a graph on the provider that was asked for."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from functools import cache as remembered
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from ..base.errors import EnvironmentProblem, IntegrityError, ResourceError
from ..base.memory import memory_fault
from ..base.native_library import library_fault
from .graph import OURS, without_function

Provider = Literal["cpu", "cuda"]
OLDEST = (1, 24)  # what older ones make of our graphs: docs/guides/consumers.md, "The oldest ONNX Runtime"
# For a cache of int8 with fixed scales. Seen: 1.24 refuses the graph, 1.25 and 1.26 fail at the first step, and 1.27
# gives other logits without a word.
OLDEST_FOR_SCALES = (1, 28)
_EXECUTION_PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],  # the CPU computes shapes
}


_REBUILD = (
    "`pip install --force-reinstall --no-deps pythia-export` brings that for this machine, in a clone `make kernels` "
    "(or `make cuda`) builds it; or delete it: the graph runs without."
)


@remembered
def onnxruntime() -> Any:
    """The module, imported on first use.

    Raises:
        EnvironmentProblem: no distribution of it, or two that overwrite each other's files; one that is broken, or
            older than our graphs need.
    """
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _is_installed(name)]
    if len(installed) == 2:
        raise EnvironmentProblem(
            "both onnxruntime and onnxruntime-gpu are installed; they write the same files, and which of the two runs "
            "depends on the order of installation",
            hint="pip uninstall -y onnxruntime onnxruntime-gpu, then pip install onnxruntime; or, for an NVIDIA GPU, "
            "pip install onnxruntime-gpu, which also runs on a CPU alone.",
        )
    name = installed[0] if installed else "onnxruntime"
    try:
        import onnxruntime
    except Exception as e:  # its own code runs, and libraries load: anything may be raised
        said = str(e).strip() or type(e).__name__
        raise EnvironmentProblem(f"ONNX Runtime cannot be imported: {said}", hint=f"pip install {name}") from e
    if not hasattr(onnxruntime, "InferenceSession"):  # what uninstalling one of the two leaves
        raise EnvironmentProblem(
            f"the installation of ONNX Runtime is broken: {', '.join(installed) or 'a folder without a package'}",
            hint=f"pip install --force-reinstall --no-deps {name}",
        )
    if _version(onnxruntime.__version__) < OLDEST:
        raise EnvironmentProblem(
            f"ONNX Runtime {onnxruntime.__version__} is installed; {'.'.join(map(str, OLDEST))} or newer is needed",
            hint=f"pip install --upgrade {name}",
        )
    return onnxruntime


def _version(text: str) -> tuple[int, ...]:
    """Major and minor number; of what has none, what passes for new: a build of someone's own."""
    parts = text.split(".")[:2]
    return tuple(map(int, parts)) if len(parts) == 2 and all(part.isdecimal() for part in parts) else OLDEST


def require_provider(provider: Provider, probe: bytes) -> None:
    """Open `probe`, a graph of any kind, on the provider: long work that ends in a session asks before it begins.

    Raises:
        EnvironmentProblem: the provider cannot be started here.
    """
    open_graph(onnxruntime(), probe, Path("check before the run"), None, provider, None)


def open_graph(
    ort: Any, graph: bytes, folder: Path, threads: int | None, provider: Provider, library: Path | None
) -> Any:
    if b"k_quant_type" in graph and _version(ort.__version__) < OLDEST_FOR_SCALES:
        raise EnvironmentProblem(
            f"{folder}: a cache of int8 with fixed scales needs ONNX Runtime 1.28 or newer; {ort.__version__} is "
            "installed",
            hint="pip install --upgrade onnxruntime, or export with --kv-cache float32.",
        )
    options = ort.SessionOptions()
    if library is not None:
        if fault := library_fault(library):
            raise EnvironmentProblem(f"{library} cannot be loaded: it {fault}", hint=_REBUILD)
        try:
            options.register_custom_ops_library(str(library))
        except Exception as e:
            raise EnvironmentProblem(
                f"{library} cannot be loaded: {e}",
                hint=_REBUILD,
            ) from e
        # Without its function the operator is the library's, or nobody's: never one and said to be the other.
        graph = without_function(graph, "RotaryAttention")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors; they are raised as well
    options.intra_op_num_threads = threads or _threads()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    said = _preload_cuda(ort) if provider == "cuda" else ""
    ort.set_default_logger_severity(4)  # a provider that fails to start is logged here, and raised below
    try:
        session = ort.InferenceSession(graph, options, providers=_EXECUTION_PROVIDERS[provider])
    except Exception as e:
        if type(e).__name__ == "NotImplemented":
            raise EnvironmentProblem(
                f"{folder}: ONNX Runtime {ort.__version__} on {provider} lacks a kernel: {e}"
            ) from e
        if library is not None and f"{OURS}:" in str(e) and "is not a registered function/op" in str(e):
            raise EnvironmentProblem(
                f"{library} registers no operator of ours with ONNX Runtime {ort.__version__}: {e}", hint=_REBUILD
            ) from e
        if library is not None and f"{OURS}::" in str(e):  # an operator of the library, with what it found and expected
            raise EnvironmentProblem(
                f"{library} does not run the graph of {folder}: {_of_operator(e)}",
                hint="kernels/README.md lists them; without the variable the best one is chosen."
                if "PYTHIA_KERNELS_ISA" in str(e)
                else f"A library that is older than the artifact says so. {_REBUILD}",
            ) from e
        if is_memory(e):
            raise ResourceError(
                f"{folder}: no memory to open the graph: {e}",
                hint="Close other programs, or use fewer bits, a smaller embedding or a smaller model.",
            ) from e
        raise IntegrityError(f"{folder}: ONNX Runtime {ort.__version__} refuses the graph: {e}") from e
    finally:
        ort.set_default_logger_severity(2)
    wanted = _EXECUTION_PROVIDERS[provider][0]
    if wanted not in session.get_providers():  # ONNX Runtime falls back to the CPU by itself, and we do not
        raise EnvironmentProblem(
            f"{folder}: this graph was to run on {wanted}, which could not be started; {said or 'no GPU was found'}",
            hint="Check `nvidia-smi`, the driver, and that onnxruntime-gpu with its CUDA and cuDNN libraries is "
            "installed; or choose the CPU explicitly.",
        )
    return session


def _of_operator(error: Exception) -> str:
    """Return what an operator of ours said, without ONNX Runtime's words before it."""
    return str(error)[str(error).index(f"{OURS}::") :]


def is_memory(error: Exception) -> bool:
    """Whether ONNX Runtime, which raises one class for many things, ran out of memory."""
    return memory_fault(error) is not None


def _preload_cuda(ort: Any) -> str:
    """Load CUDA and cuDNN from the nvidia-* wheels; return what it prints about those it cannot find.

    Raises:
        EnvironmentProblem: this build of ONNX Runtime has no CUDA.
    """
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise EnvironmentProblem(
            f"the graph targets CUDA, and this ONNX Runtime {ort.__version__} is built for "
            f"{', '.join(ort.get_available_providers())}",
            hint="pip uninstall -y onnxruntime, then pip install onnxruntime-gpu; or choose the CPU explicitly.",
        )
    printed = io.StringIO()
    with redirect_stdout(printed):
        ort.preload_dlls()
    return " ".join(printed.getvalue().split())


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _threads() -> int:
    """0 lets ONNX Runtime take every core. Where the process is confined to some, their number."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    mine = len(os.sched_getaffinity(0))
    return mine if mine < (os.cpu_count() or mine) else 0
