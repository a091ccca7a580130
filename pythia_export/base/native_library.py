"""Where the native operators are: a library for ONNX Runtime, built from `kernels/`."""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
from pathlib import Path
from typing import Literal

_FORM = {"darwin": "lib{}.dylib", "win32": "{}.dll"}.get(sys.platform, "lib{}.so")
# By what computes: the library's name, and the folder under build/ of a checkout.
_BUILT = {"cpu": ("pythia_kernels", "kernels"), "cuda": ("pythia_cuda", "kernels-cuda")}


def kernels_path(provider: Literal["cpu", "cuda"] = "cpu") -> Path | None:
    """Return the library to register with ONNX Runtime (`register_custom_ops_library`); None where it was not built.

    It is in this package, or in `build` of the checkout. Any program that runs ONNX Runtime can load it. That for
    `cuda` (`make cuda`) has the operators for GPU and CPU.
    """
    name, folder = _BUILT[provider]
    here = Path(__file__).parent.parent  # the package
    for place in (here / "_kernels", here.parent / "build" / folder):
        if (place / _FORM.format(name)).is_file():
            return place / _FORM.format(name)
    return None


def library_fault(path: Path) -> str | None:
    """What is wrong with a native library, in words that follow its name; None where nothing was found.

    To load a library that is cut short ends the process (SIGBUS), so its header is compared with its size before.
    """
    try:
        with path.open("rb") as file:
            head, size = file.read(4096), file.seek(0, 2)
            file.seek(max(0, size - 4096))
            tail = file.read(4096)
    except OSError as e:
        return f"cannot be read: {e.strerror}"
    if sys.platform == "darwin":
        whole = head[:4] in (b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
        return None if whole else "is no library for macOS"
    if sys.platform == "win32":
        return None if head[:2] == b"MZ" else "is no library for Windows"
    if head[:4] != b"\x7fELF":
        return "is empty" if not size else "is no library (no ELF header)"
    if len(head) < 64 or head[4] != 2 or head[5] != 1:  # of 64 bits, the lowest byte first
        return "is no library for this machine"
    machine, sections, entry, count = struct.unpack_from("<18xH20xQ10xHH", head)
    wanted = _ELF_MACHINE.get(platform.machine())
    if wanted is not None and machine != wanted:
        return f"is a library for another processor than {platform.machine()}"
    end = sections + entry * count  # the table of sections lies at the end
    if end > size:
        return f"is cut short: {size:,} bytes, and its header tells of {end:,}"
    return None if any(tail) else "was not written to its end: it ends in zeros, as a copy that was interrupted does"


# https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html, e_machine
_ELF_MACHINE = {"x86_64": 62, "aarch64": 183, "riscv64": 243, "ppc64le": 21, "s390x": 22}


def instruction_set(library: Path) -> str | None:
    """Which of its versions a library runs on this processor, `avx2` or `neon`; None where it cannot be loaded, or
    where PYTHIA_KERNELS_ISA names a version that does not run here."""
    if library_fault(library) is not None:
        return None
    try:
        version = ctypes.CDLL(str(library)).pythia_version
    except (OSError, AttributeError):
        return None
    version.restype = ctypes.c_char_p
    name: bytes | None = version()
    return None if name is None else name.decode()
