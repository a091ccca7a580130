"""Commands that take a finished artifact: look into it, measure it, turn it back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..base.errors import RecipeError
from ..base.extras import install
from ..base.strict_json import parse_json, read_object, shown
from .shared import (
    ArtifactFolder,
    Json,
    app,
    examples,
    print_json,
    print_verdict,
    progress_bars,
    say,
    show,
)

if TYPE_CHECKING:
    from ..artifact import Artifact
    from ..runtime.taps import Positions


@app.command(
    epilog=examples(
        "pythia-export inspect build/demo",
        "pythia-export inspect me/pythia-160m-int4 --verify-signature key.pub",
        "pythia-export inspect build/demo --json",
    )
)
def inspect(
    artifact: ArtifactFolder,
    verify_signature: Annotated[
        str | None,
        typer.Option(metavar="KEY|IDENTITY", help="Check model.sig as well: a public key, or who signed."),
    ] = None,
    signature_issuer: Annotated[
        str | None, typer.Option(metavar="URL", help="Who issued that identity, for a signature without a key.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show where an artifact comes from, what it holds and what was proved of it; check every file's hash."""
    from ..artifact import Artifact
    from ..graph.targets import warnings
    from ..runtime import check_runnable, speed_here
    from .tables import artifact_view

    opened = Artifact.open(artifact)
    opened.check()
    check_runnable(opened)
    signed_by = None
    if verify_signature is not None or signature_issuer is not None:
        signed_by = _signed_by(opened, verify_signature, signature_issuer)

    described = opened.manifest.files
    quantization = opened.quantization if "quantization.json" in described else None
    proved, parity = opened.parity_schema, opened.parity
    warned = warnings(opened.layout, opened.recipe.export)
    speed = speed_here(opened) if opened.has_graph else ("none", "there is no graph")
    if as_json:
        here = {"speed": speed[0], "why": speed[1], "warnings": warned, "signed_by": signed_by}
        names = {part: f"{part}.json" for part in ("quantization", "parity")}
        records = {part: opened.read_json(n) if n in described else None for part, n in names.items()}
        print_json({"manifest": opened.manifest.to_json(), "here": here} | records)
        return
    show(artifact_view(opened, quantization, speed, warned))
    if signed_by is not None:
        show(f"Signed by {signed_by}: model.sig is of these bytes.")
    show("")
    if not opened.has_graph:
        show(f"No graph yet. `pythia-export export {artifact} --out DIR` builds one.")
    elif parity is None:
        found = "Not verified" if proved is None else "Verified by another version"
        show(f"{found}. `pythia-export verify {artifact}` proves it.")
    else:
        print_verdict(parity, quantization)


def _signed_by(opened: Artifact, by: str | None, issuer: str | None) -> str:
    from ..artifact.signature import Identity, require_signature

    if by is None:
        raise RecipeError("--signature-issuer says who issued an identity", hint="--verify-signature names that.")
    if issuer is None and not Path(by).exists() and "@" in by:
        raise RecipeError(
            f"{by} is no public key's file; an identity was issued by somebody",
            hint="--signature-issuer https://accounts.google.com, https://github.com/login/oauth, "
            "https://token.actions.githubusercontent.com or another.",
        )
    require_signature(opened, Path(by) if issuer is None else Identity(by, issuer))
    return by if issuer is None else f"{by} ({issuer})"


@app.command(
    name="eval",
    epilog=examples(
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
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of ONNX Runtime; every core if not given.")
    ] = None,
    native: Annotated[bool, typer.Option(help="Use the native kernels, where they are built.")] = True,
    as_json: Json = False,
) -> None:
    """Run tasks of lm-evaluation-harness, beside the published results of the original.

    The harness comes with the extra `eval` of this package; its own tasks fetch their data from the hub.
    """
    from ..base.errors import EnvironmentProblem
    from .tables import eval_table

    try:
        from ..evaluate.run import evaluate as measure
    except ModuleNotFoundError as e:
        raise EnvironmentProblem(
            f"`eval` runs lm-evaluation-harness; {e.name} is not installed", hint=install("eval")
        ) from e
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise RecipeError("no task", hint="--tasks lambada_openai,piqa names two.")
    result = measure(
        artifact, names, include_path=include_path, num_fewshot=num_fewshot, limit=limit, batch_size=batch_size,
        threads=threads, native=native,
    )  # fmt: skip
    if as_json:
        print_json(result.to_json())
    else:
        show(eval_table(result))


@app.command(
    epilog=examples(
        "pythia-export trace build/demo --texts texts.jsonl --capture resid --out build/seen",
        "pythia-export trace models/410m --texts corpus/ --capture attn.pattern,blocks.3.mlp.hook_post --out seen",
        "pythia-export trace models/12b --texts texts.txt --capture resid --positions last --dtype float16 --out seen",
        "pythia-export trace build/demo --texts texts.jsonl --capture logits --out build/silent "
        """--intervene '{"blocks.1.attn.hook_z": {"op": "suppress", "heads": [2]}}'""",
    )
)
def trace(
    artifact: ArtifactFolder,
    texts: Annotated[
        Path, typer.Option(metavar="PATH", help="A file of texts (.txt, .jsonl, .json, .parquet), or a folder of them.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write; one that was begun is continued.")
    ],
    capture: Annotated[
        str, typer.Option(metavar="NAMES", help="Places with commas between: resid, attn.z, blocks.3.hook_in, logits.")
    ] = "resid",
    positions: Annotated[
        str, typer.Option(metavar="WHICH", help="Tokens to read: all, last, or numbers (0,5,-1; the last is -1).")
    ] = "all",
    intervene: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Change values on the way: a JSON file, or the object itself, as Python's `intervene`.",
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16"], typer.Option(help="Type to store; float16 takes half the disk.")
    ] = "float32",
    as_json: Json = False,
) -> None:
    """Write values from inside the model, for every text of a file: the residual stream, attention patterns, neurons.

    The artifact needs a graph with taps: `pythia-export export DIR --taps resid` adds one. What is written is
    safetensors, shard by shard. After an interruption the same command continues.
    """
    from ..commands.trace import trace as trace_file

    names = [name.strip() for name in capture.split(",") if name.strip()]
    if not names:
        raise RecipeError("--capture names no place", hint="`--capture resid` is the residual stream at every layer.")
    with progress_bars() as progress:
        found = trace_file(
            artifact, texts, names, out, positions=_positions(positions),
            intervene=None if intervene is None else _changes(intervene), dtype=dtype, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json({"folder": str(out), "texts": len(found), "hooks": list(found.hooks),
                    "shards": [path.name for path in found.shards()]})  # fmt: skip
    else:
        show(f"Traces    {out} (texts: {len(found):,}, places: {len(found.hooks)}, files: {len(found.shards())})")


def _changes(given: str) -> dict[str, Any]:
    """Return changes by place: of an object, or of a file that holds one. What a change may be is for others to say."""
    hint = 'Written so: {"blocks.3.hook_resid_post": {"op": "scale", "factor": 0, "pos": -1}}.'
    if not given.lstrip().startswith(("{", "[")):
        try:
            return read_object(Path(given), error=RecipeError, hint=hint)
        except FileNotFoundError:
            raise RecipeError(f"--intervene {given}: no such file", hint=hint) from None
    found = parse_json(given, "--intervene", error=RecipeError, hint=hint)
    if not isinstance(found, dict):
        raise RecipeError(f"--intervene: {shown(found)}; an object was expected", hint=hint)
    return found


def _positions(given: str) -> Positions:
    if given in ("all", "last"):
        return given  # type: ignore[return-value]
    try:
        return [int(number) for number in given.split(",")]
    except ValueError:
        raise RecipeError(f"--positions {given}: all, last or numbers with commas between were expected") from None


@app.command(
    epilog=examples(
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
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="The largest size of one safetensors file: 500MB, 2GiB.")
    ] = "5GB",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what dequantize wrote there before, once this is whole.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the quantised model as an ordinary GPT-NeoX checkpoint, for tools that want plain weights.

    transformers' GPTNeoXForCausalLM loads it. In float32 it computes what the artifact computes at accuracy level 0.
    """
    from dataclasses import asdict

    from ..commands import dequantize as module
    from .tables import checkpoint_line

    with progress_bars() as progress:
        written = module.dequantize(
            artifact,
            out,
            dtype=dtype,
            shard_bytes=module.parse_size(max_shard_size),
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        print_json(asdict(written))
    else:
        show(checkpoint_line(written))


@app.command(
    epilog=examples(
        "pythia-export bench build/demo",
        "pythia-export bench models/160m --no-peers --json",
        "pythia-export bench models/160m --peer llama.cpp --peer-python llama/bin/python --contexts 128,1500",
    )
)
def bench(
    artifact: ArtifactFolder,
    peers: Annotated[bool, typer.Option(help="Measure every other installed runtime too, in the same run.")] = True,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this one: optimum, 'optimum int8', transformers.exporters, openvino, transformers, "
            "onnxruntime-genai, llama.cpp. Several times for several.",
        ),
    ] = None,
    peer_python: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Another interpreter to look for peers in. Several times for several."),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt whose prefill is timed.")] = 128,
    contexts: Annotated[
        str | None,
        typer.Option(
            metavar="N,N",
            help="Tokens in the cache while decoding is timed. If not given: the prompt's, 512 and 1500, if they fit.",
        ),
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens decoded one by one, at each context.")] = 64,
    tokens: Annotated[
        int, typer.Option(min=0, help="Held-out tokens of the artifact's own text for perplexity; 0 leaves it out.")
    ] = 4096,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; contenders take turns within each.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of every contender; every core if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure speed, load time, memory, size and perplexity, beside other runtimes.

    Those are Optimum, transformers, onnxruntime-genai and llama.cpp, as far as they are installed. What cannot run is
    listed with the reason.
    """
    from ..bench.run import bench as measure
    from .tables import bench_view

    if peer and not peers:
        raise RecipeError("--no-peers and --peer contradict each other", hint="Leave one of them out.")
    with progress_bars() as progress:
        result = measure(
            artifact,
            peers=(peer or ()) if peers else None,
            peer_pythons=peer_python or (),
            prompt_tokens=prompt_tokens,
            contexts=None if contexts is None else _numbers(contexts),
            new_tokens=new_tokens,
            text_tokens=tokens,
            repeats=repeats,
            threads=threads,
            progress=progress,
        )
    if as_json:
        print_json(result.to_json())
    else:
        show(bench_view(result))


def _numbers(given: str) -> list[int]:
    try:
        return [int(number) for number in given.split(",")]
    except ValueError:
        raise RecipeError(f"--contexts {given}: numbers with commas between were expected") from None


@app.command(
    epilog=examples(
        "pythia-export push models/160m me/pythia-160m-int4 --dry-run",
        "HF_TOKEN=hf_... pythia-export push models/160m me/pythia-160m-int4 --private",
        "pythia-export push models/160m me/pythia-160m-int4 --sign key.pem",
    )
)
def push(
    artifact: ArtifactFolder,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the hub; made where there is none.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is made.")] = False,
    sign: Annotated[
        str | None, typer.Option(metavar="KEY|keyless", help="Sign it: a private key's file, or by Sigstore.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent; contact no hub.")] = False,
    as_json: Json = False,
) -> None:
    """Put an artifact on the hub, with its model card, in one commit; then check the hashes that the hub lists."""
    from dataclasses import asdict

    from ..commands.push import push as push_artifact
    from .tables import push_view

    with progress_bars() as progress:
        done = push_artifact(artifact, repo, private=private, sign_with=sign, dry_run=dry_run, progress=progress)
    if done.passed is not True:
        say("Warning: " + ("its gates did not pass." if done.passed is False else "it was never verified."))
    if as_json:
        print_json(asdict(done))
    else:
        show(push_view(done))
