"""A library of another system or processor, as a wheel for it brings, is told by its header and never loaded."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from pythia_export.base import native_library
from pythia_export.base.native_library import kernels_path, library_fault


def elf(machine: int) -> bytes:
    return b"\x7fELF\x02\x01\x01".ljust(18, b"\0") + struct.pack("<H", machine) + bytes(100)


def mach_o(processor: int) -> bytes:
    return b"\xcf\xfa\xed\xfe" + struct.pack("<I", processor) + bytes(100)


def pe(machine: int) -> bytes:
    return b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x80) + bytes(0x40) + b"PE\0\0" + struct.pack("<H", machine)


@pytest.mark.parametrize(
    ("system", "processor", "data", "said"),
    [
        ("linux", "x86_64", elf(183), "is a library for Linux on arm64, and this is Linux on x86-64"),
        ("linux", "aarch64", elf(62), "is a library for Linux on x86-64, and this is Linux on arm64"),
        ("linux", "x86_64", elf(8), "is a library for Linux on another processor, and this is Linux on x86-64"),
        ("linux", "x86_64", pe(0x8664), "is a library for Windows on x86-64, and this is Linux on x86-64"),
        ("linux", "aarch64", mach_o(0x0100000C), "is a library for macOS on arm64, and this is Linux on arm64"),
        ("darwin", "x86_64", mach_o(0x0100000C), "is a library for macOS on arm64, and this is macOS on x86-64"),
        ("darwin", "arm64", mach_o(0x0100000C), None),
        ("win32", "AMD64", pe(0xAA64), "is a library for Windows on arm64, and this is Windows on x86-64"),
        ("win32", "AMD64", pe(0x8664), None),
        ("win32", "ARM64", b"MZ" + bytes(70), "is no library (no PE header)"),
        ("darwin", "arm64", b"text", "is no library (no Mach-O header)"),
        ("linux", "x86_64", b"", "is empty"),
    ],
)
def test_a_library_for_another_machine_is_told(system, processor, data, said, tmp_path, monkeypatch):
    path = tmp_path / "library"
    path.write_bytes(data)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("platform.machine", lambda: processor)
    assert library_fault(path) == said


def test_a_wheel_for_another_system_is_not_taken_for_one_without_kernels(tmp_path, monkeypatch):
    package = tmp_path / "pythia_export"
    (package / "base").mkdir(parents=True)
    monkeypatch.setattr(native_library, "__file__", str(package / "base" / "native_library.py"))
    assert kernels_path() is None
    (package / "_kernels").mkdir()
    foreign = package / "_kernels" / ("pythia_kernels.dll" if sys.platform != "win32" else "libpythia_kernels.so")
    foreign.write_bytes(pe(0x8664))
    assert kernels_path() == foreign and library_fault(Path(foreign))
    own = package / "_kernels" / native_library._FORM.format("pythia_kernels")
    own.touch()
    assert kernels_path() == own
