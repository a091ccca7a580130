"""What is there: the GPU, CUDA, torch, ONNX Runtime, the kernels, room; and what of it later steps can rely on."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from bench import ROOT, Bench
from cuda_kernels import emulated_library
from plan import FORKS, GPU, LIBRARY, PRELOADED, SESSIONS

from pythia_export.base.machine import machine, versions
from pythia_export.base.native_library import kernels_path, library_fault

OLDEST_GPU = (8, 0)  # kernels/CMakeLists.txt builds for 80 and 90, and what comes after
_LIBRARIES = re.compile(r"/\S*/lib(?:cudnn|cublas|cublasLt|cudart|cufft|curand|nvrtc)\.so\S*")


def look(bench: Bench) -> None:
    """Print what is found, and check what the steps assume."""
    bench.say("commit", _commit())
    bench.say(
        "machine", f"{machine()}, {_memory()} of memory, {shutil.disk_usage(bench.out).free / 1e9:.0f} GB of disk"
    )
    bench.say("packages", ", ".join(f"{name} {version}" for name, version in versions().items()))
    bench.has(FORKS, _forks())
    bench.has(GPU, _gpu(bench))
    bench.has(LIBRARY, _kernels(bench))
    bench.has(SESSIONS, _sessions(bench))
    bench.say("nvcc", _printed("nvcc", "--version") or "none")
    bench.say("compute-sanitizer", shutil.which("compute-sanitizer") or "none")


def library(bench: Bench) -> None:
    """Build the kernels where those that were brought do not load: of another C library, say."""
    if not bench.journal.has(LIBRARY):
        emulated_library() if bench.dry else _build()
    there = _kernels(bench)
    bench.check("the kernels load", there)
    bench.has(LIBRARY, there)


def _build() -> None:
    build, (major, minor) = ROOT / "build" / "kernels-here", torch.cuda.get_device_capability()
    options = ["-DPYTHIA_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={major}{minor}-real"]
    subprocess.run(["cmake", "-S", ROOT / "kernels", "-B", build, *options], check=True)
    subprocess.run(["cmake", "--build", build, "--parallel"], check=True)
    for folder, name in (("kernels-cuda", "libpythia_cuda.so"), ("kernels", "libpythia_kernels.so")):
        (ROOT / "build" / folder).mkdir(exist_ok=True)
        shutil.copy2(build / name, ROOT / "build" / folder)


def probe(bench: Bench) -> None:
    """Whether the GPU still answers, after a step that did not end by itself."""
    with bench.computing() as device:
        bench.check("a sum on it", torch.ones(1000, device=device).sum().item() == 1000)
    bench.has(GPU, True)


def _gpu(bench: Bench) -> bool:
    if bench.dry:
        bench.say("GPU", "emulated")
        return True
    if not torch.cuda.is_available():
        bench.check("torch reaches a GPU", False, f"torch {torch.__version__} of CUDA {torch.version.cuda}")
        return False
    properties, capability = torch.cuda.get_device_properties(0), torch.cuda.get_device_capability()
    bench.say(
        "GPU", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {properties.multi_processor_count} SMs"
    )
    bench.check(f"compute capability is {OLDEST_GPU} or newer", capability >= OLDEST_GPU, str(capability))
    driver = _printed(
        "nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,clocks.max.memory", "--format=csv,noheader"
    )
    bench.say("driver", driver or "nvidia-smi prints nothing")
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    cuda = torch.version.cuda or "0"
    bench.check(
        f"the driver knows CUDA {cuda.split('.')[0]}", version.value // 1000 >= int(cuda.split(".")[0]), version.value
    )
    bench.check("a sum on it", torch.ones(1000, device="cuda").sum().item() == 1000)
    return True


def _kernels(bench: Bench) -> bool:
    """Whether both libraries load: the CPU's is what the GPU's is compared with."""
    return all([_loads(bench, bench.library(), "pythia_cuda_attend"), _loads(bench, kernels_path(), "pythia_beam")])


def _loads(bench: Bench, path: Path | None, symbol: str) -> bool:
    if path is None or not path.is_file():
        bench.say(f"kernels with {symbol}", "not built")
        return False
    try:
        if fault := library_fault(path):
            raise OSError(f"it {fault}")
        getattr(ctypes.CDLL(str(path)), symbol)
    except (OSError, AttributeError) as e:
        bench.say(f"kernels with {symbol}", f"{path.name} does not load: {e}")
        return False
    bench.say(f"kernels with {symbol}", f"{path.name}, {path.stat().st_size / 1e6:.0f} MB")
    return True


def _sessions(bench: Bench) -> bool:
    """ONNX Runtime's CUDA provider: is it whole, of torch's CUDA, and where do its libraries come from?"""
    import onnxruntime
    from onnxruntime.capi import build_and_package_info as built

    folder = Path(onnxruntime.__file__).parent / "capi"
    provider = folder / "libonnxruntime_providers_cuda.so"
    bench.say(
        "ONNX Runtime",
        f"{built.package_name} {onnxruntime.__version__} of CUDA {getattr(built, 'cuda_version', 'none')}",
    )
    if bench.dry:
        bench.say("its CUDA provider", "the CPU's stands for it")
        return True
    if not provider.is_file():
        bench.say("its CUDA provider", "not there: `pip uninstall -y onnxruntime`, then `pip install onnxruntime-gpu`")
        return False
    bench.say("its CUDA provider", f"{provider.stat().st_size / 1e6:.0f} MB")
    wanted, found = str(built.cuda_version).split(".")[0], str(torch.version.cuda).split(".")[0]
    bench.check("it is built for torch's CUDA", wanted == found, f"{wanted} and {found}")
    onnxruntime.preload_dlls()
    loaded = sorted(set(_LIBRARIES.findall(Path("/proc/self/maps").read_text())))
    bench.say("CUDA's libraries that it will find loaded", ", ".join(loaded) or "none")
    bench.check("cuDNN is among them", any("libcudnn" in name for name in loaded))
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(provider))
    except OSError as e:
        bench.check("its CUDA provider loads", False, str(e))
        return False
    return True


def _forks() -> bool:
    """Whether a process that has imported what steps import can fork: the driver's state does not survive that."""
    code = f"import {', '.join(PRELOADED)}; print('libcuda.so' in open('/proc/self/maps').read())"
    return _printed(sys.executable, "-c", code) == "False"


def _commit() -> str:
    said = ROOT / "build" / "gpu-pack" / "first" / "commit"
    here = _printed("git", "-C", str(ROOT), "rev-parse", "HEAD")
    return here or (said.read_text().strip() if said.is_file() else "unknown")


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def _printed(*command: str) -> str:
    """The last line that a command prints; empty where there is none such, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.strip().splitlines()
    return lines[-1] if done.returncode == 0 and lines else ""
