"""A quantised checkpoint as the weights of an artifact, one linear in memory at a time."""

from __future__ import annotations

import time
from collections import Counter
from typing import Literal

from ..base.progress import SILENT, Progress
from ..model.neox import EMBEDDING, FINAL_NORM, HEAD, LINEARS, NORMS, layer_prefix
from ..recipe import Head, Override, Quantize
from ..records.quantization import QUANTIZATION_SCHEMA, LayerRecord, LinearRecord, Quantization
from ..rounding.rtn import rtn
from ..weights.layout import LinearPlan
from ..weights.writer import WeightsWriter
from .fit import operands
from .open import Imported, Linear


def quantize_section(source: Imported) -> Quantize:
    """Return [quantize] of the artifact's recipe: what most linears have, and overrides for the others. What is in
    float keeps every value: the embedding, the head, and linears that were left out."""
    trunk = {name: linear for name, linear in source.linears.items() if name != HEAD}
    most = Counter(linear.scheme for linear in trunk.values() if not linear.rounded) or Counter(
        linear.scheme for linear in source.linears.values()
    )
    usual = most.most_common(1)[0][0]
    names = [f"{layer_prefix(i)}.{linear}" for i in range(source.config.num_layers) for linear in LINEARS]
    rules = []
    for name in names:
        found = trunk.get(name)
        if found is None:
            rules.append(Override(pattern=name, method="none"))
        elif found.rounded or found.scheme != usual:
            rules.append(Override(pattern=name, method=_method(found), **found.scheme.model_dump()))
    head = source.linears.get(HEAD)
    return Quantize(
        method="imported",
        **usual.model_dump(),
        embedding="float16" if source.is_float16(f"{EMBEDDING}.weight") else "float32",
        head=Head(method="none", dtype="float16" if source.is_float16(f"{HEAD}.weight") else "float32")
        if head is None
        else Head(method=_method(head), **head.scheme.model_dump()),
        override=tuple(rules),
    )


def write_imported(source: Imported, writer: WeightsWriter, progress: Progress = SILENT) -> Quantization:
    """Write every tensor of `source`; return how each linear is stored.

    Raises:
        NumericsError: a NaN or an infinity in what is in float, or in a scale.
        IntegrityError: codes or zero points that their format cannot have.
    """
    began, config, layout = time.perf_counter(), source.config, writer.layout
    linears: list[LinearRecord] = []
    layers: list[LayerRecord] = []
    writer.rotary()
    writer.embedding(source.tensor(f"{EMBEDDING}.weight"))
    with progress.track("Importing", len(layout.linears), "linears") as advance:
        for layer in range(config.num_layers):
            start = time.perf_counter()
            for norm in NORMS:
                for part in ("weight", "bias"):
                    name = f"{layer_prefix(layer)}.{norm}.{part}"
                    writer.vector(name, source.tensor(name))
            for linear in LINEARS:
                plan = layout.linears[f"{layer_prefix(layer)}.{linear}"]
                linears += _linear(source, plan, writer)
                if plan.bias:
                    writer.vector(f"{plan.name}.bias", source.tensor(f"{plan.name}.bias"))
                advance(1)
            layers.append(LayerRecord(layer=layer, residual_error=None, seconds=_since(start)))
        for part in ("weight", "bias"):
            writer.vector(f"{FINAL_NORM}.{part}", source.tensor(f"{FINAL_NORM}.{part}"))
        linears += _linear(source, layout.linears[HEAD], writer)
        advance(1)
    return Quantization(
        version=QUANTIZATION_SCHEMA,
        method="imported",
        bits_per_weight=round(layout.bits_per_weight, 4),
        seconds=_since(began),
        linears=linears,
        layers=layers,
    )


def _linear(source: Imported, plan: LinearPlan, writer: WeightsWriter) -> list[LinearRecord]:
    """Write one linear; return its record, of which one that is in float has none."""
    began, found = time.perf_counter(), source.linears.get(plan.name)
    if found is None:
        writer.linear(plan, source.tensor(f"{plan.name}.weight"), None)
        return []
    if found.rounded:
        W = source.tensor(f"{plan.name}.weight")
        writer.linear(plan, W, rtn(W, plan.scheme))
    else:
        writer.packed(plan, operands(source.stored(found), plan, found.groups))
    record = LinearRecord(
        name=plan.name, layer=plan.layer, shape=list(plan.shape), method=_method(found), bits=plan.scheme.bits,
        group_size=plan.scheme.group_size, symmetric=plan.scheme.symmetric, rtn_loss=None, loss=None, recovered=None,
        damp=None, tokens=0, seconds=_since(began),
    )  # fmt: skip
    return [record]


def _method(linear: Linear) -> Literal["rtn", "imported"]:
    return "rtn" if linear.rounded else "imported"


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 3)
