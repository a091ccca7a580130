"""`generate`: text continued in the terminal, once or again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..base.errors import EXIT_INTERRUPTED, PythiaExportError, RecipeError
from .shared import ArtifactFolder, DraftFolder, app, examples, printing, say, say_error, stderr

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ..artifact import Artifact
    from ..model.generation import Generation
    from ..runtime import Draft, Sampling, Session


@app.command(
    epilog=examples(
        "pythia-export generate build/demo",
        "pythia-export generate build/demo --prompt 'import '",
        "pythia-export generate models/160m --temperature 0.8 --top-p 0.95 --seed 1 < prompt.txt",
        "pythia-export generate me/my-chat-int4 --chat --prompt 'Who are you?'",
        "pythia-export generate build/demo --prompt 'def f(' --stop $'\\n\\n' --stop 'class '",
        "pythia-export generate models/1.4b --draft models/70m --prompt 'The capital of'",
    )
)
def generate(
    artifact: ArtifactFolder,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="From stdin if not given; a terminal is asked again and again.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after so many tokens.")] = 128,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw tokens by the settings of the checkpoint's generation_config.json.")
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="0, the default, takes the likeliest token every time.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw among the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest that sum to p.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes the draws repeatable.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a user's message, put into the checkpoint's chat template.")
    ] = False,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    draft: DraftFolder = None,
    native: Annotated[bool, typer.Option(help="Use the native kernels, where they are built.")] = True,
    trust_graph: Annotated[
        bool, typer.Option("--trust-graph", help="Run operators that pythia-export does not write, too.")
    ] = False,
) -> None:
    """Continue a prompt. The text appears as it comes; its speed on stderr at the end.

    A text ends at any of the checkpoint's end tokens. Ctrl-C ends it too, and keeps what is there. With --draft the
    text is the same, token for token, or drawn from the same distribution.
    """
    from .. import runtime
    from ..artifact import Artifact

    opened = Artifact.open(artifact)
    opened.require_graph()
    generation = opened.generation
    sampling = runtime.Sampling.asked(generation, sample, temperature, top_k, top_p, seed)
    _tell(generation, sample, temperature)
    ends = (*(stop or ()), *generation.stop_strings)
    tokenizer = opened.tokenizer()
    session = runtime.Session.open(opened, native=native, trust_graph=trust_graph)
    proposing = None if draft is None else _draft(draft, opened, tokenizer, native, trust_graph)

    conversation: list[dict[str, str]] = []

    def run(text: str) -> bool:
        if not chat:
            ids = runtime.encode_prompt(tokenizer, text)
            return _continue(session, tokenizer, ids, max_new_tokens, sampling, ends, proposing, begin=text)[0]
        asked = [*conversation, {"role": "user", "content": text}]
        ids = runtime.encode_prompt(tokenizer, opened.chat_prompt(asked), chat=True)
        finished, answer = _continue(session, tokenizer, ids, max_new_tokens, sampling, ends, proposing)
        conversation[:] = [*asked, {"role": "assistant", "content": answer}]
        return finished

    if prompt is None and sys.stdin is None:  # whoever started the command closed it
        raise RecipeError("there is no prompt: stdin is closed", hint="Give it by --prompt.")
    if prompt is None and sys.stdin.isatty():
        _again_and_again(run, chat)
    else:
        finished = run(_piped() if prompt is None else prompt)
        if not finished:
            raise typer.Exit(EXIT_INTERRUPTED)


def _tell(generation: Generation, sample: bool, temperature: float | None) -> None:
    """What the checkpoint's own settings would do otherwise."""
    if generation.do_sample and not sample and temperature is None:
        say(
            f"The likeliest token is taken every time; this checkpoint's generation_config.json draws (temperature "
            f"{generation.temperature:g}, top_k {generation.top_k}, top_p {generation.top_p:g}): --sample does."
        )
    if sample and generation.unapplied:
        say(f"Not applied, as only transformers does: {', '.join(generation.unapplied)} of generation_config.json.")


def _piped() -> str:
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as e:
        raise RecipeError(f"the prompt on stdin is not {e.encoding}: {e}", hint="Convert it: iconv -t UTF-8.") from None


def _again_and_again(run: Callable[[str], bool], chat: bool) -> None:
    """A prompt a line, until the end of the input. What is wrong with one prompt does not end the others."""
    with suppress(ImportError):
        import readline  # noqa: F401 (lines can be edited, and had again by the arrows)
    what = "It answers, and remembers." if chat else "Pythia continues texts, it does not answer."
    say(f"A prompt a line; Ctrl-C ends a text, Ctrl-D ends this. {what}")
    while True:
        try:
            if prompt := input("> "):
                run(prompt)
        except KeyboardInterrupt:
            typer.echo("", err=True)
        except EOFError:
            typer.echo("", err=True)
            return
        except PythiaExportError as e:
            say_error(e)


def _continue(
    session: Session, tokenizer: Tokenizer, ids: list[int], max_new_tokens: int, sampling: Sampling,
    stop: tuple[str, ...], draft: Draft | None = None, begin: str = "",
) -> tuple[bool, str]:  # fmt: skip
    """Print what follows, on a terminal behind its beginning; return it, and False where Ctrl-C ended it."""
    from .. import runtime

    texts = []
    pieces = runtime.continued(session, tokenizer, [ids], max_new_tokens, sampling, stop, draft)
    if begin and sys.stderr is not None and sys.stderr.isatty():
        stderr().print(begin, end="", style="dim", soft_wrap=True, markup=False, highlight=False)
    began = time.perf_counter()
    first, n, finished = began, 0, True
    try:
        for _, token, text in pieces:
            n += token is not None
            if n == 1 and token is not None:
                first = time.perf_counter()
            texts.append(text)
            with printing():
                typer.echo(text, nl=False)
    except KeyboardInterrupt:
        finished = False
    with printing():
        typer.echo()
    decoding = time.perf_counter() - first
    speed = f"{(n - 1) / decoding:,.1f} tokens/s" if n > 1 and decoding > 0 else "too few for a speed"
    at = session.speed if session.speed == "native" else f"{session.speed} speed: {session.why}"
    say(
        f"{'' if finished else 'interrupted; '}{n} tokens, {speed}; {len(ids)} tokens of prompt in "
        f"{first - began:.2f} s ({at})"
    )
    if draft is not None:
        say(_of_draft(draft))
    return finished, "".join(texts)


def _draft(folder: Path, target: Artifact, tokenizer: Tokenizer, native: bool, trust_graph: bool) -> Draft:
    """Open the model that proposes.

    Raises:
        RecipeError: it has another tokenizer.
    """
    from .. import runtime
    from ..artifact import Artifact

    opened = Artifact.open(folder)
    opened.require_graph()
    runtime.require_same_tokens(tokenizer, opened.tokenizer())
    ours, theirs = target.config, opened.config
    if theirs.parameters >= ours.parameters:
        say(
            f"The draft has {theirs.parameters:,} parameters, no fewer than the {ours.parameters:,} of the model that "
            "checks it: the text comes no sooner."
        )
    if theirs.max_positions < ours.max_positions:
        say(f"From {theirs.max_positions:,} tokens on there are no proposals: the draft has no more positions.")
    return runtime.Draft(runtime.Session.open(opened, native=native, trust_graph=trust_graph))


def _of_draft(draft: Draft) -> str:
    """What became of the proposals, of all texts so far."""
    if draft.acceptance is None:
        return "draft: no proposals, the text was too short"
    said = (
        f"draft: {draft.acceptance:.0%} of {draft.proposed:,} proposals accepted, {draft.tokens / draft.passes:.1f} "
        "tokens a pass"
    )
    if draft.again:
        said += f", {draft.again:,} tokens computed again for being nearly equal"
    if draft.speed_up is None:
        return said
    pays = "" if draft.speed_up > 1 else ": it does not pay here"
    return f"{said}; {draft.speed_up:.2f} times as fast as without{pays}"
