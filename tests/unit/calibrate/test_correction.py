"""Error correction, coupled rows and sensitivity: each against what it is said to compute."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import InMemory, export_model, hugging_face, on_disk, small_config

from pythia_export.base.device import CPU
from pythia_export.base.errors import RecipeError, ResourceError
from pythia_export.calibrate import allocate
from pythia_export.calibrate.activations import Activations
from pythia_export.calibrate.observe import Observed
from pythia_export.calibrate.parallel import _counting_on_down
from pythia_export.calibrate.problem import Moments
from pythia_export.calibrate.sensitivity import RESIDUAL, UP, Sensitivity, measure_sensitivity
from pythia_export.model.block import DENSE
from pythia_export.model.neox import QKV
from pythia_export.recipe import Export, Override, Quantize, Scheme
from pythia_export.rounding.coupled import DAMP, gptq_coupled
from pythia_export.rounding.gptq import correction, factor, gptq
from pythia_export.weights.layout import layout

WINDOWS = np.random.default_rng(0).integers(0, 96, (64, 32))
ROW, PLAIN = Scheme(group_size=-1), Quantize(beam=1)


def source(layers: int = 3) -> InMemory:
    config = small_config(layers=layers)
    return InMemory(config, on_disk(hugging_face(config)))


def correlated(out: int, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(8 * n, n)) @ (np.eye(n) + 0.4 * rng.normal(size=(n, n)))
    return torch.tensor(rng.normal(size=(out, n))), torch.tensor(X.T @ X / len(X))


# Correction


@pytest.mark.parametrize("act_order", [False, True])
def test_the_correction_is_the_ridge_regression_of_what_is_missing(act_order):
    rng = np.random.default_rng(0)
    X, wanted = rng.normal(size=(500, 12)) @ rng.normal(size=(12, 12)), rng.normal(size=(500, 5))
    X[:, 3] = 0
    W = rng.normal(size=(5, 12))
    H = torch.tensor(X.T @ X / 500)
    L = factor(H, Quantize(act_order=act_order))
    missing = torch.tensor((wanted - X @ W.T).T @ X / 500)
    step = correction(missing, L, tokens=500).numpy()
    alive = np.arange(12) != 3
    ridge = 500 * 0.01 * np.diag(H)[alive].mean() * np.eye(11)
    A = X[:, alive]
    fit = np.linalg.solve(A.T @ A + ridge, A.T @ (wanted - X @ W.T)).T
    assert np.allclose(step[:, alive], fit * (1 - 12 / 500)) and (step[:, 3] == 0).all()


def test_a_fit_of_as_many_weights_as_tokens_is_noise_and_not_taken():
    W, H = correlated(4, 16)
    assert (correction(W, factor(H, Quantize()), tokens=16) == 0).all()


@pytest.mark.parametrize("tokens", [10**9, 500])
def test_counting_on_4h_to_h_is_the_joint_problem_with_4h_to_h_eliminated(tokens):
    """Of the quadratic loss over the weights of both, with 4h_to_h taking its shortened step, minimised by autograd."""
    config = small_config()
    d, ff, out, damp = 6, 9, 4, 1e-9
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, d + ff)) @ rng.normal(size=(d + ff, d + ff))
    H = torch.tensor(X.T @ X / 200)
    missing = torch.tensor(rng.normal(size=(out, d + ff)))  # of both, at their present weights
    A = torch.tensor(rng.normal(size=(out, d)))
    H_dd, C, H_uu = H[:d, :d], H[:d, d:], H[d:, d:]
    settings = Quantize(damp=damp, max_damp=1.0)
    observed = Observed(config, WINDOWS[:1], torch.zeros(96, 128), None, CPU, None, settings)
    observed.tokens = tokens
    # `lacking` is E[lack up^T] - B H_up: that of B, with what A writes still in it
    got_H, got_missing = _counting_on_down(observed, 0, H_dd, missing[:, :d], A, H_uu, C, missing[:, d:] + A @ C)

    share = max(0.0, 1 - ff / tokens)

    def loss(a: torch.Tensor) -> torch.Tensor:
        both = torch.cat((a, share * (missing[:, d:] - a @ C) @ torch.linalg.inv(H_uu)), 1)
        return ((both @ H) * both).sum() - 2 * (both * missing).sum()

    at, direction = torch.zeros(out, d, dtype=torch.float64), torch.tensor(rng.normal(size=(out, d)))
    gradient = torch.autograd.functional.jacobian(loss, at)
    assert torch.allclose(gradient, -2 * got_missing, rtol=1e-5, atol=1e-6)
    curvature = torch.autograd.functional.hvp(loss, at, direction)[1]
    assert torch.allclose(curvature, 2 * direction @ got_H, rtol=1e-5, atol=1e-6)


def test_moments_are_those_of_numpy():
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 1, (6, 10, 4)).astype("f"), rng.normal(-1, 2, (6, 10, 7)).astype("f")
    moments = Moments(4, 7)
    for i in range(0, 6, 2):
        moments.add(torch.tensor(x[i : i + 2]), torch.tensor(y[i : i + 2]))
    X, Y = x.reshape(-1, 4).astype("d"), y.reshape(-1, 7).astype("d")
    assert np.allclose(moments.mean, Y.mean(0), rtol=1e-6) and np.allclose(moments.mean_x, X.mean(0), rtol=1e-6)
    assert np.allclose(moments.centred(), (X - X.mean(0)).T @ (Y - Y.mean(0)) / len(X), atol=1e-6)


def keep_output(seen: list[torch.Tensor]):
    return lambda module, x, y: seen.append(y[0] if type(y) is tuple else y)


def streams(original: InMemory, exported, ids: np.ndarray) -> list[float]:
    """Relative squared distance of Hugging Face's hidden states behind each layer, quantised weights to original."""
    model = hugging_face(original.config)
    states = []
    for tensor in (original.tensor, exported.reader().tensor):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(tensor(name.replace("lm_head", "embed_out")))
            seen: list[torch.Tensor] = []
            hooks = [layer.register_forward_hook(keep_output(seen)) for layer in model.gpt_neox.layers]
            model(torch.from_numpy(ids))
            for hook in hooks:
                hook.remove()
        states.append(seen)
    return [float((q - f).square().sum() / f.square().sum()) for f, q in zip(*states, strict=True)]


def test_correction_brings_the_residual_stream_back(tmp_path):
    original, held_out = source(), np.random.default_rng(1).integers(0, 96, (64, 32))
    errors = {}
    for correct in (False, True):
        folder = tmp_path / str(correct)
        folder.mkdir()
        quantize = Quantize(bits=3, group_size=-1, error_correction=correct, fisher=False)
        exported = export_model(original, folder, quantize, Export(), WINDOWS)
        errors[correct] = streams(original, exported, held_out)
        if correct:
            recorded = [layer["residual_error"] for layer in exported.record["layers"]]
            assert recorded == pytest.approx(streams(original, exported, WINDOWS), rel=1e-3)
        else:
            assert {layer["residual_error"] for layer in exported.record["layers"]} == {None}
    assert all(after < 0.9 * before for before, after in zip(errors[False], errors[True], strict=True)), errors


def test_the_biases_take_the_mean_of_the_error_away(tmp_path):
    original = source(1)
    exported = export_model(original, tmp_path, Quantize(bits=2, group_size=-1, embedding="float32"), Export(), WINDOWS)
    model, means = hugging_face(original.config), []
    for tensor in (original.tensor, exported.reader().tensor):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(tensor(name.replace("lm_head", "embed_out")))
            seen: list[torch.Tensor] = []
            hook = model.gpt_neox.layers[0].register_forward_hook(keep_output(seen))
            model(torch.from_numpy(WINDOWS))
            hook.remove()
            means.append(seen[0].flatten(0, 1).mean(0))
    assert torch.allclose(*means, atol=1e-4)


# Coupled rows


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (2, -1)])
def test_a_diagonal_coupling_is_gptq_itself(bits, group_size, symmetric):
    W, H = correlated(24, 64)
    L = factor(H, Quantize())
    G = torch.diag_embed(torch.rand(2, 12, dtype=torch.float64) + 0.5)
    scheme = Scheme(bits=bits, group_size=group_size, symmetric=symmetric)
    one, other = gptq(W, L, scheme, PLAIN), gptq_coupled(W, L, G, scheme, PLAIN)
    assert torch.equal(one.q, other.q) and torch.equal(one.scale, other.scale)
    assert symmetric or torch.equal(one.zero_point, other.zero_point)


def test_coupling_lowers_the_loss_that_it_is_about():
    W, H = correlated(48, 64)
    _, G = correlated(1, 24, seed=2)
    blocks = torch.stack((G, 2 * G.flip(0, 1)))
    L = factor(H, Quantize())

    def loss(done):
        E = (W - done.dequantize()).unflatten(0, (2, 24))
        return float(sum((g * (e @ H @ e.T)).sum() for g, e in zip(blocks, E, strict=True)))

    assert loss(gptq_coupled(W, L, blocks, ROW, PLAIN)) < 0.8 * loss(gptq(W, L, ROW, PLAIN))


def test_best_couples_rows_more_finely():
    W, H = correlated(64, 64)
    _, G = correlated(1, 64, seed=2)
    L = factor(H, Quantize())

    def loss(effort):
        E = W - gptq_coupled(W, L, G[None], ROW, PLAIN.model_copy(update={"effort": effort})).dequantize()
        return float((G * (E @ H @ E.T)).sum())

    assert loss("best") < 0.93 * loss("default")


def test_one_row_a_pass_is_the_textbook_of_both_sides():
    """With as many passes as rows, row i is rounded from ``w_i - sum_j (A^-1 B)_ij e_j``, A and B the free and the done
    rows of G, by GPTQ: the best that the free rows can do about the errors made."""
    W, H = correlated(8, 32)
    _, G = correlated(1, 8, seed=5)
    L = factor(H, Quantize())
    done = gptq_coupled(W, L, G[None], ROW, PLAIN)
    damped = (G + DAMP * G.diagonal().mean() * torch.eye(8)).numpy()
    order = list(np.argsort(-np.diag(G), kind="stable"))
    E, q = np.zeros(W.shape), np.zeros(W.shape)
    for place, row in enumerate(order):
        free, past = order[place:], order[:place]
        owed = np.linalg.solve(damped[np.ix_(free, free)], damped[np.ix_(free, past)] @ E[past])[0] if past else 0
        part = gptq(W[row : row + 1] + torch.tensor(owed), L, ROW, PLAIN)
        q[row], E[row] = part.q[0], (W[row] - part.dequantize()[0]).numpy()
    assert (done.q.numpy() == q).all()


# Sensitivity


@pytest.mark.parametrize("parallel", [True, False])
def test_sensitivity_is_the_fisher_information_of_the_models_own_tokens(parallel, tmp_path):
    """The oracle sums over every token that could be drawn, with autograd through Hugging Face's model."""
    config = replace(small_config(layers=2), parallel_residual=parallel)
    original = InMemory(config, on_disk(hugging_face(config)))
    ids = WINDOWS[:1, :8].repeat(400, axis=0)
    found = Sensitivity(tmp_path)
    measure_sensitivity(original, ids, found)
    model, outputs = hugging_face(config), {}
    layer = model.gpt_neox.layers[0]
    seen = [(QKV, layer.attention.query_key_value), (UP, layer.mlp.dense_h_to_4h), (DENSE, layer.attention.dense)]
    for name, module in seen[: 2 if parallel else 3]:
        module.register_forward_hook(lambda m, x, y, name=name: outputs.update({name: y}))
    layer.register_forward_hook(lambda m, x, y: outputs.update({RESIDUAL: y[0] if type(y) is tuple else y}))
    log_p = model(torch.from_numpy(ids[:1])).logits[0].log_softmax(-1)
    expected = {k: 0 for k in outputs}
    # Tokens at different places are drawn independently, so cross terms vanish on average.
    for place in range(ids.shape[1]):
        for token in range(config.vocab_size):
            gradients = torch.autograd.grad(log_p[place, token], list(outputs.values()), retain_graph=True)
            for name, g in zip(outputs, gradients, strict=True):
                rows = g[0].double()
                expected[name] = expected[name] + log_p[place, token].exp().item() * (rows.T @ rows) / ids.shape[1]
    heads, width = config.num_heads, 3 * config.head_dim
    qkv = torch.stack([expected[QKV][h * width : (h + 1) * width, h * width : (h + 1) * width] for h in range(heads)])
    oracles = {QKV: qkv, RESIDUAL: expected[RESIDUAL][None], UP: expected[UP].diagonal()}
    if not parallel:  # what dense writes is read by the MLP as well
        oracles[DENSE] = expected[DENSE][None]
        assert float((expected[DENSE] - expected[RESIDUAL]).norm() / expected[RESIDUAL].norm()) > 0.5
    assert torch.equal(found.of(0, DENSE), found.get(0, RESIDUAL if parallel else DENSE))
    for kind, oracle in oracles.items():
        got = found.get(0, kind).double()
        assert got.shape == oracle.shape
        assert float((got - oracle).norm() / oracle.norm()) < 0.2, kind  # 400 draws of each token
        assert float(got.sum() / oracle.sum()) == pytest.approx(1, abs=0.35) or kind != UP


def test_the_expected_cost_predicts_the_loss(tmp_path):
    """One linear at a time: the second-order model against the KL divergence that it stands for."""
    original, model = source(2), hugging_face(source(2).config)
    ids = torch.from_numpy(WINDOWS)
    with torch.no_grad():
        before = model(ids).logits.double().log_softmax(-1)
    for linear in ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"):
        name = f"gpt_neox.layers.1.{linear}"
        rules = (Override(pattern=name, method="gptq", bits=3, group_size=-1),)
        quantize = Quantize(method="none", embedding="float32", override=rules, error_correction=False)
        folder = tmp_path / linear
        folder.mkdir()
        exported = export_model(original, folder, quantize, Export(), WINDOWS)
        reader = exported.reader()
        with torch.no_grad():
            for key, p in model.named_parameters():
                p.copy_(reader.tensor(key.replace("lm_head", "embed_out")))
            after = model(ids).logits.double().log_softmax(-1)
        divergence = float((before.exp() * (before - after)).sum(-1).mean())
        (record,) = exported.record["linears"]
        # Errors at different places are taken as independent, which those of QKV's keys and values are not.
        if linear == QKV:
            assert 0.1 < record["expected_cost"] / divergence < 2
        else:
            assert record["expected_cost"] == pytest.approx(divergence, rel=0.15), linear


# Activations


@pytest.mark.parametrize("on_disk", [False, True])
def test_activations_come_back_as_they_were_put(on_disk, tmp_path):
    whole = torch.randn(7, 5, 3)
    x = Activations((7, 5, 3), 3, tmp_path if on_disk else CPU)
    assert [(s.start, s.stop) for s in x.slices] == [(0, 3), (3, 6), (6, 7)] and x.tokens == 35
    for i, part in enumerate(x.slices):
        x[i] = whole[part]
    x[1] = -x[1]
    assert torch.equal(torch.cat(list(x)), torch.cat((whole[:3], -whole[3:6], whole[6:])))
    assert list(tmp_path.iterdir()) == []  # whatever ends the process, no file stays


def test_activations_on_a_full_disk_say_what_to_do(tmp_path, monkeypatch):
    x = Activations((2, 5, 3), 1, tmp_path)

    class Full:
        def seek(self, offset: int) -> None: ...
        def write(self, data: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(x, "_file", Full())
    with pytest.raises(ResourceError, match=r"do not fit on the disk.*No space left"):
        x[0] = torch.zeros(1, 5, 3)


def test_activations_on_disk_change_nothing(tmp_path, monkeypatch):
    from pythia_export.calibrate import loop

    original, found = source(2), []
    for i, where in enumerate((CPU, tmp_path)):
        monkeypatch.setattr(loop, "place", lambda *a, where=where: where)
        folder = tmp_path / str(i)
        folder.mkdir()
        export_model(original, folder, Quantize(bits=4), Export(), WINDOWS)
        found.append((folder / "model.onnx_data").read_bytes())
    assert found[0] == found[1]


def test_what_is_kept_of_a_layer_changes_nothing(tmp_path, monkeypatch):
    """In memory, in files, on a disk that is full from some chunk on, or computed again."""
    from pythia_export.calibrate import activations, observe

    original, found, read = source(2), {}, Counter[str]()
    monkeypatch.setattr(observe, "CHUNK_TOKENS", 2 * WINDOWS.shape[1])  # of many chunks
    take, write = activations.Middles.take, activations.Activations.__setitem__
    ways = {"memory": (1 << 28, 1), "file": (0, 0), "full": (0, 0), "nowhere": (0, 1 << 20)}
    for way, (kept, width) in ways.items():
        monkeypatch.setattr(activations, "KEPT_BYTES", kept)
        monkeypatch.setattr(activations, "WIDTH_A_THREAD", width)

        def counted(middles, index, way=way):
            taken = take(middles, index)
            read[way] += taken is not None
            return taken

        def filled(held, index, chunk, way=way):
            if way == "full" and held.shape[2] == original.config.intermediate_size and index == 1:
                raise ResourceError("the disk is full")
            write(held, index, chunk)

        monkeypatch.setattr(activations.Middles, "take", counted)
        monkeypatch.setattr(activations.Activations, "__setitem__", filled)
        folder = tmp_path / way
        folder.mkdir()
        export_model(original, folder, Quantize(bits=4, beam=1), Export(), WINDOWS)
        found[way] = (folder / "model.onnx_data").read_bytes()
    assert len(set(found.values())) == 1
    assert read["file"] == read["memory"] > read["full"] > read["nowhere"] == 0


# Bits where they matter


def test_a_budget_of_bits_goes_where_it_saves_most(tmp_path):
    original = source(2)
    # What this linear writes is read through a large weight: errors in it cost most.
    original.tensors["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"] *= 8
    quantize = Quantize(bits=3, group_size=32, bits_per_weight=6.0)
    resolved, found = allocate(original, quantize, "float32", WINDOWS)
    assert "gpt_neox.layers.1.mlp.dense_4h_to_h" in found.raised
    places = layout(original.config, resolved, "float32")
    assert found.asked == 6.0 >= places.bits_per_weight == pytest.approx(found.reached, abs=1e-4)
    assert {p.name for p in places.linears.values() if p.scheme.bits == 8 and p.layer is not None} == set(found.raised)
    assert resolved.bits_per_weight is None and list(tmp_path.iterdir()) == []
    for name in set(places.linears) - set(found.raised) - {"embed_out"}:  # nothing more would have fitted
        more = resolved.model_copy(update={"override": (*resolved.override, Override(pattern=name, bits=8))})
        assert layout(original.config, more, "float32").bits_per_weight > 6.0


@pytest.mark.parametrize("asked", [1.0, 9.0])
def test_a_budget_out_of_reach_is_refused_with_the_range(asked, tmp_path):
    with pytest.raises(RecipeError, match=r"this recipe takes \d\.\d+.*8 bits in every layer"):
        allocate(source(1), Quantize(bits_per_weight=asked), "float32", WINDOWS)
