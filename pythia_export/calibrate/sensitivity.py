"""What the loss feels of an error in each linear's outputs: one pass backwards through the unquantised model.

``G = E[g g^T]``, g the gradient of a token's loss at the output, with the token drawn from the model's own prediction:
the Fisher information, the Gauss-Newton Hessian of the KL divergence that rounding causes (Martens 2020, arXiv
1412.1193, section 9). The layers are streamed twice, forwards for their inputs and backwards for the gradients, so that
memory holds one layer, whatever the depth; the inputs of all layers lie on disk when they do not fit.

An error in a row of q, k or v is the same at every place of a window, and attention brings the places together: a
softmax feels only by what keys differ. So of QKV the gradient of a whole window's loss by the matrix can be measured
too (`attention`), where place by place its parts are taken as independent. As labels are drawn independently, the mean
of its square is the Fisher information with all terms between places (K-FAC-reduce, arXiv 2311.00636, takes the same
sum; YAQA, 2505.22988, rounds by it).
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..base.compute import DEFAULT, Compute
from ..base.device import tensor_cores
from ..base.errors import IntegrityError, NumericsError
from ..model.block import DENSE, UP, Block, Rotary, final_norm, head
from ..model.neox import EMBEDDING, FINAL_NORM, HEAD, NORMS, QKV, NeoXConfig, layer_tensors
from ..rounding.gptq import row_errors
from .activations import Activations, place
from .observe import windows_a_chunk
from .placed import Placed, Tensors

TOKENS = 8192  # of the calibration text: G only steers, and 32,768 gave the same losses
LOGITS = 1 << 25  # computed at once
LONGER_TOKENS, LONGER_BYTES = 1 << 18, 8 << 30  # with attention: as much text as there is, and as its inputs take
IN_ATTENTION, OUT_ATTENTION = "attention.inputs", "attention.outputs"
_LEAST = 1e-300
RESIDUAL = "residual"  # what 4h_to_h writes, and dense too with a parallel residual: one gradient for both


class Sensitivity:
    """G of every layer, a file each in `folder`: [heads, 3 * head_dim, 3 * head_dim] of QKV, whose heads do not meet,
    [1, hidden, hidden] of the residual stream behind the layer, and the diagonal [intermediate] of h_to_4h's. With a
    sequential residual another [1, hidden, hidden], of dense's, in front of the MLP. Where attention was measured,
    what a window's loss feels of q, k and v: `Attention`."""

    def __init__(self, folder: Path, digests: Mapping[str, str] | None = None) -> None:
        """`digests` are the files' SHA-256 by name, of an earlier process that put them there."""
        self.folder = folder
        self.digests = dict(digests or {})

    def get(self, layer: int, kind: str) -> Tensor:
        """`kind` is QKV, RESIDUAL, UP or, with a sequential residual, DENSE.

        Raises:
            IntegrityError: the file is gone, or not what was put.
        """
        path = self._path(layer, kind)
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise FileNotFoundError
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == self.digests.get(path.name):
                    file.seek(0)
                    return torch.from_numpy(np.load(file))
            found = "is not what was written: its SHA-256 is another"
        except FileNotFoundError:
            found = "is not there any more"
        raise IntegrityError(f"layer {layer}: {path} {found}", hint="Start anew without --resume.")

    def of(self, layer: int, linear: str) -> Tensor:
        """G at one linear's output."""
        own = linear in (QKV, UP) or self._path(layer, linear).name in self.digests
        return self.get(layer, linear if own else RESIDUAL)

    def attention(self, layer: int) -> Attention | None:
        """Return what was measured of q, k and v; None if it was not."""
        if self._path(layer, IN_ATTENTION).name not in self.digests:
            return None
        return Attention(self.get(layer, IN_ATTENTION), self.get(layer, OUT_ATTENTION))

    def put(self, layer: int, kind: str, G: Tensor) -> None:
        path, content = self._path(layer, kind), io.BytesIO()
        np.save(content, G.cpu().numpy())
        self.digests[path.name] = hashlib.sha256(content.getbuffer()).hexdigest()
        with path.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())  # a journal will vouch for it

    def _path(self, layer: int, kind: str) -> Path:
        return self.folder / f"{layer}.{kind}.npy"


@dataclass(frozen=True)
class Attention:
    """Second moments of the gradient ``D = sum_t g_t (x_t - mean)^T`` of a window's loss by the matrices of q, k and v.

    inputs: [3, hidden, hidden], ``E[D^T D]`` of mean diagonal 1, shrunk towards the moments of x by how few windows
    there are. outputs: [3, heads, head_dim, head_dim], ``E[D D^T]`` by heads.
    """

    inputs: Tensor
    outputs: Tensor


def text_measured(config: NeoXConfig, windows: int, length: int, attention: bool) -> int:
    """Return how many windows are measured of so many of `length` tokens."""
    tokens = TOKENS
    if attention:
        tokens = max(TOKENS, min(LONGER_TOKENS, LONGER_BYTES // (4 * config.hidden_size * (config.num_layers + 1))))
    return min(windows, max(1, tokens // length))


def expected_cost(E: Tensor, H: Tensor, G: Tensor) -> float:
    """``tr(G E H E^T) / 2``: nats a token that the second-order model of the loss expects of the error E [out, in].

    Exact to a percent for small errors of dense, h_to_4h and 4h_to_h (test_correction.py); too low for QKV, whose
    errors at different places meet in attention and are taken as independent here.
    """
    if G.ndim == 1:
        return float(G.double() @ row_errors(E, H)) / 2
    E_by_block = E.unflatten(0, G.shape[:2])
    by_block = (E @ H.to(E.dtype)).unflatten(0, G.shape[:2]) @ E_by_block.transpose(1, 2)
    return float((G * by_block).sum(dtype=torch.float64)) / 2


def measure_sensitivity(
    source: Tensors,
    ids: np.ndarray,
    found: Sensitivity,
    compute: Compute = DEFAULT,
    *,
    attention: bool = False,
) -> None:
    """Put G of every layer into `found`, from the first windows of ids [N, S] that hold `TOKENS` tokens. With
    `attention` also what `Attention` holds; that takes more text.

    Raises:
        NumericsError: a weight or an activation is NaN or infinite; names the tensor or the layer.
    """
    device, progress, source = compute.device, compute.progress, Placed(source, compute.device)
    config, table = source.config, source.tensor(f"{EMBEDDING}.weight")
    ids = ids[: text_measured(config, ids.shape[0], ids.shape[1], attention)]
    shape = (ids.shape[0], ids.shape[1], config.hidden_size)
    where = place(shape, config.num_layers + 1, replace(compute, scratch=found.folder))
    rotary, per_chunk = Rotary.of(config, ids.shape[1], torch.float32, device), windows_a_chunk(config, ids.shape[1])

    def read(layer: int) -> Block:
        weights = {spec.name: source.tensor(spec.name).float() for spec in layer_tensors(config, layer)}
        for name, tensor in weights.items():
            if not torch.isfinite(tensor).all():
                raise NumericsError(f"{name}: a weight is NaN or infinite")
        return Block(config, layer, weights.__getitem__)

    with tensor_cores(device), progress.track("Measuring sensitivity", 2 * config.num_layers + 1, "layers") as advance:
        x = Activations(shape, per_chunk, where, device)
        for i, part in enumerate(x.slices):
            x[i] = table[torch.tensor(ids[part], device=device)].float()
        del table
        inputs = []
        for layer in range(config.num_layers):
            inputs.append(x)
            block, y = read(layer), Activations(shape, per_chunk, where, device)
            with torch.no_grad():
                for i in range(len(x)):
                    y[i] = after = block(x[i], rotary)
                    if not torch.isfinite(after).all():
                        raise NumericsError(
                            f"layer {layer}: its output holds a NaN or an infinity on the calibration text"
                        )
            x = y
            advance(1)
        _loss_gradient(source, x)
        advance(1)
        gradient = x  # from here on the gradient at the layer's output
        for layer in reversed(range(config.num_layers)):
            sums = _layer_back(config, read(layer), rotary, inputs.pop(), gradient, attention)
            for kind, G in sums.items():
                found.put(layer, kind, (G if kind == IN_ATTENTION else G / ids.size).float())
            advance(1)


@torch.enable_grad()
def _loss_gradient(source: Tensors, x: Activations) -> None:
    """Replace the last layer's outputs by the gradient of ``-log p(token)``, token drawn from p."""
    config, generator = source.config, torch.Generator().manual_seed(0)
    names = (f"{FINAL_NORM}.weight", f"{FINAL_NORM}.bias", f"{HEAD}.weight")
    weights = {name: source.tensor(name).float() for name in names}.__getitem__
    at_once = max(1, LOGITS // config.vocab_size)
    for i in range(len(x)):
        parts = []
        for rows in x[i].flatten(0, 1).split(at_once):
            h = rows.detach().requires_grad_(True)
            normed = final_norm(h, config, weights)
            with torch.no_grad():
                p = head(normed, weights).softmax(-1)
                chance = torch.rand(len(p), 1, generator=generator).to(p.device)  # the same draws on every device
                drawn = torch.searchsorted(p.cumsum(-1), chance).clamp_(max=config.vocab_size - 1)
                p.scatter_add_(1, drawn, torch.full_like(chance, -1.0))  # d(-log p[drawn]) / d logits
                behind = p @ weights(f"{HEAD}.weight")
            (gradient,) = torch.autograd.grad(normed, h, behind)
            parts.append(gradient)
        x[i] = torch.cat(parts).view_as(x[i])


@torch.enable_grad()
def _layer_back(
    config: NeoXConfig, block: Block, rotary: Rotary, x: Activations, gradient: Activations, attention: bool
) -> dict[str, Tensor]:
    """Sums of g g^T over all tokens; `gradient` moves from the layer's output to its input."""
    d, heads = config.hidden_size, config.num_heads
    windows = _Windows(block, x) if attention else None
    sums = {
        QKV: torch.zeros(heads, 3 * config.head_dim, 3 * config.head_dim, dtype=torch.float64, device=x.device),
        UP: torch.zeros(config.intermediate_size, dtype=torch.float64, device=x.device),
        RESIDUAL: torch.zeros(1, d, d, dtype=torch.float64, device=x.device),
    }
    kinds = [QKV, UP]
    if not config.parallel_residual:
        kinds.append(DENSE)
        sums[DENSE] = torch.zeros_like(sums[RESIDUAL])
    for i in range(len(x)):
        seen: dict[str, Tensor] = {}
        at_input, behind = x[i].detach().requires_grad_(True), gradient[i]
        y = block(at_input, rotary, seen.__setitem__)
        at_input_gradient, of_qkv, of_up, *of_dense = torch.autograd.grad(
            y, [at_input, *(seen[kind] for kind in kinds)], behind
        )
        for written in of_dense:
            at_dense = written.flatten(0, 1)
            sums[DENSE][0] += at_dense.T @ at_dense
        rows = behind.flatten(0, 1)
        sums[RESIDUAL][0] += rows.T @ rows
        if windows is not None:
            windows.add(x[i], of_qkv)
        by_head = of_qkv.flatten(0, 1).unflatten(1, (heads, -1)).transpose(0, 1)
        sums[QKV] += by_head.transpose(1, 2) @ by_head
        sums[UP] += of_up.flatten(0, 1).square().sum(0)
        gradient[i] = at_input_gradient
    return sums if windows is None else sums | windows.found()


class _Windows:
    """Sums over windows of the squares of a window's gradient by the matrices of q, k and v (`Attention`)."""

    def __init__(self, block: Block, x: Activations) -> None:
        config, self._block = block.config, block
        d, size, self._parts = config.hidden_size, config.head_dim, (config.num_heads, 3, config.head_dim)
        self._inputs = torch.zeros(3, d, d, dtype=torch.float64, device=x.device)
        self._outputs = torch.zeros(3, config.num_heads, size, size, dtype=torch.float64, device=x.device)
        self._moments = torch.zeros(d, d, dtype=torch.float64, device=x.device)  # of what QKV reads
        self._windows = x.shape[0]
        with torch.no_grad():
            of_windows = [self._read(part).flatten(0, 1).sum(0, dtype=torch.float64) for part in x]
            self._mean = (torch.stack(of_windows).sum(0) / x.tokens).float()

    def _read(self, x: Tensor) -> Tensor:
        """Return what QKV reads."""
        return self._block.normed(x, NORMS[0])

    @torch.no_grad()
    def add(self, x: Tensor, of_qkv: Tensor) -> None:
        """`x` [B, S, hidden] before the layer, `of_qkv` [B, S, 3 * hidden] the gradient behind QKV."""
        read = self._read(x) - self._mean
        D = (of_qkv.transpose(1, 2) @ read).unflatten(1, self._parts).permute(2, 1, 0, 3, 4)  # [3, heads, B, size, d]
        rows = D.flatten(1, 3)
        self._inputs += rows.transpose(1, 2) @ rows
        D = D.transpose(2, 3).flatten(3)  # [3, heads, size, B * d]
        self._outputs += D @ D.transpose(2, 3)
        self._moments += read.flatten(0, 1).T @ read.flatten(0, 1)

    def found(self) -> dict[str, Tensor]:
        """Return both; of the shares, that of the windows is as large as that of the places where as many windows were
        seen as there are inputs."""
        d = len(self._moments)
        share = self._windows / (self._windows + d)
        whole, plain = (
            x / x.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp(min=_LEAST)
            for x in (self._inputs, self._moments)
        )
        return {IN_ATTENTION: whole.mul_(share).add_(plain, alpha=1 - share), OUT_ATTENTION: self._outputs}
