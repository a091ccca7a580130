"""The Pythia suite: every model and revision, how they are called, and what is known to be wrong with them.

The facts lie in `suite.toml`, so that `plan`, `models` and the tests know a model without pulling it.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ..base.errors import IntegrityError, RecipeError
from .mean import is_mean, terms
from .neox import HEAD, NeoXConfig, linear_shape

Family = Literal["v1", "v0", "polypythias", "intervention"]
Data = Literal["standard", "deduped"]
ORGANISATION = "EleutherAI/"

STEPS, TOKENS_A_STEP = 143_000, 1024 * 2048

# Powers of two to 512, then every thousand; `main` is step143000.
_THOUSANDS = tuple(f"step{1000 * i}" for i in range(1, 144))
REVISIONS = ("step0", *(f"step{2**i}" for i in range(10)), *_THOUSANDS)
_STEPS: dict[str, tuple[str, ...]] = {"all": REVISIONS, "thousands": _THOUSANDS, "unknown": ()}


@dataclass(frozen=True)
class Problem:
    """What is wrong with some revisions of a model. A `note` is told, the others are refused."""

    kind: Literal["duplicate", "mixed", "missing", "note"]
    what: str
    revisions: tuple[str, ...]
    issue: int | None = None

    @property
    def reported(self) -> str:
        return f"{self.what} (issue {self.issue})" if self.issue is not None else self.what


@dataclass(frozen=True)
class Pythia:
    """One model of the suite. `revisions` are its training steps on the hub, without `main`; empty where unknown."""

    id: str
    size: str
    family: Family
    data: Data
    config: NeoXConfig
    revisions: tuple[str, ...]
    problems: tuple[Problem, ...]
    trained_in: str
    formerly: str | None
    peak_learning_rate: float

    @property
    def name(self) -> str:
        return self.id.removeprefix(ORGANISATION)

    @property
    def non_embedding_parameters(self) -> int:
        """Without embedding and head, as the scaling literature counts."""
        rows, columns = linear_shape(self.config, HEAD)
        return self.config.parameters - 2 * rows * columns

    @property
    def last_step(self) -> str:
        """What `main` is."""
        return f"step{STEPS}"

    def step(self, revision: str) -> int | None:
        """None of a commit or a branch that is no step."""
        match = re.fullmatch(r"step(\d+)", self.last_step if revision == "main" else revision)
        return int(match[1]) if match else None

    def tokens(self, revision: str) -> int | None:
        """What the model was trained on at a revision. Of v0, whose batches had other sizes, the steps were named so
        that this holds too (its model cards)."""
        step = self.step(revision)
        return None if step is None else step * TOKENS_A_STEP

    def learning_rate(self, revision: str) -> float | None:
        """At a revision: a linear warm-up over 1 % of the steps, then a cosine down to a tenth of the peak (the
        published configurations, models/*/*.yml: warmup, lr-decay-style, min_lr). None for v0, which had others."""
        step = self.step(revision)
        if step is None or self.family == "v0":
            return None
        peak, warmup = self.peak_learning_rate, STEPS // 100
        if step < warmup:
            return peak * step / warmup
        least, done = peak / 10, (step - warmup) / (STEPS - warmup)
        return least + (peak - least) * (1 + math.cos(math.pi * done)) / 2

    @property
    def training_order(self) -> str | None:
        """The hub data set of what it was trained on, batch by batch; None where the batches were others: v0 had sizes
        of its own for them, PolyPythias orders of their own."""
        return f"EleutherAI/pile-{self.data}-pythia-preshuffled" if self.family == "v1" else None

    def to_json(self) -> dict[str, Any]:
        c = self.config
        return {
            "id": self.id,
            "size": self.size,
            "formerly": self.formerly,
            "family": self.family,
            "data": self.data,
            "parameters": c.parameters,
            "non_embedding_parameters": self.non_embedding_parameters,
            "hidden_size": c.hidden_size,
            "num_layers": c.num_layers,
            "num_heads": c.num_heads,
            "head_dim": c.head_dim,
            "rotary_dim": c.rotary_dim,
            "intermediate_size": c.intermediate_size,
            "vocab_size": c.vocab_size,
            "trained_in": self.trained_in,
            "float16_bytes": 2 * c.parameters,
            "revisions": ["main", *self.revisions],
            "problems": [
                {"kind": p.kind, "what": p.what, "issue": p.issue, "revisions": list(p.revisions)}
                for p in self.problems
            ],
        }


@cache
def _facts() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("suite.toml").read_text(encoding="utf-8"))


@cache
def suite() -> dict[str, Pythia]:
    """Every model by its hub id, in the order of families and sizes."""
    facts = _facts()
    sizes = {s["name"]: s for s in facts["size"]}
    models: dict[str, Pythia] = {}
    for family in facts["family"]:
        for size in family["sizes"]:
            for seed in range(1, family.get("seeds", 1) + 1):
                name = family["name"].format(size=size, seed=seed)
                own = [p for p in facts["problem"] if p["model"] in (name, "*")]
                problems = (_problem(p, _STEPS[family["steps"]]) for p in own)
                models[ORGANISATION + name] = Pythia(
                    ORGANISATION + name, size, family["family"], family["data"], _config(sizes[size]),
                    _STEPS[family["steps"]], tuple(p for p in problems if p is not None),
                    sizes[size].get("trained_in", "float16"), sizes[size].get("formerly"),
                    sizes[size]["peak_learning_rate"],
                )  # fmt: skip
    return models


def sizes() -> tuple[str, ...]:
    return tuple(size["name"] for size in _facts()["size"])


def _config(size: dict[str, Any]) -> NeoXConfig:
    return NeoXConfig(size["vocab"], size["hidden"], size["layers"], size["heads"], 4 * size["hidden"])


def _problem(raw: dict[str, Any], steps: tuple[str, ...]) -> Problem | None:
    """Return what is known of a model with these steps; None when it concerns steps that the model does not have."""
    listed: list[str] = []
    for entry in raw["revisions"]:
        first, _, last = entry.partition("-")
        listed += [s for s in steps if int(first) <= int(s.removeprefix("step")) <= int(last or first)]
    if raw["revisions"] and not listed:
        return None
    return Problem(raw["kind"], raw["what"], tuple(listed), raw.get("issue"))


def find(model_id: str | None) -> Pythia | None:
    """A model by its hub id; None when it is not in the catalogue."""
    return suite().get(model_id or "")


_GEOMETRY = re.compile(r"^EleutherAI/pythia-(?:intervention-)?(\d+(?:\.\d+)?[mb])(?:-|$)")


def geometry(model_id: str | None) -> NeoXConfig | None:
    """Configuration of a hub model by its id; also of a variant that is not listed, by the size in its name. None when
    it is no Pythia's."""
    match = _GEOMETRY.match(model_id or "")
    size = match and next((s for s in _facts()["size"] if s["name"] == match[1]), None)
    return _config(size) if size else None


def known_bad(model_id: str, revision: str) -> Problem | None:
    """What is wrong with a hub revision, or None when nothing is known."""
    model = find(model_id)
    problems = model.problems if model is not None else ()
    return next((p for p in problems if p.kind != "note" and revision in p.revisions), None)


def notes(model_id: str, revision: str) -> list[str]:
    """What the reader of a result of this revision should know."""
    model = find(model_id)
    problems = model.problems if model is not None else ()
    told = (p for p in problems if p.kind == "note" and (not p.revisions or revision in p.revisions))
    return [f"{' '.join((model_id, ' and '.join(p.revisions))).strip()}: {p.reported}" for p in told]


def resolve(name: str) -> tuple[str, str | None]:
    """Hub id and revision (None when there is none) that a name stands for.

    `410m`, `pythia-410m-deduped@step3000`, `410m-seed3@step512` and full ids, whatever their case. `demo` stands for
    itself, and so does an id with its owner that is not in the catalogue: it need not be of the suite.

    Raises:
        RecipeError: no such model (with the nearest names), an @ without a revision, a name of before 2023, a step that
            the model does not have.
    """
    asked, at, revision = name.partition("@")
    if at and not revision.strip():
        raise RecipeError(f"`{name}` names no revision after the @", hint=f"`{asked}` alone is its last step.")
    found = _named(asked)
    if found is None:
        if "/" in asked or asked == "demo":
            return asked, revision or None
        raise RecipeError(f"no model called `{asked}`", hint=suggestion(asked))
    return found.id, _step(found, revision) if revision else None


def named(name: str) -> Pythia | None:
    """The model that a name stands for exactly; None when there is none."""
    return _named(name.partition("@")[0])


def matching(words: str) -> list[Pythia]:
    """The models whose names hold every word; a word that is a size is that size alone: `1b` is not `31m` or `1.4b`."""
    wanted = _short(words).replace("-", " ").split()
    known = sizes()
    return [
        m for m in suite().values()
        if all(w == m.size if w in known else w in (m.family, m.data) or w in m.name for w in wanted)
    ]  # fmt: skip


def former_name(name: str) -> str | None:
    """What to know about a name of before 2023, `350M` say; None for any other."""
    short = _short(name)
    for size in _facts()["size"]:
        old, new = size.get("formerly"), size["name"]
        if old is not None and re.fullmatch(rf"{re.escape(old)}(-deduped)?(-v0)?", short):
            today = short.replace(old, new, 1).removesuffix("-v0")
            return (
                f"{old.upper()} is what {new} was called until January 2023, when parameters were counted without "
                f"embeddings. Weights of that time are {ORGANISATION}pythia-{today}-v0; "
                f"{ORGANISATION}pythia-{today} was trained again since"
            )
    return None


def require_same_geometry(model_id: str, config: NeoXConfig, where: str) -> None:
    """Hold a configuration to the catalogue's.

    Raises:
        IntegrityError: it is that of another model; the message names the field.
    """
    expected = geometry(model_id)
    if expected is None:
        return
    for field in expected.__dataclass_fields__:
        found, listed = getattr(config, field), getattr(expected, field)
        if found != listed:
            raise IntegrityError(
                f"{where}: {field} is {found}, which makes {config.parameters:,} parameters; {model_id} has {listed} "
                f"and {expected.parameters:,}",
                hint="This is not the model that its name says. Was it padded, cut or uploaded to another's place?",
            )


def _short(name: str) -> str:
    return name.strip().lower().removeprefix(ORGANISATION.lower()).removeprefix("pythia-")


def _named(asked: str) -> Pythia | None:
    if "/" in asked and not asked.lower().startswith(ORGANISATION.lower()):
        return None
    wanted = _short(asked)
    return next((m for m in suite().values() if _short(m.id) == wanted), None)


def suggestion(asked: str) -> str:
    """For a name that is none: the nearest of the suite, or what an old name stands for."""
    if old := former_name(asked):
        return f"{old}."
    found = near(asked)
    if found:
        return f"Did you mean {', '.join(found)}?"
    return "`pythia-export models` lists them; a model of another owner is named with its owner, owner/name."


def near(asked: str) -> list[str]:
    """Return the names of the suite that are spelt most like this one."""
    names = {_short(m.id): m.name for m in suite().values()}
    return [names[n] for n in difflib.get_close_matches(_short(asked), names, n=3, cutoff=0.6)]


def _step(model: Pythia, revision: str) -> str:
    if is_mean(revision):
        for term in terms(revision, model.revisions):
            _step(model, term.revision)
        return revision
    match = re.fullmatch(r"(?:step)?(\d{1,6})", revision)
    if match is None or not model.revisions:  # main, a tag, a commit
        return revision
    step = f"step{int(match[1])}"
    if step not in model.revisions:
        near = sorted(model.revisions, key=lambda s: abs(int(s.removeprefix("step")) - int(match[1])))[:2]
        raise RecipeError(
            f"{model.id} has no {step}; the nearest are {' and '.join(near)}",
            hint=f"Its steps are {'0, 1, 2, 4, ... 512, then ' if model.revisions == REVISIONS else ''}every thousand "
            "to 143000.",
        )
    return step
