"""`sweep`: many quantisations of many checkpoints, planned, run, looked at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..base.errors import EXIT_INTERRUPTED, EXIT_SWEEP
from .help import App
from .shared import Json, app, examples, print_json, progress_bars, say, show

if TYPE_CHECKING:
    from ..sweep.folder import Folder

sweep = App(
    no_args_is_help=True,
    help="Quantise many checkpoints in many ways, restartable, here or by Slurm; then fit and plot what it cost.",
    epilog=examples(
        "pythia-export sweep plan sweep.toml",
        "pythia-export sweep run sweep.toml --out sweeps/one",
        "pythia-export sweep report sweeps/one",
    ),
)
app.add_typer(sweep, name="sweep")

SweepName = Annotated[Path, typer.Argument(metavar="SWEEP.TOML", help="Models x revisions x quantisations.")]
SweepFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A directory that `sweep run` worked in.")]


@sweep.command(
    epilog=examples(
        "pythia-export sweep plan sweep.toml", "pythia-export sweep plan sweep.toml --out sweeps/one --json"
    )
)
def plan(
    file: SweepName,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where it ran before: count what is done there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show jobs, bytes to fetch, memory and time by model, what is left out and what is done. Contacts no hub."""
    from ..sweep.folder import Folder
    from ..sweep.plan import plan as planned
    from ..sweep.plan import to_json
    from ..sweep.schema import load
    from .sweep_views import plan_view

    found = planned(load(file), Folder(out) if out is not None else None)
    if as_json:
        print_json(to_json(found))
    else:
        show(plan_view(found))


@sweep.command(
    epilog=examples(
        "pythia-export sweep run sweep.toml --out sweeps/one",
        "pythia-export sweep run sweep.toml --out sweeps/one --workers 4",
        "pythia-export sweep run sweep.toml --out sweeps/one --engine slurm --workers 64",
    )
)
def run(
    file: SweepName,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the sweep; what is done there is kept.")],
    engine: Annotated[
        Literal["local", "slurm", "inline"],
        typer.Option(help="Processes here, jobs of a Slurm cluster, or this process, for debugging."),
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Tasks at once; as many as the machine's cores, or GPUs, hold if not given."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also repeat jobs whose failure will be the same each time.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Do what is not done yet. Run it again after any interruption: nothing is done twice.

    Exit code 11: some jobs have no result; `sweep status` lists them.
    """
    from ..sweep.folder import Folder
    from ..sweep.run import run as run_sweep
    from ..sweep.schema import load
    from .sweep_views import run_view

    asked = load(file)
    try:
        with progress_bars() as progress:
            outcome = run_sweep(asked, Folder(out), engine=engine, workers=workers, again=again, progress=progress)
    except KeyboardInterrupt:
        say("Interrupted. What is done is kept; the same command goes on from there.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        print_json(outcome.to_json())
    else:
        show(run_view(outcome, out))
    if outcome.done < outcome.jobs:
        raise typer.Exit(EXIT_SWEEP)


@sweep.command(
    epilog=examples("pythia-export sweep status sweeps/one", "pythia-export sweep status sweeps/one --watch 5")
)
def status(
    folder: SweepFolder,
    watch: Annotated[
        float | None,
        typer.Option(min=0.5, metavar="SECONDS", help="Refresh every so many seconds, until nothing is left."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show progress by model, what runs, and what failed and why."""
    from ..sweep.status import status as look
    from .sweep_views import status_view, watched

    existing = _existing(folder)
    if as_json:
        print_json(look(existing).to_json())
    elif watch is not None:
        watched(lambda: look(existing), watch)
    else:
        show(status_view(look(existing)))


@sweep.command(epilog=examples("pythia-export sweep logs sweeps/one 3fa9c1d2e4b5a697"))
def logs(
    folder: SweepFolder,
    key: Annotated[str, typer.Argument(metavar="KEY", help="A job's key, or enough of its beginning.")],
) -> None:
    """Show one job: its settings, its result, and the log of its task, all attempts."""
    from ..sweep.status import find, task_of

    existing = _existing(folder)
    whole = find(existing, key)
    job, failure, result = existing.job(whole), existing.failure(whole), existing.result(whole)
    show(f"{whole}  {job.title}")
    if result is not None:
        show(f"done on attempt {result.attempt}, {result.when}")
    elif failure is not None:
        show(f"failed on attempt {failure.attempt}, exit code {failure.exit_code}: {failure.message}")
        if failure.hint:
            show(f"Hint: {failure.hint}")
    else:
        show("not done yet")
    task = task_of(existing, whole)
    for path in (existing.log(task), *existing.output_of(task)):
        if path.is_file():
            show(f"\n{path}")
            show(path.read_text(encoding="utf-8", errors="replace").rstrip())


@sweep.command(epilog=examples("pythia-export sweep results sweeps/one"))
def results(folder: SweepFolder, as_json: Json = False) -> None:
    """Write results.parquet and results.csv, one row a job: docs/guides/sweeps.md has the columns."""
    from ..sweep.pairs import pairs
    from ..sweep.status import keys
    from ..sweep.table import tables, write

    existing = _existing(folder)
    found, parts = tables(existing, keys(existing))
    written = write(existing.root, found, parts, pairs(existing, keys(existing)))
    if as_json:
        print_json({"rows": len(found), "files": [str(path) for path in written]})
    else:
        show(f"{len(found):,} rows  " + "  ".join(str(path) for path in written))


@sweep.command(epilog=examples("pythia-export sweep report sweeps/one"))
def report(folder: SweepFolder) -> None:
    """Write report.html and its plots: cost against tokens, parameters and bits, and the fit of the scaling law."""
    from ..study.page import write as write_report
    from ..sweep.pairs import pairs
    from ..sweep.status import keys
    from ..sweep.status import status as look
    from ..sweep.table import tables, write

    existing = _existing(folder)
    now = look(existing)
    found, parts = tables(existing, keys(existing))
    means = pairs(existing, keys(existing))
    write(existing.root, found, parts, means)
    written = write_report(
        found, parts, existing.root, title=folder.resolve().name, left_out=now.left_out, failed=len(now.failures),
        outstanding=now.jobs - now.done - len(now.failures), means=means,
    )  # fmt: skip
    show(str(written[0]))


def _existing(folder: Path) -> Folder:
    from ..sweep.folder import Folder

    return Folder.existing(folder)
