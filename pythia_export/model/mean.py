"""`mean(step133000..step143000)`: revisions of one model whose weights are averaged, written as one revision.

The mean of late checkpoints is a model of its own, which https://arxiv.org/abs/2510.06213 says quantisation costs less.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..base.errors import RecipeError

_BEGINS = "mean("
_SHAPE = "mean(step133000..step143000), mean(step142000, step143000), or with weights mean(step142000:1, step143000:3)"


@dataclass(frozen=True)
class Term:
    """One revision of a mean. Weights are as they were written: their sum need not be 1."""

    revision: str
    weight: float = 1.0


def is_mean(revision: str) -> bool:
    return revision.startswith(_BEGINS)


def require_mean(revision: str) -> None:
    """Hold a mean to its form, as far as that can be told without knowing the model's revisions.

    Raises:
        RecipeError: it has another; the message says where.
    """
    for item in _items(revision):
        if ".." not in item:
            _term(item, revision)
        else:
            _range(item, revision)


def terms(revision: str, known: Sequence[str]) -> tuple[Term, ...]:
    """Return what a mean averages, in the order written; a range stands for each step of `known` in it.

    Raises:
        RecipeError: another form, no step in a range, one revision twice, fewer than two.
    """
    found: list[Term] = []
    for item in _items(revision):
        if ".." not in item:
            found.append(_term(item, revision))
            continue
        first, last = _range(item, revision)
        steps = {int(name.removeprefix("step")): name for name in known if re.fullmatch(r"step\d+", name)}
        there = [Term(steps[step]) for step in sorted(steps) if first <= step <= last]
        if not there:
            near = sorted(sorted(steps, key=lambda step: abs(step - first))[:2])
            hint = f"The nearest are {' and '.join(f'step{step}' for step in near)}." if near else ""
            raise RecipeError(f"{revision}: there is no step in {item}", hint=hint)
        found += there
    names = [term.revision for term in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f"{revision}: {twice} is in it twice", hint="A weight says that it counts more: step3000:2.")
    if len(found) < 2:
        raise RecipeError(f"{revision}: a mean is of two revisions or more", hint=f"Written so: {_SHAPE}.")
    return tuple(found)


def written(averaged: Sequence[Term]) -> str:
    """Return the revision that stands for these terms."""
    equal = len({term.weight for term in averaged}) == 1
    return f"mean({','.join(t.revision if equal else f'{t.revision}:{t.weight}' for t in averaged)})"


def _items(revision: str) -> list[str]:
    if not is_mean(revision) or not revision.endswith(")"):
        raise RecipeError(f"{revision!r} is not a mean of revisions", hint=f"Written so: {_SHAPE}.")
    items = [item.strip() for item in revision[len(_BEGINS) : -1].split(",")]
    if not all(items):
        raise RecipeError(f"{revision}: there is nothing between two commas", hint=f"Written so: {_SHAPE}.")
    return items


def _range(item: str, revision: str) -> tuple[int, int]:
    match = re.fullmatch(r"(?:step)?(\d{1,9})\s*\.\.\s*(?:step)?(\d{1,9})", item)
    if match is None:
        raise RecipeError(f"{revision}: {item!r} is no range of steps", hint=f"Written so: {_SHAPE}.")
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise RecipeError(f"{revision}: {item}: the first step is above the last")
    return first, last


def _term(item: str, revision: str) -> Term:
    name, colon, given = item.partition(":")
    name = name.strip()
    if not re.fullmatch(r"[\w][\w./-]*", name):
        raise RecipeError(f"{revision}: {name!r} is no revision", hint=f"Written so: {_SHAPE}.")
    name = f"step{int(name)}" if re.fullmatch(r"\d{1,6}", name) else name
    if not colon:
        return Term(name)
    try:
        weight = float(given)
    except ValueError:
        weight = math.nan
    if not 0 < weight < 1e6:
        raise RecipeError(f"{revision}: the weight of {name} is {given.strip()!r}; a number above 0 was expected")
    return Term(name, weight)
