"""Who takes part: what each needs, and in which interpreter that is found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import RecipeError
from ..base.interpreter import isolated_environment

_LLAMA = ("llama_cpp", "gguf")
_TORCH = ("transformers", "torch")
_OPTIMUM = ("optimum.onnxruntime", "optimum.exporters.onnx", *_TORCH)
_WITH_OPTIMUM = "pip install 'pythia-export[optimum]'"
_FIND = Path(__file__).resolve().parent / "find.py"


@dataclass(frozen=True)
class Contestant:
    """`module` is its file in `contestants`, `needs` what must be importable there, `install` the command for that.
    `standard` is whether it reads the artifact's weights under a graph of standard operators."""

    name: str
    module: str
    variant: str
    needs: tuple[str, ...] = ()
    install: str = ""
    reads_checkpoint: bool = True
    prepares: bool = False
    standard: bool = False


PEERS = (
    Contestant("Optimum float32", "optimum", "float32", _OPTIMUM, _WITH_OPTIMUM, prepares=True),
    Contestant("Optimum int8", "optimum", "int8", _OPTIMUM, _WITH_OPTIMUM, prepares=True),
    Contestant(
        "Optimum int4", "optimum", "int4", ("onnx_ir", *_OPTIMUM), f"{_WITH_OPTIMUM} onnx-ir", prepares=True
    ),
    *(
        Contestant(
            f"{name} int4", "exporters", variant, (*_TORCH, "transformers.exporters", "nncf", *needs),
            f"pip install 'transformers>=5.24' torch nncf {' '.join(needs)}, into an environment of its own, named by "
            "--peer-python", prepares=True,
        )
        for name, variant, needs in (
            ("transformers.exporters", "onnx", ("onnxruntime", "onnxscript", "onnx_ir")),
            ("OpenVINO", "openvino", ("openvino",)),
        )
    ),
    Contestant("transformers float32", "transformers", "float32", _TORCH, "pip install 'pythia-export[bench]'"),
    Contestant("transformers bfloat16", "transformers", "bfloat16", _TORCH, "pip install 'pythia-export[bench]'"),
    Contestant(
        "onnxruntime-genai", "genai", "", ("onnxruntime_genai",),
        "pip install onnxruntime-genai, into an environment of its own, named by --peer-python", reads_checkpoint=False,
    ),
    Contestant(
        "OpenVINO (artifact)", "openvino", "", ("openvino",),
        "pip install openvino, into an environment of its own, named by --peer-python", reads_checkpoint=False,
        standard=True,
    ),
    *(
        Contestant(f"llama.cpp {name}", "llama", kind, _LLAMA, "pip install llama-cpp-python gguf", prepares=True)
        for name, kind in (
            ("F16", "F16"), ("Q8_0", "Q8_0"), ("Q4_0", "Q4_0"), ("Q4_0, flash attention", "Q4_0, f16"),
            ("Q4_0, q8_0 cache", "Q4_0, q8_0"),
        )
    ),
)  # fmt: skip


def chosen(names: Sequence[str]) -> list[Contestant]:
    """Peers by their names or the first words of these; all for no names.

    Raises:
        RecipeError: a name that no peer has.
    """
    found = [peer for peer in PEERS if not names or any(_called(peer, name) for name in names)]
    for name in names:
        if not any(_called(peer, name) for peer in PEERS):
            raise RecipeError(f"no peer is called {name!r}", hint=f"There are {', '.join(p.name for p in PEERS)}.")
    return found


def _called(peer: Contestant, name: str) -> bool:
    return f"{peer.name} ".casefold().startswith(f"{name.strip()} ".casefold())


def interpreters_for(peers: Iterable[Contestant], others: Sequence[Path]) -> dict[str, Path | str]:
    """By the name of a peer: the first interpreter that has what it needs, this one before the `others`; where none
    has, what the one that has most of it lacks.

    Raises:
        RecipeError: one of the `others` does not run.
    """
    found: dict[str, Path | str] = {}
    missing: dict[str, list[str]] = {}
    wanted = sorted({module for peer in peers for module in peer.needs})
    for python in (Path(sys.executable), *others):
        absent = set(_missing(python, wanted))
        for peer in peers:
            lacks = [module for module in peer.needs if module in absent]
            if not lacks:
                found.setdefault(peer.name, python.absolute())  # not resolved: a venv's is a link
            missing[peer.name] = min(missing.get(peer.name, lacks), lacks, key=len)
    for peer in peers:
        if peer.name not in found:
            lacks = missing[peer.name]
            said = f"{' and '.join(lacks)} {'is' if len(lacks) == 1 else 'are'} not installed"
            found[peer.name] = f"{said} ({peer.install})"
    return found


def _missing(python: Path, modules: list[str]) -> list[str]:
    try:
        done = subprocess.run(
            [python, _FIND, *modules], capture_output=True, text=True, timeout=120, env=isolated_environment()
        )
        found: list[str] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as e:
        raise RecipeError(
            f"{python} is no Python that runs ({type(e).__name__})", hint="--peer-python wants VENV/bin/python."
        ) from e
    return found
