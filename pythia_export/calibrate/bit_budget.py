"""Which linears are worth 8 bits, when a recipe asks for so many bits a weight.

Each linear's cost at its own bits and at 8 is what the second-order model of the loss expects of rounding it to
nearest: ``tr(G E H E^T) / 2``, with G from `sensitivity` and H from the unquantised model's inputs. Those that save
most for the bytes they take are raised, as long as they fit.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..base.device import CPU, memory_of
from ..base.errors import NumericsError, RecipeError
from ..base.progress import SILENT, Progress
from ..model.block import Block
from ..model.neox import EMBEDDING, NeoXConfig, layer_prefix, layer_tensors
from ..quantize.rounding import HUGE
from ..quantize.rtn import rtn
from ..recipe import Override, Quantize
from ..records.quantization import Allocation
from ..weights.layout import Layout, layout
from .activations import place
from .fold_norms import Folded
from .largest import Largest
from .observe import Observed
from .placed import Placed
from .problem import Problem
from .sensitivity import Sensitivity, Tensors, expected_cost, measure_sensitivity
from .sequential import quantise_in_sequence

RAISED = 8


def allocate(
    source: Tensors,
    quantize: Quantize,
    dtype: str,
    ids: np.ndarray,
    memory_gb: float,
    scratch: Path,
    progress: Progress = SILENT,
    device: torch.device = CPU,
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
    source = largest = Largest(source)
    if quantize.products == 2:
        source = Folded(source)
    source = Placed(source, device)
    with memory_of(device), largest.named():
        saved = _saved(source, quantize, base, high, candidates, ids, memory_gb, scratch, progress)
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
    source: Tensors, quantize: Quantize, base: Layout, high: Layout, candidates: list[str], ids: np.ndarray,
    memory_gb: float, scratch: Path, progress: Progress,
) -> dict[str, float]:  # fmt: skip
    """Nats a token that each candidate's raise is expected to save."""
    config = source.config
    saved: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=scratch) as folder, torch.inference_mode():
        felt = Sensitivity(Path(folder))
        with torch.inference_mode(False):
            measure_sensitivity(source, ids, felt, memory_gb, progress=progress)
        table = source.tensor(f"{EMBEDDING}.weight")
        where = place((*ids.shape, config.hidden_size), 1, memory_gb, Path(folder), table.device)
        observed = Observed(config, ids, table, None, where, quantize)
        del table
        with progress.track("Weighing bits", config.num_layers, "layers") as advance:
            for layer in range(config.num_layers):
                weights = {spec.name: source.tensor(spec.name).float() for spec in layer_tensors(config, layer)}
                block = Block(config, layer, weights.__getitem__)
                weigh = _weigher(layer, base, high, felt, saved)
                if config.parallel_residual:
                    for linear, problem in observed.first_stage(block).items():
                        weigh(linear, problem)
                    observed.second_stage(block, weigh)
                else:
                    quantise_in_sequence(observed, block, weigh, lambda norm: None)
                observed.propagate(block)
                advance(1)
    return {name: saved[name] for name in candidates}


def _weigher(
    layer: int, base: Layout, high: Layout, felt: Sensitivity, saved: dict[str, float]
) -> Callable[[str, Problem], Tensor]:
    def weigh(linear: str, problem: Problem) -> Tensor:
        name, W = f"{layer_prefix(layer)}.{linear}", problem.W
        costs = []
        for places in (base, high):
            E = W - rtn(W, places.linears[name].scheme).dequantize()
            costs.append(expected_cost(E, problem.H, felt.of(layer, linear).to(W.device)))
        if not all(map(math.isfinite, costs)):
            raise NumericsError(
                f"{name}: the cost of rounding weights as large as {W.abs().max():.3g} is no finite number", hint=HUGE
            )
        saved[name] = costs[0] - costs[1]
        return W

    return weigh
