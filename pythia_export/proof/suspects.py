"""Where to look first if quantisation cost too much: the first weights that are not what rounding makes of them.

Each product of the artifact's weights is held to the original's, both on the original's activations, and its error to
that of round-to-nearest on the same grid: how many times larger is it than it must be?
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..base.progress import SILENT, Progress
from ..calibrate.balance import canonical
from ..model.block import DENSE, DOWN, UP, Block, Rotary, activate, attention, final_norm, head
from ..model.neox import EMBEDDING, FINAL_NORM, HEAD, LINEARS, NORMS, QKV, has_bias, layer_prefix
from ..records.parity import Extreme, Suspect, Suspects
from ..rounding.attention import basis_between
from ..rounding.rtn import rtn
from ..weights.layout import FUSED_OUT
from .metrics import relative_error
from .reference import Tensors
from .subject import Subject

TOKENS = 256
WORSE_THAN_RTN = 2.0  # times; GPTQ, which also mends what the layers before did, reaches 1.7 in the demo's head
_EXACT = 1e-3  # error that a matrix kept in float may have, of its own rounding to float16
EXTREME = 1e4  # times the other weights' mean: trained ones reach some hundreds
_MATRICES = {name.rpartition(".")[2] for name in LINEARS} | {HEAD}


def _in_basis(exact: Block, ours: Block, read: Tensor) -> dict[str, Tensor]:
    """Return QKV and dense's matrix of `exact`, by name, in the basis of each head that `ours` has.

    read: [tokens, hidden], what QKV reads.
    """
    config, prefix = exact.config, layer_prefix(exact.layer)
    matrix, bias, dense = f"{prefix}.{QKV}.weight", f"{prefix}.{QKV}.bias", f"{prefix}.{DENSE}.weight"
    W, Q = exact.weights(matrix), ours.weights(matrix)
    basis = basis_between(W, Q, read.T @ read, heads=config.num_heads, turned=config.rotary_dim)
    found = {matrix: basis.of_qkv(W), dense: basis.of_dense(exact.weights(dense))}
    return found | ({bias: basis.of_qkv(exact.weights(bias))} if has_bias(config, QKV) else {})


def suspects(subject: Subject, window: np.ndarray, progress: Progress = SILENT) -> Suspects:
    """Return where the artifact's weights err more than rounding must, and whether one weight widens a whole scale.

    `first`: the first entry whose error is beyond `limit` times that of round-to-nearest, or None; `worst`: the five
    whose ratio is largest. An entry: `name`, `layer`, `error` (of the output, relative, root of squares), `rtn_error`,
    `ratio`. `extreme`: the rounded linear, if any, whose `largest` weight is most beyond the `mean` of its others.

    With two products a layer biases lie elsewhere, so dense and 4h_to_h are one entry. With `balance` the original is
    taken in the artifact's units, and with `effort = "best"` in the basis of each head that is nearest to it.
    """
    stored, config, quantize = subject.stored, subject.config, subject.quantize
    original = canonical(subject.original, quantize.model_copy(update={"products": 4}))
    found: list[Suspect] = []
    extremes: list[Extreme] = []

    in_basis: dict[str, Tensor] = {}  # of the layer at hand

    def of(source: Tensors) -> Callable[[str], Tensor]:
        return lambda name: source.tensor(name).float()

    def expected(name: str) -> Tensor:
        return in_basis[name] if name in in_basis else original.tensor(name).float()

    def nearest(name: str) -> Tensor:
        base, part = name.rsplit(".", 1)
        W = expected(name)
        method, scheme = quantize.linear(base)
        if part != "weight" or base.rpartition(".")[2] not in _MATRICES or method == "none":
            return W
        size = W.abs()
        largest = float(size.max())
        mean = (float(size.sum(dtype=torch.float64)) - largest) / max(1, W.numel() - 1)
        if largest > EXTREME * mean > 0:
            extremes.append(Extreme(name=base, largest=largest, mean=mean))
        return rtn(W, scheme).dequantize()

    def entry(layer: int | None, name: str, got: Tensor, expected: Tensor, rounded: Tensor, floor: float) -> None:
        error, by_rtn = relative_error(got, expected), relative_error(rounded, expected)
        ratio = error / max(by_rtn, floor)
        found.append(Suspect(name=name, layer=layer, error=error, rtn_error=by_rtn, ratio=ratio))

    with torch.inference_mode(), progress.track("Looking for the first weights that differ", config.num_layers) as go:
        ids = torch.from_numpy(window[:TOKENS].copy())
        rotary = Rotary.of(config, len(ids), torch.float32)
        x = of(original)(f"{EMBEDDING}.weight")[ids][None]
        kept = {"float32": _EXACT, "float16": _EXACT, "int8": 0.02, "int4": 0.2}[quantize.embedding]
        entry(None, EMBEDDING, of(stored)(f"{EMBEDDING}.weight")[ids][None], x, x, kept / WORSE_THAN_RTN)
        for layer in range(config.num_layers):
            exact, ours, by_rtn = (Block(config, layer, read) for read in (expected, of(stored), nearest))
            blocks, prefix = (exact, ours, by_rtn), layer_prefix(layer)
            in_basis = {}
            if quantize.measures_attention and quantize.balance:
                in_basis = _in_basis(exact, ours, exact.normed(x, NORMS[0]).flatten(0, 1))

            def told(name: str, outputs: list[Tensor], layer: int = layer, prefix: str = prefix) -> Tensor:
                entry(layer, f"{prefix}.{name}", outputs[1], outputs[0], outputs[2], _EXACT)
                return outputs[0]

            qkv = told(QKV, [block.linear(block.normed(x, NORMS[0]), QKV) for block in blocks])
            mixed = attention(qkv, config, rotary)
            dense = [block.linear(mixed, DENSE) for block in blocks]
            middle = x if config.parallel_residual else x + told(DENSE, dense)
            up = told(UP, [block.linear(block.normed(middle, NORMS[1]), UP) for block in blocks])
            active = activate(up, config.activation)
            down = [block.linear(active, DOWN) for block in blocks]
            if quantize.products == 2:
                told(FUSED_OUT, [a + b for a, b in zip(dense, down, strict=True)])
            else:
                if config.parallel_residual:
                    told(DENSE, dense)
                told(DOWN, down)
            x = x + dense[0] + down[0]
            go(1)
        normed = [final_norm(x, config, of(source)) for source in (original, stored)]
        entry(None, FINAL_NORM, normed[1], normed[0], normed[0], _EXACT / WORSE_THAN_RTN)
        logits = [head(normed[0], read) for read in (of(original), of(stored), nearest)]
        entry(None, HEAD, logits[1], logits[0], logits[2], _EXACT)
    beyond = [x for x in found if not x.ratio <= WORSE_THAN_RTN]
    worst = sorted(found, key=lambda x: -x.ratio)[:5]
    extreme = max(extremes, key=lambda x: x.largest / x.mean, default=None)
    return Suspects(limit=WORSE_THAN_RTN, first=beyond[0] if beyond else None, worst=worst, extreme=extreme)
