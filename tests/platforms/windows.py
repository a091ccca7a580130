"""Run artifacts in ONNX Runtime's Windows build by examples/cpp/greedy.cc, with the library of the wheel, under wine.

    python tests/platforms/windows.py dist ZIG          (`make test-windows`, after `make wheels` and `make consumers`)

zig compiles the example for Windows against the DLL that onnxruntime-node brings. The tokens must be those of Linux,
with our library and without it. Debian has the emulator: wine64.
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
import onnxruntime
from written import CONFIG, ROOT, write_decoders

WINE = next(filter(None, map(shutil.which, ("wine64", "wine", "/usr/lib/wine/wine64"))), None)
CONSUMERS = ROOT / "build" / "consumers"
DLLS = CONSUMERS / "node_modules" / "onnxruntime-node" / "bin" / "napi-v6" / "win32" / "x64"
NEW = 8
# ONNX Runtime's header has annotations of Microsoft's compiler that MinGW's headers do not know.
ANNOTATIONS = ("-D_Return_type_success_(x)=", "-D_Frees_ptr_opt_=")


def expected(model: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Return each prompt's greedy continuation here, by whole texts: no cache, no padding, no library."""
    session, found = onnxruntime.InferenceSession(str(model)), []
    past = {
        x.name: np.zeros([1, x.shape[1], 0, x.shape[3]], "f")
        for x in session.get_inputs()
        if x.name.startswith("past_key_values")
    }
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(NEW):
            feeds = {
                "input_ids": np.array([ids]),
                "attention_mask": np.ones((1, len(ids)), np.int64),
                "position_ids": np.arange(len(ids))[None],
            }
            ids.append(int(session.run(["logits"], feeds | past)[0][0, -1].argmax()))
        found.append(ids[len(prompt) :])
    return found


def main(dist: Path, zig: str) -> None:
    wheels = sorted(dist.glob("pythia_export-*win_amd64.whl"))
    for there, missing in [
        (wheels, f"no wheel for Windows in {dist}: `make wheels`"),
        (WINE, "no emulator: Debian's wine64"),
        (DLLS.is_dir(), f"no ONNX Runtime for Windows in {DLLS}: `make consumers`"),
    ]:
        if not there:
            sys.exit(missing)
    prompts = [list(map(int, np.random.default_rng(n).integers(1, CONFIG.vocab_size, n))) for n in (3, 11, 7)]
    environment = os.environ | {"WINEDEBUG": "-all", "WINEPREFIX": str(ROOT / "build" / "wine")}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copytree(DLLS, folder, dirs_exist_ok=True)
        zipfile.ZipFile(wheels[-1]).extract("pythia_export/_kernels/pythia_kernels.dll", folder)
        shutil.move(folder / "pythia_export/_kernels/pythia_kernels.dll", folder)
        options = ["-target", "x86_64-windows-gnu", "-O1", "-std=c++17", *ANNOTATIONS, "-I", CONSUMERS / "include"]
        example = [ROOT / "examples" / "cpp" / "greedy.cc", "onnxruntime.dll", "-o", "greedy.exe"]
        subprocess.run([zig, "c++", *options, *example], check=True, cwd=folder)
        wrong = 0
        for name in write_decoders(folder):
            want = expected(folder / name / "model.onnx", prompts)
            for library in ([], ["pythia_kernels.dll"]):
                ran = subprocess.run(
                    [str(WINE), "greedy.exe", name, str(NEW), *library],
                    input="".join(" ".join(map(str, prompt)) + "\n" for prompt in prompts),
                    capture_output=True,
                    text=True,
                    cwd=folder,
                    env=environment,
                )
                got = [[int(word) for word in line.split()] for line in ran.stdout.splitlines()]
                wrong += got != want
                how = "our library" if library else "functions"
                print(
                    f"{'same' if got == want else 'OTHER'}  {name}, {how}: {got[0] if got else ran.stderr}", flush=True
                )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(Path(sys.argv[1]), os.path.abspath(sys.argv[2]))  # it is called in another folder
