"""Does another training step serve the same weights? Asked by hash, before anything is downloaded.

The hub tells the hash of every large file without sending it. One call lists the branches with their commits; a HEAD
request each tells the hashes of the others. A commit never changes, so what was once learnt is kept beside the hub's
cache, and the next check of the same model asks for the list of branches alone.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from .. import hub
from ..base.errors import IntegrityError, SourceError
from ..base.progress import SILENT, Progress
from ..base.strict_json import read_object
from ..hub import Listing
from .ledger import Ledger

_STEP = re.compile(r"step(\d+)")
THREADS = 8


@dataclass(frozen=True)
class Comparison:
    """`same` is revision -> the files that it shares with ours; `compared` other revisions were looked at. `others`
    are all that should differ, revision -> commit."""

    compared: int
    same: dict[str, list[str]]
    unknown: int
    others: dict[str, str]


def compare(listing: Listing, names: tuple[str, ...], progress: Progress = SILENT) -> Comparison | None:
    """Hold the weights of a step to those of every other; None where there are no steps to compare.

    Offline, to those that were asked for before: what was found then is found again. What is equal by design does not
    count: main and the last step, step0 and step1, branches of one commit.
    """
    commits = _branches(listing, progress)
    own = [name for name, commit in commits.items() if commit == listing.commit]
    steps = {name: commit for name, commit in commits.items() if _STEP.fullmatch(name)}
    if not any(_STEP.fullmatch(name) for name in own) or "main" in own:
        return None
    last = max(steps, key=_number)
    by_design = set(own)
    if last in own:
        by_design |= {"main", last}
    if own and {"step0", "step1"} & set(own):
        by_design |= {"step0", "step1"}
    others = {n: c for n, c in {**steps, "main": commits.get("main")}.items() if c and n not in by_design}
    known = Ledger(listing.repo)
    missing = sorted({c for c in others.values() if not known.has(c, names)})
    if listing.offline:
        failed = len(missing)
    else:
        known.add(listing.commit, {name: listing.files[name].digest for name in names})
        failed = _learn(known, listing, missing, names, progress) if missing else 0
        known.save()
    same: dict[str, list[str]] = {}
    for name in sorted(others, key=_number):
        own_digests = ((f, listing.files[f].digest) for f in names)
        shared = [f for f, digest in own_digests if digest is not None and known.digest(others[name], f) == digest]
        if shared:
            same[name] = shared
    return Comparison(len(others) - failed, same, failed, others)


def _branches(listing: Listing, progress: Progress) -> dict[str, str]:
    """Commit of each branch; offline, as they were when they were last asked for."""
    path = hub.kept("branches") / f"{listing.repo.replace('/', '--')}.json"
    if listing.offline:
        with suppress(OSError, IntegrityError):
            return {str(name): str(commit) for name, commit in read_object(path).items()}
        return {}
    commits = hub.branches(listing.repo, progress)
    with suppress(OSError):  # a cache that can only be read
        hub.write_kept(path, json.dumps(commits).encode())
    return commits


def described(listing: Listing, names: tuple[str, ...], found: Comparison) -> str:
    """One line that names both."""
    others = list(found.same)
    listed = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    shared = sorted({name for files in found.same.values() for name in files})
    digest = listing.files[shared[0]].digest or ""
    if len(shared) < len(names):
        return f"{listing} shares {', '.join(shared)} with {listed}: a mixture of two steps"
    return f"{listing} has the weights of {listed} ({shared[0]}, sha256 {digest[:12]})"


def _learn(known: Ledger, listing: Listing, commits: list[str], names: tuple[str, ...], progress: Progress) -> int:
    """Ask for the hashes of these commits; returns how many could not be had."""

    def ask(commit: str) -> dict[str, str | None] | None:
        try:
            return {name: hub.digest_of(listing.repo, commit, name, progress) for name in names}
        except SourceError:
            return None

    failed = 0
    title = f"Comparing {listing.repo} at {listing.revision} with other steps"
    with progress.track(title, len(commits), "revisions") as advance, ThreadPoolExecutor(THREADS) as pool:
        for commit, found in zip(commits, pool.map(ask, commits), strict=True):
            if found is None:
                failed += 1
            else:
                known.add(commit, found)
            advance(1)
    return failed


def _number(name: str) -> int:
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else 1 << 62  # main
