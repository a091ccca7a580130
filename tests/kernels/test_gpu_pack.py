"""What a machine with a GPU is brought: cut into parts by benchmarks/gpu/cut.py, put together by unpack.py."""

from __future__ import annotations

import base64
import hashlib
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from places import ROOT

GPU = ROOT / "benchmarks" / "gpu"
sys.path.append(str(GPU))
import cut  # noqa: E402

KERNELS = "build/kernels-cuda/libpythia_cuda.so"
PROVIDER, LIBRARY = random.Random(0).randbytes(300_000), random.Random(1).randbytes(1000)


@pytest.fixture
def there(tmp_path) -> Path:
    """A checkout on the machine, as it is before anything is brought."""
    (tmp_path / "there" / "benchmarks" / "gpu").mkdir(parents=True)
    shutil.copy(GPU / "unpack.py", tmp_path / "there" / "benchmarks" / "gpu")
    return tmp_path / "there"


@pytest.fixture
def pack(tmp_path) -> Path:
    wheels, pack, here = tmp_path / "wheels", tmp_path / "pack", tmp_path / "here"
    wheels.mkdir()
    (pack / "first").mkdir(parents=True)
    (here / KERNELS).parent.mkdir(parents=True)
    (here / KERNELS).write_bytes(LIBRARY)
    subprocess.run(["git", "init", "--quiet", here], check=True)
    digest = base64.urlsafe_b64encode(hashlib.sha256(PROVIDER).digest()).decode().rstrip("=")
    with zipfile.ZipFile(wheels / "onnxruntime_gpu-9.9-py3-none-any.whl", "w") as wheel:
        wheel.writestr(cut.PROVIDER, PROVIDER)
        wheel.writestr(cut.UNUSED, b"not wanted")
        wheel.writestr("onnxruntime/__init__.py", "brought = True\n")
        wheel.writestr(
            "onnxruntime_gpu-9.9.dist-info/METADATA", "Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 9.9\n"
        )
        wheel.writestr("onnxruntime_gpu-9.9.dist-info/RECORD", f"{cut.PROVIDER},sha256={digest},{len(PROVIDER)}\n")
    room = str(120_000 / cut.MIB)  # nothing is tracked here
    subprocess.run([sys.executable, GPU / "cut.py", wheels, pack, KERNELS, "--room", room], check=True, cwd=here)
    return pack


def unpack(there: Path, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, there / "benchmarks" / "gpu" / "unpack.py"], capture_output=True, text=True, cwd=there
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_parts_come_one_by_one_and_the_provider_is_whole_when_all_are_there(there, pack):
    at, pieces = there / "build" / "gpu-pack", ["piece-1", "piece-2", "piece-3"]
    assert sorted(path.name for path in pack.iterdir()) == ["first", *pieces]
    assert max((pack / name).stat().st_size for name in pieces) <= 120_000
    shutil.copytree(pack / "first", at / "first")
    assert "waits for piece-1, piece-2, piece-3" in unpack(there)
    assert (there / KERNELS).read_bytes() == LIBRARY
    code = (
        "import onnxruntime, torch, importlib.metadata as m; print(onnxruntime.brought, m.version('onnxruntime-gpu'))"
    )
    python = there / "build" / "gpu-env" / "bin" / "python"
    assert subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout == "True 9.9\n"
    for name in pieces[1:]:
        shutil.copy(pack / name, at)
    assert "waits for piece-1\n" in unpack(there)

    (at / "piece-1").write_bytes((pack / "piece-1").read_bytes()[:-1] + b"?")
    assert "piece-1 is damaged" in unpack(there, code=1)
    shutil.copy(pack / "piece-1", at)
    assert "its hash is the wheel's" in unpack(there)
    (found,) = (there / "build" / "gpu-env").rglob("libonnxruntime_providers_cuda.so")
    assert found.read_bytes() == PROVIDER
    assert "is in its place" in unpack(there)
