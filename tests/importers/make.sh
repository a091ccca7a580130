#!/usr/bin/env bash
# Quantise a small checkpoint with each quantiser, in environments of their own, for tests/end_to_end/test_import_libraries.py:
# FOLDER PYTHON OURS, where OURS is the interpreter that has this project. What was made before is kept.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
mkdir -p "$1/made" && folder="$(cd "$1" && pwd)" python="$2" ours="$3"

[ -f "$folder/tiny/config.json" ] || "$ours" "$here/make_tiny.py" "$folder/tiny"
for tool in compressed-tensors autoround gptqmodel; do
    venv="$folder/venv-$tool" wanted="$here/requirements-$tool.txt"
    if ! cmp -s "$wanted" "$venv/.installed"; then
        echo "importers  installing $tool into $venv"
        rm -rf "$venv" && "$python" -m venv "$venv"
        install=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
        "${install[@]}" 'torch<2.14' setuptools wheel ninja pybind11
        BUILD_CUDA_EXT=0 "${install[@]}" --no-build-isolation -r "$wanted"
        cp "$wanted" "$venv/.installed"
    fi
    script="$here/make_${tool//-/_}.py"
    cmp -s "$script" "$folder/made/$tool/made-by.py" && continue
    echo "importers  quantising with $tool"
    rm -rf "$folder/made/$tool" && mkdir -p "$folder/made/$tool"
    # GPTQModel writes a log file into the folder where it is called.
    (cd "$folder" && OMP_NUM_THREADS=1 "$venv/bin/python" "$script" "$folder/tiny" "$folder/made/$tool") >"$folder/$tool.log" 2>&1 ||
        { tail -20 "$folder/$tool.log" >&2; exit 1; }
    cp "$script" "$folder/made/$tool/made-by.py"
done
