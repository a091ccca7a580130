"""Which checkpoints a sweep is about: names and steps written shortly, and what is left out of them and why."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import RecipeError, SourceError
from ..base.strict_json import read_object
from ..model import suite
from ..model.mean import Term, is_mean
from ..model.mean import terms as mean_terms
from ..model.neox import NeoXConfig
from ..recipe import Model
from ..recipe.model import PLACE
from .schema import Named, Sweep

TRAINING = "training.json"  # beside the weights of one's own run: {"tokens": ..., "learning_rate": ...}
CONFIG = "config.json"
LISTED = 10_000  # steps of a range: of a longer one, those that a model lacks are not listed
POW2 = ("step0", *(f"step{2**i}" for i in range(10)))


@dataclass(frozen=True)
class Snapshot:
    """One model at one training step. tokens: trained on so far; learning_rate: at that step; None where unknown."""

    name: str
    model: Model
    config: NeoXConfig
    size: str
    family: str
    data: str
    seed: int | None
    step: int | None
    tokens: int | None
    learning_rate: float | None

    @property
    def revision(self) -> str:
        return self.model.revision

    def __str__(self) -> str:
        return f"{self.name} at {self.revision}"


@dataclass(frozen=True)
class LeftOut:
    name: str
    revisions: tuple[str, ...]
    why: str


def snapshots(sweep: Sweep) -> tuple[list[Snapshot], list[LeftOut]]:
    """All that `models` x `revisions` stands for, in that order, each once.

    Raises:
        RecipeError: an unknown model or step (with the nearest ones), a term that is none, nothing left to do.
        SourceError: a directory of a training run of one's own that is not there.
    """
    found: list[Snapshot] = []
    left_out: list[LeftOut] = []
    seen: dict[tuple[str, str], Model] = {}
    for named in sweep.models:
        terms = _terms(sweep.revisions if named.revisions is None else named.revisions)
        if named.path is not None:
            members = _own(named, terms, left_out)
        else:
            members = [s for name in _spelt_out(named.name) for s in _of_the_suite(name, terms, left_out)]
        for member in members:
            known = seen.setdefault((member.name, member.revision), member.model)
            if known is member.model:
                found.append(member)
            elif known != member.model:
                raise RecipeError(
                    f"`sweep.models`: {member} is two checkpoints, {known.name} and {member.model.name}",
                    hint="Give each training run a name of its own.",
                )
    left_out = list(dict.fromkeys(left_out))
    if not found:
        raise RecipeError(
            "no checkpoint is left: every one that the sweep names is left out\n"
            + "\n".join(f"  {x.name}: {', '.join(x.revisions)}: {x.why}" for x in left_out)
        )
    return found, left_out


def _terms(revisions: str) -> list[str]:
    terms = [t.strip() for t in re.split(r",(?![^(]*\))", revisions) if t.strip()]  # a mean's commas are its own
    if not terms:
        raise RecipeError("`sweep.revisions` is empty: there is nothing to do", hint='`revisions = "main"` is one.')
    return terms


def _spelt_out(name: str) -> Iterator[str]:
    """`160m-seed1..9` is nine names."""
    match = re.search(r"(\d+)\.\.(\d+)", name)
    if match is None:
        yield name
        return
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise RecipeError(f"`sweep.models`: {name}: {first} is above {last}")
    for i in range(first, last + 1):
        yield from _spelt_out(f"{name[: match.start()]}{i}{name[match.end() :]}")


def _of_the_suite(name: str, terms: list[str], left_out: list[LeftOut]) -> list[Snapshot]:
    if "@" in name:
        raise RecipeError(f"`sweep.models`: {name}: the step belongs into `sweep.revisions`")
    pythia = suite.named(name)
    if pythia is None:
        others = "Sweeps take models of the suite, which `pythia-export models` lists. A run of your own is a table: "
        others += '{ name = "mine", path = "runs/{revision}" }.'
        hint = others if "/" in name or name == "demo" else suite.suggestion(name)
        raise RecipeError(f"`sweep.models`: {name} is not in the catalogue", hint=hint)
    wanted, lacking = _steps(terms, pythia.revisions, pythia.id)
    if lacking:
        left_out.append(LeftOut(pythia.name, tuple(lacking), "the model has no such step"))
    by_reason: dict[str, list[str]] = {}
    kept = []
    for revision in wanted:
        bad = suite.known_bad(pythia.id, revision)
        if bad is None:
            kept.append(revision)
        else:
            by_reason.setdefault(bad.reported, []).append(revision)
    if "main" in kept and pythia.last_step in kept:
        kept.remove("main")
        left_out.append(LeftOut(pythia.name, ("main",), f"it is {pythia.last_step}"))
    left_out += [LeftOut(pythia.name, tuple(revisions), why) for why, revisions in by_reason.items()]
    for term in (t for t in terms if is_mean(t)):
        bad = next((p for t in _mean(term, pythia.revisions) if (p := suite.known_bad(pythia.id, t.revision))), None)
        if bad is None:
            kept.append(term)
        else:
            left_out.append(LeftOut(pythia.name, (term,), f"one of its steps {bad.reported}"))
    seed = re.search(r"seed(\d+)$", pythia.id)
    return [
        Snapshot(
            pythia.name, Model(id=pythia.id, revision=revision), pythia.config, pythia.size, pythia.family, pythia.data,
            int(seed[1]) if seed else None, pythia.step(revision), pythia.tokens(revision),
            pythia.learning_rate(revision),
        )
        for revision in kept
    ]  # fmt: skip


def _steps(terms: list[str], known: tuple[str, ...], where: str) -> tuple[list[str], list[str]]:
    """Revisions in the order of training, and those that a set or a range names and the model lacks."""
    wanted: set[str] = set()
    lacking: list[str] = []
    for term in terms:
        if is_mean(term):
            _mean(term, known)
        elif term == "all":
            wanted |= set(known)
        elif term == "pow2":
            wanted |= set(POW2) & set(known)
            lacking += [s for s in POW2 if s not in known]
        elif term == "main":
            wanted.add("main")
        elif match := re.fullmatch(r"(?:step)?(\d{1,9}):(?:step)?(\d{1,9})(?::(\d{1,9}))?", term):
            first, last, by = int(match[1]), int(match[2]), int(match[3] or 1000)
            if not by or first > last:
                raise RecipeError(f"`sweep.revisions`: {term}: first:last:by is meant, 1000:143000:1000 for example")
            steps = range(first, last + 1, by)
            there = {s for s in known if int(s.removeprefix("step")) in steps}
            if not there:
                raise RecipeError(f"`sweep.revisions`: {term}: {where} has none of these steps{_nearby(first, known)}")
            wanted |= there
            if len(steps) <= LISTED:
                lacking += [s for s in (f"step{i}" for i in steps) if s not in there]
        elif match := re.fullmatch(r"(?:step)?(\d{1,9})", term):
            step = f"step{int(match[1])}"
            if step not in known:
                raise RecipeError(f"`sweep.revisions`: {where} has no {step}{_nearby(int(match[1]), known)}")
            wanted.add(step)
        else:
            raise RecipeError(
                f"`sweep.revisions`: {term!r} is no step",
                hint="`all`, `pow2`, `1000:143000:1000`, `step3000`, `main`, `mean(step1000..step9000)`, with commas "
                "between.",
            )
    ordered = [s for s in known if s in wanted] + (["main"] if "main" in wanted else [])
    return ordered, list(dict.fromkeys(lacking))


def _mean(term: str, known: tuple[str, ...]) -> tuple[Term, ...]:
    try:
        return mean_terms(term, known)
    except RecipeError as e:
        raise RecipeError(f"`sweep.revisions`: {e}", hint=e.hint) from None


def _nearby(step: int, known: tuple[str, ...]) -> str:
    numbers = sorted((int(s.removeprefix("step")) for s in known), key=lambda n: abs(n - step))[:2]
    return f"; the nearest are {' and '.join(f'step{n}' for n in sorted(numbers))}" if numbers else ""


def _own(named: Named, terms: list[str], left_out: list[LeftOut]) -> list[Snapshot]:
    """Return the snapshots of the user's own training run: the directories that exist."""
    assert named.path is not None
    before, _, after = named.path.partition(PLACE)
    parent = Path(before).parent if not before.endswith("/") else Path(before)
    if not parent.is_dir():
        raise SourceError(
            f"{parent}: no such directory", hint=f"In `sweep.models`, correct the path of {named.name!r}."
        )
    around = [re.escape(s) for s in (before.rpartition("/")[2], after.partition("/")[0].replace(PLACE, ""))]
    alike = (re.fullmatch(f"{around[0]}(.+){around[1]}", p.name) for p in parent.iterdir())
    there = {match[1]: Path(named.path.replace(PLACE, match[1])) for match in alike if match is not None}
    there = {name: folder for name, folder in there.items() if (folder / CONFIG).is_file()}
    if not there:
        raise SourceError(
            f"{named.path}: no directory there has a {CONFIG}",
            hint=f"In `sweep.models`, correct the path of {named.name!r}.",
        )
    steps = sorted((n for n in there if re.fullmatch(r"step\d+", n)), key=lambda n: int(n.removeprefix("step")))
    wanted, lacking = _steps(terms, tuple(steps), f"{parent}")
    if lacking:
        left_out.append(LeftOut(named.name, tuple(lacking), "there is no such checkpoint"))
    if "main" in wanted and "main" not in there:
        raise SourceError(f"{parent}: no directory `main` with a {CONFIG}", hint="Leave `main` out of the revisions.")
    found = []
    for revision in wanted:
        folder, size = there[revision], _config(there[revision])
        facts = _training(folder)
        match = re.fullmatch(r"step(\d+)", revision)
        found.append(
            Snapshot(
                named.name, Model(path=folder, revision=revision), size, named.name, "own", "own", facts.get("seed"),
                int(match[1]) if match else facts.get("step"), facts.get("tokens"), facts.get("learning_rate"),
            )
        )  # fmt: skip
    for term in (t for t in terms if is_mean(t)):
        averaged = _mean(term, tuple(steps))
        lacks = next((t.revision for t in averaged if t.revision not in there), None)
        if lacks is not None:
            raise SourceError(f"{parent}: no directory `{lacks}` with a {CONFIG}", hint=f"It is one of {term}.")
        last = there[averaged[-1].revision]
        found.append(
            Snapshot(
                named.name, Model(path=Path(named.path), revision=term), _config(last), named.name, "own", "own",
                _training(last).get("seed"), None, None, None,
            )
        )  # fmt: skip
    return found


def _config(folder: Path) -> NeoXConfig:
    return NeoXConfig.from_dict(read_object(folder / CONFIG, error=SourceError), str(folder / CONFIG))


def _training(folder: Path) -> dict[str, Any]:
    path = folder / TRAINING
    if not path.is_file():
        return {}
    raw = read_object(path, error=SourceError)
    try:
        known = {"step": int, "tokens": int, "learning_rate": float, "seed": int}
        return {key: kind(raw[key]) for key, kind in known.items() if raw.get(key) is not None}
    except (ValueError, TypeError, OverflowError) as e:
        raise SourceError(f"{path}: {e}", hint='{"tokens": 4096000, "learning_rate": 0.003} is what it may say.') from e
