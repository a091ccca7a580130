"""One canonical form for all checkpoints that compute the same function in other units.

A GPT-NeoX layer may be rescaled without changing what it computes:

- a channel of a LayerNorm's gain and shift times c, the columns that read it divided by c;
- a row of v times c, the column of dense that reads it divided by c;
- a row of q times c, that of k divided by c. Two rows that a rotary embedding turns together share their c.

Trained models make use of that freedom: a few channels are tens of times larger than the others. Rounding does not: the
columns of a group share one grid, the channels of a block one scale of int8. So the split is chosen here, before
anything is rounded, from what no such c changes.

With z the normalised vector, a LayerNorm and its linear compute ``V z + c``, ``V = W diag(g)``, in whatever units s the
gain is stored: weights are then ``V / s`` and inputs ``s z``. s is the 4-norm of V's columns, once each row has length
1, so that in the end all columns are as large. That leaves a grid, which the columns of a group share, nothing to waste
on a column that is larger than the others, and a channel is as large as it counts. dense is settled in the same way
against the rows of v; q and k take the same norm. Of what was tried on the demo's LayerNorms, GPTQ's loss was 1 to 2 %
below that of the trained gains with 4-norms, level with norms of 2 or with largest values, 3 to 8 % above with square
roots of norms, where a bound by Cauchy and Schwarz is least, and 25 % above with s = 1. Of dense it was 7 % below.

The shift goes into the linear's bias; where there is none, it is a part of what the column carries. Once the text has
been seen, `centre` gives the LayerNorm the shift that takes the mean out of what the linear reads. Then the scales of
int8 activations, which count from zero, have less to span: their error on the demo is two fifths of what it was.

SmoothQuant (arXiv 2211.10438), AWQ (2306.00978), cross-layer equalisation (1906.04721) and Outlier Suppression+
(2304.09145) move scales and shifts in the same way, from the units that a checkpoint happens to have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.block import DENSE, UP
from ..model.neox import EMBEDDING, FINAL_NORM, HEAD, NORMS, QKV, NeoXConfig, has_bias, layer_prefix
from ..recipe import Quantize
from .fold_norms import Folded
from .placed import Tensors

WEIGHTS_AT_ONCE = 1 << 22  # summed up in float64
_LEAST = 1e-3  # of a gain, whose root mean square is 1: channels that nothing reads


def canonical(source: Tensors, quantize: Quantize) -> Tensors:
    """Return the equal model that is rounded in the place of `source`."""
    products, layers, head = quantize.form
    if layers:
        source = Balanced(source, head=head)
    return Folded(source) if products == 2 else source


def centre(weights: dict[str, Tensor], config: NeoXConfig, layer: int, norm: str, mean: Tensor) -> None:
    """Let a LayerNorm of a layer's `weights` take the mean [hidden] of its normalised vector away, and the bias of the
    linear that reads it give it back; nothing is done where that has no bias."""
    prefix, linear = layer_prefix(layer), (QKV, UP)[NORMS.index(norm)]
    if not has_bias(config, linear):
        return
    gain, shift, bias = f"{prefix}.{norm}.weight", f"{prefix}.{norm}.bias", f"{prefix}.{linear}.bias"
    lost = weights[gain].double() * mean.double() + weights[shift].double()
    weights[shift] = (weights[shift].double() - lost).float()
    weights[bias] = (weights[bias].double() + _product(weights[f"{prefix}.{linear}.weight"], lost)).float()


@dataclass(frozen=True)
class _Norm:
    """A LayerNorm in other units: its new gain and shift [n], what the columns behind it are multiplied by [n], and
    what the bias of their linear gains [out], None where it has no bias; float64."""

    gain: Tensor
    shift: Tensor
    columns: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class _Layer:
    """norms: by the linear that reads them. rows: [3 * hidden], what the rows of QKV are multiplied by. mixed:
    [hidden], what the columns of dense are."""

    norms: dict[str, _Norm]
    rows: Tensor
    mixed: Tensor


class Balanced:
    """The tensors of `source` in canonical units, as float32; those of layers that hold a NaN or an infinity as they
    are. `head`: the final LayerNorm's as well, for a head that is rounded."""

    def __init__(self, source: Tensors, *, head: bool) -> None:
        self.config: NeoXConfig = source.config
        self._source, self._head = source, head
        self._layers: dict[int, _Layer | None] = {}  # vectors, which are small; None where nothing is changed
        self._last: list[_Norm | None] = []

    def tensor(self, name: str) -> Tensor:
        found = self._source.tensor(name)
        base, part = name.rsplit(".", 1)
        if base in (FINAL_NORM, HEAD):
            norm = self._final() if self._head else None
            if norm is None:
                return found
            if base == HEAD:
                return _scaled(found, None, norm.columns)
            return (norm.gain if part == "weight" else norm.shift).float()
        if base == EMBEDDING:
            return found
        _, _, number, linear = base.split(".", 3)
        layer = self._layer(int(number))
        if layer is None:
            return found
        if linear in NORMS:
            norm = layer.norms[(QKV, UP)[NORMS.index(linear)]]
            return (norm.gain if part == "weight" else norm.shift).float()
        if linear == DENSE and part == "weight":
            return _scaled(found, None, layer.mixed)
        if linear not in layer.norms:
            return found
        rows = layer.rows if linear == QKV else None
        norm = layer.norms[linear]
        if part == "weight":
            return _scaled(found, rows, norm.columns)
        bias = found.double() if norm.bias is None else found.double() + norm.bias
        return (bias if rows is None else bias * rows).float()

    def _final(self) -> _Norm | None:
        if not self._last:
            W = self._source.tensor(f"{HEAD}.weight")
            g, b = (self._source.tensor(f"{FINAL_NORM}.{part}").double() for part in ("weight", "bias"))
            self._last.append(_finite(_norm(W, g, b, biased=False)))
        return self._last[0]

    def _layer(self, layer: int) -> _Layer | None:
        if layer not in self._layers:
            self._layers[layer] = self._balance(layer)
        return self._layers[layer]

    def _balance(self, layer: int) -> _Layer | None:
        config, prefix = self.config, layer_prefix(layer)

        def read(name: str) -> Tensor:
            return self._source.tensor(f"{prefix}.{name}")

        norms = {}
        for linear, name in ((UP, NORMS[1]), (QKV, NORMS[0])):
            W, biased = read(f"{linear}.weight"), has_bias(config, linear)
            g, b = (read(f"{name}.{part}").double() for part in ("weight", "bias"))
            norms[linear] = _norm(W, g, b, biased)
        sizes = _along(W, _carried(g, b, biased))
        if biased:
            sizes = torch.hypot(sizes, read(f"{QKV}.bias").double() + _product(W, b))
        rows, mixed = _heads(config, sizes, read(f"{DENSE}.weight"))
        whole = all(_finite(norm) is not None for norm in norms.values())
        return _Layer(norms, rows, mixed) if whole and torch.isfinite(torch.cat((rows, mixed))).all() else None


def _heads(config: NeoXConfig, sizes: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """What the rows of QKV [3 * hidden], whose norms are `sizes`, and the columns of dense [hidden] are multiplied by:
    columns of dense become as large as one another, each row of q as that of k, and v as a whole as dense."""
    q, k, v = sizes.view(config.num_heads, 3, config.head_dim).unbind(1)  # each [heads, head_dim]
    turned = config.rotary_dim // 2
    q, k = (x.clone() for x in (q, k))
    for x in (q, k):  # of two rows that are turned together, that of both
        x[:, :turned] = x[:, turned : 2 * turned] = torch.hypot(x[:, :turned], x[:, turned : 2 * turned])
    of_q = _halfway(k, q)
    v = v.reshape(-1)
    of_v = torch.where(v > 0, _columns(dense, v) / torch.where(v > 0, v, 1), 1)
    of_v *= _halfway(_along(dense, 1 / of_v).norm(), (v * of_v).norm())
    return torch.stack((of_q, 1 / of_q, of_v.view_as(q)), 1).flatten(), 1 / of_v


def _halfway(to: Tensor, size: Tensor) -> Tensor:
    """What brings `size` halfway to `to`, on a scale of powers; 1 where one of them is nothing."""
    return torch.where((to > 0) & (size > 0), to.sqrt() / size.sqrt(), torch.ones_like(size))


def _carried(g: Tensor, b: Tensor, biased: bool) -> Tensor:
    """The size, with a sign, of what a channel carries into a linear whose bias takes the shift, or does not."""
    if biased:
        return g
    return torch.where(torch.where(g == 0, b, g) < 0, -1.0, 1.0) * torch.hypot(g, b)


def _norm(W: Tensor, g: Tensor, b: Tensor, biased: bool) -> _Norm:
    """A LayerNorm with gain g and shift b in units that suit a linear of weights W [out, n]."""
    carried = _carried(g, b, biased)
    s = _columns(W, carried)
    if biased:
        return _Norm(s, torch.zeros_like(s), carried / s, _product(W, b))
    share = torch.where(carried == 0, 0, s / torch.where(carried == 0, 1, carried))
    return _Norm(g * share, b * share, carried / s, None)


def _finite(norm: _Norm) -> _Norm | None:
    parts = (norm.gain, norm.shift, norm.columns, *([] if norm.bias is None else [norm.bias]))
    return norm if torch.isfinite(torch.cat(parts)).all() else None


def _columns(W: Tensor, carried: Tensor) -> Tensor:
    """4-norms [n] of the columns of W [out, n] times `carried`, each row of length 1; the root of their mean square is
    1, and none is next to nothing."""
    along, powers = _along(W, carried), torch.zeros_like(carried)
    for part, chunk in _chunks(W):
        powers += (chunk * carried / torch.where(along[part] > 0, along[part], torch.inf)[:, None]).pow(4).sum(0)
    s = powers.pow(0.25)
    mean = s.square().mean().sqrt()
    return (s / mean).clamp(min=_LEAST) if mean > 0 else torch.ones_like(s)


def _along(W: Tensor, carried: Tensor) -> Tensor:
    """Norms [out] of the rows of W [out, n] times `carried`."""
    return torch.cat([(chunk * carried).norm(dim=1) for _, chunk in _chunks(W)])


def _product(W: Tensor, b: Tensor) -> Tensor:
    """``W b`` [out], float64."""
    return torch.cat([chunk @ b for _, chunk in _chunks(W)])


def _chunks(W: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of W at a time, in float64, and which they are."""
    at_once = max(1, WEIGHTS_AT_ONCE // W.shape[1])
    for first in range(0, len(W), at_once):
        part = slice(first, first + at_once)
        yield part, W[part].to(torch.float64, copy=True)


def _scaled(W: Tensor, rows: Tensor | None, columns: Tensor) -> Tensor:
    """W [out, in] with its rows and columns multiplied, as float32."""
    scaled = torch.empty_like(W, dtype=torch.float32)
    for part, chunk in _chunks(W):
        chunk *= columns
        if rows is not None:
            chunk *= rows[part, None]
        scaled[part] = chunk
    return scaled
