"""[calibration] and the text of [verify]: where it comes from, and how much of it."""

from __future__ import annotations

import difflib
import re
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from .section import LocalPath, NonEmpty, Section

BATCH = 1024  # sequences that Pythia was trained on at a step
PILE_SUBSETS = (
    "ArXiv", "BookCorpus2", "Books3", "DM Mathematics", "Enron Emails", "EuroParl", "FreeLaw", "Github",
    "Gutenberg (PG-19)", "HackerNews", "NIH ExPorter", "OpenSubtitles", "OpenWebText2", "PhilPapers", "Pile-CC",
    "PubMed Abstracts", "PubMed Central", "StackExchange", "USPTO Backgrounds", "Ubuntu IRC", "Wikipedia (en)",
    "YoutubeSubtitles",
)  # fmt: skip
_OF_DOCUMENTS = ("hub", "file", "python-stdlib")  # the others have their tokens in a row already


class Text(Section):
    """A text source, shared by [calibration] and [verify]."""

    source: Literal["hub", "file", "wikitext2", "training-order", "python-stdlib"] = Field(
        description="`hub`: a file of a hub data set, or several by a pattern; `file`: .jsonl, .json, .txt, .parquet; "
        "`wikitext2`: joined and cut as GPTQ's authors did, from the hub or `path`; `training-order`: what Pythia was "
        "trained on, in order, from the hub or `path` (a Megatron memory map, .idx and .bin); `python-stdlib`: this "
        "interpreter's own sources"
    )
    dataset: NonEmpty | None = Field(None, description="hub data set, `owner/name` or `owner/name@revision`")
    file: NonEmpty | None = Field(None, description="file inside the hub data set; needed where it has several")
    path: LocalPath | None = Field(
        None, description="local file, or a folder or a pattern (`texts/*.jsonl`) of them; relative to the recipe file"
    )
    subsets: tuple[NonEmpty, ...] = Field((), description="only these parts of the Pile, by `meta.pile_set_name`")
    eos: bool | None = Field(
        None,
        description="end each document with the end-of-text token. If not given, as in training so far as known: true "
        "for `python-stdlib` (the demo), false for `hub` and `file` (no batch of Pythia's was seen to have one)",
    )
    batches: str | None = Field(
        None,
        pattern=r"^\d+:\d+$",
        description=f"of training-order: `0:4` are the first four, of {BATCH} sequences each",
    )
    sequence_length: int = Field(2048, ge=8, description="tokens per window")
    seed: int = Field(0, ge=0, description="decides the order of the windows, and nothing else does")

    @property
    def batch_range(self) -> tuple[int, int] | None:
        if self.batches is None:
            return None
        first, _, end = self.batches.partition(":")
        return int(first), int(end)

    @property
    def described(self) -> str:
        """For people: where the text comes from, by the recipe alone."""
        if self.source == "python-stdlib":
            return "Python's standard library"
        where = self.path.name if self.path else "/".join(n for n in (self.dataset, self.file) if n)
        of = f", batches {self.batches}" if self.batches else ""
        parts = f", {' and '.join(self.subsets)} alone" if self.subsets else ""
        kind = {"wikitext2": "WikiText-2", "training-order": "training order"}.get(self.source, "")
        return ", ".join(x for x in (kind, where) if x) + of + parts

    @model_validator(mode="before")
    @classmethod
    def _documents_end_as_in_training(cls, given: Any) -> Any:
        """Decide `eos` here, so that records hold what was done.

        Records made while true was everybody's default hold it for every source, used or not. They are told from what a
        person writes by their nulls, which TOML does not have.
        """
        if not isinstance(given, dict):
            return given
        if given.get("source") not in _OF_DOCUMENTS:
            recorded = given.get("eos") is True and None in [given.get(key, "") for key in ("dataset", "file", "path")]
            return given | {"eos": None} if recorded else given
        return given | {"eos": given["source"] == "python-stdlib"} if given.get("eos") is None else given

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.source == "hub" and not self.dataset:
            raise ValueError("source = 'hub' needs `dataset`")
        if self.source == "file" and self.path is None:
            raise ValueError("source = 'file' needs `path`")
        if self.path is not None and (self.dataset or self.file):
            raise ValueError("give either `path` or a hub data set's `dataset` and `file`")
        return self

    @model_validator(mode="after")
    def _what_is_given_has_a_use(self) -> Self:
        """What a source would not look at is a mistake about what it does."""
        uses = {
            "dataset": ("hub", "wikitext2", "training-order"), "file": ("hub", "wikitext2"),
            "path": ("file", "wikitext2", "training-order"), "batches": ("training-order",),
            "subsets": ("hub", "file"), "eos": _OF_DOCUMENTS,
        }  # fmt: skip
        for key, sources in uses.items():
            given = self.eos is not None if key == "eos" else bool(getattr(self, key))
            if given and self.source not in sources:
                raise ValueError(f"`{key}` is for source = {' or '.join(map(repr, sources))}, not {self.source!r}")
        return self

    @model_validator(mode="after")
    def _batches_rise(self) -> Self:
        if self.batch_range is not None and self.batch_range[0] >= self.batch_range[1]:
            raise ValueError(f"`batches` {self.batches}: the first must be below the end")
        return self

    @model_validator(mode="after")
    def _subsets_are_spelt_as_the_pile_does(self) -> Self:
        for name in self.subsets:
            lowered = {s.lower(): s for s in PILE_SUBSETS}
            near = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.75)
            if name not in PILE_SUBSETS and near:
                raise ValueError(f"`subsets`: {name!r} is no part of the Pile; did you mean {lowered[near[0]]!r}?")
        return self


class Calibration(Text):
    samples: int = Field(128, ge=1, description="windows; if `batches` is given, all its sequences by default")
    memory_gb: float = Field(
        4.0, ge=0, description="activations beyond this are kept on disk while layers are quantised"
    )

    @model_validator(mode="before")
    @classmethod
    def _batches_are_taken_whole(cls, given: Any) -> Any:
        match = isinstance(given, dict) and re.fullmatch(r"(\d+):(\d+)", str(given.get("batches")))
        if match and "samples" not in given and int(match[1]) < int(match[2]):
            return given | {"samples": BATCH * (int(match[2]) - int(match[1]))}
        return given
