"""Which linears are worth 8 bits, when a recipe asks for so many bits a weight.

Each linear's cost at its own bits and at 8 is what the second-order model of the loss expects of rounding it to
nearest: ``tr(G E H E^T) / 2``, with G from `sensitivity` and H from the unquantised model's inputs. Those that save
most for the bytes they take are raised, as long as they fit.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..base.compute import DEFAULT, Compute
from ..base.device import memory_of
from ..base.errors import NumericsError, RecipeError
from ..model.block import Block
from ..model.neox import EMBEDDING, NeoXConfig, layer_prefix, layer_tensors
from ..recipe import Override, Quantize
from ..records.quantization import Allocation
from ..rounding.columns import HUGE
from ..rounding.rtn import rtn
from ..weights.layout import Layout, LinearPlan, layout
from .activations import place, place_of_middles
from .balance import canonical
from .largest import Largest
from .observe import Observed
from .placed import Placed, Tensors
from .problem import Problem
from .sensitivity import Sensitivity, expected_cost, measure_sensitivity
from .steps import steps

RAISED = 8


def allocate(
    source: Tensors,
    quantize: Quantize,
    dtype: str,
    ids: np.ndarray,
    compute: Compute = DEFAULT,
) -> tuple[Quantize, Allocation]:
    """The recipe with its `bits_per_weight` turned into overrides.

    Raises:
        RecipeError: fewer bits are asked for than the recipe's own, or more than 8 everywhere would take.
        NumericsError: a weight or an activation is NaN, infinite, or so large that the cost of rounding overflows.
        ResourceError: the device's memory did not suffice.
    """
    asked = quantize.bits_per_weight
    assert asked is not None
    base, high, candidates = require_budget(source.config, quantize, dtype)
    largest = Largest(source)
    source = Placed(canonical(largest, quantize), compute.device)
    with memory_of(compute.device), largest.named():
        saved = _saved(source, quantize, base, high, ids, compute)
    raised: list[str] = []
    reached = base.bits_per_weight

    def worth(names: tuple[str, ...]) -> float:
        return sum(saved[name] for name in names) / sum(_extra(base, high, name) for name in names)

    for names in sorted(dict.fromkeys(map(base.sharing, candidates)), key=worth, reverse=True):
        with_it = layout(source.config, _raised(quantize, [*raised, *names]), dtype).bits_per_weight
        if with_it <= asked:
            raised += names
            reached = with_it
    final = _raised(quantize, raised).model_copy(update={"bits_per_weight": None})
    return final, Allocation(asked=asked, reached=round(reached, 4), raised=raised)


def require_budget(config: NeoXConfig, quantize: Quantize, dtype: str) -> tuple[Layout, Layout, list[str]]:
    """The layout as the recipe says and with 8 bits in every layer, and the linears that these differ in.

    Raises:
        RecipeError: `bits_per_weight` is not between the two.
    """
    base = layout(config, quantize, dtype)
    chosen = [p.name for p in base.linears.values() if p.layer is not None and p.method != "none"]
    candidates = [name for name in chosen if base.linears[name].scheme.bits < RAISED]
    high = layout(config, _raised(quantize, candidates), dtype)
    asked = quantize.bits_per_weight
    if asked is not None and not base.bits_per_weight <= asked <= high.bits_per_weight:
        raise RecipeError(
            f"quantize.bits_per_weight = {asked}: this recipe takes {base.bits_per_weight:.4f}, scales and head "
            f"included, and {high.bits_per_weight:.4f} with {RAISED} bits in every layer",
            hint="Ask for a number between, or change `bits` and `group_size`.",
        )
    return base, high, candidates


def _raised(quantize: Quantize, names: list[str]) -> Quantize:
    rules = tuple(Override(pattern=name, bits=RAISED) for name in names)
    return quantize.model_copy(update={"override": quantize.override + rules})


def _bytes(places: Layout, name: str) -> int:
    parts = (f"{name}.{part}" for part in ("qweight", "scales", "zero_points"))
    return sum(places.slots[part].nbytes for part in parts if part in places.slots)


def _extra(base: Layout, high: Layout, name: str) -> int:
    return _bytes(high, name) - _bytes(base, name)


def _saved(
    source: Tensors, quantize: Quantize, base: Layout, high: Layout, ids: np.ndarray, compute: Compute
) -> dict[str, float]:
    """Return the nats per token that 8 bits are expected to save in each linear of the layers."""
    config = source.config
    saved: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=compute.scratch) as folder, torch.inference_mode():
        compute, sensitivity = replace(compute, scratch=Path(folder)), Sensitivity(Path(folder))
        with torch.inference_mode(False):
            measure_sensitivity(source, ids, sensitivity, compute)
        table = source.tensor(f"{EMBEDDING}.weight")
        where = place((*ids.shape, config.hidden_size), 1, compute)
        middles = place_of_middles(config, ids.size, compute)
        observed = Observed(config, ids, table, None, where, middles, quantize)
        del table
        with compute.progress.track("Weighing bits", config.num_layers, "layers") as advance:
            for layer in range(config.num_layers):
                weights = {spec.name: source.tensor(spec.name).float() for spec in layer_tensors(config, layer)}
                block = Block(config, layer, weights.__getitem__)
                for linear, problem in steps(observed, block):
                    if isinstance(problem, Problem):
                        name, G = f"{layer_prefix(layer)}.{linear}", sensitivity.of(layer, linear)
                        here, there = (_cost(places.linears[name], problem, G) for places in (base, high))
                        saved[name] = here - there
                observed.propagate(block)
                advance(1)
    return saved


def _cost(plan: LinearPlan, problem: Problem, G: Tensor) -> float:
    """Return what the loss is expected to rise by when a linear is rounded to nearest.

    Raises:
        NumericsError: it is no finite number; names the linear.
    """
    W = problem.W
    cost = expected_cost(W - rtn(W, plan.scheme).dequantize(), problem.H, G.to(W.device))
    if not math.isfinite(cost):
        raise NumericsError(
            f"{plan.name}: the cost of rounding weights as large as {W.abs().max():.3g} is no finite number", hint=HUGE
        )
    return cost
