"""The command line: each command parses, calls one function and prints what it returned.

Data goes to stdout, everything else to stderr. torch, transformers and ONNX Runtime are imported inside the commands
that need them, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console, RenderableType
from typer.core import TyperGroup

from . import __version__
from .errors import EXIT_GATE, OutputError, PythiaExportError, RecipeError

if TYPE_CHECKING:
    from .pipeline import Outcome
    from .progress import Progress
    from .recipe import Recipe

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class _Commands(TyperGroup):
    """What a user can cause becomes a message and an exit code here, once for all commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # `--debug` is wanted after something failed: accept it at the end of the line that failed.
        if "--debug" in args:
            args = ["--debug", *(x for x in args if x != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _say("Interrupted. What was there before is intact; --resume goes on after the last finished layer.")
            raise typer.Exit(INTERRUPTED) from None
        except PythiaExportError as e:
            _fail(e, ctx.params.get("debug", False))
        except MemoryError as e:
            from .errors import ResourceError

            hint = "Fewer calibration samples, or a shorter sequence_length; `pythia-export plan` estimates the need."
            _fail(
                ResourceError(f"not enough memory: {e}".removesuffix(": "), hint=hint), ctx.params.get("debug", False)
            )
        except ModuleNotFoundError as e:
            from .errors import EnvironmentProblem

            problem = EnvironmentProblem(f"this command needs {e.name}, which is not installed", hint=_REINSTALL)
            _fail(problem, ctx.params.get("debug", False))


_REINSTALL = "pip install pythia-export, in a virtual environment of its own."


app = typer.Typer(
    name="pythia-export",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A .toml file, or the name of a shipped recipe.")]
ArtifactFolder = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A directory that `run` or `export` wrote.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Directory to publish; made whole, or not at all.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an artifact that is there, once this is whole.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on after the last layer that an interrupted run finished.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
JUnit = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="Write the verdict as JUnit XML, one case a gate.")
]


def _examples(*lines: str) -> str:
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)])


@app.callback(
    epilog=_examples(
        "pythia-export run demo --out build/demo",
        "pythia-export generate build/demo --prompt 'def main('",
    )
)
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=lambda v: _version(v), is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Quantise Pythia checkpoints, export them to ONNX, and prove the result against the original."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pythia-export {__version__}")
        raise typer.Exit


@app.command(
    epilog=_examples(
        "pythia-export run demo --out build/demo",
        "pythia-export run pythia-160m-int4 --out models/pythia-160m",
        "pythia-export run my.toml --out out --overwrite --json",
        "pythia-export run pythia-6.9b-int4 --out models/pythia-6.9b --resume",
    )
)
def run(
    recipe: RecipeName,
    out: Out,
    overwrite: Overwrite = False,
    resume: Resume = False,
    junit: JUnit = None,
    as_json: Json = False,
) -> None:
    """The whole job: pull, quantise, export, prove, publish.

    Exit code 10 means that a gate of the recipe failed; the artifact is published all the same, with that verdict.
    """
    from . import pipeline

    _require_writable(junit)
    with _progress() as progress:
        outcome = pipeline.run(_recipe(recipe), out, overwrite=overwrite, resume=resume, progress=progress)
    assert outcome.parity is not None
    if as_json:
        _print_json(_outcome(outcome))
    else:
        _print_verdict(outcome.parity, outcome.quantization)
        _print_outcome(outcome)
        _print(f"Report    {outcome.folder / 'report.html'}")
    _conclude(outcome.parity, junit)


@app.command(epilog=_examples("pythia-export plan pythia-2.8b-int4", "pythia-export plan my.toml --json"))
def plan(recipe: RecipeName, as_json: Json = False) -> None:
    """Sizes, memory and steps of a recipe. Pulls nothing."""
    from dataclasses import asdict

    from . import pipeline
    from .tables import plan_view

    planned = pipeline.plan(_recipe(recipe))
    if as_json:
        _print_json(asdict(planned))
    else:
        _print(plan_view(planned))


@app.command(epilog=_examples("pythia-export pull pythia-410m-int4", "HF_HOME=/data/hub pythia-export pull my.toml"))
def pull(recipe: RecipeName) -> None:
    """Fetch a recipe's checkpoint, pin it to its commit, and check it. Prints where it lies."""
    from . import pipeline

    with _progress() as progress:
        pulled = pipeline.pull(_recipe(recipe), progress)
    _say(f"{pulled.name} at {pulled.revision} is {pulled.commit}")
    _print(str(pulled.folder))


@app.command(epilog=_examples("pythia-export quantize pythia-160m-int4 --out weights/160m"))
def quantize(recipe: RecipeName, out: Out, overwrite: Overwrite = False, resume: Resume = False) -> None:
    """Only the weights: quantised, streamed layer by layer, for `export` to build graphs over."""
    from . import pipeline
    from .tables import losses_table

    with _progress() as progress:
        outcome = pipeline.quantize(_recipe(recipe), out, overwrite=overwrite, resume=resume, progress=progress)
    assert outcome.quantization is not None
    _print(losses_table(outcome.quantization))
    _print_outcome(outcome)


@app.command(
    epilog=_examples(
        "pythia-export export weights/160m --out models/160m",
        "pythia-export export models/160m --out models/160m-gqa --rotary gqa --accuracy-level 0",
    )
)
def export(
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="What `quantize` wrote, or an artifact.")],
    out: Out,
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
    overwrite: Overwrite = False,
) -> None:
    """Build a graph over weights that are quantised already. Not yet proved: `verify` does that."""
    from . import pipeline

    with _progress() as progress:
        outcome = pipeline.export(
            weights,
            out,
            rotary=rotary,
            accuracy_level=accuracy_level,
            target=target,
            kv_cache=kv_cache,
            overwrite=overwrite,
            progress=progress,
        )
    _print_outcome(outcome)


@app.command(
    epilog=_examples(
        "pythia-export verify build/demo",
        "pythia-export verify models/160m --tokens 262144",
        "pythia-export verify build/new --against build/old/parity.json",
        "pythia-export verify build/demo --rtn --per-token tokens.parquet",
        "pythia-export verify build/demo --junit parity.xml",
    )
)
def verify(
    artifact: ArtifactFolder,
    tokens: Annotated[
        int | None, typer.Option(min=64, help="Held-out tokens to score; the recipe's if not given.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Another artifact's parity.json: compare with it, token by token, and fail if worse."),
    ] = None,
    rtn: Annotated[bool, typer.Option("--rtn", help="Also round to nearest, and say what GPTQ recovered.")] = False,
    per_token: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a Parquet table, one row a token (needs pyarrow).")
    ] = None,
    junit: JUnit = None,
    as_json: Json = False,
) -> None:
    """Prove an artifact against its original again, and put verdict and report into it.

    Exit code 10: a gate did not pass. It failed, or it is inconclusive: then more --tokens decide.
    """
    from . import pipeline

    for file in (junit, per_token):
        _require_writable(file)
    with _progress() as progress:
        parity = pipeline.verify(
            artifact, tokens=tokens, against=against, nearest=rtn, per_token=per_token, progress=progress
        )
    if as_json:
        _print_json(parity)
    else:
        _print_verdict(parity, None)
        _print(f"Report    {artifact / 'report.html'}")
    _conclude(parity, junit)


@app.command(epilog=_examples("pythia-export inspect build/demo", "pythia-export inspect build/demo --json"))
def inspect(artifact: ArtifactFolder, as_json: Json = False) -> None:
    """Hash every file again and show where the artifact comes from, what it holds and what was proved of it."""
    from .artifact import Artifact
    from .graph.layout import layout
    from .graph.targets import warnings
    from .parity import SCHEMA
    from .runtime import MODEL, speed_here
    from .tables import artifact_view

    opened = Artifact.open(artifact)
    opened.check()

    def read(name: str) -> Any:
        return opened.read_json(name) if name in opened.manifest["files"] else None

    quantization, parity, speed = read("quantization.json"), read("parity.json"), ("none", "there is no graph")
    if MODEL in opened.manifest["files"]:  # `quantize` writes weights alone
        speed = speed_here(opened)
    q, chosen = opened.recipe.quantize, opened.recipe.export
    warned = warnings(layout(opened.config, q, chosen.dtype), chosen)
    if as_json:
        here = {"speed": speed[0], "why": speed[1], "warnings": warned}
        _print_json({"manifest": opened.manifest, "here": here, "quantization": quantization, "parity": parity})
        return
    _print(artifact_view(opened, quantization, speed, warned))
    _print("")
    if parity is None or parity["schema"] != SCHEMA:
        found = "Not verified" if parity is None else "Verified by another version"
        _print(f"{found}. `pythia-export verify {artifact}` proves it.")
    else:
        _print_verdict(parity, quantization)


@app.command(
    epilog=_examples(
        "pythia-export generate build/demo --prompt 'import '",
        "pythia-export generate models/160m --temperature 0.8 --top-p 0.95 --seed 1 < prompt.txt",
    )
)
def generate(
    artifact: ArtifactFolder,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Read from stdin if not given.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after so many tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token every time.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw among the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest that sum to p.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes the draws repeatable.")] = None,
    native: Annotated[bool, typer.Option(help="By the native kernels, where they are built.")] = True,
) -> None:
    """Continue a prompt; the text appears as it comes, its speed on stderr at the end."""
    from . import runtime
    from .artifact import Artifact

    if prompt is None:
        if sys.stdin.isatty():
            raise RecipeError("no prompt", hint="Give --prompt TEXT, or pipe the text in.")
        prompt = sys.stdin.read().removesuffix("\n")
    opened = Artifact.open(artifact)
    tokenizer, session = opened.tokenizer(), runtime.Session.open(opened, native=native)
    ids, text = tokenizer.encode(prompt).ids, runtime.StreamDecoder(tokenizer)
    tokens = runtime.generate(
        session, tokenizer, ids, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    if sys.stderr.isatty():
        _stderr().print(prompt, end="", style="dim", soft_wrap=True)
    began = time.perf_counter()
    first, n = began, 0
    for token in tokens:
        n += 1
        if n == 1:
            first = time.perf_counter()
        typer.echo(text.push(token), nl=False)
        sys.stdout.flush()
    typer.echo(text.finish())
    decoding = time.perf_counter() - first
    speed = f"{(n - 1) / decoding:,.1f} tokens/s" if n > 1 and decoding > 0 else "too few for a speed"
    at = session.speed if session.speed == "native" else f"{session.speed} speed: {session.why}"
    _say(f"{n} tokens, {speed}; {len(ids)} tokens of prompt in {first - began:.2f} s ({at})")


@app.command(
    name="eval",
    epilog=_examples(
        "pythia-export eval models/160m --tasks lambada_openai,piqa",
        "pythia-export eval models/160m --tasks arc_easy --num-fewshot 5 --limit 200",
        "pythia-export eval build/demo --tasks my_task --include-path my-tasks --json",
    ),
)
def evaluate(
    artifact: ArtifactFolder,
    tasks: Annotated[str, typer.Option(help="Names of tasks or groups, with commas between.")],
    include_path: Annotated[
        Path | None, typer.Option(metavar="DIR", exists=True, file_okay=False, help="A folder of tasks of your own.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Solved samples in the context; the task's number if not given.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many samples of each task.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="The most rows of a batch; as many as fit if not given.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of ONNX Runtime; every core if not given.")] = None,
    native: Annotated[bool, typer.Option(help="By the native kernels, where they are built.")] = True,
    as_json: Json = False,
) -> None:
    """Tasks of lm-evaluation-harness, beside what was published of the original.

    The harness comes with the extra `eval` of this package; its own tasks fetch their data from the hub.
    """
    from .errors import EnvironmentProblem
    from .tables import eval_table

    try:
        from .evaluate.run import evaluate as measure
    except ModuleNotFoundError as e:
        raise EnvironmentProblem(
            f"`eval` runs lm-evaluation-harness; {e.name} is not installed", hint="pip install 'pythia-export[eval]'"
        ) from e
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise RecipeError("no task", hint="--tasks lambada_openai,piqa names two.")
    result = measure(
        artifact, names, include_path=include_path, num_fewshot=num_fewshot, limit=limit, batch_size=batch_size,
        threads=threads, native=native,
    )  # fmt: skip
    if as_json:
        _print_json(result)
    else:
        _print(eval_table(result))


@app.command(
    epilog=_examples(
        "pythia-export dequantize build/demo build/demo-float32",
        "pythia-export dequantize models/12b models/12b-bf16 --dtype bfloat16 --max-shard-size 2GB",
    )
)
def dequantize(
    artifact: ArtifactFolder,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Directory to write; made whole, or not at all.")],
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"],
        typer.Option(help="float32 keeps the dequantised weights exactly; the others round them again."),
    ] = "float32",
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Of one safetensors file: 500MB, 2GiB.")] = "5GB",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what dequantize wrote there before, once this is whole.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the quantised model as an ordinary GPT-NeoX checkpoint, for tools that want plain weights.

    transformers' GPTNeoXForCausalLM loads it. In float32 it computes what the artifact computes at accuracy level 0.
    """
    from dataclasses import asdict

    from . import dequantize as module
    from .tables import checkpoint_line

    with _progress() as progress:
        written = module.dequantize(
            artifact,
            out,
            dtype=dtype,
            shard_bytes=module.parse_size(max_shard_size),
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        _print_json(asdict(written))
    else:
        _print(checkpoint_line(written))


@app.command(epilog=_examples("pythia-export bench build/demo", "pythia-export bench models/160m --no-peers --json"))
def bench(
    artifact: ArtifactFolder,
    peers: Annotated[bool, typer.Option(help="Beside Optimum's float32 export, in the same run.")] = True,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of prefill.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens decoded one by one.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; contenders take turns within each.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Of ONNX Runtime; every core if not given.")] = None,
    as_json: Json = False,
) -> None:
    """Prefill and decode tokens per second, and peak memory."""
    from .bench import bench as measure
    from .tables import bench_table

    with _progress() as progress:
        result = measure(
            artifact,
            peers=peers,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            repeats=repeats,
            threads=threads,
            progress=progress,
        )
    if as_json:
        _print_json(result)
    else:
        _print(bench_table(result))


@app.command(epilog=_examples("pythia-export recipes", "pythia-export recipes --schema > recipe.schema.json"))
def recipes(
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a recipe instead.")] = False,
    as_json: Json = False,
) -> None:
    """List the recipes that came with the package."""
    from .recipe import Recipe, load_recipe, recipe_names, recipes_folder
    from .tables import recipes_table

    if schema:
        _print_json(Recipe.model_json_schema())
        return
    paths = [recipes_folder() / f"{name}.toml" for name in recipe_names()]
    shipped = [(path.stem, _opening_comment(path), load_recipe(str(path))) for path in paths]
    if as_json:
        _print_json([{"name": n, "about": about, "recipe": r.model_dump(mode="json")} for n, about, r in shipped])
    else:
        _print(recipes_table(shipped))


def main() -> None:
    """Entry point. What no class of errors foresaw is our fault: say so, without a page of traceback."""
    try:
        app()
    except Exception as e:
        if "--debug" in sys.argv:
            traceback.print_exc()
        lines = str(e).strip().splitlines() or [""]
        _say(f"Unexpected {type(e).__name__}: {lines[0]}\n  The same command with --debug shows where.")
        sys.exit(1)


def _recipe(name: str) -> Recipe:
    from .recipe import load_recipe

    return load_recipe(name)


def _opening_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines))


@contextmanager
def _progress() -> Iterator[Progress]:
    from .console import Bars

    with Bars(_stderr()) as bars:
        yield bars


def _require_writable(file: Path | None) -> None:
    """Before the long part."""
    if file is not None and file.is_dir():
        raise OutputError(f"{file} is a folder; a file to write was expected", hint=f"{file / 'a-name'}, for example.")
    if file is not None and not file.absolute().parent.is_dir():
        raise OutputError(f"{file}: there is no folder {file.absolute().parent}", hint="Create it first.")


def _conclude(parity: dict[str, Any], junit: Path | None) -> None:
    """Tell the CI system, if one is there, and exit by the gates."""
    from .artifact import write_atomically
    from .github import announce
    from .report import words
    from .report.junit import junit as as_junit

    for line in words.unmet(parity):
        _say(line)
    try:
        if junit is not None:
            write_atomically(junit, as_junit(parity).encode())
        for annotation in announce(parity):
            typer.echo(annotation, err=True)  # the runner reads both streams; --json has stdout to itself
    except OSError as e:
        raise OutputError(f"the verdict could not be written for CI: {e}") from e
    if not parity["passed"]:
        raise typer.Exit(EXIT_GATE)


def _fail(error: PythiaExportError, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    _say(f"Error: {error}" + (f"\nHint: {error.hint}" if error.hint else ""))
    raise typer.Exit(error.exit_code)


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "folder": str(outcome.folder),
        "quantization": outcome.quantization,
        "parity": outcome.parity,
        "seconds": outcome.seconds,
    }


def _print_outcome(outcome: Outcome) -> None:
    from rich.filesize import decimal

    size = sum(path.stat().st_size for path in outcome.folder.rglob("*") if path.is_file())
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in outcome.seconds.items())
    _print(f"Artifact  {outcome.folder} ({decimal(size)}; {stages})")


def _print_verdict(parity: dict[str, Any], quantization: dict[str, Any] | None) -> None:
    from .report.text import verdict

    _print(verdict(parity, quantization))


def _print(what: RenderableType) -> None:
    # A pipe or a CI log has no width: rich would take 80 columns and cut the tables' last one.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    Console(markup=False, highlight=False, emoji=False, width=width).print(what, soft_wrap=isinstance(what, str))


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _say(message: str) -> None:
    _stderr().print(message, markup=False, highlight=False, soft_wrap=True)


def _stderr() -> Console:
    return Console(stderr=True, emoji=False)
