"""What a job will need, from configuration and recipe alone: bytes of memory, and floating-point operations.

Estimates: of memory, what was seen in benchmarks/memory.py lies below; of time, the operations alone are counted, and
the rate is a guess until something was measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..calibrate.activations import KEPT_BYTES, middles_bytes, reading_beats_computing
from ..calibrate.end_to_end import EPOCHS, Text, text_read
from ..calibrate.loop import reads_own_text
from ..calibrate.problem import products_with_itself
from ..calibrate.sensitivity import text_measured
from ..model.neox import NeoXConfig
from ..proof.autoencoder import Autoencoder
from ..proof.features import FEATURES
from ..proof.inside import POSITIONS
from ..recipe import Calibration, Quantize, Recipe, Verify
from ..weights.layout import layout_of

CHOICE = 1000.0  # to choose a weight's codes in one rounding of a beam takes as long as so many operations
ROUNDING = 200_000_000  # bytes of rows on their way through a beam, two threads'
LIBRARIES = 600_000_000  # bytes of Python, torch and ONNX Runtime before any work


def peak_memory(config: NeoXConfig, recipe: Recipe, looked: Sequence[Autoencoder] = ()) -> int:
    """Bytes: libraries, one layer or the head in float32 with its copies, Hessians, activations, logits, and sparse
    autoencoders."""
    d, ff = config.hidden_size, config.intermediate_size
    layer, ends = 12 * d * d, config.vocab_size * d
    peak = 4 * 3 * max(layer, ends)
    if recipe.uses_gptq and recipe.calibration is not None:
        tokens = observed_text(config, recipe).samples * recipe.calibration.sequence_length
        held, middles = 4 * tokens * d * 2, middles_bytes(config, tokens)
        activations = min(held, int(recipe.calibration.memory_gb * 1e9))
        # The head: weights, what they are moved to, codes twice. A layer: weights, H of 4h_to_h and its factor.
        peak = max(4 * 3 * ends + ROUNDING, 4 * 4 * layer + 4 * 3 * ff * ff) + activations
        peak += middles if middles <= KEPT_BYTES else 0
        training = trained_on(config, recipe)
        peak = max(peak, training.nbytes if training is not None else 0)
    scored = 4 * d * recipe.verify.tokens * 2 + 4 * 6 * config.vocab_size * recipe.verify.sequence_length
    return LIBRARIES + max(peak, scored + layout_of(recipe, config).nbytes + autoencoder_memory(looked))


def autoencoder_memory(looked: Sequence[Autoencoder]) -> int:
    """Return the bytes of the autoencoders that are in memory together, those of one layer, and of their features in
    work: before and after the activation, of the original and of the artifact."""
    if not looked:
        return 0
    layers: Counter[int] = Counter()
    for one in looked:
        layers[one.layer] += 4 * 2 * one.d_in * one.d_sae
    return max(layers.values()) + 4 * 4 * FEATURES


def trained_on(config: NeoXConfig, recipe: Recipe) -> Text | None:
    """Return the text of training end to end, and the memory that it takes; None where nothing is trained."""
    text = recipe.calibration
    if recipe.quantize.effort != "best" or text is None or text.samples < 2:
        return None
    budget = text.memory_gb * 1e9
    found = text_read(layout_of(recipe, config), text.samples, text.sequence_length, budget)
    return found if found.nbytes <= budget else None


def observed_text(config: NeoXConfig, recipe: Recipe) -> Calibration:
    """Return the calibration text with as many windows more as GPTQ observes of the original's own."""
    text = recipe.calibration
    assert text is not None
    training = trained_on(config, recipe) if reads_own_text(recipe.quantize) else None
    own = 0 if training is None else min(text.samples, training.drawn)
    return text.model_copy(update={"samples": text.samples + own})


def training_operations(config: NeoXConfig, text: Text, length: int) -> float:
    """Return the cost of training end to end: a pass forwards, one worth two backwards, and the original's logits. To
    draw a token takes as long as two passes."""
    passes = (3 * EPOCHS + 1) * (text.given + text.drawn) + 2 * text.drawn
    return passes * scoring_operations(config, length, 1)


def sensitivity_operations(config: NeoXConfig, quantize: Quantize, calibration: Calibration) -> float:
    """Return the cost of the backward pass: two forward passes plus a backward pass worth two."""
    length, attention = calibration.sequence_length, quantize.measures_attention
    windows = text_measured(config, calibration.samples, length, attention)
    d = config.hidden_size
    of_windows = config.num_layers * windows * 3 * 2.0 * d * d * (length + d) if attention else 0.0
    return 4 * 2.0 * config.parameters * windows * length + of_windows


def observing_operations(config: NeoXConfig, quantize: Quantize, calibration: Calibration, threads: int = 0) -> float:
    """Return the cost of observing: passes over the calibration text, and second moments of each linear's inputs. So
    many `threads` of a processor compute; 0: a GPU."""
    d, ff, tokens = config.hidden_size, config.intermediate_size, calibration.samples * calibration.sequence_length
    corrected = quantize.error_correction
    kept = middles_bytes(config, tokens) <= KEPT_BYTES or (threads > 0 and reading_beats_computing(config, threads))
    attention = d * calibration.sequence_length  # a token looks back at half of a window
    block, middles = 4 * d * d + 2 * d * ff + attention, 3 * d * d + d * ff + attention
    # The original's block; what the last two products read; these two products, or the block again.
    passes = (block if corrected else 0) + middles + (block - middles if kept else block)
    own = 2 * products_with_itself(d) + products_with_itself(ff)
    moments = own + (2 * d * d + 2 * d * ff if corrected else 0)
    ends = products_with_itself(d) + (d * d if corrected else 0)
    return 2.0 * tokens * (config.num_layers * (passes + moments) + ends)


def rounding_operations(config: NeoXConfig, quantize: Quantize) -> float:
    """Return the cost of rounding, where a choice of a beam takes as long as `CHOICE` operations."""
    return cubic_operations(config, quantize) + CHOICE * choices(config, quantize)


def cubic_operations(config: NeoXConfig, quantize: Quantize) -> float:
    """Return what is cubic in the width: factors of Hessians, columns that make up for one another."""
    if quantize.method != "gptq":
        return 20.0 * config.parameters  # a look at every weight, a few times
    d, ff = config.hidden_size, config.intermediate_size
    joint = quantize.joint_hessian and quantize.error_correction and config.parallel_residual
    factors = 2 * (d**3 + ff**3 / 3 + (ff**3 / 3 + d * ff * ff if joint else 0))
    if quantize.measures_attention:
        factors += 3 * d**3 / 3  # of q, k and v apart
        # k and v of each head have a Hessian of their own; with it and the basis go six products by the head's rows.
        factors += 2 * (config.num_heads * d**3 / 3 + 6 * d**3) if quantize.balance else 0
    columns = 2.0 * (3 * d * d * d + d * d * d + ff * d * d + d * ff * ff)
    return config.num_layers * (factors + columns) + 2.0 * d * config.vocab_size * d


def choices(config: NeoXConfig, quantize: Quantize) -> float:
    """Return how many codes a beam chooses: of each weight, in each of its roundings, on each grid that is tried."""
    if quantize.method != "gptq" or quantize.beam == 1:
        return 0.0
    d = config.hidden_size
    return float(quantize.beam) * len(quantize.stretches) * d * (config.num_layers * 12 * d + config.vocab_size)


def scoring_operations(config: NeoXConfig, tokens: int, passes: int) -> float:
    """`passes` through the model and, for each, the logits of the original again to compare with."""
    head = 2.0 * config.vocab_size * config.hidden_size * tokens
    return passes * (2.0 * config.parameters * tokens + head)


def inside_operations(config: NeoXConfig, verify: Verify, features: int) -> float:
    """Return the cost of the third question: another pass over the layers, and at the sampled places of two models the
    logit lens behind every layer and autoencoders, whose encoders have so many weights in all."""
    ends = config.vocab_size * config.hidden_size
    sampled = verify.tokens * min(1.0, POSITIONS / verify.sequence_length)
    lens = 2 * 2.0 * ends * (config.num_layers + 1) * sampled
    return 2.0 * (config.parameters - 2 * ends) * verify.tokens + lens + 2 * 4.0 * features * sampled
