"""What pyproject.toml requires is what the code imports: the core's at the core, the rest at an extra."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from pythia_export.base.extras import extras_with, install_command

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pythia_export"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

# Rooms that are of no use without an extra may import it at their top. `bench` runs each contestant in an interpreter
# that has what `needs` in its line-up says, which may be another's.
OF_EXTRAS = {"evaluate": "eval", "study": "sweep", "sweep": "sweep"}
CONTESTANTS = PACKAGE / "bench" / "contestants"


def named(requirements: list[str]) -> set[str]:
    """Return the distributions of a list of requirements, extras of our own followed, as modules are spelt."""
    found = set()
    for line in requirements:
        name = re.match(r"[\w.-]+", line)
        assert name
        if name[0] == "pythia-export":
            inner = re.search(r"\[(.*?)\]", line)
            assert inner
            for extra in inner[1].split(","):
                found |= named(EXTRAS[extra.strip()])
        else:
            found.add(spelt(name[0]))
    return found


def spelt(name: str) -> str:
    return re.sub(r"[-.]+", "_", name).lower()


CORE = named(PROJECT["dependencies"])


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield each module of others that a file imports, and whether it does as soon as it is imported itself."""
    tree = ast.parse(path.read_text())
    inner = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.Lambda) for n in ast.walk(f)}
    of_types = {id(n) for branch in ast.walk(tree) if _for_types(branch) for n in ast.walk(branch)}
    for node in (node for node in ast.walk(tree) if id(node) not in of_types):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        for name in {name.partition(".")[0] for name in names}:
            if name not in sys.stdlib_module_names and name != "pythia_export":
                yield name, id(node) not in inner


def _for_types(node: ast.AST) -> bool:
    """Return whether it is `if TYPE_CHECKING:`, which nobody runs."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def files() -> Iterator[Path]:
    yield from (path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != CONTESTANTS)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_the_core_requires_what_it_imports_and_nothing_else():
    at_once = {name for path in files() if room(path) not in OF_EXTRAS for name, first in imported(path) if first}
    anywhere = {name for path in files() for name, _ in imported(path)}
    assert at_once <= CORE, "what the core imports is in `dependencies`"
    assert anywhere >= CORE, "nothing is in `dependencies` that no file imports"


def test_whatever_else_is_imported_comes_with_an_extra():
    users = named([line for name, lines in EXTRAS.items() if name != "dev" for line in lines])
    for path in files():
        own = named(EXTRAS[OF_EXTRAS[room(path)]]) if room(path) in OF_EXTRAS else set()
        for name, first in imported(path):
            assert name in (CORE | own if first else CORE | users), f"{path.relative_to(ROOT)} imports {name}"


def test_development_has_every_extra():
    """But the demo's distribution, which a checkout has in it, and TransformerLens, which wants transformers 5."""
    others = EXTRAS.keys() - {"demo", "lens"}
    assert named(EXTRAS["dev"]) >= named([line for name in others for line in EXTRAS[name]])


@pytest.mark.parametrize("folder", ["pythia_export", "docs"])
def test_every_extra_that_is_named_exists(folder):
    for path in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.md"), ROOT / "README.md"]:
        for names in re.findall(r"(?:pythia-export|')(?:\.)?\[([a-z,]+)\]'", path.read_text()):
            assert set(names.split(",")) <= EXTRAS.keys(), f"{path.relative_to(ROOT)}: [{names}]"


def closure(names: set[str]) -> set[str]:
    """Return the distributions that an installation of `names` brings, by the metadata of those that are here."""
    found: set[str] = set()
    while names:
        name = names.pop()
        found.add(name)
        try:
            lines = metadata.requires(name.replace("_", "-")) or []
        except metadata.PackageNotFoundError:
            continue
        names |= {spelt(re.match(r"[\w.-]+", x)[0]) for x in lines if "extra" not in x.partition(";")[2]} - found
    return found


BLOCKED = """
import sys
blocked = set({blocked})
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.partition(".")[0])
sys.meta_path.insert(0, Absent())
"""


def without_extras(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python in which nothing can be imported that an installation without extras would lack."""
    brought = closure({"onnxruntime_gpu", *CORE})  # which of the two builds is here does not matter
    lacking = {
        module
        for module, of in metadata.packages_distributions().items()
        if not {spelt(name) for name in of} & brought and module not in ("pythia_export", "pip")
    }
    assert {"transformers", "optimum", "pyarrow", "lm_eval"} <= lacking
    code = BLOCKED.format(blocked=sorted(lacking)) + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_every_module_of_the_core_imports_without_an_extra():
    names = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in files()
        if room(path) not in OF_EXTRAS and path.name not in ("__main__.py", "unpickle.py", "find.py")
    )
    done = without_extras(f"import importlib\nfor name in {names}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("line", "extra"),
    [
        (["sweep", "report", "x"], "sweep"),
        (["eval", "ARTIFACT", "--tasks", "piqa"], "eval"),
    ],
)
def test_a_command_whose_extra_is_missing_names_it(line, extra, tmp_path):
    (tmp_path / "a").mkdir()
    line = [str(tmp_path / "a") if word in ("ARTIFACT", "x") else word for word in line]
    done = without_extras(f"sys.argv = ['pythia-export', *{line}]; from pythia_export.__main__ import main; main()")
    assert done.returncode == 6 and f"pip install 'pythia-export[{extra}]'" in done.stderr, done.stderr


def test_an_extra_is_found_by_the_module_that_it_brings():
    assert set(extras_with("pyarrow.parquet")) >= {"parquet", "sweep"}
    assert "[sweep]" in install_command("pyarrow", "sweep") and "[parquet]" in install_command("pyarrow")
    assert "[eval]" in install_command("lm_eval.api") and "[" not in install_command("onnx")
