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

# Lowest first: a room imports only rooms of lower floors. `floors()` prints the map for the docs.
FLOORS = (
    ("base",),
    ("disk", "model", "tokenizer"),
    ("hub", "recipe", "records"),
    ("checkpoint", "corpus", "rounding", "report"),
    ("weights",),
    ("artifact", "graph", "imported"),
    ("calibrate", "runtime"),
    ("trace",),
    ("api", "evaluate", "proof", "serve", "study"),
    ("commands", "lens"),
    ("bench", "job", "sweep"),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Opening, checking and running an artifact needs no torch, nor does anything that these rooms import. Some below
# compute with torch: no consumer imports those.
CONSUMERS = {"artifact", "runtime", "graph", "api", "serve", "tokenizer", "recipe", "hub", "disk"}
TORCH_BELOW = {"base.compute", "base.device", "base.finite", "model.block"}


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
        assert FLOOR[other] < FLOOR[room], (
            f"{path.relative_to(PACKAGE)} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[other]})"
        )


@pytest.mark.parametrize(("room", "path"), FILES)
def test_rooms_of_consumers_do_not_know_torch(room, path):
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    if room in CONSUMERS or (room in ("base", "model") and module not in TORCH_BELOW):
        heavy = {"torch", "transformers", "safetensors"} | ({"onnx"} if room != "graph" else set())
        assert not {name.split(".")[0] for name in imports(path)} & heavy
        assert not {name.removeprefix("pythia_export.") for name in imports(path)} & TORCH_BELOW


def test_nothing_in_the_package_imports_transformers():
    """The oracle is for tests: whichever version is installed, the product does not care. But `bench` runs it as a
    peer, in a process of its own, and there it is what is measured."""
    measured = [PACKAGE / "bench" / "contestants" / name for name in ("transformers.py", "exporters.py")]
    for _, path in modules():
        assert path in measured or "transformers" not in {name.split(".")[0] for name in imports(path)}, path


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


def test_a_scheme_is_passed_whole():
    """Bits, group size and symmetry are one value, from the recipe to the bytes: no function takes one alone."""
    for room, path in modules():
        if room not in ("rounding", "calibrate", "weights", "proof", "graph"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                names = {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
                assert not names & {"group_size", "symmetric"}, f"{path.name}: {node.name}"


def test_where_torch_computes_is_passed_whole():
    """Device, progress, memory and scratch are one value, `Compute`: no loop takes two of them."""
    for room, path in modules():
        if room not in ("calibrate", "proof"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                names = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
                parts = set(names) & {"device", "progress", "memory_gb", "scratch"}
                assert len(parts) < 2 and len(names) < 9, f"{path.name}: {node.name}"
