"""Commands that make and prove artifacts, from a recipe to its verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..base.errors import EXIT_GATE, OutputError, PythiaExportError, RecipeError
from .asked import Asked, Manner, names_of_recipes, takes_recipe
from .shared import (
    AdapterFolder,
    AllowDuplicate,
    ArtifactName,
    Device,
    Json,
    JUnit,
    NoPickle,
    Out,
    Overwrite,
    accepted,
    app,
    ends_in_junit,
    examples,
    found_artifact,
    print_json,
    print_verdict,
    progress_bars,
    require_writable,
    say,
    say_error,
    show,
    stderr,
    with_adapter,
)

if TYPE_CHECKING:
    from ..artifact import Parity
    from ..commands.publication import Outcome


@app.command(
    epilog=examples(
        "pythia-export run demo --out build/demo",
        "pythia-export run 410m@step3000 --bits 4 --group-size 128 --out models/410m-step3000",
        "pythia-export run ./my-finetune --calibration train.jsonl --text heldout.jsonl --out models/mine",
        "pythia-export run my.toml --set quantize.beam=1 --out models/mine --overwrite",
        "pythia-export run 6.9b-int8 --out models/6.9b --resume",
    )
)
@takes_recipe
def run(
    asked: Asked,
    out: Out,
    manner: Manner,
    junit: JUnit = None,
    as_json: Json = False,
) -> None:
    """Do the whole job: fetch, quantise, export, prove, publish.

    Exit code 10 means that a gate of the recipe failed; the artifact is published all the same, with that verdict.
    """
    from ..commands.run import run as run_recipe

    require_writable(junit, out)
    with ends_in_junit(junit, f"run {asked.name}"), progress_bars() as progress:
        outcome = run_recipe(asked.recipe(), out, manner.options(), progress)
    _conclude_made(outcome, junit, as_json)


@app.command(
    epilog=examples(
        "pythia-export plan 2.8b",
        "pythia-export plan 410m@step3000 --bits 8",
        "pythia-export plan my.toml --json",
    )
)
@takes_recipe
def plan(asked: Asked, as_json: Json = False) -> None:
    """Show sizes, memory, time and steps of a recipe. Fetches nothing.

    The time is an estimate for this machine's processor, from a probe of half a second.
    """
    from dataclasses import asdict

    from ..commands.plan import plan as planned_from
    from .tables import plan_view

    planned = planned_from(asked.recipe(), timed=True)
    if as_json:
        print_json(asdict(planned))
    else:
        show(plan_view(planned))


@app.command(
    epilog=examples(
        "pythia-export pull 410m-deduped@step3000",
        "pythia-export pull 410m-int4 --no-pickle",
        "pythia-export pull ./my-finetune",
        "HF_HOME=/data/hub pythia-export pull my.toml --json",
    )
)
def pull(
    what: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RECIPE",
            help="A model (410m@step3000), a checkpoint folder (./my-finetune), or a recipe (410m-int4, my.toml).",
            autocompletion=names_of_recipes,
        ),
    ],
    adapter: AdapterFolder = None,
    no_pickle: NoPickle = False,
    allow_duplicate_revision: AllowDuplicate = False,
    as_json: Json = False,
) -> None:
    """Fetch a checkpoint, pin it to its commit, and check it; of a recipe its texts too. Prints where it is.

    Checked are sizes and hashes against the hub's list, shapes against the config, the geometry against the catalogue,
    and that no other training step has the same weights. After `pull 410m-int4`, `run 410m-int4` works with --offline;
    `pull 410m` fetches the model alone.
    """
    from ..commands.pull import pull as pull_checkpoint
    from ..commands.pull import read_texts
    from ..recipe import load_recipe, names_texts
    from .tables import checkpoint_view

    recipe = load_recipe(what)
    model = with_adapter(recipe.model, adapter)
    with progress_bars() as progress:
        opened = pull_checkpoint(model, accept=accepted(no_pickle, allow_duplicate_revision), progress=progress)
        # What `run` would refuse is refused here; a checkpoint may be pulled for its weights alone.
        notes = opened.notes() if opened.has_tokenizer else ["It has no tokenizer; `run` and `quantize` need one."]
        for note in notes:
            progress.note(note)
        texts = read_texts(recipe, opened, progress) if names_texts(what) else {}
    pulled = opened.pulled
    if as_json:
        facts = {"name": pulled.name, "revision": pulled.revision, "commit": pulled.commit, "dtype": opened.dtype}
        where = {"folder": str(pulled.folder), "weights": [str(path) for path in pulled.weights]}
        read = {name: {"source": text.source, "sha256": text.sha256} for name, text in texts.items()}
        print_json(facts | {"parameters": opened.parameters} | where | pulled.record.to_json() | {"texts": read})
    else:
        stderr().print(checkpoint_view(opened, texts))
        show(str(pulled.folder))


@app.command(
    epilog=examples(
        "pythia-export quantize 160m --out weights/160m",
        "pythia-export quantize 6.9b --method rtn --out weights/6.9b-rtn",
        "pythia-export quantize 6.9b --out weights/6.9b --device cuda",
    )
)
@takes_recipe
def quantize(asked: Asked, out: Out, manner: Manner) -> None:
    """Quantise the weights alone, layer by layer; `export` then builds graphs over them."""
    from ..commands.quantize import quantize as quantize_recipe
    from .tables import losses_table

    with progress_bars() as progress:
        outcome = quantize_recipe(asked.recipe(), out, manner.options(), progress)
    assert outcome.quantization is not None
    show(losses_table(outcome.quantization))
    _print_outcome(outcome)


@app.command(
    epilog=examples(
        "pythia-export export weights/160m --out models/160m",
        "pythia-export export models/160m --out models/160m-gqa --rotary gqa --accuracy-level 0",
        "pythia-export export models/160m --out models/160m-js --target web --layout transformers.js",
        "pythia-export export models/160m --taps resid,attn.pattern",
    )
)
def export(
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="What `quantize` wrote, or an artifact.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Directory to publish; with --taps alone, WEIGHTS itself if not given."),
    ] = None,
    rotary: Annotated[
        Literal["custom", "gqa", "onnx"] | None,
        typer.Option(help="Form of rotary attention; the recipe's if not given."),
    ] = None,
    accuracy_level: Annotated[
        int | None, typer.Option(help="Of MatMulNBits: 0 keeps activations in float, 4 makes them int8.")
    ] = None,
    target: Annotated[Literal["cpu", "cuda", "web"] | None, typer.Option(help="Where the graph will run.")] = None,
    kv_cache: Annotated[
        Literal["float32", "float16", "int8"] | None, typer.Option(help="Type of cached keys and values.")
    ] = None,
    layout: Annotated[
        Literal["flat", "transformers.js"] | None, typer.Option(help="Places and names of graph and weights.")
    ] = None,
    taps: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Also write taps.onnx, for `trace`: values from inside the model. With commas between: resid, "
            "attn.pattern, mlp.post, ..., or all.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Build a graph over weights that are quantised already; `verify` then proves it."""
    from ..commands.export import add_taps
    from ..commands.export import export as export_graph

    names = None if taps is None else [name.strip() for name in taps.split(",") if name.strip()]
    if out is None:
        others = (rotary, accuracy_level, target, kv_cache, layout)
        if not names or any(option is not None for option in others):
            raise RecipeError(
                "no --out, the directory to publish", hint="With --taps and nothing else WEIGHTS itself gets the graph."
            )
        _print_outcome(add_taps(weights, names))
        return

    with progress_bars() as progress:
        outcome = export_graph(
            weights,
            out,
            rotary=rotary,
            accuracy_level=accuracy_level,
            target=target,
            kv_cache=kv_cache,
            layout=layout,
            taps=names,
            overwrite=overwrite,
            progress=progress,
        )
    _print_outcome(outcome)


@app.command(
    name="import",
    epilog=examples(
        "pythia-export import my-410m-gptq --original 410m --out models/410m-gptq",
        "pythia-export import my-autoround --original ./my-finetune --text heldout.jsonl --out models/mine",
        "pythia-export import OWNER/pythia-1b-w4a16 --out models/1b --set export.accuracy_level=4",
        "pythia-export import my-act-order-gptq --requantize 8 --out models/again",
    ),
)
def import_(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A folder that a quantiser saved, or OWNER/NAME of the hub.")
    ],
    out: Out,
    original: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The float checkpoint that was quantised: what it cost is measured on it."),
    ] = None,
    text: Annotated[Path | None, typer.Option(metavar="PATH", help="Prove on this file or folder of texts.")] = None,
    tokens: Annotated[int | None, typer.Option(metavar="N", help="Held-out tokens to score.")] = None,
    requantize: Annotated[
        int | None,
        typer.Option(metavar="4|8", help="Round what does not fit again, to this many bits, and report the cost."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set a key of [verify], [export] or [calibration]. May be repeated."
        ),
    ] = None,
    overwrite: Overwrite = False,
    no_pickle: NoPickle = False,
    junit: JUnit = None,
    as_json: Json = False,
) -> None:
    """Make an artifact of a checkpoint that another tool has quantised, without rounding again, and prove it.

    It reads GPTQ (GPTQModel, AutoGPTQ), AWQ, AutoRound and compressed-tensors (llm-compressor). What does not fit is
    refused by name. Without --original the cost of the quantisation is not known.
    """
    from ..commands.import_checkpoint import Wanted, import_checkpoint
    from ..recipe import changes_called, imported_keys, load_recipe

    require_writable(junit, out)
    if requantize not in (None, 4, 8):
        raise RecipeError(f"--requantize {requantize}: 4 or 8 was expected")
    changes = changes_called(set_ or (), imported_keys())
    if text is not None:
        changes |= {"verify.source": "file", "verify.path": text}
    if tokens is not None:
        changes |= {"verify.tokens": tokens}
    models = [None if name is None else load_recipe(name).model for name in (checkpoint, original)]
    assert models[0] is not None
    wanted = Wanted(models[0], models[1], requantize)  # type: ignore[arg-type]
    with ends_in_junit(junit, f"import {checkpoint}"), progress_bars() as progress:
        outcome = import_checkpoint(
            wanted, out, changes, overwrite=overwrite, accept=accepted(no_pickle, False), progress=progress
        )
    _conclude_made(outcome, junit, as_json)


@app.command(
    epilog=examples(
        "pythia-export verify build/demo",
        "pythia-export verify models/160m --tokens 262144",
        "pythia-export verify build/new --against build/old/parity.json",
        "pythia-export verify build/demo --rtn --per-token tokens.parquet",
        "pythia-export verify models/70m --sae autoencoders/blocks.3.hook_resid_post",
        "pythia-export verify build/demo --junit parity.xml",
        "pythia-export verify downloaded --checkpoint my-finetune",
    )
)
def verify(
    artifact: ArtifactName,
    tokens: Annotated[
        int | None, typer.Option(min=64, help="Held-out tokens to score; the recipe's if not given.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Another artifact's parity.json: compare with it, token by token, and fail if worse."),
    ] = None,
    rtn: Annotated[bool, typer.Option("--rtn", help="Also round to nearest, and say what GPTQ recovered.")] = False,
    inside: Annotated[
        bool, typer.Option("--inside", help="Also compare residual streams, attention patterns and induction heads.")
    ] = False,
    sae: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --inside, which it turns on: do the features of SAELens's autoencoders in this folder survive?",
        ),
    ] = None,
    per_token: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a Parquet table, one row a token (needs pyarrow).")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where its original is now; accepted by the recorded hashes.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the original's adapter is now; likewise.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Where the recipe's local held-out text is now.")
    ] = None,
    device: Device = "cpu",
    junit: JUnit = None,
    as_json: Json = False,
) -> None:
    """Prove an artifact against its original again, and write verdict and report into it.

    Exit code 10: a gate did not pass. It failed, or it is inconclusive: then more --tokens decide.
    """
    from ..commands.verify import Unwritten
    from ..commands.verify import verify as verify_artifact
    from ..commands.whereabouts import Elsewhere

    require_writable(junit, artifact)
    unwritten = None
    with ends_in_junit(junit, f"verify {artifact}"), progress_bars() as progress:
        artifact = found_artifact(artifact, progress)
        require_writable(per_token, artifact)
        try:
            parity = verify_artifact(
                artifact, tokens=tokens, against=against, nearest=rtn, inside=inside, per_token=per_token,
                elsewhere=Elsewhere(checkpoint, adapter, text, sae), device=device,
                progress=progress,
            )  # fmt: skip
        except Unwritten as e:
            parity, unwritten = e.parity, e

    def result() -> None:
        if as_json:
            print_json(parity.to_json())
        else:
            print_verdict(parity, None)
            if unwritten is None:
                show(f"Report    {artifact / 'report.html'}")

    conclude(parity, junit, result, unwritten)


def _conclude_made(outcome: Outcome, junit: Path | None, as_json: bool) -> None:
    """Conclude with an artifact that was made and proved just now."""
    parity = outcome.parity
    assert parity is not None

    def result() -> None:
        if as_json:
            print_json(_outcome(outcome))
        else:
            print_verdict(parity, outcome.quantization)
            _print_outcome(outcome)
            show(f"Report    {outcome.folder / 'report.html'}")

    conclude(parity, junit, result)


def conclude(
    parity: Parity, junit: Path | None, result: Callable[[], None], unwritten: PythiaExportError | None = None
) -> None:
    """Tell the CI system, if one is there, print the result, and exit by the gates.

    A place that cannot be written costs neither the others nor, where a gate did not pass, its exit code.
    """
    from ..report import words

    faults: list[PythiaExportError] = [] if unwritten is None else [unwritten]
    steps: tuple[Callable[[], None], ...] = (lambda: _tell_ci(parity, junit), result)
    for step in steps:
        try:
            step()
        except PythiaExportError as e:
            faults.append(e)
    for line in words.unmet(parity):
        say(line)
    for fault in faults:
        say_error(fault)
    if not parity.passed:
        raise typer.Exit(EXIT_GATE)
    if faults:
        raise typer.Exit(faults[0].exit_code)


def _tell_ci(parity: Parity, junit: Path | None) -> None:
    from ..disk import write_atomically
    from ..report.junit import junit as as_junit
    from .github import announce

    try:
        if junit is not None:
            write_atomically(junit, as_junit(parity).encode())
        for annotation in announce(parity):
            typer.echo(annotation, err=True)  # the runner reads both streams; --json has stdout to itself
    except OSError as e:
        raise OutputError(f"the verdict could not be written for CI: {e}") from e


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "folder": str(outcome.folder),
        "quantization": None if outcome.quantization is None else outcome.quantization.to_json(),
        "parity": None if outcome.parity is None else outcome.parity.to_json(),
        "seconds": outcome.seconds,
    }


def _print_outcome(outcome: Outcome) -> None:
    from rich.filesize import decimal

    size = sum(path.stat().st_size for path in outcome.folder.rglob("*") if path.is_file())
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in outcome.seconds.items())
    show(f"Artifact  {outcome.folder} ({decimal(size)}; {stages})")
