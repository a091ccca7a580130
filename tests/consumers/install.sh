#!/usr/bin/env bash
# onnxruntime-genai, transformers.js and Chromium for tests/test_consumers.py, in the folder that is given.
# What cannot be had is said, and its tests are skipped, visibly; the next call tries again.
set -uo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
folder="$1" python="$2" missing=0

lack() {
    echo "consumers  $1: its tests will be skipped" >&2
    missing=1
}

mkdir -p "$folder" && cp "$here/package.json" "$folder/" || exit 1
# An environment of its own: two builds of ONNX Runtime write the same files.
{ "$python" -m venv "$folder/venv" &&
    "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"; } ||
    { rm -rf "$folder/venv"; lack "onnxruntime-genai cannot be installed"; }
# Without scripts: one of them would fetch CUDA libraries.
(cd "$folder" && npm install --ignore-scripts --no-audit --no-fund --silent) || lack "transformers.js cannot be installed"
if ! { command -v chromium || command -v chromium-browser || command -v google-chrome || command -v chrome; } >/dev/null; then
    { [ "$(id -u)" = 0 ] && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } >/dev/null ||
        lack "Chromium is not there and cannot be installed"
fi
[ "$missing" = 1 ] || touch "$folder/.installed"
