"""Build the wheels of every platform on one machine, and look into each.

    python packaging/wheels.py --out dist [--platform linux_x86_64 ...]          (`make wheels`)

The kernels are a library for ONNX Runtime and know nothing of Python, so a platform has one wheel, `py3-none-PLATFORM`.
zig (`ziglang` on PyPI) is a C++ compiler with the headers and libraries of every platform in it: C++'s own library is
linked into ours, and what is left are the platform's C functions. On Linux auditwheel says which manylinux that is.

The package itself is built once, as plain Python; a platform's wheel is that one and its library. The demo's
checkpoints are four times as large as everything else, and have a wheel of their own, pythia-export-demo.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import lief

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 3_000_000  # bytes of a platform's wheel


@dataclass(frozen=True)
class Platform:
    """`target` is zig's name, `system` and `processor` are CMake's, `tag` the wheel's before auditwheel, `library` its
    file. `machine` is what the library's header must say, and `needs` all that it may load."""

    target: str
    system: str
    processor: str
    tag: str
    library: str
    machine: str
    needs: str


_GLIBC = r"lib(c|m|pthread|dl)\.so\.\d|ld-linux-[\w-]+\.so\.\d"
_WINDOWS = r"(?i)KERNEL32\.dll|ntdll\.dll|api-ms-win-crt-[\w-]+\.dll"
PLATFORMS = {
    "linux_x86_64": Platform(
        "x86_64-linux-gnu.2.17", "Linux", "x86_64", "linux_x86_64", "libpythia_kernels.so", "X86_64", _GLIBC
    ),
    "linux_aarch64": Platform(
        "aarch64-linux-gnu.2.17", "Linux", "aarch64", "linux_aarch64", "libpythia_kernels.so", "AARCH64", _GLIBC
    ),
    "macos_arm64": Platform(
        "aarch64-macos.11.0", "Darwin", "arm64", "macosx_11_0_arm64", "libpythia_kernels.dylib", "ARM64",
        r"/usr/lib/libSystem\.B\.dylib|@rpath/libpythia_kernels\.dylib",
    ),
    "windows_x86_64": Platform(
        "x86_64-windows-gnu", "Windows", "AMD64", "win_amd64", "pythia_kernels.dll", "AMD64", _WINDOWS
    ),
    "windows_arm64": Platform(
        "aarch64-windows-gnu", "Windows", "ARM64", "win_arm64", "pythia_kernels.dll", "ARM64", _WINDOWS
    ),
}  # fmt: skip
EXPORTED = {"RegisterCustomOps", "pythia_beam", "pythia_token", "pythia_version"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "wheels", help="where compilers work")
    parser.add_argument("--platform", action="append", choices=PLATFORMS, help="only this one")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        plain = built(ROOT, Path(scratch) / "plain", PYTHIA_EXPORT_PLAIN="1")
        for name in asked.platform or PLATFORMS:
            library = compiled(PLATFORMS[name], asked.build / name)
            require_right(library, PLATFORMS[name])
            wheel = assembled(plain, library, PLATFORMS[name], Path(scratch) / name)
            done = repaired(wheel, asked.out) if PLATFORMS[name].system == "Linux" else moved(wheel, asked.out)
            size = done.stat().st_size
            if size > LARGEST:
                sys.exit(f"{done.name}: {size:,} bytes, and {LARGEST:,} at most were expected")
            print(f"wheels  {done.name}  {size / 1e6:.2f} MB", flush=True)
        if asked.platform is None:
            print(f"wheels  {moved(built(ROOT / 'packaging' / 'demo', Path(scratch) / 'demo'), asked.out).name}")


def run(*line: str | Path, **environment: str) -> str:
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, line))}\n{done.stdout}{done.stderr}")
    return done.stdout


def built(source: Path, out: Path, **environment: str) -> Path:
    """Return the wheel that pip builds of a folder."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w", out, source,
        **environment)  # fmt: skip
    return next(out.glob("*.whl"))


def zig() -> Path:
    return Path(__import__("ziglang").__file__).parent / ("zig.exe" if os.name == "nt" else "zig")


def compiled(platform: Platform, build: Path) -> Path:
    """Return the library of a platform, compiled in `build` where it is not there as its sources are."""
    build.mkdir(parents=True, exist_ok=True)
    for tool in ("ar", "ranlib"):  # CMake takes a program, no command
        script = build / f"zig-{tool}"
        script.write_text(f'#!/bin/sh\nexec "{zig()}" {tool} "$@"\n')
        script.chmod(0o755)
    # Nothing of C++'s library is seen outside ours: another one may be in the process.
    hidden = f",--version-script={ROOT / 'packaging' / 'exported.map'}" if platform.system == "Linux" else ""
    run("cmake", "-S", ROOT / "kernels", "-B", build, "-G", "Ninja", f"-DCMAKE_CXX_COMPILER={zig()};c++",
        f"-DCMAKE_CXX_COMPILER_TARGET={platform.target}", f"-DCMAKE_SYSTEM_NAME={platform.system}",
        f"-DCMAKE_SYSTEM_PROCESSOR={platform.processor}", f"-DCMAKE_AR={build}/zig-ar",
        f"-DCMAKE_RANLIB={build}/zig-ranlib", f"-DCMAKE_SHARED_LINKER_FLAGS=-Wl,-s{hidden}")  # fmt: skip
    run("cmake", "--build", build, "--target", "pythia_kernels")
    return build / platform.library


def require_right(library: Path, platform: Platform) -> None:
    """End unless a library is for its processor, exports what we call, and loads nothing but the platform's own."""
    read = lief.parse(str(library))
    machine = read.header.cpu_type if platform.system == "Darwin" else (
        read.header.machine_type if platform.system == "Linux" else read.header.machine
    )  # fmt: skip
    if platform.system == "Windows":
        exported = {entry.name for entry in read.get_export().entries}
        needs = {entry.name for entry in read.imports}
    else:
        exported = {str(symbol.name).removeprefix("_" if platform.system == "Darwin" else "") for symbol in
                    read.exported_symbols if symbol.name}  # fmt: skip
        needs = {getattr(entry, "name", entry) for entry in read.libraries}
    faults = [f"is for {machine.name}, not {platform.machine}"] if machine.name != platform.machine else []
    faults += [f"does not export {name}" for name in sorted(EXPORTED - exported)]
    faults += [f"loads {name}" for name in sorted(needs) if not re.fullmatch(platform.needs, name)]
    if platform.system == "Darwin":
        faults += macos_faults(read, library.read_bytes())
    if faults:
        sys.exit(f"{library} {', and '.join(faults)}")


def macos_faults(read: lief.MachO.Binary, image: bytes) -> list[str]:
    """Return why macOS on arm64 would not load a library: it is for a newer system, or its signature does not hold.

    There a library must be signed, by nobody in particular ("ad hoc") at least: a hash of each of its pages. What is
    changed after the linker, stripped for example, is killed where it is read. Apple's cs_blobs.h has the layout.
    """
    faults = []
    oldest = read.build_version.minos if read.build_version else None
    if oldest != [11, 0, 0]:
        faults.append(f"is for macOS {oldest}, and its wheel's tag says 11.0")
    if not read.has_code_signature:
        return [*faults, "is not signed"]
    place = read.code_signature.data_offset
    blob = image[place : place + read.code_signature.data_size]
    count = struct.unpack_from(">I", blob, 8)[0]
    entries = [struct.unpack_from(">II", blob, 12 + 8 * i) for i in range(count)]
    at = next((offset for kind, offset in entries if kind == 0), None)  # CSSLOT_CODEDIRECTORY
    if at is None:
        return [*faults, "is signed without a directory of its pages"]
    flags, hashes = struct.unpack_from(">II", blob, at + 12)
    pages, limit, width, kind, _, shift = struct.unpack_from(">IIBBBB", blob, at + 28)
    if not flags & 2:  # CS_ADHOC
        faults.append(f"is not signed ad hoc (flags {flags:#x})")
    if (width, kind) != (32, 2) or limit != place:
        return [*faults, f"has a signature of {limit} bytes of {place}, with hashes of kind {kind}"]
    size = 1 << shift
    for page in range(pages):
        stored = blob[at + hashes + 32 * page :][:32]
        if stored != hashlib.sha256(image[page * size : min(limit, (page + 1) * size)]).digest():
            faults.append(f"was changed after it was signed, in page {page}")
    return faults


def assembled(plain: Path, library: Path, platform: Platform, scratch: Path) -> Path:
    """Return a platform's wheel: the plain one, its library, and a bill of what is linked into that (PEP 770)."""
    run(sys.executable, "-m", "wheel", "unpack", plain, "-d", scratch)
    folder = next(scratch.iterdir())
    info = next(folder.glob("*.dist-info"))
    (folder / "pythia_export" / "_kernels").mkdir()
    shutil.copy(library, folder / "pythia_export" / "_kernels")
    described = (info / "WHEEL").read_text().replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
    (info / "WHEEL").write_text(described.replace("py3-none-any", f"py3-none-{platform.tag}"))
    (info / "sboms").mkdir()
    (info / "sboms" / "kernels.cdx.json").write_text(json.dumps(bill(platform), indent=1) + "\n")
    run(sys.executable, "-m", "wheel", "pack", folder, "-d", scratch)
    return next(scratch.glob("*.whl"))


def bill(platform: Platform) -> dict[str, object]:
    """What of others is in the library, as CycloneDX: auditwheel lists what it copies, and it copies nothing here."""
    from importlib.metadata import version

    of_zig = version("ziglang")
    names = ["libc++", "libc++abi", "libunwind", *(["mingw-w64"] if platform.system == "Windows" else [])]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "library", "name": platform.library, "bom-ref": "kernels"},
            "tools": {"components": [{"type": "application", "name": "zig", "version": of_zig}]},
        },
        "components": [
            {"type": "library", "name": name, "version": f"as in zig {of_zig}", "bom-ref": name, "scope": "required"}
            for name in [*names, "compiler-rt (zig's)"]
        ],
    }


def repaired(wheel: Path, out: Path) -> Path:
    """Return the wheel under the manylinux tag that auditwheel finds it keeps."""
    before = set(out.iterdir())
    run(sys.executable, "-m", "auditwheel", "repair", "-w", out, wheel,
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # fmt: skip
    return next(iter(set(out.iterdir()) - before), None) or max(out.glob("*manylinux*"), key=os.path.getmtime)


def moved(wheel: Path, out: Path) -> Path:
    return Path(shutil.move(wheel, out / wheel.name))


if __name__ == "__main__":
    main()
