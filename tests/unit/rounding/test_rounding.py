"""The quantiser against a textbook, on problems that are random, correlated, rank-deficient and padded."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linears import problem, run_gptq
from onnx import TensorProto, helper
from oracles import beam_textbook, gptq_textbook, output_error

from pythia_export.base.device import CPU
from pythia_export.base.errors import EnvironmentProblem, NumericsError
from pythia_export.recipe import Quantize, Scheme
from pythia_export.rounding import columns, native
from pythia_export.rounding.gptq import factor, gptq
from pythia_export.rounding.grid import find_grid, zeros
from pythia_export.rounding.rtn import rtn
from pythia_export.weights.layout import LinearPlan
from pythia_export.weights.narrow import pack_narrow, unpack_narrow, widen
from pythia_export.weights.nibbles import pack_bits, unpack_bits
from pythia_export.weights.packing import pack, round_rows, unpack


@pytest.mark.parametrize("kind", ["random", "correlated", "rank-deficient", "dead"])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric"),
    [(4, 32, True), (4, -1, True), (4, 128, False), (3, 64, True), (2, 16, False), (8, 256, True)],
)
def test_equals_the_textbook(kind, act_order, clip, bits, group_size, symmetric):
    W, H = problem(kind)
    Q, scale, zero = gptq_textbook(W, H, bits, group_size, symmetric, act_order, 0.01, clip)
    fast = run_gptq(W.double(), H, bits, group_size, symmetric, act_order, clip)
    assert (fast.q.numpy() == Q).all()
    assert np.allclose(fast.scale, scale, rtol=1e-6)
    assert symmetric or (fast.zero_point.numpy() == zero).all()
    # In float32 a weight that lies on the middle between two codes may fall to either side, and the rest of its row
    # then differs: whole rows agree or they are such rare ties, and the loss is the same. A grid that clips nothing is
    # as good turned over.
    single = run_gptq(W, H.float(), bits, group_size, symmetric, act_order, clip)
    assert torch.isclose(single.dequantize(), fast.dequantize(), rtol=1e-4).all(1).float().mean() >= 0.7
    assert output_error(W, single, H) == pytest.approx(output_error(W, fast, H), rel=0.05)


@pytest.mark.parametrize("kind", ["random", "correlated", "rank-deficient"])
@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric", "width"),
    [(4, -1, True, 4), (3, 16, False, 8), (2, 32, True, 3), (8, -1, True, 8)],
)
def test_a_beam_equals_the_textbook(kind, bits, group_size, symmetric, width):
    W, H = problem(kind, 6, 48)
    done = run_gptq(W.double(), H, bits, group_size, symmetric, True, True, width)
    scale, zero = done.scale.double().numpy(), zeros(done).double().numpy()
    assert (done.q.numpy() == beam_textbook(W, H, scale, zero, bits, done.columns, 0.01, width)).all()


@pytest.mark.parametrize(("apart", "block"), [(1, 4), (10, 8), (16, 16)])
def test_what_is_settled_is_as_the_best_rounding_has_it(monkeypatch, apart, block):
    monkeypatch.setattr(columns, "APART", apart)
    monkeypatch.setattr(columns.Beam, "block", block)
    W, H = problem("correlated", 12, 48)
    done = run_gptq(W.double(), H, 3, -1, True, True, True, 8)
    scale, zero = done.scale.double().numpy(), zeros(done).double().numpy()
    expected = beam_textbook(W, H, scale, zero, 3, 48, 0.01, 8, apart, block)
    assert (done.q.numpy() == expected).all()
    assert apart > 1 or (expected != beam_textbook(W, H, scale, zero, 3, 48, 0.01, 8)).any()
    if native.available(CPU):
        single = run_gptq(W, H.float(), 3, -1, True, True, True, 8)
        assert (single.q.numpy() == expected).all(axis=1).mean() >= 0.9


def test_a_group_that_begins_takes_its_scale_from_what_the_best_rounding_left(monkeypatch):
    monkeypatch.setattr(columns, "APART", 1)  # what came before is final then, but for one column
    W, H = problem("correlated", 30, 64)
    done = run_gptq(W.double(), H, 3, 32, True, False, False, 8)
    damped = H + 0.01 * H.diagonal().mean() * torch.eye(64, dtype=torch.float64)
    E = (W.double() - done.dequantize())[:, :32]
    fresh = W[:, 32:].double() + torch.linalg.solve(damped[32:, 32:], damped[32:, :32] @ E.T).T
    expected = 2 * fresh.abs().amax(1) / 7
    assert torch.isclose(done.scale[:, 1].double(), expected, rtol=1e-5).float().mean() >= 0.6
    stale = 2 * W[:, 32:].abs().amax(1) / 7
    assert torch.isclose(done.scale[:, 1], stale, rtol=1e-2).float().mean() <= 0.2


@pytest.mark.skipif(not native.available(CPU), reason="the kernels are not built (`make kernels`)")
@pytest.mark.parametrize("kind", ["correlated", "dead"])
@pytest.mark.parametrize(
    ("act_order", "symmetric", "group_size", "width"),
    [(True, True, -1, 8), (False, False, 32, 3), (True, False, 16, 64)],
)
def test_the_beam_in_cpp_is_the_beam_in_torch(monkeypatch, kind, act_order, symmetric, group_size, width):
    W, H = problem(kind, 70, 320)
    calls = []
    in_cpp = native.round_block
    monkeypatch.setattr(native, "round_block", lambda *args: calls.append(1) or in_cpp(*args))
    fast = run_gptq(W, H.float(), 3, group_size, symmetric, act_order, True, width)
    assert len(calls) >= 320 // columns.Beam.block
    monkeypatch.setattr(native, "available", lambda device: False)
    slow = run_gptq(W, H.float(), 3, group_size, symmetric, act_order, True, width)
    assert (fast.q == slow.q).all(1).float().mean() >= 0.95  # sums are rounded otherwise
    assert output_error(W, fast, H) == pytest.approx(output_error(W, slow, H), rel=0.01)


@pytest.mark.skipif(not native.available(CPU), reason="the kernels are not built (`make kernels`)")
def test_a_version_of_the_kernels_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setenv("PYTHIA_KERNELS_ISA", "mmx")
    with pytest.raises(EnvironmentProblem, match="PYTHIA_KERNELS_ISA"):
        run_gptq(*problem("random"), beam=8)
    monkeypatch.delenv("PYTHIA_KERNELS_ISA")
    monkeypatch.setattr(columns, "APART", 300)
    with pytest.raises(ValueError, match="at most"):
        run_gptq(*problem("random", n=400), beam=8)


@pytest.mark.parametrize("act_order", [False, True])
def test_a_wider_beam_loses_less_and_the_widest_never_more_than_gptq(act_order):
    W, H = problem("correlated", 200, 6)
    damped = H + 0.01 * H.diagonal().mean() * torch.eye(6, dtype=torch.float64)

    def losses(beam):
        E = W.double() - run_gptq(W.double(), H, 3, -1, True, act_order, True, beam).dequantize()
        return ((E @ damped) * E).sum(1)

    narrow, wide = losses(1), losses(64)  # 2 codes for each of 6 columns: every rounding that GPTQ could have chosen
    assert (wide <= narrow * (1 + 1e-9)).all() and wide.sum() < 0.97 * narrow.sum()
    W, H = problem("correlated")
    one, four, sixteen = (output_error(W, run_gptq(W, H, act_order=act_order, beam=b), H) for b in (1, 4, 16))
    assert sixteen < 0.98 * four < 0.96 * one


@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric", "act_order"), [(4, -1, True, True), (3, 16, False, False), (2, 16, True, True)]
)
def test_best_takes_for_each_row_the_width_of_grid_that_costs_least(bits, group_size, symmetric, act_order):
    W, H = problem("correlated", 64, 48)
    scheme = Scheme(bits=bits, group_size=group_size, symmetric=symmetric)
    losses = []
    for effort in ("default", "best"):
        asked = Quantize(effort=effort, act_order=act_order, beam=16)  # a wider one is not better for every row
        L = factor(H.double(), asked)
        E = W - gptq(W, L, scheme, asked).dequantize()
        losses.append((E.double()[:, L.order] @ L.L).square().sum(1))
    default, best = losses
    assert (best <= default * (1 + 1e-6)).all()
    assert best.sum() < 0.97 * default.sum()


@pytest.mark.parametrize(("symmetric", "n"), [(True, 160), (True, 150), (False, 150)])
def test_groups_of_few_rows_are_searched_in_one_call_as_each_alone(monkeypatch, symmetric, n):
    W, H = problem("correlated", 6, n)
    calls, found = [], []

    def counted(columns, *rest):
        calls[-1] += 1
        return find_grid(columns, *rest)

    monkeypatch.setattr("pythia_export.rounding.gptq.find_grid", counted)
    for at_once in (1 << 16, 1):
        calls.append(0)
        monkeypatch.setattr("pythia_export.rounding.gptq.SEARCHED_AT_ONCE", at_once, raising=False)
        result = run_gptq(W, H, symmetric=symmetric, act_order=True, clip=True)
        found.append((result.q, result.scale, zeros(result)))
    assert calls == [1, 5]
    assert all(torch.equal(together, alone) for together, alone in zip(*found, strict=True))


@pytest.mark.parametrize("rows", [1, 3, 700])
def test_a_beam_takes_any_number_of_rows(rows):
    W, H = problem("dead", rows, 40)
    whole = run_gptq(W.double(), H, beam=16)
    assert (whole.dequantize()[:, ::7] == 0).all()
    some = run_gptq(W[-1:].double(), H, beam=16)
    assert torch.equal(whole.q[-1:], some.q)
    single = run_gptq(W, H.float(), beam=16)  # in C++, where that is built
    assert (single.q == whole.q).all(1).float().mean() >= 0.9


def test_dead_inputs_do_not_crowd_a_beam():
    """Roundings that differ in an input that is always zero cost the same."""
    W, H = problem("dead", n=48)
    live = H.diagonal() > 0
    scheme, settings = Scheme(group_size=-1), Quantize(act_order=False, damp=1e-9, beam=4)
    with_dead, without = factor(H * 1e6, settings), factor(H[live][:, live] * 1e6, settings)
    done = gptq(W.double(), with_dead, scheme, settings)
    assert torch.equal(done.q[:, live], gptq(W[:, live].double(), without, scheme, settings).q)


@pytest.mark.parametrize("act_order", [False, True])
def test_a_diagonal_hessian_gives_exactly_rtn(act_order):
    W, _ = problem("random")
    H = torch.diag(torch.rand(W.shape[1], dtype=torch.float64) + 0.5)
    done, nearest = run_gptq(W, H, act_order=act_order), rtn(W, Scheme(group_size=32))
    assert torch.equal(done.q, nearest.q) and torch.equal(done.scale, nearest.scale)
    beam = run_gptq(W, H, act_order=act_order, beam=8).dequantize()  # of two codes as near, it takes either
    assert torch.allclose((W - beam).abs(), (W - nearest.dequantize()).abs(), atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_correlated_hessian_gives_strictly_lower_loss(bits):
    W, H = problem("correlated")
    for act_order in (False, True):
        done = run_gptq(W, H, bits, act_order=act_order)
        assert output_error(W, done, H) < 0.8 * output_error(W, rtn(W, Scheme(bits=bits, group_size=32)), H)


def test_act_order_does_not_depend_on_the_order_of_the_columns():
    W, H = problem("correlated")
    shuffle = torch.from_numpy(np.random.default_rng(1).permutation(W.shape[1]))
    plain = run_gptq(W, H, group_size=-1, act_order=True).q
    shuffled = run_gptq(W[:, shuffle], H[shuffle][:, shuffle], group_size=-1, act_order=True).q
    assert (plain[:, shuffle] == shuffled).float().mean() > 0.999


@settings(max_examples=25, deadline=None)
@given(power=st.integers(-8, 8), h_scale=st.floats(1e-6, 1e6), seed=st.integers(0, 1000), symmetric=st.booleans())
def test_scaling_weights_scales_the_grid_and_scaling_the_hessian_changes_nothing(power, h_scale, seed, symmetric):
    W, H = problem("correlated", 6, 48, seed)
    plain = run_gptq(W, H, symmetric=symmetric)
    scaled = run_gptq(W * 2.0**power, H, symmetric=symmetric)
    assert torch.equal(plain.q, scaled.q) and torch.equal(plain.scale * 2.0**power, scaled.scale)
    # One code that tips over takes others with it.
    assert (run_gptq(W, H * h_scale, symmetric=symmetric).q == plain.q).float().mean() > 0.95


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), bits=st.sampled_from([2, 3, 4, 8]), act_order=st.booleans())
def test_weights_that_are_turned_over_turn_the_searched_grid_over(seed, bits, act_order):
    """A symmetric grid has one code more on one side: the search gives it to the side that needs it."""
    W, H = problem("correlated", 6, 48, seed)
    plain, turned = (run_gptq(w, H, bits, act_order=act_order, clip=True) for w in (W, -W))
    assert torch.equal(plain.dequantize(), -turned.dequantize())


def test_the_longer_side_has_the_code_more():
    W = problem("random", 200, 32)[0].abs()
    one_sided = run_gptq(W, torch.eye(32).double(), clip=True)
    assert (one_sided.scale < 0).float().mean() > 0.9 and (one_sided.q == 0).float().mean() > 0.01


@given(
    n=st.integers(3, 90), size=st.sampled_from([16, 32]), seed=st.integers(0, 1000), act_order=st.booleans(),
    clip=st.booleans(), symmetric=st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_groups_whose_inputs_do_not_meet_are_quantised_each_by_itself(n, size, seed, act_order, clip, symmetric):
    """Nothing crosses a group's boundary, short last group included, when H is block-diagonal."""
    rng = np.random.default_rng(seed)
    W, H = torch.tensor(rng.normal(size=(5, n))), torch.zeros(n, n, dtype=torch.float64)
    groups = [slice(a, min(n, a + size)) for a in range(0, n, size)]
    for group in groups:
        width = group.stop - group.start
        mix = rng.normal(size=(width, 3 * width)) + rng.normal(size=(width, 1))
        H[group, group] = torch.tensor(np.corrcoef(mix).reshape(width, width))  # one mean diagonal, so one damping
    whole = run_gptq(W, H, 3, size, symmetric, act_order, clip)
    for g, group in enumerate(groups):
        alone = run_gptq(W[:, group], H[group, group], 3, size, symmetric, act_order, clip)
        assert torch.equal(whole.q[:, group], alone.q)
        assert torch.allclose(whole.scale[:, g], alone.scale[:, 0], rtol=1e-6)


def test_dead_inputs_cost_nothing_and_get_zero():
    W, H = problem("dead")
    done = run_gptq(W, H)
    assert (done.dequantize()[:, ::7] == 0).all()
    everything = run_gptq(W, torch.zeros_like(H))
    assert (everything.dequantize() == 0).all()


@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_damping_does_not_depend_on_dead_inputs(scale):
    W, H = problem("correlated")
    n = len(H)
    with_dead = torch.zeros(n + 64, n + 64, dtype=H.dtype)
    with_dead[:n, :n] = H * scale
    more = torch.cat([W, torch.ones(len(W), 64, dtype=W.dtype)], 1)
    alone, beside = (run_gptq(w, h, group_size=-1, clip=True) for w, h in ((W, H * scale), (more, with_dead)))
    assert torch.equal(alone.q, beside.q[:, :n])


def test_the_damping_ladder_is_recorded_and_ends_by_name():
    W, H = problem("correlated")
    assert factor(H, Quantize()).damp == 0.01
    shift = torch.linalg.eigvalsh(H)[0] + 0.03 * H.diagonal().mean()
    sick = H - shift * torch.eye(len(H))
    climbed = factor(sick, Quantize(max_damp=0.5))
    assert 0.03 < climbed.damp <= 0.5
    with pytest.raises(NumericsError, match="not positive definite even with damp 0.02"):
        factor(sick, Quantize(max_damp=0.02))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(value):
    W, H = problem("random")
    bad = W.clone()
    bad[3, 5] = value
    for broken in (lambda: run_gptq(bad, H), lambda: rtn(bad, Scheme(group_size=32)), lambda: run_gptq(W, H * value)):
        with pytest.raises(NumericsError):
            broken()


def test_rtn_is_the_nearest_point_of_the_grid():
    W, _ = problem("random", 5, 70)
    for symmetric in (True, False):
        done = rtn(W, Scheme(bits=3, group_size=32, symmetric=symmetric))
        zero = torch.full_like(done.scale, 4) if symmetric else done.zero_point.float()
        for i in range(5):
            for j in range(70):
                s, z = done.scale[i, j // 32], zero[i, j // 32]
                points = (torch.arange(8) - z) * s
                best = (points - W[i, j]).abs().min()
                assert (points[int(done.q[i, j])] - W[i, j]).abs() <= best + 1e-6


def test_an_all_zero_group_stays_zero():
    W = torch.zeros(3, 64)
    for symmetric in (True, False):
        assert (rtn(W, Scheme(group_size=32, symmetric=symmetric)).dequantize() == 0).all()


# Packing: the bytes are a specification


def test_golden_bytes():
    assert pack_bits(np.array([[0x1, 0xA, 0xF]], np.uint8), 4).tolist() == [[0xA1, 0x0F]]
    assert pack_bits(np.array([[0, 1, 2, 3, 3]], np.uint8), 2).tolist() == [[0b11100100, 0b11]]
    assert pack_bits(np.array([[7, 255]], np.uint8), 8).tolist() == [[7, 255]]


@given(bits=st.sampled_from([2, 4, 8]), count=st.integers(1, 40), seed=st.integers(0, 99))
def test_unpack_inverts_pack(bits, count, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (3, count), np.uint8)
    assert (unpack_bits(pack_bits(codes, bits), bits, count) == codes).all()


def test_golden_bytes_of_three_bits():
    """The fourth piece of a chunk is in the top bits of the others: bit 0 in the first plane, 1 and 2 in the next."""
    codes = np.zeros((1, 128), np.uint8)
    codes[0, [0, 1, 32, 64]] = 1, 2, 3, 4  # the first codes of the first three pieces, and one beside
    codes[0, [96, 97]] = 0b101, 0b010
    packed = pack_narrow(codes)
    assert packed.shape == (1, 1, 3, 16)
    assert packed[0, 0, :, 0].tolist() == [0x21 | 0x08, 0x03 | 0x80, 0x04 | 0x08] and not packed[..., 1:].any()


@given(
    columns=st.sampled_from([128, 256, 384, 512, 768, 1024, 2560]), seed=st.integers(0, 99),
)  # fmt: skip
def test_codes_of_three_bits_come_back_and_take_three_bits(columns, seed):
    codes = np.random.default_rng(seed).integers(0, 8, (3, columns), np.uint8)
    packed = pack_narrow(codes)
    assert packed.nbytes == codes.size * 3 // 8
    assert (unpack_narrow(packed) == codes).all() and (widen(packed) == pack_bits(codes, 4)).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("group_size", "n"), [(32, 96), (32, 80), (16, 48), (128, 128), (64, 200), (-1, 160), (-1, 48)]
)
def test_matmulnbits_computes_with_the_dequantised_matrix(bits, symmetric, group_size, n):
    """ONNX Runtime, fed unit vectors, returns the columns of exactly the matrix that `dequantize` says."""
    W, _ = problem("random", 12, n)
    scheme = Scheme(bits=bits, group_size=group_size, symmetric=symmetric)
    done, stored = rtn(W, scheme), 4 if bits == 3 else bits
    plan = LinearPlan("x", 0, (12, n), "rtn", scheme, False)
    block = plan.block_size
    parts = pack(done, plan, "float32")
    assert torch.equal(unpack(parts, plan), done.dequantize())

    names = [k for k in ("qweight", "scales", "zero_points") if k in parts]
    types = {"qweight": TensorProto.UINT8, "scales": TensorProto.FLOAT, "zero_points": TensorProto.UINT8}
    weights = [helper.make_tensor(k, types[k], parts[k].shape, parts[k].tobytes(), raw=True) for k in names]
    node = helper.make_node(
        "MatMulNBits", ["x", *names], ["y"], domain="com.microsoft", K=n, N=12, bits=stored, block_size=block,
    )  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g", [value("x", TensorProto.FLOAT, ["m", n])], [value("y", TensorProto.FLOAT, ["m", 12])], weights
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run(None, {"x": np.eye(n, dtype=np.float32)})[0]
    # Level 0 sums float products in its own order: one non-zero term is exact but for the dequantisation's rounding.
    np.testing.assert_allclose(got, done.dequantize().numpy().T, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_beyond_what_a_scale_can_hold_are_refused(bits):
    with pytest.raises(NumericsError, match=r"a weight of 1e\+08 has no scale in float16"):
        round_rows(torch.full((2, 32), 1e8), Scheme(bits=bits, group_size=32), "float16")
    rounded = round_rows(torch.full((2, 32), 1e8), Scheme(bits=bits, group_size=32), "float32")
    assert torch.isfinite(rounded.dequantize()).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "spread", "most"), [(8, 0.0026, 0.015), (8, 0.00077, 0.03), (4, 1e-4, 0.2)])
def test_small_weights_have_scales_of_float16_too(bits, spread, most, symmetric):
    """The output projections of a fresh 410m or 12b: scales below float16's normal numbers, 6.1e-5."""
    W, H = problem("correlated", 32, 256)
    W, settings = W / W.std() * spread, Quantize(beam=1)
    scheme = Scheme(bits=bits, symmetric=symmetric)
    for made in (rtn(W, scheme, torch.float16), gptq(W, factor(H, settings), scheme, settings, torch.float16)):
        assert (made.scale.half().float() == made.scale).all()
        assert (made.dequantize() - W).norm() <= most * W.norm()
    least = rtn(torch.full((2, 32), 1e-9), scheme, torch.float16)  # as good as nothing
    assert (least.dequantize().abs() <= 2.0**-24).all() and (least.scale.abs() > 0).all()


def test_an_embedding_of_4_bits_loses_a_fifth_less_than_one_that_is_rounded_to_nearest():
    table = torch.from_numpy(np.random.default_rng(0).normal(size=(500, 64)).astype("f"))

    def lost(quantized):
        return (quantized.dequantize() - table).square().mean()

    four, eight = Scheme(bits=4, group_size=32), Scheme(bits=8, group_size=32)
    assert lost(round_rows(table, four, "float16")) < 0.8 * lost(rtn(table, four, torch.float16))
    assert torch.equal(round_rows(table, eight, "float16").q, rtn(table, eight, torch.float16).q)
