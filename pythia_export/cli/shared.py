"""What every command shares: the application and its errors, the options that several commands have, and how they
print. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TextIO

import typer

from ..base.errors import EXIT_INTERRUPTED, Interrupted, OutputError, PythiaExportError
from ..base.memory import memory_fault
from ..base.version import __version__
from .help import App, Group, UsageError, as_ours

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from ..artifact import Parity, Quantization
    from ..base.progress import Progress
    from ..checkpoint import Accept
    from ..recipe import Model


_LINE = "pythia_export.line"  # where a context keeps the words that it was made of


class _Commands(Group):
    """What a user can cause becomes a message and an exit code here, once for all commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # Both are wanted after something failed: accept them at the end of the line that failed.
        for flag in ("--debug", "--offline"):
            if flag in args:
                args = [flag, *(x for x in args if x != flag)]
        ctx.meta[_LINE] = tuple(args)
        try:
            return super().parse_args(ctx, args)
        except UsageError as e:
            _fail_of_usage(e, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as e:  # of the command's own options
            _fail_of_usage(e, ctx.meta[_LINE])
        except KeyboardInterrupt:
            resumes = ctx.invoked_subcommand in ("run", "quantize")
            further = "; --resume goes on after the last layer, if one was finished" if resumes else ""
            say(f"Interrupted. What was there before is intact{further}.")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except PythiaExportError as e:
            fail(e, ctx.params.get("debug", False))
        except ModuleNotFoundError as e:
            from ..base.errors import EnvironmentProblem
            from ..base.extras import install_command

            what = install_command(e.name or "", ctx.invoked_subcommand or "")
            problem = EnvironmentProblem(f"this command needs {e.name}, which is not installed", hint=what)
            fail(problem, ctx.params.get("debug", False))
        except Exception as e:
            fault = memory_fault(e)
            if fault is None:
                raise
            fail(fault, ctx.params.get("debug", False))


app = App(name="pythia-export", cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)


def found_artifact(name: Path, progress: Progress) -> Path:
    """Return the folder of an artifact; OWNER/NAME[@REVISION] is fetched from the hub, into its cache."""
    from ..artifact.download import download_artifact, repository_named

    asked = repository_named(str(name))
    return name if asked is None else download_artifact(*asked, progress=progress)


def artifact_called(name: Path | None) -> Path | None:
    """Do the same while the command line is parsed."""
    if name is None:
        return None
    with progress_bars() as progress:
        return found_artifact(name, progress)


_ARTIFACT = "A directory that `run` or `export` wrote, or OWNER/NAME[@REVISION] of the hub."
ArtifactFolder = Annotated[Path, typer.Argument(metavar="ARTIFACT", callback=artifact_called, help=_ARTIFACT)]
# As it was given: a fault of the hub is for --junit too, so the command itself calls `found_artifact`.
ArtifactName = Annotated[Path, typer.Argument(metavar="ARTIFACT", help=_ARTIFACT)]
DraftFolder = Annotated[
    Path | None,
    typer.Option(
        "--draft", metavar="ARTIFACT", callback=artifact_called,
        help="An artifact of a smaller model with the same tokenizer: it proposes tokens, this one checks them.",
    ),
]  # fmt: skip
AdapterFolder = Annotated[
    Path | None,
    typer.Option("--adapter", metavar="DIR", help="A LoRA adapter in PEFT's form, merged as the checkpoint is read."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Directory to publish; made whole, or not at all.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an artifact that is there, once this is whole.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on after the last layer that an interrupted run finished.")]
Device = Annotated[Literal["cpu", "cuda"], typer.Option(help="Where torch computes: quantises, and runs the original.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
NoPickle = Annotated[
    bool, typer.Option("--no-pickle", help="Refuse weights that are there as pickles alone (pytorch_model.bin).")
]
AllowDuplicate = Annotated[
    bool,
    typer.Option("--allow-duplicate-revision", help="Take weights that another training step has too, and record it."),
]
Evict = Annotated[
    bool, typer.Option("--evict", help="Take the checkpoint out of the hub's cache once the artifact is published.")
]
JUnit = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="Write the verdict as JUnit XML, one case a gate.")
]


def examples(*lines: str) -> str:
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)])


@app.callback(
    epilog=examples(
        "pythia-export run demo --out build/demo",
        "pythia-export generate build/demo --prompt 'def main('",
    )
)
def options(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", callback=lambda v: _version(v), is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Contact no hub: use what was fetched before, as with HF_HUB_OFFLINE=1.")
    ] = False,
) -> None:
    """Quantise Pythia checkpoints, export them to ONNX, and prove the result against the original."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before the client is imported, which reads it once


def _version(wanted: bool) -> None:
    if wanted:
        show(f"pythia-export {__version__}")
        raise typer.Exit


def with_adapter(model: Model, adapter: Path | None) -> Model:
    return model if adapter is None else model.model_copy(update={"adapter": adapter.absolute()})


def accepted(no_pickle: bool, allow_duplicate_revision: bool) -> Accept:
    from ..checkpoint import Accept

    return Accept(pickles=not no_pickle, duplicates="tell" if allow_duplicate_revision else "refuse")


@contextmanager
def progress_bars() -> Iterator[Progress]:
    from .console import Bars

    with Bars(stderr()) as bars:
        yield bars


def require_writable(file: Path | None, artifact: Path) -> None:
    """Before the long part."""
    if file is None:
        return
    folder = file.absolute().parent
    if artifact.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise OutputError(
            f"{file} lies in the artifact {artifact}, which holds only files that its manifest names",
            hint="Write it beside the artifact.",
        )
    if file.is_dir():
        raise OutputError(f"{file} is a folder; a file to write was expected", hint=f"{file / 'a-name'}, for example.")
    if not folder.is_dir():
        raise OutputError(f"{file}: there is no folder {folder}", hint="Create it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{file}: the folder {folder} cannot be written", hint="Choose another place.")


@contextmanager
def ends_in_junit(file: Path | None, what: str) -> Iterator[None]:
    """Around work whose verdict goes to `file`: if none comes of it, why is written there, as an error."""
    try:
        yield
    except typer.Exit:
        raise
    except BaseException as e:
        if file is not None:
            known = e if isinstance(e, PythiaExportError) else memory_fault(e)
            kind, said = type(known or e).__name__, str(known or e) or "interrupted"
            _error_into_junit(file, what, kind, said, known.hint if known else "")
        raise


def _fail_of_usage(error: Any, line: Sequence[str]) -> NoReturn:
    """End the command in the style of every other error; the help alone is shown as it is."""
    _refused_in_junit(line, error.format_message())
    ours = as_ours(error)
    if ours is None:
        raise error
    say_error(ours)
    raise typer.Exit(ours.exit_code)


def _refused_in_junit(line: Sequence[str], said: str) -> None:
    """Write a command line that is not understood to the file of --junit, if one can be made out in it."""
    named = [b for a, b in pairwise(line) if a == "--junit" and not b.startswith("-")]
    named += [word.partition("=")[2] for word in line if word.startswith("--junit=")]
    file = Path(named[-1]) if named and named[-1] else None
    if file is not None and not (file.parent / "manifest.json").exists():  # an artifact holds its own files alone
        _error_into_junit(file, " ".join(line[:2]), "UsageError", said, "`--help` lists the options.")


def _error_into_junit(file: Path, what: str, kind: str, said: str, hint: str) -> None:
    from ..disk import write_atomically
    from ..report.junit import junit_of_error

    try:
        write_atomically(file, junit_of_error(what, kind, said, hint).encode())
    except (OSError, PythiaExportError) as unwritten:
        say(f"{file} could not be written: {unwritten}")


def fail(error: PythiaExportError, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    say_error(error)
    raise typer.Exit(error.exit_code)


def say_error(error: PythiaExportError) -> None:
    if isinstance(error.__cause__, BrokenPipeError):
        return  # `| head` has what it wanted; the exit code says the rest
    kind = "" if isinstance(error, Interrupted) else "Error: "
    say(f"{kind}{error}" + (f"\nHint: {error.hint}" if error.hint else ""))


def print_verdict(parity: Parity, quantization: Quantization | None) -> None:
    from ..report.text import verdict

    show(verdict(parity, quantization))


def show(what: RenderableType) -> None:
    with printing():
        _stdout().print(what, soft_wrap=isinstance(what, str))


def stdout_width() -> int:
    """Columns that a table may have."""
    return _stdout().width


@contextmanager
def printing() -> Iterator[None]:
    """Around everything that prints to stdout. Characters that its encoding lacks become question marks.

    Raises:
        OutputError: nobody reads it any more, its disk is full, or there is none.
    """
    if sys.stdout is None:  # whoever started the command closed it
        raise OutputError("stdout is closed, so the result cannot be printed", hint="`> /dev/null` discards it.")
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    try:
        yield
        sys.stdout.flush()
    except OSError as e:
        _discard(sys.stdout)
        raise OutputError(f"stdout cannot be written: {e.strerror}", hint="What was done before is kept.") from e


def _discard(stream: TextIO) -> None:
    """Else Python tries once more at exit what the stream still holds, and ends with an exit code of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_json(value: Any) -> None:
    unicode = sys.stdout is not None and (sys.stdout.encoding or "").lower().startswith("utf")
    with printing():  # escaped where a question mark would change what it says
        typer.echo(json.dumps(value, indent=2, ensure_ascii=not unicode, default=str))


def say(message: str) -> None:
    if sys.stderr is None:  # whoever started the command closed it
        return
    try:
        stderr().print(message, markup=False, highlight=False, soft_wrap=True)
    except OSError:  # nobody hears it: no reason to lose the exit code too
        _discard(sys.stderr)


def stderr() -> Console:
    from . import terminal

    return terminal.stderr()


def _stdout() -> Console:
    from . import terminal

    return terminal.stdout()
