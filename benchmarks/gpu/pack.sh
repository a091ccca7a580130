#!/usr/bin/env bash
# Make build/gpu-pack: what a machine with a GPU and no network has to be brought, in parts that each fit one transfer.
#
#   benchmarks/gpu/pack.sh [PYTHON]   PYTHON: the version there, 3.12 if it is not given
#
# ROOM_MIB (62) is what one transfer takes, the checkout included. README.md beside this file says how the parts travel.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${1:-3.12} room=${ROOM_MIB:-62} pack=build/gpu-pack wheels=build/gpu-wheels

make kernels cuda
rm -rf "$pack" "$wheels"
mkdir -p "$pack/first" "$wheels"
platforms=()
for libc in 28 27 17; do platforms+=(--platform "manylinux_2_${libc}_x86_64"); done
echo "pack    wheels for Python $python into $wheels"
.venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
	--python-version "$python" --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
	--constraint constraints.txt --dest "$wheels" --requirement benchmarks/gpu/wheels.txt
git rev-parse HEAD >"$pack/first/commit"
.venv/bin/python benchmarks/gpu/cut.py "$wheels" "$pack" --room "$room" \
	build/kernels-cuda/libpythia_cuda.so build/kernels/libpythia_kernels.so
