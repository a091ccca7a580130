"""An artifact as Python programs use it: text in, text, log-probabilities or logits out. No torch.

from pythia_export import Artifact

artifact = Artifact.open("build/demo")
artifact.generate("def main(", max_new_tokens=32)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np
from tokenizers import Tokenizer

from . import artifact, runtime
from .artifact.download import download_artifact
from .base.progress import SILENT, Progress
from .runtime.sampling import Sampling
from .weights.names import TAPS, data_name

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from .runtime.change import Spec
    from .runtime.taps import Positions
    from .trace import TextTrace, Traces


class Artifact(artifact.Artifact):
    """A directory that `pythia-export run` or `export` wrote. `Artifact.open(path)` reads its manifest, `check()`
    hashes its files. The graph is opened when it is first needed, on the provider that the recipe targets."""

    trust_graph = False
    _tapped: tuple[object, runtime.TapSession] | None = None
    _drafted: tuple[Artifact, runtime.Draft] | None = None

    @classmethod
    def from_hub(cls, repo: str, revision: str = "main") -> Self:
        """Fetch an artifact that `pythia-export push` put on the hub, into the hub's cache, and open it there.

        Raises:
            SourceError: no such repository or revision, offline and not in the cache, or it holds no artifact.
            IntegrityError: a file is not what the hub lists or the manifest says.
        """
        return cls.open(download_artifact(repo, revision))

    @classmethod
    def open(cls, path: Path | str, *, trust_graph: bool = False) -> Self:
        """Read the manifest and check the directory against it by name and size; `check` also hashes every file.

        Graphs with operators that pythia-export does not write are refused, unless `trust_graph` is true.

        Raises:
            SourceError: no such directory, no manifest, or a schema that this version does not know.
            IntegrityError: a file that is missing or is not what the manifest says.
        """
        opened = super().open(path)
        opened.trust_graph = trust_graph
        return opened

    @cached_property
    def session(self) -> runtime.Session:
        """The open graph, for programs that decode token by token. `session.speed` says how it runs."""
        return runtime.Session.open(self, trust_graph=self.trust_graph)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return self.tokenizer()

    @overload
    def generate(self, prompt: str, max_new_tokens: int = ..., *, sample: bool = ..., temperature: float | None = ...,
                 top_k: int | None = ..., top_p: float | None = ..., seed: int | None = ...,
                 stop: Sequence[str] = ..., draft: Artifact | None = ...) -> str: ...  # fmt: skip

    @overload
    def generate(self, prompt: list[str] | tuple[str, ...], max_new_tokens: int = ..., *, sample: bool = ...,
                 temperature: float | None = ..., top_k: int | None = ..., top_p: float | None = ...,
                 seed: int | None = ..., stop: Sequence[str] = ...,
                 draft: Artifact | None = ...) -> list[str]: ...  # fmt: skip

    def generate(
        self,
        prompt: str | list[str] | tuple[str, ...],
        max_new_tokens: int = 128,
        *,
        sample: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        draft: Artifact | None = None,
    ) -> str | list[str]:
        """Return the text that follows the prompt; `stream` yields it piece by piece. For a list of prompts, return a
        list of texts. The settings are those of `stream`.

        Any number of prompts, of any lengths: up to 32 are computed at once, and where a text ends the next prompt
        takes its place. With a `draft` they are computed one after another.

        Raises:
            RecipeError: an empty prompt, a sampling value out of range, or more tokens than the model has positions.
            RecipeError: a draft with another tokenizer.
            NumericsError: the model computes a NaN or an infinity.
            TypeError: prompts that are no text.
        """
        sampling = Sampling.asked(self.generation, sample, temperature, top_k, top_p, seed)
        prompts = _texts(prompt, "generate takes a prompt")
        if not prompts:
            return []
        ends = self._ends(stop)
        small = self._draft(draft)
        found = runtime.generate_texts(self.session, self._tokenizer, prompts, max_new_tokens, sampling, ends, small)
        return found[0] if isinstance(prompt, str) else found

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 128,
        *,
        sample: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        draft: Artifact | None = None,
    ) -> Iterator[str]:
        """Yield pieces of text as they become certain, until an end token, a stop string (which is left out) or the
        count.

        By default the likeliest token is taken every time. A `temperature` above 0 draws. So does `sample`, which takes
        what is not given of temperature, top_k and top_p from generation_config.json, as transformers does. The end
        tokens and stop strings of that file always count. Raises as `generate`.

        A `draft` is an artifact of a smaller model with the same tokenizer. It proposes tokens, and this model checks
        several in one pass. The text is the same, token for token; if it is drawn, its distribution is.
        """
        sampling = Sampling.asked(self.generation, sample, temperature, top_k, top_p, seed)
        if not isinstance(prompt, str):
            raise TypeError(f"stream takes one prompt, a str, not {_kind(prompt)}; generate takes several")
        ends = self._ends(stop)
        small = self._draft(draft)
        return runtime.generate_text(self.session, self._tokenizer, prompt, max_new_tokens, sampling, ends, draft=small)

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        max_new_tokens: int = 128,
        *,
        sample: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        draft: Artifact | None = None,
    ) -> str:
        """Answer a conversation, in the chat template of the checkpoint: `artifact.chat("Who are you?")`.

        `messages` have a `role` and a `content`: a plain text stands for ``[{"role": "user", "content": text}]``. The
        settings are those of `stream`.

        Raises:
            RecipeError: the checkpoint has no chat template, or it refuses the messages; and as `generate`.
        """
        conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        sampling = Sampling.asked(self.generation, sample, temperature, top_k, top_p, seed)
        ends = self._ends(stop)
        prompt, small = self.chat_prompt(conversation), self._draft(draft)
        return "".join(
            runtime.generate_text(self.session, self._tokenizer, prompt, max_new_tokens, sampling, ends, True, small)
        )

    def _draft(self, draft: Artifact | None) -> runtime.Draft | None:
        """What proposes tokens; kept, since it has measured both models."""
        if draft is None:
            return None
        if self._drafted is None or self._drafted[0] is not draft:
            runtime.require_same_tokens(self._tokenizer, draft._tokenizer)
            self._drafted = draft, runtime.Draft(draft.session)
        return self._drafted[1]

    def _ends(self, stop: Sequence[str]) -> tuple[str, ...]:
        return (*((stop,) if isinstance(stop, str) else stop), *self.generation.stop_strings)

    @overload
    def score(self, text: str) -> np.ndarray: ...

    @overload
    def score(self, text: list[str] | tuple[str, ...]) -> list[np.ndarray]: ...

    def score(self, text: str | list[str] | tuple[str, ...]) -> np.ndarray | list[np.ndarray]:
        """Return the natural logarithm of the probability of each token of `text` but the first, [T - 1] float64. For a
        list of texts, return a list of those; several are computed in one pass.

        A text longer than the context is read in windows of `config.max_positions` tokens, each of which begins with
        the last token of the one before. ``exp(-mean)`` of the result is the perplexity.

        Raises:
            NumericsError: the model computes a NaN or an infinity.
            TypeError: no text.
        """
        texts = _texts(text, "score takes a text")
        found = runtime.score_rows(self.session, [self._tokenizer.encode(one).ids for one in texts])
        return found[0] if isinstance(text, str) else found

    @overload
    def trace(self, texts: str, capture: str | Sequence[str] = ..., *, positions: Positions = ...,
              intervene: Mapping[str, Spec] | None = ...) -> TextTrace: ...  # fmt: skip

    @overload
    def trace(self, texts: list[Any] | tuple[Any, ...] | np.ndarray, capture: str | Sequence[str] = ..., *,
              positions: Positions = ...,
              intervene: Mapping[str, Spec] | None = ...) -> list[TextTrace]: ...  # fmt: skip

    def trace(
        self,
        texts: str | list[Any] | tuple[Any, ...] | np.ndarray,
        capture: str | Sequence[str] = "resid",
        *,
        positions: Positions = "all",
        intervene: Mapping[str, Spec] | None = None,
    ) -> TextTrace | list[TextTrace]:
        """Return values from inside the model for a text, or for each of several; token ids will do for a text.

            seen = artifact.trace("The quick brown fox", capture=["resid", "attn.pattern"])
            seen["blocks.3.hook_in"]               # [tokens, d_model]
            seen["blocks.3.attn.hook_pattern"]     # [heads, tokens, tokens]

        capture: taps such as ``resid``, ``attn.z`` (of every layer), single hooks such as ``blocks.3.hook_out``, and
        ``logits``; docs/guides/interpretability.md has a table. positions: ``"all"``, ``"last"``, or numbers of tokens,
        0 the first of a text and -1 the last. intervene: by hook, a change that is made there,
        ``{"blocks.3.attn.hook_z": {"op": "suppress", "heads": [2], "pos": [0, 5]}}``. An op is ``set`` or ``add``, of a
        `value`; ``scale``, by a `factor`; or ``suppress``. Without `pos` it is every token, without `heads` every head.

        Nothing behind the last place that is captured is computed.

        Raises:
            RecipeError: a name that is no place, a place that the artifact's graph does not give, a position beyond a
                text, a change that does not fit, a text longer than the context.
            SourceError: the artifact has no tapped graph; the hint has the command that adds one.
            NumericsError: a value is NaN or infinite.
        """
        from .trace import require_fit, trace_texts

        single = isinstance(texts, str)
        given = [texts] if isinstance(texts, str) else texts
        ids = self._rows(given)
        session = self.tapped(capture, tuple(intervene or ()))
        require_fit(ids, positions, self.config, intervene)
        found = list(trace_texts(session, ids, positions, intervene))
        return found[0] if single else found

    def trace_to(
        self,
        out: Path | str,
        texts: list[Any] | tuple[Any, ...] | np.ndarray,
        capture: str | Sequence[str] = "resid",
        *,
        positions: Positions = "all",
        intervene: Mapping[str, Spec] | None = None,
        dtype: Literal["float32", "float16"] = "float32",
        progress: Progress | None = None,
    ) -> Traces:
        """Write what `trace` returns into the folder `out`, shard by shard; memory does not grow with the texts.

            traces = artifact.trace_to("build/seen", texts, ["resid"], positions="last")
            traces[17]["blocks.3.hook_in"]

        Shards are safetensors files of about 64 MB, each whole or absent. Killed, or with a full disk, what was
        written stays; the same call goes on behind it. `Traces.open(out)` reads it, also while it is being written.

        Raises:
            OutputError: `out` holds something else, or the trace of something else.
            ResourceError: too little room on the disk: told before anything is computed, and when it fills meanwhile.
            NumericsError: a value is NaN or infinite, or too large for float16.
            RecipeError, SourceError: as `trace`.
        """
        from .trace import write_traces

        session = self.tapped(capture, tuple(intervene or ()))
        files = {name: self.manifest.files[name].sha256 for name in (TAPS, data_name(self.recipe))}
        graph = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        return write_traces(
            session, graph, self._rows(texts), Path(out), positions, intervene, dtype, progress or SILENT
        )

    def _rows(self, texts: Iterable[Any]) -> list[np.ndarray]:
        """Token ids of texts, or those that are given."""
        return [np.array(self._tokenizer.encode(t).ids, np.int64) if isinstance(t, str) else _row(t) for t in texts]

    def tapped(self, capture: str | Sequence[str], change: Sequence[str] = ()) -> runtime.TapSession:
        """Open the tapped graph for some places, for programs that go through it batch by batch; the last is kept.

        `change` are the hooks that `read` may be given changes for. Raises as `trace`.
        """
        asked = ((capture,) if isinstance(capture, str) else tuple(capture), tuple(change))
        if self._tapped is None or self._tapped[0] != asked:
            self._tapped = (asked, runtime.TapSession(self, *asked, trust_graph=self.trust_graph))
        return self._tapped[1]

    def logits(self, ids: ArrayLike, attention_mask: ArrayLike | None = None) -> np.ndarray:
        """Return logits [B, S, vocab] float32 for `ids` [B, S], an array or lists. The mask [B, S] is 0 at padding,
        which is on the left.

        Raises:
            TypeError, ValueError: not whole numbers, or not rows of one length.
            IntegrityError: an id outside the model's vocabulary.
            NumericsError: the model computes a NaN or an infinity.
        """
        mask = None if attention_mask is None else _whole_numbers(attention_mask, "the mask")
        return self.session.logits(_whole_numbers(ids, "ids"), mask)


def _row(given: ArrayLike) -> np.ndarray:
    """Token ids of one text."""
    found = np.asarray(given)
    if found.dtype.kind not in "iu" or found.ndim != 1:
        raise TypeError(f"a text is a str, or its token ids [tokens], not {_kind(given)} of shape {found.shape}")
    return found.astype(np.int64)


def _texts(given: str | list[str] | tuple[str, ...], what: str) -> list[str]:
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list | tuple) or not all(isinstance(text, str) for text in given):
        raise TypeError(f"{what}, a str, or a list of them, not {_kind(given)}")
    return list(given)


def _whole_numbers(given: ArrayLike, what: str) -> np.ndarray:
    try:
        found = np.asarray(given)
    except ValueError:
        raise ValueError(
            f"{what} in rows of several lengths; [batch, tokens] was expected: pad the shorter rows on the left, with "
            "any id, and give an attention_mask that is 0 there"
        ) from None
    if found.dtype.kind not in "iu":
        raise TypeError(f"{what} of {_kind(given)}; whole numbers [batch, tokens] were expected")
    if found.ndim != 2:
        raise ValueError(f"{what} of shape {found.shape}; [batch, tokens] was expected, for one row [[1, 2, 3]]")
    return found.astype(np.int64)


def _kind(value: object) -> str:
    """What it is, in the words of a message."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    if isinstance(value, list | tuple) and value:
        return f"a {type(value).__name__} of {type(value[0]).__name__}"
    return f"a {type(value).__name__}"
