"""q, k and v rounded by what attention makes of their errors: the gradient of whole windows, and what it gains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import InMemory, hugging_face, on_disk, small_config

from pythia_export.base.compute import Compute
from pythia_export.calibrate import quantize_stream
from pythia_export.calibrate.sensitivity import Sensitivity, measure_sensitivity
from pythia_export.model.block import DENSE, UP, Block, Rotary, final_norm, head
from pythia_export.model.neox import EMBEDDING, QKV, NeoXConfig, layer_prefix
from pythia_export.recipe import Override, Quantize, Scheme
from pythia_export.rounding.attention import KEPT, Basis, beside, gptq_attention, nearest_basis
from pythia_export.rounding.gptq import factor, gptq
from pythia_export.rounding.rtn import rtn
from pythia_export.weights.layout import layout
from pythia_export.weights.reader import WeightsReader
from pythia_export.weights.writer import WeightsWriter

DRAWN = np.random.default_rng(0)
WINDOWS = DRAWN.integers(0, 96, (8, 32))


def logits(source, config, ids: torch.Tensor) -> torch.Tensor:
    x = source.tensor(f"{EMBEDDING}.weight").float()[ids]

    def get(name: str) -> torch.Tensor:
        return source.tensor(name).float()

    rotary = Rotary.of(config, ids.shape[1], torch.float32)
    for layer in range(config.num_layers):
        x = Block(config, layer, get)(x, rotary)
    return head(final_norm(x, config, get), get)


def attending(config: NeoXConfig, by: float = 4) -> dict[str, torch.Tensor]:
    """Return a model whose attention attends to something."""
    tensors = on_disk(hugging_face(config))
    for layer in range(config.num_layers):
        tensors[f"{layer_prefix(layer)}.{QKV}.weight"] *= by
    return tensors


def test_a_block_that_is_looked_into_shows_what_it_multiplied_and_computes_the_same():
    config = small_config(layers=1)
    tensors = on_disk(hugging_face(config))
    block, rotary, seen = Block(config, 0, tensors.__getitem__), Rotary.of(config, 8, torch.float32), {}
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 8, config.hidden_size))).float()
    with torch.inference_mode():
        alone, shown = block(x, rotary), block(x, rotary, seen.__setitem__)
        assert torch.equal(alone, shown)
        assert torch.equal(seen[UP], block.linear(block.inputs(x)[1], UP))


def test_it_is_the_fisher_information_of_the_matrices_with_all_terms_between_places(tmp_path):
    """The oracle sums over every token that could be drawn at every place, with autograd by the matrix itself."""
    config = small_config(layers=2)
    tensors = attending(config)
    original, ids = InMemory(config, tensors), WINDOWS[:1, :6]
    found = Sensitivity(tmp_path)
    draws = 300
    measure_sensitivity(original, ids.repeat(draws, axis=0), found, attention=True)
    got = found.attention(0)
    assert got is not None

    name = f"{layer_prefix(0)}.{QKV}.weight"
    W = tensors[name].clone().requires_grad_()
    with torch.no_grad():
        x = tensors[f"{EMBEDDING}.weight"][torch.from_numpy(ids)]
        read = Block(config, 0, tensors.__getitem__).inputs(x)[0][0]
    mean = read.mean(0)
    heads, size, d = config.num_heads, config.head_dim, config.hidden_size
    inputs, outputs = torch.zeros(3, d, d), torch.zeros(3, heads, size, size)
    bias = f"{layer_prefix(0)}.{QKV}.bias"
    b = tensors[bias].clone().requires_grad_()
    log_p = logits(InMemory(config, tensors | {name: W, bias: b}), config, torch.from_numpy(ids))[0].log_softmax(-1)
    for place in range(ids.shape[1]):
        for token in range(config.vocab_size):
            of_w, of_b = torch.autograd.grad(log_p[place, token], (W, b), retain_graph=True)
            D = (of_w - torch.outer(of_b, mean)).unflatten(0, (heads, 3, size)).transpose(0, 1)
            p = log_p[place, token].exp().item()
            inputs += p * torch.einsum("khoi,khoj->kij", D, D)
            outputs += p * torch.einsum("khoi,khpi->khop", D, D)
    moments = (read - mean).T @ (read - mean)
    share = draws / (draws + d)
    wanted = share * _unit(inputs) + (1 - share) * _unit(moments)
    assert float((got.inputs - wanted).norm() / wanted.norm()) < 0.15
    for k in range(3):
        assert float((_unit(got.outputs[k]) - _unit(outputs[k])).norm() / _unit(outputs[k]).norm()) < 0.3, k
    # Place by place, as GPTQ takes its inputs, they are something else.
    assert min(float((_unit(inputs[k]) - _unit(moments)).norm() / _unit(moments).norm()) for k in range(3)) > 0.3


def _unit(H: torch.Tensor) -> torch.Tensor:
    return H / H.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]


def test_rounding_attention_costs_less(tmp_path):
    """Where what QKV reads has few directions, as it has in trained models."""
    config = small_config(layers=2)
    tensors = attending(config, by=8)
    table, g = tensors[f"{EMBEDDING}.weight"], torch.Generator().manual_seed(0)
    few = torch.randn(len(table), 6, generator=g) @ torch.randn(6, config.hidden_size, generator=g)
    tensors[f"{EMBEDDING}.weight"] = table.std() * few + 0.3 * table
    original = InMemory(config, tensors)
    drawn = np.random.default_rng(1).integers(0, 96, (256 + 32, 32))
    seen, unseen = drawn[:256], torch.from_numpy(drawn[256:])
    rules = (Override(pattern=f"*.{QKV}", method="gptq", bits=4, group_size=-1),)
    found = {}
    for effort in ("default", "best"):
        quantize = Quantize(method="none", embedding="float32", clip=False, beam=1, override=rules)
        quantize = quantize.model_copy(update={"effort": effort})
        places, path = layout(config, quantize, "float32"), tmp_path / effort
        with WeightsWriter(path, places) as writer:
            quantize_stream(original, writer, seen, Compute(memory_gb=0.0))  # too little for training
        stored = WeightsReader(path, places)
        with torch.no_grad():
            log_p, log_q = (logits(x, config, unseen).log_softmax(-1) for x in (original, stored))
        found[effort] = float(F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean())
    assert found["best"] < 0.75 * found["default"], found  # 0.94 where k and v keep their basis


def test_q_k_and_v_are_each_rounded_by_their_own():
    heads, size, n = 2, 4, 12
    W, X = torch.randn(heads * 3 * size, n), torch.randn(3, 40, n)
    inputs, outputs = X.transpose(1, 2) @ X, torch.eye(size).expand(3, heads, size, size)
    scheme, settings = Scheme(bits=3, group_size=-1), Quantize()
    found, basis, damp = gptq_attention(W, inputs, outputs, scheme, settings, turned=2)

    def rows(part: int, first: int, last: int, heads=range(heads)) -> torch.Tensor:
        return torch.cat([torch.arange(first, last) + (head * 3 + part) * size for head in heads])

    wanted = basis.of_qkv(W)
    whole = [(rows(0, 0, size), inputs[0], wanted), (rows(1, 0, 2), inputs[1], W)]
    free = [(rows(1, 2, size, [head]), inputs[1], W) for head in range(heads)]
    free += [(rows(2, 0, size, [head]), inputs[2], W) for head in range(heads)]
    for at, H, of in [*whole, *((at, beside(W[at], H, KEPT), W) for at, H, _ in free)]:
        alone = gptq(of[at], factor(H, settings), scheme, settings)
        assert torch.equal(found.q[at], alone.q) and torch.equal(found.scale[at], alone.scale)
    for at, H, _ in free:  # no other basis is nearer
        E = (wanted - found.dequantize())[at]
        A = nearest_basis(W[at], found.dequantize()[at], H)
        assert A is not None and torch.allclose(A @ wanted[at], W[at], atol=1e-4)
        assert float((A @ E @ H @ found.dequantize()[at].T).abs().max()) < 1e-3 * float((W[at] @ H @ W[at].T).max())
    assert damp == settings.damp


@pytest.mark.parametrize("turns", [True, False], ids=["some rows turn", "none turn"])
def test_in_another_basis_a_model_computes_the_same(turns):
    config = replace(small_config(layers=1), rotary_pct=0.25 if turns else 0.0)
    heads, size, turned = config.num_heads, config.head_dim, config.rotary_dim
    assert 0 <= turned < size and bool(turned) is turns
    tensors, prefix = attending(config), layer_prefix(0)
    W, outputs = tensors[f"{prefix}.{QKV}.weight"], torch.eye(size).expand(3, heads, size, size)
    inputs = torch.eye(config.hidden_size).expand(3, -1, -1)
    scheme = Scheme(bits=2, group_size=-1)
    _, basis, _ = gptq_attention(W, inputs, outputs, scheme, Quantize(), turned=turned)
    assert float((basis.rows - torch.eye(size)).abs().amax()) > 0.1  # another one indeed
    turned_into = {
        f"{prefix}.{QKV}.{part}": basis.of_qkv(tensors[f"{prefix}.{QKV}.{part}"]) for part in ("weight", "bias")
    }
    turned_into[f"{prefix}.{DENSE}.weight"] = basis.of_dense(tensors[f"{prefix}.{DENSE}.weight"])
    ids = torch.from_numpy(WINDOWS)
    one, other = (logits(InMemory(config, x), config, ids) for x in (tensors, tensors | turned_into))
    assert torch.allclose(one, other, atol=1e-4 * float(one.abs().max()))


def test_at_2_bits_a_basis_does_not_go_so_far_that_q_costs_more():
    """What q, k and v cost beside themselves in their own basis; where k and v go as far as at 4 bits, q costs 1.2."""
    heads, size, n, g = 2, 16, 64, torch.Generator().manual_seed(0)
    X = torch.randn(3, 400, n, generator=g) * torch.exp(-torch.arange(n) / 16)
    X = X @ torch.linalg.qr(torch.randn(n, n, generator=g)).Q
    inputs, outputs = X.mT @ X, torch.eye(size).expand(3, heads, size, size)
    costs = torch.zeros(2, 3)
    for _ in range(4):
        W = torch.randn(heads * 3 * size, n, generator=g)
        for i, balance in enumerate((False, True)):
            settings, scheme = Quantize(beam=4, balance=balance), Scheme(bits=2, group_size=32)
            found, basis, _ = gptq_attention(W, inputs, outputs, scheme, settings, turned=4)
            E = torch.linalg.inv(basis.rows) @ (basis.of_qkv(W) - found.dequantize()).view(heads, 3, size, n)
            costs[i] += torch.einsum("hpoi,pij,hpoj->p", E, inputs, E)
    q, k, v = (costs[1] / costs[0]).tolist()
    assert q < 1.1 and k < 0.7 and v < 0.5, (q, k, v)


def test_a_head_of_zeros_keeps_its_basis_and_without_balance_all_do():
    heads, size, n = 2, 4, 12
    W, X = torch.randn(heads * 3 * size, n), torch.randn(40, n)
    W[:12] = 0
    inputs, outputs = (X.T @ X).expand(3, n, n), torch.eye(size).expand(3, heads, size, size)
    found, basis, _ = gptq_attention(W, inputs, outputs, Scheme(bits=4, group_size=-1), Quantize(), turned=0)
    assert torch.equal(basis.rows[0], torch.eye(size).expand(3, -1, -1)) and not found.dequantize()[:12].any()
    assert torch.isfinite(basis.rows).all() and float((basis.rows[1, 1] - torch.eye(size)).abs().max()) > 0
    settings = Quantize(balance=False)  # whoever compares q, k and v with the original's
    _, kept, _ = gptq_attention(W, inputs, outputs, Scheme(bits=4, group_size=-1), settings, turned=0)
    assert torch.equal(kept.rows, torch.eye(size).expand(heads, 3, -1, -1))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ({}, {"products": 2, "group_size": 32}),
        ({"parallel_residual": False}, {}),
        ({}, {"override": (Override(pattern=f"*.{DENSE}", method="none"),)}),
        ({}, {"override": (Override(pattern=f"*.{DENSE}", method="rtn", bits=8, group_size=32),)}),
        ({"rotary_pct": 1.0}, {}),
    ],
    ids=["two products", "sequential", "dense in float", "dense to nearest", "all turns"],
)
def test_all_that_reads_a_head_follows_it_into_its_basis(family, settings, tmp_path, monkeypatch):
    """In a basis far away, at 8 bits: what did not follow would cost far more than rounding."""
    config = replace(small_config(layers=2), **family)
    heads, size, turned = config.num_heads, config.head_dim, config.rotary_dim
    generator = torch.Generator().manual_seed(0)
    rows = torch.eye(size).repeat(heads, 3, 1, 1)
    A = torch.eye(size) + 0.1 * torch.randn(heads, 2, size, size, generator=generator)
    rows[:, 0, turned:, turned:] = A[:, 0, turned:, turned:].mT
    rows[:, 1, turned:, turned:] = torch.linalg.inv(A[:, 0, turned:, turned:])
    rows[:, 2] = torch.linalg.inv(A[:, 1])
    basis = Basis(rows, A[:, 1])

    def elsewhere(W, inputs, outputs, scheme, settings, scale_dtype, *, turned):
        return rtn(basis.of_qkv(W), scheme), basis, 0.01

    monkeypatch.setattr("pythia_export.calibrate.loop.gptq_attention", elsewhere)
    original, seen = InMemory(config, attending(config)), DRAWN.integers(0, 96, (32, 32))
    quantize = Quantize(effort="best", bits=8, embedding="float32", beam=1, clip=False, **settings)
    places, path = layout(config, quantize, "float32"), tmp_path / "weights"
    with WeightsWriter(path, places) as writer:
        quantize_stream(original, writer, seen, Compute(memory_gb=0.0))
    with torch.no_grad():
        log_p, log_q = (
            logits(x, config, torch.from_numpy(WINDOWS)).log_softmax(-1)
            for x in (original, WeightsReader(path, places))
        )
    assert float(F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()) < 4e-4
