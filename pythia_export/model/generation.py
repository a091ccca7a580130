"""generation_config.json: when a text ends and how tokens are drawn, as transformers' `generate` takes it.

Where a checkpoint has the file, it alone counts: an end token that it does not name is none, whatever config.json says.
Where it has none, config.json is asked (`GenerationConfig.from_pretrained` and `.from_model_config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..base.errors import IntegrityError, SourceError
from ..base.strict_json import shown
from .neox import NeoXConfig, spelt, token_ids

GENERATION = "generation_config.json"

# What transformers 4 also takes from config.json, and what it assumes where neither file says anything.
_SAMPLING: dict[str, Any] = {
    "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0,
}  # fmt: skip

_ONLY_THEIRS = (
    "bad_words_ids", "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty", "forced_eos_token_id",
    "guidance_scale", "min_length", "min_new_tokens", "min_p", "no_repeat_ngram_size", "num_beams",
    "repetition_penalty", "sequence_bias", "suppress_tokens", "typical_p",
)  # fmt: skip


@dataclass(frozen=True)
class Generation:
    """How a checkpoint's texts begin, end and are drawn.

    `top_k` 0 draws among all tokens. `raw` is the file as an artifact has it; `notes` say what was found in it that
    cannot be used.
    """

    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop_strings: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def unapplied(self) -> tuple[str, ...]:
        """Settings that change which tokens are drawn and that only transformers applies."""
        return tuple(name for name in _ONLY_THEIRS if self.raw.get(name) not in (None, 0, 1, [], {}))

    @property
    def fill_token_id(self) -> int:
        """The token to pad with. Padding is masked, so any will do that the model has."""
        candidates = (self.pad_token_id, *self.eos_token_ids, self.bos_token_id)
        return next((token for token in candidates if token is not None), 0)


def read_generation(
    raw: Mapping[str, Any] | None, config: NeoXConfig, of_config: Mapping[str, Any], folder: object
) -> Generation:
    """Return what generation_config.json (`raw`; None where there is none) says, or config.json (`of_config`) for it.

    Raises:
        IntegrityError: not an object.
        SourceError: an end token that the model does not have, or a setting of another type; the file is named.
    """
    name = "config.json" if raw is None else GENERATION
    where, given = f"{folder}/{name}", of_config if raw is None else raw
    if not isinstance(given, dict):
        raise IntegrityError(f"{where}: an object was expected")
    notes: list[str] = []

    def token(key: str, otherwise: int | None) -> int | None:
        found = given.get(key, otherwise)
        if found is None or (type(found) is int and 0 <= found < config.vocab_size):
            return found
        notes.append(f"{where}: {key} is {shown(found)}, which is no token of this model: not used")
        return None

    ends = config.eos_token_ids if raw is None else token_ids(raw, "eos_token_id", None, config.vocab_size, where)
    bos, pad = token("bos_token_id", 0 if raw is None else None), token("pad_token_id", None)
    if not ends:
        notes.append(f"{where} names no end token: a text ends where its number of tokens is reached, and nowhere else")
    elif raw is None and "eos_token_id" not in of_config:
        notes.append(f"{where} has no eos_token_id: transformers takes {ends[0]} then, and so does this")
    elif (
        raw is not None
        and "eos_token_id" in of_config
        and (not config.eos_token_ids or set(config.eos_token_ids) - set(ends))
    ):
        of_model = ", ".join(map(str, config.eos_token_ids)) or "none"
        notes.append(
            f"{folder}: the end tokens of {GENERATION} hold ({', '.join(map(str, ends))}), as in transformers, and not "
            f"those of config.json ({of_model})"
        )
    settings = {key: _number(given, key, otherwise, where) for key, otherwise in _SAMPLING.items()}
    stored = dict(raw) if raw is not None else {
        "bos_token_id": bos, "eos_token_id": spelt(ends), "pad_token_id": pad,
        **{key: settings[key] for key in _SAMPLING if given.get(key) is not None},
    }  # fmt: skip
    for path in ("_commit_hash", "_name_or_path"):
        stored.pop(path, None)
    if raw is None:
        stored = {key: value for key, value in stored.items() if value is not None}
    return Generation(bos, ends, pad, **settings, stop_strings=_stop(given, where), raw=stored, notes=tuple(notes))


def _number(given: Mapping[str, Any], key: str, otherwise: Any, where: str) -> Any:
    found = given.get(key)
    if found is None:
        return otherwise
    expected = bool if isinstance(otherwise, bool) else int if isinstance(otherwise, int) else (int, float)
    if not isinstance(found, expected) or (isinstance(found, bool) and expected is not bool):
        raise SourceError(f"{where}: {key} is {shown(found)}; a value such as {otherwise} was expected")
    if not isinstance(found, bool) and found < 0:
        raise SourceError(f"{where}: {key} is {shown(found)}; a number of 0 or more was expected")
    return type(otherwise)(found)


def _stop(given: Mapping[str, Any], where: str) -> tuple[str, ...]:
    found = given.get("stop_strings") or []
    listed = [found] if isinstance(found, str) else found
    if not isinstance(listed, list) or not all(isinstance(text, str) and text for text in listed):
        raise SourceError(f"{where}: stop_strings is {shown(found)}; a text, or a list of texts, was expected")
    return tuple(listed)
