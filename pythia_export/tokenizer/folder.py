"""The tokenizer of a checkpoint's folder, as transformers' AutoTokenizer makes it out of several files.

tokenizer.json is most of it. tokenizer_config.json, special_tokens_map.json and added_tokens.json add tokens, and may
change how a text begins: `add_prefix_space`, `add_bos_token`. Here all of that goes into one tokenizer, so that the
tokenizer.json of an artifact gives those ids by itself, to every program and whatever class it takes.

The measure is transformers 4.57 (`tokenization_utils_base.py`, `_from_pretrained`; `tokenization_utils_fast.py`,
`__init__`), which the tests compare with. transformers 5 reads less of a GPT-NeoX folder: vocabulary and merges alone
are the file's, the rest is the class's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ..base.errors import IntegrityError
from ..base.strict_json import read_object
from .files import ADDED_TOKENS, MERGES, SETTINGS, SPECIAL_TOKENS, TOKENIZER, VOCABULARY
from .read import read_tokenizer

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")  # in transformers 4 and 5: tokenizer.json and nothing else
_END = "<|endoftext|>"  # what the classes of GPT-2 and GPT-NeoX take where the files name no token


@dataclass(frozen=True)
class FolderTokenizer:
    """`tokenizer` gives transformers' ids. `roles` are its special tokens by what they are for, `named` those of roles
    that this checkpoint made up, `additional` those without a role. `settings` is tokenizer_config.json as it stands.
    `changed`: it is not what tokenizer.json by itself says."""

    folder: Path
    tokenizer: Tokenizer
    roles: Mapping[str, str]
    named: Mapping[str, str]
    additional: tuple[str, ...]
    settings: Mapping[str, Any]
    changed: bool

    def id_of(self, role: str) -> int | None:
        """Return the id of the special token of a role, such as `eos_token`; None where there is none."""
        token = self.roles.get(role)
        return None if token is None else self.tokenizer.token_to_id(token)


def open_folder(folder: Path) -> FolderTokenizer:
    """Read the tokenizer of a folder as transformers does.

    Raises:
        SourceError: there is none.
        IntegrityError: one of its files is not what its name says.
    """
    settings = _read_object(folder / SETTINGS)
    kind = str(settings.get("tokenizer_class") or "GPTNeoXTokenizer").removesuffix("Fast")
    padded_with, stored = _stored(folder, kind)
    tokenizer = Tokenizer.from_str(stored.to_str())
    try:
        tokens = _special_tokens(folder, settings, kind, tokenizer, padded_with)
        _add(tokenizer, _added(folder, settings, tokens, tokenizer), tokens)
        _begin_as(tokenizer, settings, kind, tokens)
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        raise IntegrityError(f"{folder}: the files of its tokenizer cannot be read together: {e}") from e

    def texts(found: Mapping[str, AddedToken]) -> dict[str, str]:
        return {role: str(token.content) for role, token in found.items()}

    additional = tuple(str(token.content) for token in tokens.additional)
    changed = tokenizer.to_str() != stored.to_str()
    return FolderTokenizer(folder, tokenizer, texts(tokens.roles), texts(tokens.named), additional, settings, changed)


@dataclass(frozen=True)
class _Special:
    roles: dict[str, AddedToken]
    named: dict[str, AddedToken]
    additional: list[AddedToken]

    def all(self) -> list[AddedToken]:
        return [*self.roles.values(), *self.additional, *self.named.values()]


def _stored(folder: Path, kind: str) -> tuple[str | None, Tokenizer]:
    """The token that tokenizer.json pads with, and the tokenizer as it has it but for truncation and padding."""
    if (folder / TOKENIZER).is_file() or not ((folder / VOCABULARY).is_file() and (folder / MERGES).is_file()):
        tokenizer = read_tokenizer(folder / TOKENIZER)
        padding = Tokenizer.from_file(str(folder / TOKENIZER)).padding
        return None if padding is None else padding["pad_token"], tokenizer
    try:
        model = models.BPE.from_file(str(folder / VOCABULARY), str(folder / MERGES))
    except Exception as e:  # the binding raises bare Exception
        raise IntegrityError(f"{folder}: {VOCABULARY} and {MERGES} are no tokenizer: {e}") from e
    tokenizer = Tokenizer(model)
    if kind == "GPTNeoXTokenizer":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return None, tokenizer


def _special_tokens(
    folder: Path, settings: Mapping[str, Any], kind: str, tokenizer: Tokenizer, padded_with: str | None
) -> _Special:
    known = {str(token.content): token for token in tokenizer.get_added_tokens_decoder().values()}
    said: dict[str, Any] = {} if kind in _GENERIC else dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END)
    said |= {role: settings[role] for role in ROLES if role in settings}
    extra = settings.get("extra_special_tokens") or {}  # transformers 5 writes a list, 4.57 an object of roles
    additional = [*(settings.get("additional_special_tokens") or []), *(extra if isinstance(extra, list) else [])]
    if "added_tokens_decoder" not in settings:  # otherwise the older files are not read
        of_map = _read_object(folder / SPECIAL_TOKENS)
        said |= {role: of_map[role] for role in ROLES if role in of_map}
        additional += of_map.get("additional_special_tokens") or []
    if padded_with is not None and kind in _GENERIC:
        said.setdefault("pad_token", padded_with)

    def token(value: Any) -> AddedToken:
        made = _token(value, special=True)
        return known.get(str(made.content), made) if isinstance(value, str) else made

    named = {str(role): token(value) for role, value in extra.items()} if isinstance(extra, dict) else {}
    unique = {str(t.content): t for t in map(token, additional)}
    roles = {role: token(said[role]) for role in ROLES if said.get(role) is not None}
    return _Special(roles, named, list(unique.values()))


def _token(value: Any, special: bool) -> AddedToken:
    """A token as the files spell it: its text, or an object with the text and how it is to be found."""
    if isinstance(value, str):
        return AddedToken(value, special=special, normalized=not special)
    flags = {name: bool(value[name]) for name in ("single_word", "lstrip", "rstrip", "normalized") if name in value}
    return AddedToken(value["content"], special=bool(value.get("special", special)), **flags)


def _added(folder: Path, settings: Mapping[str, Any], tokens: _Special, tokenizer: Tokenizer) -> list[AddedToken]:
    """The tokens that files beside tokenizer.json add, in the order of their ids."""
    if "added_tokens_decoder" in settings:
        listed = {int(at): _token(value, special=False) for at, value in settings["added_tokens_decoder"].items()}
    else:
        special = {str(token.content) for token in tokens.all()}
        listed = {
            int(at): _token(text, special=text in special) for text, at in _read_object(folder / ADDED_TOKENS).items()
        } | tokenizer.get_added_tokens_decoder()
    return [listed[at] for at in sorted(listed)]


def _add(tokenizer: Tokenizer, added: list[AddedToken], tokens: _Special) -> None:
    """Add what tokenizer.json does not have; ids go on where its own end."""
    have = tokenizer.get_added_tokens_decoder().values()
    same, texts = {repr(token) for token in have}, {str(token.content) for token in have}
    new = [token for token in added if repr(token) not in same]
    texts |= {str(token.content) for token in new}
    new += [token for token in tokens.all() if str(token.content) not in texts]
    special = {str(token.content) for token in tokens.all()}
    for token in new:
        token.special = bool(token.special) or str(token.content) in special
    if new:
        tokenizer.add_tokens(new)


def _begin_as(tokenizer: Tokenizer, settings: Mapping[str, Any], kind: str, tokens: _Special) -> None:
    """How a text begins and ends: a space before it, the tokens around it."""
    space, split = bool(settings.get("add_prefix_space", False)), tokenizer.pre_tokenizer
    if isinstance(split, pre_tokenizers.ByteLevel) and split.add_prefix_space != space:
        split.add_prefix_space = space
        tokenizer.pre_tokenizer = split
    if kind != "GPTNeoXTokenizer":
        return
    before, after = ([tokens.roles[role]] if settings.get(f"add_{role}") else [] for role in ("bos_token", "eos_token"))
    first, last = ([str(token.content) for token in around] for around in (before, after))
    if not first and not last and not tokenizer.encode("").ids:
        return
    single = [*(f"{token}:0" for token in first), "$A:0", *(f"{token}:0" for token in last)]
    pair = [*single, *(f"{token}:1" for token in first), "$B:1", *(f"{token}:1" for token in last)]
    ids = {token: tokenizer.token_to_id(token) for token in (*first, *last)}
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=list(ids.items()))


def _read_object(path: Path) -> dict[str, Any]:
    """The object of a file; an empty one where there is no such file."""
    return read_object(path) if path.is_file() else {}
