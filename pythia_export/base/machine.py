"""Where and with what something was made: package versions and the processor, for manifests, reports and benchmarks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

_PACKAGES = (
    *("pythia-export", "torch", "onnx", "onnxruntime-gpu", "onnxruntime"),
    *("numpy", "safetensors", "tokenizers", "huggingface_hub"),
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that affect an artifact."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """The processor's name and the number of cores that this process may use; no host name."""
    return f"{_processor()}, {cores()} cores"


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory_bytes() -> int:
    """The most memory this process has had resident so far.

    Linux's ru_maxrss also counts what a parent had resident when it forked, so a small process that a large one
    started would report the parent's peak; VmHWM starts anew.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def now() -> str:
    """Return the time, as records have it: UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
