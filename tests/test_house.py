"""The floors of the house: imports go down, rooms on one floor do not know each other, consumers need no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pythia_export"

FLOORS = [
    {"errors", "memory", "git_lfs", "strict_json", "rope", "neox", "generation", "recipe", "suite", "progress",
     "machine", "kernels", "device", "interpreter"},
    {"quantize", "block", "graph", "hub", "tokenizer"},
    {"checkpoint", "corpus", "weights", "artifact", "runtime", "whereabouts"},
    {"stream", "parity", "report", "dequantize", "evaluate", "api", "push", "download", "serve", "footprint"},
    {"pipeline", "planning", "bench", "sweep"},
    {"cli", "console", "github", "tables", "__main__"},
]  # fmt: skip
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Arrows within a floor. Floor 0 is a small order of its own; a room may also import the errors that everyone raises.
ALLOWED = {
    ("strict_json", "errors"), ("git_lfs", "errors"), ("rope", "errors"), ("rope", "strict_json"),
    ("neox", "errors"), ("neox", "strict_json"), ("neox", "rope"),
    ("recipe", "errors"), ("recipe", "strict_json"), ("recipe", "neox"), ("recipe", "suite"), ("suite", "errors"),
    ("suite", "neox"), ("device", "errors"), ("device", "memory"), ("memory", "errors"),
    ("generation", "errors"), ("generation", "neox"), ("generation", "strict_json"),
    ("block", "graph"),  # the rotary tables are those that the graph stores
    ("runtime", "artifact"),  # a session opens an artifact, and asks what lies in the hub's cache
    ("api", "download"),
    ("footprint", "stream"),  # how many tokens its backward pass reads
    ("cli", "console"), ("cli", "github"), ("cli", "tables"), ("__main__", "cli"),
}  # fmt: skip

# Opening, checking and running an artifact need none of these (nor does anything they import).
WITHOUT_TORCH = {
    "errors", "strict_json", "git_lfs", "neox", "recipe", "suite", "progress", "machine", "kernels", "artifact",
    "runtime", "graph", "api", "serve", "tokenizer", "generation", "rope", "download",
}  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield parts[0], path


def imports(path: Path) -> Iterator[str]:
    """Absolute names of everything that a file imports, `pythia_export.x.y` for its own package."""
    package = ["pythia_export", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{name}.{alias.name}" for alias in node.names) if name == "pythia_export" else [name]


def rooms_imported(path: Path) -> set[str]:
    names = (name.split(".") for name in imports(path))
    return {parts[1] for parts in names if parts[0] == "pythia_export" and len(parts) > 1} - {"__version__"}


FILES = [pytest.param(room, path, id=str(path.relative_to(PACKAGE))) for room, path in modules() if room != "__init__"]


@pytest.mark.parametrize(("room", "path"), FILES)
def test_imports_go_down(room, path):
    assert room in FLOOR, f"{room} has no floor: give it one in tests/test_house.py"
    for other in rooms_imported(path) - {room}:
        assert other in FLOOR, f"{path.name} imports {other}, which has no floor"
        lower = FLOOR[other] < FLOOR[room]
        assert lower or (room, other) in ALLOWED, (
            f"{path.relative_to(PACKAGE)} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[other]})"
        )


@pytest.mark.parametrize(("room", "path"), FILES)
def test_rooms_of_consumers_do_not_know_torch(room, path):
    if room in WITHOUT_TORCH:
        heavy = {"torch", "transformers", "safetensors"} | ({"onnx"} if room != "graph" else set())
        assert not {name.split(".")[0] for name in imports(path)} & heavy


def test_nothing_in_the_package_imports_transformers():
    """The oracle is for tests: whichever version is installed, the product does not care. But `bench` runs it as a
    peer, in a process of its own, and there it is what is measured."""
    measured = PACKAGE / "bench" / "contestants" / "transformers.py"
    for _, path in modules():
        assert path == measured or "transformers" not in {name.split(".")[0] for name in imports(path)}, path


def test_only_processes_of_their_own_import_contestants():
    """Each is imported by name in `bench/process.py`: what one needs is not there where another runs."""
    for _, path in modules():
        assert not any(name.startswith("pythia_export.bench.contestants") for name in imports(path)) or (
            path.parent.name == "contestants"
        ), path


def test_the_package_itself_imports_next_to_nothing():
    code = "import sys; before = set(sys.modules); import pythia_export; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = {name.partition(".")[0] for name in done.stdout.split()}
    assert "pythia_export" in ours and not ours & {"numpy", "onnxruntime", "tokenizers", "pydantic", "typer", "torch"}


def test_no_machines_paths_in_the_tree():
    root = PACKAGE.parent
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    homes = re.compile(r"/(?:home|Users|root|work)/[A-Za-z0-9_.-]+/")
    for name in filter(None, listed.stdout.split("\0")):
        path = root / name
        if path.suffix in (".safetensors", ".json") or not path.is_file():
            continue
        assert not homes.search(path.read_text(errors="ignore")), name
