"""What the usual tools do to an artifact: every tool over every form of it, as a table.

    python tests/survival/table.py PYTHON            compare with the committed table; end with 1 where it differs
    python tests/survival/table.py PYTHON --write    write benchmarks/tools.md

PYTHON is an interpreter that has the tools (requirements.txt). `make test-tools` does the first.
"""

from __future__ import annotations

import difflib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from forms import FORMS, write_forms
from tools import TOOLS

PAGE = Path(__file__).parents[2] / "benchmarks" / "tools.md"
HEAD = """# What tools do to an artifact

`make test-tools` makes a small artifact of each form, runs every tool over it, and stock ONNX Runtime over what the
tool wrote.
`python tests/survival/table.py build/tools/bin/python --write` wrote this page.

- **equal**: the logits are those of the artifact. **moved by**: the largest change of a logit, as a part of the largest
  logit.
- **inlined**: the functions are gone, and with them the native kernels.
- **refused**: the tool raises an error. **broken**: it does not, and ONNX Runtime cannot open what it wrote.

<!-- begin: tools -->
"""


def measured(python: str) -> tuple[list[list[str]], list[str]]:
    """Return the table's rows, a tool and what became of each form, and notes on what is broken or refused."""
    rows, notes = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folders = write_forms(Path(temporary))
        for tool in TOOLS:
            row, shown = [], tool
            for form, folder in folders.items():
                said, shown = _became(python, folder, tool)
                kind, _, why = said.partition(": ")
                row.append(f"**{kind}**" if kind == "broken" else kind)
                notes += [f"- {tool}, {form}: {said}"] * bool(why)
                print(f"{tool} | {form}: {said}", file=sys.stderr, flush=True)
            rows.append([f"{tool} ({shown})", *row])
    return rows, notes


def _became(python: str, folder: Path, tool: str) -> tuple[str, str]:
    command = [python, "-P", str(Path(__file__).with_name("tools.py")), str(folder), tool]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:  # a tool that kills its process
        return f"broken: the process ended with {done.returncode}", TOOLS[tool][0]
    found = json.loads(done.stdout.splitlines()[-1])
    return found["became"], found["tool"]


def page(rows: list[list[str]], notes: list[str]) -> str:
    lines = [["tool", *FORMS], ["---"] * (1 + len(FORMS)), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    said = "\n".join(notes).replace("|", "\\|")
    return f"{HEAD}{table}\n<!-- end: tools -->\n\n## What was said\n\n{said}\n"


def main() -> None:
    python, *options = sys.argv[1:]
    found = page(*measured(python))
    if "--write" in options:
        PAGE.write_text(found)
        return
    before, found = (re.sub(r"moved by [\d.e-]+", "moved", text) for text in (PAGE.read_text(), found))
    sys.stdout.writelines(difflib.unified_diff(before.splitlines(True), found.splitlines(True), "committed", "found"))
    sys.exit(f"{PAGE.name} differs from what was found" if found != before else 0)


if __name__ == "__main__":
    main()
