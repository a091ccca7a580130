"""Weights that no training that went well leaves behind: huge ones are refused by name, ablated ones quantised."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import InMemory, export_model, hugging_face, on_disk, small_config
from native import LIBRARY, needs_library

from pythia_export.base.errors import EnvironmentProblem, NumericsError
from pythia_export.base.native_library import instruction_set, library_fault
from pythia_export.calibrate.bit_budget import allocate
from pythia_export.calibrate.problem import BLOCK, Moments
from pythia_export.recipe import Export, Quantize, Scheme
from pythia_export.rounding import native
from pythia_export.rounding.coupled import gptq_coupled
from pythia_export.rounding.gptq import correction, factor, gptq

WINDOWS = np.random.default_rng(0).integers(0, 96, (16, 32))
CONFIG = small_config(layers=2)
TENSORS = on_disk(hugging_face(CONFIG))
QKV, DENSE, UP, DOWN = (
    f"gpt_neox.layers.0.{name}"
    for name in ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
)


def changed(**tensors: torch.Tensor) -> InMemory:
    return InMemory(CONFIG, TENSORS | tensors)


def one_weight(name: str, value: float) -> InMemory:
    W = TENSORS[f"{name}.weight"].clone()
    W[3, 5] = value
    return changed(**{f"{name}.weight": W})


@pytest.mark.parametrize(
    ("linear", "value", "settings"),
    [
        (DENSE, 1e22, {}),
        (DOWN, 1e22, {}),
        (QKV, 1e10, {}),
        (QKV, 1e22, {"fisher": False, "balance": False}),  # else k takes half of it, on a scale of powers
        (UP, 1e22, {"fisher": False}),
        (DENSE, -1e22, {"fisher": False, "beam": 1}),
        (DENSE, 1e30, {"error_correction": False, "bits": 2, "symmetric": False}),
    ],
)
def test_one_huge_weight_is_refused_and_its_linear_named(tmp_path, linear, value, settings):
    """Costs overflowed to NaN, which no order holds, and the native beam read outside its memory."""
    with pytest.raises(NumericsError, match=r"layers\.0\.(attention|mlp)\.\w+: .*the (error|sensitivity)"):
        export_model(one_weight(linear, value), tmp_path, Quantize(group_size=32, **settings), Export(), WINDOWS)


def test_a_budget_of_bits_is_not_weighed_by_costs_that_overflow(tmp_path):
    budget = Quantize(group_size=32, bits_per_weight=6.0, head={"bits": 4, "group_size": 32})
    with pytest.raises(NumericsError, match=f"{DOWN}: the cost of rounding weights as large as 1e"):
        allocate(one_weight(DOWN, 1e22), budget, "float32", WINDOWS)


def test_huge_inputs_alone_are_no_overflow():
    """Costs are counted in units of the Hessian's mean: codes are the same for inputs of any size, to the bit."""
    rng = torch.Generator().manual_seed(0)
    W, X = torch.randn(24, 64, generator=rng), torch.randn(400, 64, generator=rng, dtype=torch.float64)
    H, missing = X.T @ X / 400, torch.randn(24, 64, generator=rng, dtype=torch.float64)
    G, scheme, settings = torch.eye(24)[None], Scheme(group_size=32), Quantize(beam=8)
    for unit in (4.0**60, 4.0**-60):
        small, large = factor(H, settings), factor(H * unit, settings)
        assert torch.equal(gptq(W, small, scheme, settings).q, gptq(W, large, scheme, settings).q)
        one, other = (gptq_coupled(W, L, G, scheme, Quantize(beam=1)).q for L in (small, large))
        assert torch.equal(one, other)
        assert torch.equal(correction(missing, small, 1000), correction(missing * unit, large, 1000))


@pytest.mark.parametrize("device", ["native", "torch"])
@pytest.mark.parametrize("width", [2, 16])
def test_a_beam_of_numbers_that_overflow_says_so(width, device, monkeypatch):
    if device == "torch":
        monkeypatch.setattr(native, "available", lambda device: False)
    W = torch.randn(6, 96, generator=torch.Generator().manual_seed(0))
    W[2, 40] = 3e30
    for act_order in (True, False):
        settings = Quantize(act_order=act_order, beam=width)
        with pytest.raises(NumericsError, match=r"as large as 3e\+30"):
            gptq(W, factor(torch.eye(96), settings), Scheme(group_size=32), settings)


# What interpretability people zero, and a constant that takes its place.
ABLATIONS = {
    "a head's values": (QKV, lambda W, b: W.view(4, 3, 32, -1)[1, 2].zero_()),
    "a head's values and their bias": (QKV, lambda W, b: (W[224:256].zero_(), b[224:256].zero_())),
    "all values": (QKV, lambda W, b: W.view(4, 3, 32, -1)[:, 2].zero_()),
    "a head's output": (DENSE, lambda W, b: W[:, 32:64].zero_()),
    "attention": (DENSE, lambda W, b: (W.zero_(), b.zero_())),
    "neurons": (UP, lambda W, b: W[10:50].zero_()),
    "a neuron": (UP, lambda W, b: (W[7].zero_(), b[7].zero_())),
    "all neurons": (UP, lambda W, b: W.zero_()),
    "what neurons write": (DOWN, lambda W, b: W[:, 10:50].zero_()),
    "the MLP": (DOWN, lambda W, b: (W.zero_(), b.zero_())),
    "a norm's gain": ("gpt_neox.layers.0.post_attention_layernorm", lambda W, b: W.zero_()),
    "neurons that a bias holds open": (UP, lambda W, b: b[:20].fill_(3e4)),
}  # fmt: skip


def ablated(names: list[str]) -> tuple[InMemory, torch.nn.Module]:
    """The checkpoint, and the same by transformers."""
    tensors = {name: x.clone() for name, x in TENSORS.items()}
    for name in names:
        linear, change = ABLATIONS[name]
        change(tensors[f"{linear}.weight"], tensors[f"{linear}.bias"])
    return InMemory(CONFIG, tensors), of_transformers(tensors.__getitem__)


def of_transformers(tensor) -> torch.nn.Module:
    model = hugging_face(CONFIG)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(tensor(name.replace("lm_head", "embed_out")))
    return model


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(names=st.lists(st.sampled_from(sorted(ABLATIONS)), min_size=1, max_size=3, unique=True))
def test_an_ablated_checkpoint_is_quantised_as_well_as_a_whole_one(tmp_path_factory, names):
    _quantises(tmp_path_factory, names)


@pytest.mark.parametrize("names", [["all values"], ["all neurons"], ["neurons that a bias holds open"]])
def test_inputs_that_do_not_vary_are_dead(tmp_path_factory, names):
    """Of their squares about the mean nothing is left but rounding, which no damping makes positive definite."""
    records, dead = _quantises(tmp_path_factory, names)
    reader = {"all values": DENSE}.get(names[0], DOWN)
    if names[0].startswith("all"):
        assert dead[reader] == {DENSE: 128, DOWN: 256}[reader]
    assert {r["damp"] for r in records.values()} == {0.01}


def _quantises(tmp_path_factory, names):
    source, original = ablated(names)
    held_out = torch.from_numpy(np.random.default_rng(1).integers(0, 96, (8, 32)))
    errors, records = {}, {}
    with torch.no_grad():
        wanted = original(held_out).logits.double()
        for method in ("gptq", "rtn"):
            quantize = Quantize(
                method=method, bits=3, group_size=32, embedding="float32", head={"method": "none"}, beam=2
            )
            made = export_model(source, tmp_path_factory.mktemp(method), quantize, Export(), WINDOWS)
            got = of_transformers(made.reader().tensor)(held_out).logits.double()
            errors[method] = float((got - wanted).square().mean())
            if method == "gptq":
                records = {r["name"]: r for r in made.record["linears"]}
                stored = {name: made.reader().tensor(f"{name}.weight") for name in records}
                dead = {name: int((W == 0).all(0).sum()) for name, W in stored.items()}
    assert errors["gptq"] <= errors["rtn"] + 1e-9 * float(wanted.square().mean()), errors
    return records, dead


def test_moments_about_a_mean_that_is_far_larger_than_what_varies():
    rng = torch.Generator().manual_seed(0)
    varied = torch.randn(4000, 3, generator=rng)
    x = torch.cat([varied, varied[:, :1] + 1e4, torch.full((4000, 1), 3.7), torch.zeros(4000, 1)], 1)
    x[:, 4] *= 1 + (torch.rand(4000, generator=rng) - 0.5) * 2e-7  # rounding
    moments = Moments(6, 6, about_mean=True)
    for part in x.split(1000):
        moments.add(part, part)
    assert moments.mean.tolist() == pytest.approx(x.double().mean(0).tolist(), abs=1e-3)
    again = copy.deepcopy(moments).second()
    assert torch.allclose(again, x.double().T @ x.double() / 4000, rtol=1e-5, atol=1e-3)
    H = moments.centred()
    assert float(H[3, 3]) == pytest.approx(float(x[:, 3].double().var(correction=0)), rel=1e-5)
    assert (H[4:] == 0).all() and (H[:, 4:] == 0).all() and (H.diagonal()[:4] > 0.5).all()


@pytest.mark.parametrize("columns", [BLOCK + 1, 2 * BLOCK])
def test_of_a_wide_input_half_of_its_products_are_summed_and_the_other_half_is_copied(columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    chunks = [torch.randn(1, 40, columns, generator=generator) + 3 for _ in range(2)]
    rows = torch.cat(chunks, dim=1)[0].double()
    for about_mean in (False, True):
        moments = Moments(columns, columns, about_mean=about_mean)
        for x in chunks:
            moments.add(x, x)
        found = moments.centred() if about_mean else moments.second()
        expected = torch.cov(rows.T, correction=0) if about_mean else rows.T @ rows / len(rows)
        assert torch.allclose(found, expected, atol=1e-4)


@needs_library
@pytest.mark.skipif(sys.platform != "linux", reason="made of ELF files")
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("cut short", "is cut short"),
        ("copied in part", "ends in zeros"),
        ("empty", "is empty"),
        ("text", "no ELF header"),
        ("another processor", "is a library for Linux on .*, and this is Linux on"),
        ("without our symbols", "pythia_beam"),
    ],
)
def test_a_library_that_cannot_be_used_is_told_before_it_is_loaded(kind, said, tmp_path, monkeypatch):
    """Loading one that is cut short would end this process."""
    whole, path = LIBRARY.read_bytes(), tmp_path / LIBRARY.name
    if kind == "without our symbols":
        if not shutil.which("gcc"):
            pytest.skip("no C compiler")
        subprocess.run(["gcc", "-shared", "-x", "c", "-o", path, "-"], input=b"int other;", check=True)
    else:
        other = b"\xb7" if whole[18] != 0xB7 else b"\x3e"
        made = {
            "cut short": whole[: len(whole) // 2], "copied in part": whole[: len(whole) // 2].ljust(len(whole), b"\0"),
            "empty": b"", "text": b"version https://git-lfs\n",
        }  # fmt: skip
        path.write_bytes(made.get(kind, whole[:18] + other + whole[19:]))
    assert library_fault(LIBRARY) is None and instruction_set(LIBRARY)
    assert instruction_set(path) is None
    monkeypatch.setattr(native, "kernels_path", lambda device: path)
    forget = lambda: (native.available.cache_clear(), native._library.cache_clear())  # noqa: E731
    forget()
    try:
        with pytest.raises(EnvironmentProblem, match=f"{path.name} .*{said}"):
            native.available(torch.device("cpu"))
    finally:
        forget()


@pytest.mark.parametrize("fisher", [True, False])
@pytest.mark.parametrize("settings", [{}, {"joint_hessian": False}, {"error_correction": False}])
@pytest.mark.parametrize("linear", [QKV, DENSE, UP, DOWN])
def test_a_huge_linear_is_named_whichever_product_overflows(tmp_path, linear, settings, fisher):
    """Another linear's error, or the next layer's LayerNorm, overflowed, and was blamed."""
    huge = changed(**{f"{linear}.weight": TENSORS[f"{linear}.weight"] * 1e25})
    quantize = Quantize(group_size=32, beam=1, fisher=fisher, **settings)
    with pytest.raises(NumericsError, match=f"^{linear}: ") as found:
        export_model(huge, tmp_path, quantize, Export(), WINDOWS)
    assert "e+2" in str(found.value)
