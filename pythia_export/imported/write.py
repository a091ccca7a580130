"""A quantised checkpoint as the weights of an artifact, a few linears in memory at a time."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from typing import Literal

from torch import Tensor

from ..base.progress import SILENT, Progress
from ..model.neox import EMBEDDING, FINAL_NORM, HEAD, LINEARS, NORMS, layer_prefix
from ..recipe import Head, Override, Quantize
from ..records.quantization import QUANTIZATION_SCHEMA, LayerRecord, LinearRecord, Quantization
from ..rounding.rtn import rtn
from ..weights.layout import LinearPlan
from ..weights.writer import WeightsWriter
from .fit import operands
from .open import Imported, Linear

AHEAD = 4  # linears that are read while another one is written: a layer


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
    with progress.track("Importing", len(layout.linears), "linears") as advance, _ahead(source, writer) as ahead:
        embedding, next_linear = ahead
        writer.float_embedding(embedding.result())
        del embedding, ahead
        of_head = next_linear()
        for layer in range(config.num_layers):
            start = time.perf_counter()
            for norm in NORMS:
                for part in ("weight", "bias"):
                    name = f"{layer_prefix(layer)}.{norm}.{part}"
                    writer.vector(name, source.tensor(name))
            for linear in LINEARS:
                plan = layout.linears[f"{layer_prefix(layer)}.{linear}"]
                linears += next_linear()
                if plan.bias:
                    writer.vector(f"{plan.name}.bias", source.tensor(f"{plan.name}.bias"))
                advance(1)
            layers.append(LayerRecord(layer=layer, residual_error=None, seconds=_since(start)))
        for part in ("weight", "bias"):
            writer.vector(f"{FINAL_NORM}.{part}", source.tensor(f"{FINAL_NORM}.{part}"))
        linears += of_head
        advance(1)
    return Quantization(
        version=QUANTIZATION_SCHEMA,
        method="imported",
        bits_per_weight=round(layout.bits_per_weight, 4),
        seconds=_since(began),
        linears=linears,
        layers=layers,
    )


Written = Callable[[], list[LinearRecord]]


@contextmanager
def _ahead(source: Imported, writer: WeightsWriter) -> Iterator[tuple[Future[Tensor], Written]]:
    """Yield the embedding, and what writes the next linear: the head, which takes longest, then those of the layers.
    While one is written, another thread reads the next and brings it into the form that is stored."""
    with ThreadPoolExecutor(1) as reader:
        embedding = reader.submit(source.tensor, f"{EMBEDDING}.weight")
        head, others = writer.layout.linears[HEAD], (p for p in writer.layout.linears.values() if p.name != HEAD)
        plans = chain([head], others)
        coming = deque(reader.submit(_read, source, plan, writer) for plan in islice(plans, AHEAD))

        def write() -> list[LinearRecord]:
            written = coming.popleft().result()
            coming.extend(reader.submit(_read, source, plan, writer) for plan in islice(plans, 1))
            return written()

        try:
            yield embedding, write
        finally:
            for future in coming:
                future.cancel()


def _read(source: Imported, plan: LinearPlan, writer: WeightsWriter) -> Written:
    """Read one linear; return what writes it and gives its record, of which one that is in float has none."""
    began, found, name = time.perf_counter(), source.linears.get(plan.name), f"{plan.name}.weight"
    if found is None:
        plain = writer.plain(plan, source.tensor(name))

        def write() -> None:
            writer.put(name, plain)
    elif found.rounded:
        W = source.tensor(name)
        result = rtn(W, plan.scheme)

        def write() -> None:
            writer.linear(plan, W, result)
    else:
        packed = operands(source.stored(found), plan, found.groups)

        def write() -> None:
            writer.packed(plan, packed)

    def written() -> list[LinearRecord]:
        write()
        return [] if found is None else [_record(found, plan, _since(began))]

    return written


def _record(found: Linear, plan: LinearPlan, seconds: float) -> LinearRecord:
    return LinearRecord(
        name=plan.name, layer=plan.layer, shape=list(plan.shape), method=_method(found), bits=plan.scheme.bits,
        group_size=plan.scheme.group_size, symmetric=plan.scheme.symmetric, rtn_loss=None, loss=None, recovered=None,
        damp=None, tokens=0, seconds=seconds,
    )  # fmt: skip


def _method(linear: Linear) -> Literal["rtn", "imported"]:
    return "rtn" if linear.rounded else "imported"


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 3)
