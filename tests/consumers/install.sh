#!/usr/bin/env bash
# onnxruntime-genai, transformers 5, lm-eval, OpenVINO, transformers.js, Chromium and the headers of ONNX Runtime for
# tests/end_to_end/test_consumers.py, in the folder that is given.
# What cannot be had is said, and its tests are skipped, visibly; the next call tries again.
set -uo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
folder="$1" python="$2" missing=0

lack() {
    echo "consumers  $1: its tests will be skipped" >&2
    missing=1
}

# No wheel has the headers. Debian 13's, by apt with lists of its own: it checks Debian's signature, and the sources of
# this system stay as they are. A relative of Debian that lacks its keys has them in its own archive.
headers() (
    at="$(mktemp -d "$folder/apt.XXXXXX")" keys=/usr/share/keyrings/debian-archive-keyring.gpg
    trap 'rm -rf "$at"' EXIT
    mkdir -p "$at/lists/partial" "$at/cache/archives/partial" && touch "$at/status" && cd "$at" || exit 1
    get=(apt-get -qq -o APT::Sandbox::User=root)
    if [ ! -f "$keys" ]; then
        "${get[@]}" download debian-archive-keyring && dpkg-deb -x debian-archive-keyring_*.deb . || exit 1
        keys="$at$keys"
    fi
    echo "deb [signed-by=$keys] http://deb.debian.org/debian trixie main" >trixie.list
    get+=(-o Dir::Etc::SourceList="$at/trixie.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$at/lists"
        -o Dir::State::Status="$at/status" -o Dir::Cache="$at/cache")
    "${get[@]}" update && "${get[@]}" download libonnxruntime-dev && dpkg-deb -x libonnxruntime-dev_*.deb . &&
        mv usr/include/onnxruntime "$folder/include"
)

mkdir -p "$folder" && cp "$here/package.json" "$folder/" && folder="$(cd "$folder" && pwd)" || exit 1
# An environment of its own: two builds of ONNX Runtime write the same files.
{ "$python" -m venv "$folder/venv" &&
    "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"; } ||
    { rm -rf "$folder/venv"; lack "onnxruntime-genai cannot be installed"; }
# Another: a newer transformers than the one that Optimum takes.
{ "$python" -m venv "$folder/transformers5" &&
    "$folder/transformers5/bin/python" -m pip install --quiet --disable-pip-version-check \
        -r "$here/requirements-transformers5.txt"; } ||
    { rm -rf "$folder/transformers5"; lack "transformers 5 cannot be installed"; }
{ "$python" -m venv "$folder/openvino" &&
    "$folder/openvino/bin/python" -m pip install --quiet --disable-pip-version-check \
        -r "$here/requirements-openvino.txt"; } ||
    { rm -rf "$folder/openvino"; lack "OpenVINO cannot be installed"; }
# Without scripts: one of them would fetch CUDA libraries.
(cd "$folder" && npm install --ignore-scripts --no-audit --no-fund --silent) || lack "transformers.js cannot be installed"
if ! { command -v chromium || command -v chromium-browser || command -v google-chrome || command -v chrome; } >/dev/null; then
    { [ "$(id -u)" = 0 ] && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } >/dev/null ||
        lack "Chromium is not there and cannot be installed"
fi
[ -f /usr/include/onnxruntime/onnxruntime_cxx_api.h ] || [ -f "$folder/include/onnxruntime_cxx_api.h" ] || headers >/dev/null ||
    lack "the headers of ONNX Runtime cannot be had"
[ "$missing" = 1 ] || touch "$folder/.installed"
