"""A checkpoint found, pinned to a commit, and refused where it is known or seen to hold another's weights.

Three places: the embedded `demo`, a local directory, the hub.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from .. import hub
from ..base.errors import PythiaExportError, SourceError
from ..base.git_lfs import require_fetched
from ..base.hashing import sha256_of
from ..base.progress import SILENT, Progress
from ..hub import Listing
from ..model import suite
from ..model.generation import GENERATION, Generation, read_generation
from ..model.mean import is_mean, terms
from ..model.neox import NeoXConfig
from ..recipe import Model
from ..records.manifest import Contents, TokenizerOrigin, hashed
from ..tokenizer import TOKENIZER, FolderTokenizer, has_tokenizer, is_tokenizer_file, open_folder
from .adapter_folder import find_adapter
from .convert import converted
from .duplicates import Comparison, compare, described
from .files import fetched_object
from .fingerprint import fingerprint, same_tensors
from .header import read_header
from .kinds import ADAPTER_CONFIG, recognised, require_plain_config
from .mean import known_revisions, pull_mean
from .pulled import Pulled
from .reordered import reordered
from .shards import PICKLE, SINGLE, Weights, choose

CONFIG = "config.json"
QUANTIZE_CONFIG = "quantize_config.json"  # AutoGPTQ's, of before config.json had a place for it


@dataclass(frozen=True)
class Accept:
    """What a pull may take. `duplicates`: weights that another step has too are refused, told, or not looked for.
    `quantised`: weights that another tool has quantised are taken too. `hashed`: of a folder's files; without it
    `commit` is empty until `with_hashes` fills it in."""

    pickles: bool = True
    duplicates: Literal["refuse", "tell", "unasked"] = "refuse"
    quantised: bool = False
    hashed: bool = True


DEFAULT = Accept()


def demo_folder() -> Path:
    """Return where the embedded checkpoints are: inside the package, at the top of a checkout, or in the distribution
    pythia-export-demo, which the small wheels for platforms leave them to.

    Raises:
        SourceError: they are not installed.
    """
    package = Path(__file__).parent.parent
    for folder in (package / "demo", package.parent / "demo"):
        if (folder / "main" / CONFIG).is_file():
            return folder
    apart = find_spec("pythia_export_demo")
    if apart is None or not apart.submodule_search_locations:
        raise SourceError(
            "the demo's checkpoints are not installed; wheels for platforms do not hold them",
            hint="pip install 'pythia-export[demo]'",
        )
    return Path(next(iter(apart.submodule_search_locations))) / "demo"


def pull(model: Model, *, accept: Accept = DEFAULT, progress: Progress = SILENT) -> Pulled:
    """Find the checkpoint and pin it; from the hub, fetch the files that are needed and no others.

    Raises:
        SourceError: no such directory, repository or revision; no weights; a revision that is known to be wrong, or
            that has the weights of another step.
        IntegrityError: a file that is not what the hub lists; an index that is none; a pickle of more than tensors.
        ResourceError: not enough disk space.
    """
    if model.adapter is not None or is_mean(model.revision):  # whose commits are made of others
        accept = replace(accept, hashed=True)
    base = _base(model, accept, progress)
    return base if model.adapter is None else _with_adapter(base, model.adapter, accept, progress)


def _base(model: Model, accept: Accept, progress: Progress) -> Pulled:
    if is_mean(model.revision):
        known = known_revisions(model, demo_folder(), CONFIG, progress)
        return pull_mean(model, known, lambda one: _base(one, accept, progress), progress)
    folder = model.folder(model.revision)
    if folder is not None:
        return _local(folder, _name_of(folder), model.revision, accept, progress)
    assert model.id is not None
    if model.id == "demo":
        revisions = sorted(p.name for p in demo_folder().glob("*") if (p / CONFIG).is_file())
        if model.revision not in revisions:
            raise SourceError(
                f"the demo has no revision `{model.revision}`; it has {', '.join(revisions) or 'none'}",
                hint="Set `revision` in the recipe to one of these, or name it after an @, as in `demo@main`.",
            )
        return _local(demo_folder() / model.revision, "demo", model.revision, accept, progress)
    return _from_hub(model.id, model.revision, accept, progress)


def _with_adapter(base: Pulled, folder: Path, accept: Accept, progress: Progress) -> Pulled:
    adapter = find_adapter(folder, accept.pickles, progress)
    of = adapter.record.base
    if of is not None and of.lower() != base.name.lower() and "/" in base.name:
        progress.note(f"{folder} says that it is an adapter of {of}; it is merged into {base.name}")
    own = has_tokenizer({path.name for path in folder.iterdir()})
    return replace(
        base,
        name=f"{base.name} + {adapter.name}",
        commit=f"{base.commit}+{adapter.commit}",
        tokenizer_folder=folder if own else base.tokenizer_folder,
        record=base.record.model_copy(update={"adapter": adapter.record}),
        adapter=adapter,
        base=base,
    )


def _name_of(folder: Path) -> str:
    """The last part of its path; of a snapshot in the hub's cache the repository's name."""
    whole = Path(os.path.abspath(folder))
    repository = whole.parent.parent.name if whole.parent.name == "snapshots" else ""
    kind, _, name = repository.partition("--")
    return name.replace("--", "/") if kind == "models" and name else whole.name


def _local(folder: Path, name: str, revision: str, accept: Accept, progress: Progress) -> Pulled:
    if folder.is_file():
        require_fetched(folder)
        found = recognised([folder.name], str) if folder.suffix in (".gguf", ".onnx") else None
        raise SourceError(
            f"{folder}: {found.what if found else 'a file'}; a checkpoint is a folder",
            hint=found.hint if found else f"Give the folder with {CONFIG}, the weights and the tokenizer.",
        )
    if not folder.is_dir():
        raise SourceError(
            f"{folder}: no such checkpoint directory", hint="`path` is taken from the recipe's own folder."
        )
    there = set()
    for path in folder.iterdir():
        if path.is_symlink() and not path.exists():
            raise SourceError(f"{path}: a link that leads nowhere", hint="Copy the file that it stood for.")
        if not path.is_file() and not path.is_dir():
            raise SourceError(f"{path}: neither a plain file nor a folder", hint="Copy the file that it stands for.")
        there |= {path.name} if path.is_file() else set()
    if CONFIG in there:
        read_config(folder / CONFIG, accept.quantised)  # before its gigabytes are hashed
    chosen = _chosen(there, str(folder), folder.joinpath, accept.pickles, lambda: _two_deep(folder))
    for n in (*chosen.names, *there & {TOKENIZER}):
        require_fetched(folder / n)
    if chosen.format == "safetensors":
        for n in chosen.names:
            read_header(folder / n)
    beside = [QUANTIZE_CONFIG] if accept.quantised and QUANTIZE_CONFIG in there else []
    names, record = (CONFIG, *beside, *chosen.names), Contents(format=chosen.format)
    if not accept.hashed and chosen.format == "safetensors":
        return Pulled(folder, name, revision, "", tuple(folder / n for n in chosen.names), chosen.places, None, record)
    hashes = {n: sha256_of(folder / n) for n in names}
    weights, places = _as_safetensors({n: folder / n for n in chosen.names}, chosen, hashes, progress)
    return _with_hashes(Pulled(folder, name, revision, "", weights, places, None, record), hashes)


def with_hashes(pulled: Pulled) -> Pulled:
    """Return what `pull` gave without hashes with them, and so with its commit; as it is where it has them."""
    if pulled.commit:
        return pulled
    beside = [QUANTIZE_CONFIG] if (pulled.folder / QUANTIZE_CONFIG).is_file() else []
    names = (CONFIG, *beside, *(path.name for path in pulled.weights))
    return _with_hashes(pulled, {n: sha256_of(pulled.folder / n) for n in names})


def _with_hashes(pulled: Pulled, hashes: dict[str, str]) -> Pulled:
    digest = hashlib.sha256()
    for n, of_file in hashes.items():
        digest.update(n.encode())
        digest.update(bytes.fromhex(of_file))
    record = pulled.record.model_copy(update={"files": hashed(hashes)})
    return replace(pulled, commit=f"sha256:{digest.hexdigest()}", record=record)


def _from_hub(repo: str, revision: str, accept: Accept, progress: Progress) -> Pulled:
    wrong = suite.known_bad(repo, revision)
    if wrong is not None and (wrong.kind == "missing" or accept.duplicates == "refuse"):
        insist = "" if wrong.kind == "missing" else ", or insist with --allow-duplicate-revision"
        raise SourceError(
            f"{repo} at {revision} {wrong.reported}",
            hint=f"Choose another step{insist}. `pythia-export models {repo}` lists what is known.",
        )
    for note in suite.notes(repo, revision):
        progress.note(note)
    listing = hub.list_revision(repo, revision, progress=progress)
    chosen = _choose(listing, accept, progress)
    record = Contents(format=chosen.format)
    compared = None
    if accept.duplicates != "unasked":
        compared = compare(listing, chosen.names, progress)
        record = _with_compared(record, listing, chosen, compared, accept, progress)
        if compared is not None and not compared.same:
            same = reordered(listing, chosen.names, compared.others, progress)
            record = _with_same_tensors(record, listing, same, accept, progress)
    path = hub.fetch(listing, [CONFIG], progress, f"Reading {CONFIG} of {repo}")[CONFIG]
    config = read_config(path, accept.quantised)
    needed = [n for n in (chosen.index,) if n is not None]
    beside = [QUANTIZE_CONFIG] if accept.quantised else []
    needed += [n for n in (CONFIG, GENERATION, *beside, *chosen.names) if n in listing.files]
    paths = hub.fetch(listing, needed, progress)
    hashes = {n: digest for n in chosen.names if (digest := _sha256(listing, n)) is not None}
    record = record.model_copy(update={"files": hashed(hashes)})
    folder = paths[CONFIG].parent
    suite.require_same_geometry(repo, config, f"{listing}, {CONFIG}")
    tokenizer = _tokenizer(listing, config, progress)
    if tokenizer is not None and tokenizer[0].commit != listing.commit:
        where = TokenizerOrigin(revision=tokenizer[0].revision, commit=tokenizer[0].commit)
        record = record.model_copy(update={"tokenizer": where})
    weights, places = _as_safetensors({n: paths[n] for n in chosen.names}, chosen, hashes, progress)
    if compared is not None and not record.same_weights_as:
        same = same_tensors(listing, compared.others, fingerprint(weights, str(listing)))
        record = _with_same_tensors(record, listing, same, accept, progress)
    return Pulled(
        folder, repo, revision, listing.commit, weights, places, tokenizer[1] if tokenizer is not None else None, record
    )


def tokenizer_of(model: Model, progress: Progress = SILENT) -> tuple[Tokenizer, NeoXConfig]:
    """Of a model whose weights are not needed (yet).

    Raises:
        SourceError: there is none.
        IntegrityError: there is one that cannot be read.
    """
    if is_mean(model.revision):
        last = terms(model.revision, known_revisions(model, demo_folder(), CONFIG, progress))[-1].revision
        model = model.model_copy(update={"revision": last, "path": model.folder(last)})
    if model.path is not None or model.id == "demo":
        folder = model.folder(model.revision) or demo_folder() / model.revision
        config, where = read_model(folder)[0], folder
    else:
        assert model.id is not None
        listing = hub.list_revision(model.id, model.revision, progress=progress)
        if CONFIG not in listing.files:
            raise SourceError(
                f"{listing} has no {CONFIG}", hint=_offline_hint(listing) or "Is it a transformers model?"
            )
        names = [name for name in (CONFIG, GENERATION) if name in listing.files]
        config = read_model(hub.fetch(listing, names, progress)[CONFIG].parent)[0]
        found = _tokenizer(listing, config, progress)
        if found is None:
            raise SourceError(f"{listing} has no {TOKENIZER}", hint=_offline_hint(listing))
        where = found[1]
    return open_tokenizer(where).tokenizer, config


def _choose(listing: Listing, accept: Accept, progress: Progress) -> Weights:
    def read(name: str) -> Path:
        return hub.fetch(listing, [name], progress, f"Reading {name} of {listing.repo}")[name]

    try:
        return _chosen(listing.files, str(listing), read, accept.pickles, lambda: list(listing.files))
    except SourceError as e:
        raise SourceError(str(e), hint=_offline_hint(listing) or e.hint) from e


def _chosen(
    there: Collection[str], where: str, read: Callable[[str], Path], pickles: bool, names: Callable[[], Collection[str]]
) -> Weights:
    """The weights among files, which are a checkpoint's; `names` lists what lies in folders too, where they are not.

    Raises:
        SourceError: they are something else, which is said.
    """
    chosen = choose(there, where, read, pickles) if CONFIG in there and ADAPTER_CONFIG not in there else None
    if chosen is not None:
        return chosen
    found = recognised(names(), lambda name: fetched_object(read(name)))
    if found is not None:
        raise SourceError(f"{where}: this is {found.what}", hint=found.hint)
    lacks = f"no {CONFIG}" if CONFIG not in there else f"neither {SINGLE} nor {PICKLE}, whole or in shards: no weights"
    raise SourceError(f"{where}: {lacks}", hint="Is this a checkpoint of GPT-NeoX in Hugging Face's form?")


def _two_deep(folder: Path) -> list[str]:
    """Files by names relative to a folder, its own and those of the folders in it."""
    inner = (path for path in folder.iterdir() if path.is_dir())
    deeper = (path for one in inner for path in one.iterdir())
    return [path.relative_to(folder).as_posix() for path in (*folder.iterdir(), *deeper)]


def _offline_hint(listing: Listing) -> str:
    return "Its files are not all in the cache: pull it once without --offline." if listing.offline else ""


def _with_compared(
    record: Contents,
    listing: Listing,
    chosen: Weights,
    found: Comparison | None,
    accept: Accept,
    progress: Progress,
) -> Contents:
    if found is None:
        return record
    if found.unknown:
        progress.note(
            f"{listing}: the hashes of {found.unknown} other revisions could not be had; they are not compared"
        )
    if found.same:
        _refuse_or_tell(described(listing, chosen.names, found), accept, progress)
    return record.model_copy(update={"compared_revisions": found.compared, "same_weights_as": sorted(found.same)})


def _with_same_tensors(
    record: Contents, listing: Listing, same: list[str], accept: Accept, progress: Progress
) -> Contents:
    if not same:
        return record
    said = f"{listing} has the tensors of {', '.join(same)}, in files of another order or form"
    _refuse_or_tell(said, accept, progress)
    return record.model_copy(update={"same_weights_as": same})


def _refuse_or_tell(said: str, accept: Accept, progress: Progress) -> None:
    if accept.duplicates == "refuse":
        raise SourceError(
            said,
            hint="One of them is not what its name says. Choose another step, or insist with "
            "--allow-duplicate-revision.",
        )
    progress.note(f"{said}: taken all the same")


def _sha256(listing: Listing, name: str) -> str | None:
    digest = listing.files[name].digest
    return digest if digest is not None and len(digest) == 64 else None


def read_config(path: Path, quantised: bool = False) -> NeoXConfig:
    """Read config.json alone; raises as `read_model`."""
    return _config(fetched_object(path), path, quantised)


def read_model(folder: Path, quantised: bool = False) -> tuple[NeoXConfig, Generation]:
    """Read config.json, and generation_config.json where there is one, whose end tokens go before those of the first.
    With `quantised`, weights that are quantised already are no fault.

    Raises:
        IntegrityError: not a JSON object.
        SourceError: not a configuration of Pythia's architecture; of weights that are quantised already; not fetched.
    """
    raw, path = fetched_object(folder / CONFIG), folder / GENERATION
    config = _config(raw, folder / CONFIG, quantised)
    generation = read_generation(fetched_object(path) if path.is_file() else None, config, raw, folder)
    bos, ends = generation.bos_token_id, generation.eos_token_ids
    return replace(config, bos_token_id=bos, eos_token_ids=ends), generation


def _config(raw: dict[str, Any], path: Path, quantised: bool) -> NeoXConfig:
    if not quantised:
        require_plain_config(raw, str(path))
    return NeoXConfig.from_dict(raw, str(path))


def _tokenizer(listing: Listing, config: NeoXConfig, progress: Progress) -> tuple[Listing, Path] | None:
    """The revision's own, or main's where it has none that can be used; None where main has none either."""
    unusable, own = f"has no {TOKENIZER}", None
    if has_tokenizer(listing.files):
        own = _fetch_tokenizer(listing, progress)
        problem = _unusable(own, config)
        if problem is None:
            return listing, own
        unusable = f"has a {TOKENIZER} that cannot be used ({problem})"
    if listing.revision == "main":
        return None if own is None else (listing, own)
    try:
        main = hub.list_revision(listing.repo, "main", progress=progress)
    except SourceError:
        if not listing.offline:
            raise
        return None if own is None else (listing, own)
    if not has_tokenizer(main.files) or main.commit == listing.commit:
        return None if own is None else (listing, own)
    folder = _fetch_tokenizer(main, progress)
    progress.note(f"{listing} {unusable}: that of main is used")
    return main, folder


def _fetch_tokenizer(listing: Listing, progress: Progress) -> Path:
    """All files that transformers reads for a tokenizer; returns the folder that they lie in."""
    names = [name for name in sorted(listing.files) if is_tokenizer_file(name)]
    paths = hub.fetch(listing, names, progress, f"Pulling the tokenizer of {listing.repo}")
    return next(path.parent for name, path in paths.items() if "/" not in name)


def open_tokenizer(folder: Path) -> FolderTokenizer:
    """Read the tokenizer of a checkpoint.

    Raises:
        SourceError: there is none, or one of its files was not fetched.
        IntegrityError: one of its files is not what its name says.
    """
    for path in folder.iterdir():
        if is_tokenizer_file(path.name) and path.is_file():
            require_fetched(path)
    return open_folder(folder)


def _unusable(folder: Path, config: NeoXConfig) -> str | None:
    try:
        size = open_tokenizer(folder).tokenizer.get_vocab_size(with_added_tokens=True)
    except PythiaExportError as e:
        return str(e)
    if not 0 < size <= config.vocab_size:
        return f"{size:,} entries; the model has {config.vocab_size:,}"
    return None


def _as_safetensors(
    paths: dict[str, Path], chosen: Weights, hashes: dict[str, str], progress: Progress
) -> tuple[tuple[Path, ...], dict[str, str]]:
    if chosen.format == "safetensors":
        return tuple(paths.values()), chosen.places
    made = {name: converted(path, hashes.get(name), progress) for name, path in paths.items()}
    return tuple(made.values()), {tensor: made[shard].name for tensor, shard in chosen.places.items()}


def evict(pulled: Pulled) -> int:
    """Take a hub checkpoint out of the cache again, what was converted from it too. Returns the bytes freed."""
    if pulled.base is not None:
        return evict(pulled.base)
    if pulled.averaged:
        return sum(evict(one) for _, one in pulled.averaged)
    if pulled.name == "demo" or pulled.commit.startswith("sha256:"):
        return 0
    freed = 0
    if pulled.record.format == "pickle":
        for path in pulled.weights:
            freed += path.stat().st_size
            path.unlink()
    return freed + hub.evict(pulled.name, pulled.commit)
