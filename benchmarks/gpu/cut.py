"""Cut what a machine with a GPU has to be brought into parts (pack.sh calls this; unpack.py puts them together there).

    python benchmarks/gpu/cut.py WHEELS PACK LIBRARY... --room MIB

PACK/first has the packages of the wheels but for ONNX Runtime's CUDA provider, the kernels' libraries, and
`parts.json`: the hashes of what comes out of them and of all pieces. PACK/piece-1 and so on are the provider,
compressed and cut. Paths of libraries are as the checkout has them.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import json
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
UNUSED = "onnxruntime/capi/libonnxruntime_providers_tensorrt.so"
PACKAGES, KERNELS = "packages.tar.xz", "kernels.tar.xz"
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path)
    parser.add_argument("pack", type=Path)
    parser.add_argument("libraries", type=Path, nargs="+")
    parser.add_argument("--room", type=float, required=True, help="MiB of one transfer, the checkout included")
    args = parser.parse_args()
    room = int((args.room - checkout_mib()) * MIB)
    print(f"pack    a transfer has {room / MIB:.1f} MiB of room beside the checkout")
    first = args.pack / "first"
    with tempfile.TemporaryDirectory(dir=args.pack) as scratch:
        site, provider = Path(scratch) / "site", Path(scratch) / "provider"
        for wheel in sorted(args.wheels.glob("*.whl")):
            zipfile.ZipFile(wheel).extractall(site)
        (site / UNUSED).unlink()
        (site / PROVIDER).rename(provider)
        with tarfile.open(first / PACKAGES, "w:xz") as packages:
            packages.add(site, ".")
        with tarfile.open(first / KERNELS, "w:xz") as kernels:
            for library in args.libraries:
                kernels.add(library)
        print("pack    compressing ONNX Runtime's CUDA provider (minutes)", flush=True)
        subprocess.run(["xz", "--threads=0", provider], check=True)
        compressed = provider.with_suffix(".xz")
        names = cut(compressed, args.pack, room)
        parts = {
            "provider": {"path": PROVIDER, "sha256": sha256_in_wheel(site, PROVIDER)},
            "kernels": {str(library): file_sha256(library) for library in args.libraries},
            "pieces": {name: file_sha256(args.pack / name) for name in names},
        }
    (first / "parts.json").write_text(json.dumps(parts, indent=2) + "\n")
    sizes = {"first": sum(file.stat().st_size for file in first.iterdir())}
    sizes |= {name: (args.pack / name).stat().st_size for name in names}
    for name, size in sizes.items():
        print(f"pack    {args.pack / name}: {size / MIB:.1f} MiB")
    if max(sizes.values()) > room:
        raise SystemExit(f"pack    a part is larger than the {room / MIB:.1f} MiB that a transfer has room for")


def cut(file: Path, folder: Path, room: int) -> list[str]:
    """Pieces of `file` as equal as can be, none larger than `room` bytes; return their names."""
    size = file.stat().st_size
    count = -(-size // room)
    each, names = -(-size // count), []
    with file.open("rb") as source:
        for i in range(count):
            names.append(f"piece-{i + 1}")
            (folder / names[-1]).write_bytes(source.read(each))
    return names


def checkout_mib() -> float:
    """What git tracks, as it travels."""
    listed = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True).stdout.decode().split("\0")
    return sum(Path(name).stat().st_size for name in listed if name) / MIB


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_in_wheel(site: Path, path: str) -> str:
    """The hash that a wheel records of one of its files, in hexadecimal (RECORD has base64, PEP 376)."""
    for record in site.glob("*.dist-info/RECORD"):
        for name, digest, _ in csv.reader(record.read_text().splitlines()):
            if name == path:
                return base64.urlsafe_b64decode(digest.removeprefix("sha256=") + "==").hex()
    raise SystemExit(f"no wheel records {path}")


if __name__ == "__main__":
    main()
