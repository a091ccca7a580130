"""How long a job takes on this machine: its operations, divided by rates that a probe measures in half a second.

The probe computes what the job computes: one block of the model's own shape on a window of tokens, and one matrix that
is rounded by GPTQ. Nothing is remembered from plan to plan; a machine that is busy now gives a busy machine's rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..model.block import Block, Rotary
from ..model.neox import NeoXConfig, layer_tensors
from ..recipe import Quantize, Recipe, Scheme
from ..rounding.gptq import factor, gptq
from .footprint import (
    choices,
    cubic_operations,
    inside_operations,
    observed_text,
    observing_operations,
    scoring_operations,
    sensitivity_operations,
    trained_on,
    training_operations,
)

PROBE_SECONDS = 0.2  # for each of two rates, and at least two repetitions
WIDEST, MOST_TOKENS = 1024, 512  # of the probe: a block of 12b would take it seconds
LEAST_STATES = 2**19
EXPORT_TOKENS = 4096 * 6  # ONNX Runtime is compared with torch on 4,096 tokens, in one pass, cached and padded


@dataclass(frozen=True)
class Rates:
    """products: floating-point operations of a block's pass per second; choices: weights times beams per second.
    threads: of the processor, that compute at these rates."""

    products: float
    choices: float
    threads: int


@dataclass(frozen=True)
class Duration:
    """Seconds of the two long stages, and the rates that they follow from. What is fetched is not in it."""

    quantize: float
    prove: float
    rates: Rates

    @property
    def seconds(self) -> float:
        return self.quantize + self.prove


def duration(config: NeoXConfig, recipe: Recipe, rates: Rates, features: int = 0) -> Duration:
    """Return what a job takes at these rates. Within a factor of two, on the models that it was held against.

    `features` are the weights of all sparse autoencoders' encoders.
    """
    quantize, calibration = recipe.quantize, recipe.calibration
    work = cubic_operations(config, quantize)
    if recipe.uses_gptq and calibration is not None:
        observed = observed_text(config, recipe)
        work += observing_operations(config, quantize, observed, rates.threads)
        work += sensitivity_operations(config, quantize, observed) if quantize.fisher else 0.0
        training = trained_on(config, recipe)
        work += training_operations(config, training, calibration.sequence_length) if training is not None else 0.0
    scored = scoring_operations(config, recipe.verify.tokens, 2)
    scored += scoring_operations(config, min(EXPORT_TOKENS, 6 * recipe.verify.tokens), 1)
    if recipe.verify.look_inside:
        scored += inside_operations(config, recipe.verify, features)
    rounding = choices(config, quantize) / rates.choices
    return Duration(work / rates.products + rounding, scored / rates.products, rates)


def measured(config: NeoXConfig, quantize: Quantize, seconds: float = PROBE_SECONDS) -> Rates:
    """Return this machine's rates for a model, as busy as it is now. Takes about twice `seconds`."""
    return Rates(_products(config, seconds), _choices(quantize, seconds), torch.get_num_threads())


def _products(config: NeoXConfig, seconds: float) -> float:
    """A block that is as wide as the model's, or as `WIDEST`: the rate no longer depends on the width there."""
    if config.hidden_size > WIDEST:
        heads = max(1, WIDEST // config.head_dim)
        width = heads * config.head_dim
        config = replace(config, hidden_size=width, num_heads=heads, intermediate_size=4 * width)
    generator = torch.Generator().manual_seed(0)
    weights = {spec.name: 0.02 * torch.randn(spec.shape, generator=generator) for spec in layer_tensors(config, 0)}
    tokens = min(MOST_TOKENS, config.max_positions)
    batch = max(1, LEAST_STATES // (tokens * config.hidden_size))  # a narrow model's passes take several windows
    block = Block(config, 0, weights.__getitem__)
    x = torch.randn(batch, tokens, config.hidden_size, generator=generator)
    rotary = Rotary.of(config, tokens, torch.float32)
    products = sum(tensor.numel() for tensor in weights.values() if tensor.ndim == 2)
    with torch.no_grad():
        return 2.0 * products * batch * tokens * _times_a_second(lambda: block(x, rotary), seconds)


def _choices(quantize: Quantize, seconds: float) -> float:
    generator = torch.Generator().manual_seed(0)
    W, X = (torch.randn(n, 128, generator=generator) for n in (512, 1024))
    settings = quantize.model_copy(update={"beam": max(2, quantize.beam), "effort": "default"})
    H = factor((X.T @ X).double(), settings)
    a_second = _times_a_second(lambda: gptq(W, H, Scheme(), settings), seconds)
    return W.numel() * settings.beam * a_second


def _times_a_second(call: Callable[[], object], seconds: float) -> float:
    call()  # the first one allocates, and starts threads
    began, times = time.perf_counter(), 0
    while times < 1 or time.perf_counter() - began < seconds:
        call()
        times += 1
    return times / (time.perf_counter() - began)
