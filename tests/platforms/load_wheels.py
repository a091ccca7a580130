"""Load the library of each wheel as its users' programs do, under an emulator where it is for another platform.

    python tests/platforms/load_wheels.py dist          (`make test-wheels`, after `make wheels`)

zig compiles host.c for the wheel's platform. What each library's beam computes must be, bit for bit, what the first one
computes. Debian has the emulators: qemu-user-static with libc6-arm64-cross, and wine64. What cannot run here is said.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "packaging"))

from wheels import PLATFORMS, zig  # noqa: E402

WINE = next(filter(None, map(shutil.which, ("wine64", "wine", "/usr/lib/wine/wine64"))), None)
QEMU = next(filter(None, map(shutil.which, ("qemu-aarch64-static", "qemu-aarch64"))), None)
ARM64 = Path("/usr/aarch64-linux-gnu")  # where Debian puts an arm64 C library
EXPECTED = 8  # operators, where a processor has what products need: of arm64 the dot product


def runner(name: str) -> tuple[list[str], str]:
    """Return what a program of a platform is run by, nothing for this machine's own; or else why it cannot be run."""
    if name == f"{platform.system().lower()}_{platform.machine().lower()}":
        return [], ""
    if name == "linux_aarch64" and QEMU and ARM64.is_dir():
        return [QEMU, "-L", str(ARM64)], ""
    if name == "windows_x86_64" and WINE and platform.machine() == "x86_64":
        return [WINE], ""
    wanted = {"linux_aarch64": "no qemu-aarch64 with an arm64 C library", "windows_x86_64": "no wine"}
    return [], wanted.get(name, "nothing here runs its programs")


def main(folder: Path) -> None:
    said: dict[str, list[str]] = {}
    for name, of in PLATFORMS.items():
        tag = of.tag.removeprefix("linux_")
        found = sorted(folder.glob(f"pythia_export-*{tag}.whl"))
        command, missing = runner(name)
        if not found or missing:
            print(f"skipped  {name}: {missing or f'no wheel in {folder}'}", flush=True)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            library = zipfile.ZipFile(found[-1]).extract(f"pythia_export/_kernels/{of.library}", scratch)
            host = Path(scratch) / "host.exe"
            subprocess.run([zig(), "cc", "-target", of.target, "-O1", "-o", host, Path(__file__).with_name("host.c")],
                           check=True)  # fmt: skip
            environment = os.environ | {"WINEDEBUG": "-all", "WINEPREFIX": str(ROOT / "build" / "wine")}
            line = [*command, str(host), library]
            ran = subprocess.run(line, capture_output=True, text=True, env=environment)
        said[name] = ran.stdout.splitlines()
        if ran.returncode or len(said[name]) != 3:
            sys.exit(f"{name}: the library could not be loaded: {ran.stdout}{ran.stderr}")
        operators = said[name][1].split()[1:]
        print(f"loaded   {name}: {said[name][0]}, {len(operators)} operators, {said[name][2]}", flush=True)
        if len(operators) != EXPECTED:
            sys.exit(f"{name}: registers {', '.join(operators)}")
    if not said:
        sys.exit(f"{folder}: no wheel that can be loaded here; `make wheels` builds them")
    if len({lines[2] for lines in said.values()}) > 1:
        sys.exit("the platforms' libraries round a block of weights differently")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
