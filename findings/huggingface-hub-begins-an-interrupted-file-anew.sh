#!/usr/bin/env bash
# huggingface_hub 0.36.2, 1.33.0 and 2.4.0: only the oldest goes on with a file that an earlier process left half fetched.
#
# A hub on loopback breaks the connection in the middle of a file and then says 403, so that the first process gives up.
# A second process asks for the same file, with the same cache. 0.36.2 asks for the rest (`Range: bytes=N-`), from the
# `.incomplete` file that is in the cache. The others ask for all of it: each process has an `.incomplete` file with a
# name of its own.
# Expected: the rest, as the `.incomplete` files suggest. Fails when that is no longer what is seen.
set -euo pipefail
at="$(mktemp -d)" && trap 'rm -rf "$at"' EXIT
for version in 0.36.2 1.33.0 2.4.0; do
    python3 -m venv "$at/$version"
    "$at/$version/bin/pip" install --quiet --disable-pip-version-check "huggingface_hub==$version"
    "$at/$version/bin/python" - "$version" "$at/cache-$version" <<'PYTHON'
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SIZE, CUT = 32 << 20, (20 << 20) + 5
asked, answers = [], []  # what each GET asked for; "cut", "refuse" or "give" for the next ones


class Hub(BaseHTTPRequestHandler):
    def head(self, status, size):
        self.send_response(status)
        self.send_header("ETag", f'"{"a" * 64}"')
        self.send_header("X-Repo-Commit", "b" * 40)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(size))
        if status == 206:
            self.send_header("Content-Range", f"bytes {SIZE - size}-{SIZE - 1}/{SIZE}")
        self.end_headers()

    def do_HEAD(self):
        self.head(200, SIZE)

    def do_GET(self):
        asked.append(self.headers.get("Range"))
        how = answers.pop(0) if len(answers) > 1 else answers[0]
        if how == "refuse":
            return self.head(403, 0)
        first = int(asked[-1].removeprefix("bytes=").rstrip("-")) if asked[-1] else 0
        self.head(206 if first else 200, SIZE - first)
        self.wfile.write(b"x" * (CUT if how == "cut" else SIZE - first))
        self.close_connection = True

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
version, cache = sys.argv[1:]
environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_CACHE": cache}
environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
fetch = "from huggingface_hub import hf_hub_download; hf_hub_download('someone/model', 'weights.bin')"


def process():
    return subprocess.run([sys.executable, "-c", fetch], env=environment, capture_output=True, text=True)


answers[:] = ["cut", "refuse"]
assert process().returncode, "the first process was to give up"
asked.clear()
answers[:] = ["give"]
second = process()
assert not second.returncode, second.stderr
print(f"huggingface_hub {version}: after a process that was cut, the second asked for {asked[0] or 'all'}")
assert bool(asked[0]) == (version == "0.36.2"), asked
PYTHON
done
