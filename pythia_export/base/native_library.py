"""Where the native operators are: a library for ONNX Runtime, built from `kernels/`."""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
from collections.abc import Iterable
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
    foreign = sorted((here / "_kernels").glob(f"*{name}.*"))  # another system's: `library_fault` says so
    return foreign[0] if foreign else None


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
    if not size:
        return "is empty"
    made = _made_for(head)
    if made is None:
        return f"is no library ({_HEADER.get(sys.platform, 'no ELF header')})"
    here = ({"darwin": "macOS", "win32": "Windows"}.get(sys.platform, "Linux"), _PROCESSOR.get(platform.machine(), ""))
    if made[0] != here[0] or (here[1] and made[1] != here[1]):
        found, wanted = (f"{system} on {processor or 'another processor'}" for system, processor in (made, here))
        return f"is a library for {found}, and this is {wanted}"
    if here[0] != "Linux":
        return None
    if len(head) < 64 or head[4] != 2 or head[5] != 1:  # of 64 bits, the lowest byte first
        return "is no library for this machine"
    sections, entry, count = struct.unpack_from("<40xQ10xHH", head)
    end = sections + entry * count  # the table of sections lies at the end
    if end > size:
        return f"is cut short: {size:,} bytes, and its header tells of {end:,}"
    return None if any(tail) else "was not written to its end: it ends in zeros, as a copy that was interrupted does"


_HEADER = {"darwin": "no Mach-O header", "win32": "no PE header"}
_PROCESSOR = {"x86_64": "x86-64", "AMD64": "x86-64", "aarch64": "arm64", "arm64": "arm64", "ARM64": "arm64"}
_PROCESSOR |= {"riscv64": "riscv64", "ppc64le": "ppc64le", "s390x": "s390x"}
# e_machine: https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html
_ELF = {62: "x86-64", 183: "arm64", 243: "riscv64", 21: "ppc64le", 22: "s390x"}
# Machine: https://learn.microsoft.com/windows/win32/debug/pe-format#machine-types
_PE = {0x8664: "x86-64", 0xAA64: "arm64"}
# cputype, with CPU_ARCH_ABI64: <mach/machine.h>
_MACH_O = {0x01000007: "x86-64", 0x0100000C: "arm64"}


def _made_for(head: bytes) -> tuple[str, str] | None:
    """Return the system and the processor that a library's header names; None where it is no header of ours to know.

    A macOS library for several processors counts as one for this.
    """
    if head[:4] == b"\x7fELF":
        return "Linux", _ELF.get(int.from_bytes(head[18:20], "little"), "")
    if head[:4] == b"\xcf\xfa\xed\xfe":
        return "macOS", _MACH_O.get(int.from_bytes(head[4:8], "little"), "")
    if head[:4] == b"\xca\xfe\xba\xbe":
        return "macOS", _PROCESSOR.get(platform.machine(), "")
    at = int.from_bytes(head[0x3C:0x40], "little")
    if head[:2] == b"MZ" and head[at : at + 4] == b"PE\0\0":
        return "Windows", _PE.get(int.from_bytes(head[at + 4 : at + 6], "little"), "")
    return None


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


def unknown_to(library: Path, operators: Iterable[str]) -> list[str]:
    """Return those of `operators` that a library was built without: it is older than they are.

    The name of an operator is one of the strings in the library, so this tells of every library there has been. One
    that has no kernel for this processor knows the name all the same, and leaves the work to the graph's function.
    """
    held = library.read_bytes()
    return [name for name in operators if name.encode() + b"\0" not in held]
