"""Three questions, never mixed.

A. Did the export keep the numbers? `export.py`: ONNX Runtime against torch on the *same* dequantised weights, at
   accuracy level 0 by the graph's own function and by the native kernels, and, where another level ships, at that.
B. What did quantisation cost? `cost.py`: the artifact as it ships against the original checkpoint, on held-out text.
C. Does it still compute alike, where that is asked? `inside.py`: the artifact as it ships against the original, layer
   by layer, head by head and feature by feature, on the same text.

Then the recipe's gates judge, and where one does not pass, `divergence.py` or `suspects.py` says where to look first.
What comes out is the content of `parity.json`; `docs/reference/parity.md` describes it field by field.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..base.compute import DEFAULT, Compute
from ..base.machine import machine, now, versions
from ..corpus import Windows
from ..recipe import Gates
from ..records.manifest import Checkpoint
from ..records.parity import PARITY_SCHEMA, Exported, Parity
from ..runtime import Session
from . import cost, export
from .activations import Activations
from .against import compare, require_same
from .autoencoder import Autoencoder
from .divergence import first_divergence
from .export import Run
from .gates import judge
from .inside import Inside
from .metrics import TokenFigures
from .reference import Reference, Tensors
from .subject import Subject
from .suspects import suspects


@dataclass(frozen=True)
class Proof:
    """`parity` is the record of the proof, `figures` what was found of each scored token."""

    parity: Parity
    figures: TokenFigures


def prove(
    subject: Subject,
    windows: Windows,
    gates: Gates,
    compute: Compute = DEFAULT,
    *,
    nearest: Tensors | None = None,
    against: Parity | None = None,
    inside: bool = False,
    autoencoders: Sequence[Autoencoder] = (),
) -> Proof:
    """Measure an artifact and judge it by the recipe's gates.

    `nearest` are the same checkpoint's weights rounded to nearest, to be scored beside the artifact's; `against` is
    another artifact's proof, to be compared with on the same text. `inside` asks the third question too; a gate on it
    does likewise, and so do `autoencoders`, whose features are compared.

    Raises:
        NumericsError: the graph computes a NaN or an infinity.
        SourceError: `against` is of another text or another checkpoint.
    """
    began = time.perf_counter()
    corpus = cost.corpus_of(windows)
    if against is not None:
        require_same(subject.source, corpus, against)
    begun = now()
    some = windows.ids[: export.WINDOWS]
    reference = Reference(subject.stored, subject.config, some, "Reference on the artifact's weights", compute)
    shipped = subject.session(subject.export.accuracy_level, native=True)
    measured = [export.measure(run, reference, some, compute.progress) for run in runs(subject, shipped)]
    del reference
    exported = Exported(tokens=int(some.size), runs=measured, first_divergence=None)
    watch = None
    if inside or gates.look_inside or autoencoders:
        beside = {"artifact": subject.stored} | ({} if nearest is None else {"rtn": nearest})
        rounds = Activations.of(subject.model, subject.config, subject.export)
        watch = Inside(
            subject.original, beside, subject.config, windows, compute, activations=rounds, autoencoders=autoencoders
        )
    costs, figures = cost.measure(subject, shipped, windows, compute, watch)
    alike = None if watch is None else watch.result()
    del shipped, watch
    if subject.baseline != "original":
        costs = costs.model_copy(update={"baseline": subject.baseline})
    if nearest is not None:
        costs = costs.model_copy(update={"rounding": cost.measure_rounding(subject, nearest, windows, compute)})
    compared = None if against is None else compare(costs, exported, against)
    verdicts = judge(gates, corpus, exported, costs, compared, alike)
    unmet = {gate.name for gate in verdicts if not gate.passed}
    if unmet & {"export_max_abs", "decode_max_abs"}:
        divergence = first_divergence(subject, windows.ids[0], compute.progress)
        exported = exported.model_copy(update={"first_divergence": divergence})
    if unmet & {"ppl_ratio", "delta_nll", "kld_mean", "same_top", "regression"}:
        costs = costs.model_copy(update={"suspects": suspects(subject, windows.ids[0], compute.progress)})
    parity = Parity(
        version=PARITY_SCHEMA,
        versions=versions(),
        machine=machine(),
        created=begun,
        source=Checkpoint(**{name: getattr(subject.source, name) for name in Checkpoint.model_fields}),
        corpus=corpus,
        export=exported,
        cost=costs,
        against=compared,
        inside=alike,
        gates=verdicts,
        passed=not unmet,
        seconds=round(time.perf_counter() - began, 2),
    )
    return Proof(parity, figures)


def runs(subject: Subject, shipped: Session) -> list[Run]:
    """What is compared with torch; `shipped` is open already."""
    level = subject.export.accuracy_level
    found = [Run("level 0", 0, True, lambda: subject.session(0, native=False))]
    if shipped.speed == "native":
        again = subject.session if level else lambda level, native: shipped
        found.append(Run("native kernels, level 0", 0, True, lambda: again(0, native=True)))
    if level:
        found.append(Run(f"as it ships, level {level}", level, False, lambda: shipped))
    return found
