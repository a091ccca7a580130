"""Run artifacts in ONNX Runtime's own arm64 build, with the library of the arm64 wheel, under an emulator.

    python tests/platforms/arm64.py dist          (`make test-arm`, after `make wheels`)

Debian's Python for arm64 and the arm64 wheels of onnxruntime and numpy are unpacked into build/arm64; nothing is
installed. Products must have the bits that AVX2 gives here: they make the same sums in the same order. Attention does
not, so logits are compared. The emulator (Debian's qemu-user-static) says nothing of speed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from written import CONFIG, ROOT, write_decoders, write_products

from native import LIBRARY  # isort: skip
from test_decoder_layers import BATCH, LENGTH, MASK, PROMPT  # isort: skip

QEMU = next(filter(None, map(shutil.which, ("qemu-aarch64-static", "qemu-aarch64"))), None)
PLACE = ROOT / "build" / "arm64"
PACKAGES = (
    "libc6", "libgcc-s1", "libstdc++6", "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib",
    "zlib1g", "libssl3", "libexpat1", "libbz2-1.0", "liblzma5", "libffi8", "libuuid1", "libcrypt1",
)  # fmt: skip
WHEELS = ("onnxruntime==1.32.0", "numpy==2.4.6", "flatbuffers", "packaging", "protobuf", "sympy", "mpmath")
# Of logits, relative to the largest. Where activations are rounded to int8, a last bit can move one by a whole step.
BOUNDS = {0: 1e-5, 4: 2e-2}
# ONNX Runtime reads what a processor can do from here, and a kernel of another processor answers. A Neoverse N1.
FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs"
CPUINFO = f"""processor\t: 0
Features\t: {FEATURES}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""


def prepared() -> None:
    """Unpack an arm64 Python with ONNX Runtime."""
    if (PLACE / "done").exists():
        return
    shutil.rmtree(PLACE, ignore_errors=True)
    for folder in ("apt/state/lists/partial", "apt/cache/archives/partial", "debs", "root", "wheels", "site"):
        (PLACE / folder).mkdir(parents=True)
    # Debian's lists for arm64, in a folder of their own: what this machine installs stays as it is.
    settings = (
        "APT::Architecture=arm64", "APT::Architectures=arm64", "APT::Sandbox::User=root",
        "Dir::State::status=/dev/null", f"Dir::State={PLACE}/apt/state", f"Dir::Cache={PLACE}/apt/cache",
    )  # fmt: skip
    apt = ["apt-get", "-qq", *(f"-o{setting}" for setting in settings)]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *PACKAGES], check=True, cwd=PLACE / "debs")
    for package in (PLACE / "debs").glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, PLACE / "root"], check=True)
    platforms = [f"--platform=manylinux_2_{glibc}_aarch64" for glibc in (17, 27, 28)] + [
        "--platform=manylinux2014_aarch64"
    ]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *platforms,
                    "--python-version=3.11", "-d", PLACE / "wheels", *WHEELS], check=True)  # fmt: skip
    for wheel in (PLACE / "wheels").glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(PLACE / "site")
    for file, text in {
        "proc/cpuinfo": CPUINFO,
        "sys/devices/system/cpu/possible": "0\n",
        "sys/devices/system/cpu/present": "0\n",
    }.items():
        (PLACE / "root" / file).parent.mkdir(parents=True, exist_ok=True)
        (PLACE / "root" / file).write_text(text)
    (PLACE / "done").touch()


def answers(python: list[str], library: Path, folder: Path, **environment: str) -> dict[str, np.ndarray]:
    out = folder / "answers.npz"
    line = [*python, Path(__file__).with_name("run_models.py"), library, folder, out]
    ran = subprocess.run(line, env=os.environ | environment, capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"{' '.join(map(str, line))}\n{ran.stdout}{ran.stderr}")
    print(f"ran      {python[-1]}: {ran.stdout.strip()}", flush=True)
    return dict(np.load(out))


def main(dist: Path) -> None:
    wheels = sorted(dist.glob("pythia_export-*aarch64.whl"))
    if not wheels or not QEMU:
        sys.exit(f"no wheel for arm64 in {dist}: `make wheels`" if QEMU else "no emulator: Debian's qemu-user-static")
    prepared()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "models"
        folder.mkdir()
        write_products(folder)
        levels = write_decoders(folder)
        ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (BATCH, LENGTH))
        for name in levels:
            np.savez(folder / name / "text.npz", ids=ids, mask=MASK, prompt=PROMPT)
        library = zipfile.ZipFile(wheels[-1]).extract("pythia_export/_kernels/libpythia_kernels.so", scratch)
        here = answers([sys.executable], LIBRARY, folder, PYTHIA_KERNELS_ISA="avx2")
        emulated = [QEMU, "-cpu", "max", "-L", str(PLACE / "root"), str(PLACE / "root/usr/bin/python3.11")]
        there = answers(emulated, Path(library), folder, PYTHONPATH=str(PLACE / "site"), PYTHIA_KERNELS_ISA="neondot")
    faults = []
    for name, want in here.items():
        got, level = there[name], levels.get(name)
        if level is None and got.tobytes() != want.tobytes():
            faults.append(f"{name}: other bits than AVX2's, {np.abs(got - want).max():.2g} apart")
        if level is None:
            continue
        seen = MASK.astype(bool)
        apart = float(np.abs(got - want)[seen].max() / np.abs(want[seen]).max())
        print(f"         {name}: {apart:.1g} apart")
        if not apart <= BOUNDS[level]:
            faults.append(f"{name}: logits {apart:.2g} apart, and {BOUNDS[level]} at most were expected")
    print(f"         {len(here) - len(levels)} products with AVX2's bits" if not faults else "\n".join(faults))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
