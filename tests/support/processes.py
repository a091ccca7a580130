"""Processes that fork from one in which torch and ONNX Runtime are imported: a process of its own for each command,
with its own environment, folder, streams and exit code, without the two seconds that the imports take in each.

What a bare interpreter shows (which modules a command imports, how it ends at a signal) is asked of a bare one.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
# What reads the environment once, as huggingface_hub and typer do, is left to each process.
_FORKS.set_forkserver_preload(
    [
        "pythia_export.commands.run",
        "onnx",
        "onnxruntime",
        "torch.fx.experimental.symbolic_shapes",
        "requests",
        "yaml",
        "tqdm.auto",
        "filelock",  # what huggingface_hub itself imports
    ]  # fmt: skip
)


def forked(
    work: Callable[..., None], *args: Any, env: Mapping[str, str], cwd: Path | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """`work(*args)`, a function of a module, in a process of its own: its exit code and what it printed."""
    with tempfile.TemporaryDirectory() as scratch:
        printed, said = Path(scratch) / "stdout", Path(scratch) / "stderr"
        process = _FORKS.Process(target=_run, args=(work, args, dict(env), cwd or Path.cwd(), printed, said))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"still running after {timeout} s: {said.read_text()}")
        return subprocess.CompletedProcess(list(args), process.exitcode, printed.read_text(), said.read_text())


def pythia_export(
    *args: object, env: Mapping[str, str] = os.environ, cwd: Path | None = None, check: int | None = 0
) -> subprocess.CompletedProcess[str]:
    """The command `pythia-export ARGS`; it must end with the exit code `check`."""
    done = forked(_command, *map(str, args), env=env, cwd=cwd)
    if check is not None:
        assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def started(*args: object, env: Mapping[str, str] = os.environ) -> multiprocessing.process.BaseProcess:
    """The same command at work, to be killed; what it prints is not kept."""
    nowhere = Path(os.devnull)
    process = _FORKS.Process(
        target=_run, args=(_command, tuple(map(str, args)), dict(env), Path.cwd(), nowhere, nowhere)
    )
    process.start()
    return process


def script(name: str | Path, *args: object, env: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
    """`python FILE ARGS`, or `python -m MODULE ARGS` where `name` is a string."""
    return forked(_script, name, *map(str, args), env=env)


def _command(*args: str) -> None:
    sys.argv = ["pythia-export", *args]
    from pythia_export.cli import main

    main()


def _script(name: str | Path, *args: str) -> None:
    sys.argv = [str(name), *args]
    if isinstance(name, Path):
        runpy.run_path(str(name), run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


def _run(
    work: Callable[..., None], args: tuple[Any, ...], env: dict[str, str], cwd: Path, printed: Path, said: Path
) -> None:
    assert "huggingface_hub" not in sys.modules, "it has read another environment"
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for path, descriptor in ((printed, 1), (said, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    work(*args)
