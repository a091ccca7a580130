"""Quantising on a device that is not the CPU: an emulated one computes what the CPU would, and all that is heavy."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from emulated import DEVICE, emulation
from models import InMemory, hugging_face, on_disk, small_config
from processes import pythia_export

from pythia_export.base.compute import Compute
from pythia_export.base.device import CPU, as_multiplied, device_called, tensor_cores
from pythia_export.base.errors import EnvironmentProblem, RecipeError, ResourceError
from pythia_export.calibrate import (
    Journal,
    Sensitivity,
    activations,
    allocate,
    loop,
    measure_sensitivity,
    observe,
    parallel,
    quantize_stream,
)
from pythia_export.calibrate.activations import Activations
from pythia_export.calibrate.problem import Moments
from pythia_export.calibrate.sensitivity import RESIDUAL, UP
from pythia_export.model.neox import QKV
from pythia_export.proof import reference
from pythia_export.proof.reference import Reference
from pythia_export.recipe import Head, Override, Quantize, Scheme
from pythia_export.rounding.gptq import factor, gptq
from pythia_export.weights.layout import layout
from pythia_export.weights.names import DATA_FILE
from pythia_export.weights.writer import WeightsWriter

WINDOWS = np.random.default_rng(0).integers(0, 96, (12, 32))


def source(layers: int = 1) -> InMemory:
    config = small_config(layers=layers, ff=192)
    return InMemory(config, on_disk(hugging_face(config)))


def written(original, quantize: Quantize, folder: Path, device=CPU, memory_gb=4.0, **further) -> tuple[bytes, dict]:
    """The weights file and the record, without what differs from run to run."""
    places = layout(original.config, quantize, "float32")
    folder.mkdir(exist_ok=True)
    keep = bool(further["journal"].finished) if "journal" in further else False
    with WeightsWriter(folder / DATA_FILE, places, keep=keep) as writer:
        record = quantize_stream(original, writer, WINDOWS, Compute(device, memory_gb=memory_gb), **further)
    record = record.to_json()
    for part in (record, *record["linears"], *record["layers"]):
        part.pop("seconds")
    return (folder / DATA_FILE).read_bytes(), record


@pytest.fixture(scope="module")
def felt(tmp_path_factory) -> Sensitivity:
    found = Sensitivity(tmp_path_factory.mktemp("felt"))
    measure_sensitivity(source(2), WINDOWS, found)
    return found


SETTINGS = {
    "defaults": Quantize(group_size=32, beam=3),
    "two products": Quantize(products=2, act_order=False, beam=1, symmetric=False, fisher=False, group_size=32),
    "of the original": Quantize(hessian="original", error_correction=False, fisher=False, beam=1, embedding="int8"),
    "mixed": Quantize(
        bits=8, beam=1, clip=False, fisher=False, joint_hessian=False, head=Head(method="none"), embedding="float32",
        override=(Override(pattern="*dense", method="rtn"), Override(pattern="*h_to_4h", method="none")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_the_weights_are_those_of_the_cpu(tmp_path, felt, name):
    quantize, original = SETTINGS[name], source()
    known = felt if quantize.fisher else None
    expected, on_cpu = written(original, quantize, tmp_path / "cpu", sensitivity=known)
    operators = Counter()
    with emulation(lambda operator: operators.update([operator.overloadpacket.__name__])) as device:
        got, on_device = written(original, quantize, tmp_path / "device", device, sensitivity=known)
    assert got == expected
    assert (on_cpu.pop("device"), on_device.pop("device")) == ("cpu", "emulated")
    assert on_device == on_cpu
    assert operators["linalg_cholesky_ex"] and operators["topk" if quantize.beam > 1 else "round_"]


def test_tensor_cores_take_what_is_summed_over_the_text_and_cost_nothing(tmp_path, monkeypatch, felt):
    original, precise, coarse = source(), Counter(), Counter()

    def see(operator):
        (precise if torch.get_float32_matmul_precision() == "highest" else coarse)[
            operator.overloadpacket.__name__
        ] += 1

    expected, on_cpu = written(original, SETTINGS["defaults"], tmp_path / "cpu", sensitivity=felt)
    for module in (observe, parallel):
        monkeypatch.setattr(module, "tensor_cores", lambda device: tensor_cores(torch.device("cuda")))
    with emulation(see, tf32=True) as device:
        got, on_device = written(original, SETTINGS["defaults"], tmp_path / "device", device, sensitivity=felt)
    assert got != expected
    for one, other in zip(on_device["linears"], on_cpu["linears"], strict=True):
        assert one["loss"] <= 1.05 * other["loss"], one["name"]
    assert coarse["layer_norm"] + coarse["native_layer_norm"] and coarse["gelu"] + coarse["gelu_"]
    assert not {"linalg_cholesky_ex", "cholesky_solve", "topk"} & set(coarse)
    assert {"linalg_cholesky_ex", "cholesky_solve", "topk"} <= set(precise)


def test_where_products_are_coarse_ends_with_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), tensor_cores(torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == "high"
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "highest"
    with tensor_cores(CPU):
        assert torch.get_float32_matmul_precision() == "highest"


def test_moments_are_of_the_numbers_that_tensor_cores_read_and_lose_no_nan():
    """A fraction is cut off for sums as well, or the variance of 1 + 2**-20 would be below zero."""
    x = torch.full((64, 2), 1 + 2**-20)
    with tensor_cores(torch.device("cuda")):
        moments = Moments(2, 2)
        moments.add(x, x)
        assert (moments.mean == 1).all() and (moments.centred() == 0).all()
        for bits in (0x7FFFFFFF, 0x7FC00000, 0x7F800001, 0x7F800000):  # a GPU's NaN, a CPU's, another, infinity
            assert not as_multiplied(torch.tensor([bits], dtype=torch.int32).view(torch.float32)).isfinite().any()
    moments = Moments(2, 2)
    moments.add(x, x)
    assert (moments.mean == 1 + 2**-20).all()


@pytest.mark.parametrize("group_size", [64, -1])
def test_groups_are_searched_in_one_go_the_last_one_short(group_size):
    rng = np.random.default_rng(1)
    W, X = torch.tensor(rng.normal(size=(40, 150)), dtype=torch.float32), torch.tensor(rng.normal(size=(400, 150)))
    H, searches = X.T @ X, []
    scheme, settings = Scheme(group_size=group_size), Quantize(beam=1)
    on_cpu = gptq(W, factor(H, settings), scheme, settings)
    with emulation(lambda operator: searches.append(operator.overloadpacket.__name__)) as device:
        got = gptq(W.to(device), factor(H.to(device), settings), scheme, settings).to(CPU)
        assert (got.scale == on_cpu.scale).all() and (got.q == on_cpu.q).all()
    assert searches.count("amin") == 2  # of all groups: for the widest span, and once more where it is searched


def test_sensitivity_is_measured_on_it(tmp_path, felt):
    found = Sensitivity(tmp_path)
    with emulation() as device:
        measure_sensitivity(source(2), WINDOWS, found, Compute(device))
    for layer in range(2):
        for kind in (QKV, RESIDUAL, UP):
            expected = felt.get(layer, kind)
            assert (found.get(layer, kind) - expected).norm() <= 1e-5 * expected.norm(), (layer, kind)


def test_a_budget_of_bits_is_spent_alike(tmp_path):
    original, asked = source(), Quantize(bits_per_weight=6.7, beam=1)
    expected = allocate(original, asked, "float32", WINDOWS)
    with emulation() as device:
        assert allocate(original, asked, "float32", WINDOWS, Compute(device)) == expected
    assert expected[1].raised


def test_a_run_that_broke_off_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    original, quantize = source(2), Quantize(beam=1, fisher=False)
    with emulation() as device:
        whole, _ = written(original, quantize, tmp_path / "whole", device)
        run = loop._Layers.quantise
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(loop._Layers, "quantise", lambda self, i: run(self, i) if i == 0 else interrupted())
            with Journal(tmp_path / "work", {}) as journal:
                written(original, quantize, journal.output, device, journal=journal)
        with Journal(tmp_path / "work", {}, resume=True) as journal:
            assert len(journal.finished) == 1
            got, _ = written(original, quantize, journal.output, device, journal=journal)
    assert got == whole


def interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("free", "memory_gb", "expected"), [(1e9, 0, DEVICE), (1e5, 1, CPU), (0, 0, Path())])
def test_activations_lie_on_the_device_in_memory_or_on_disk(tmp_path, monkeypatch, free, memory_gb, expected):
    original, quantize, places = source(), Quantize(beam=1, fisher=False, error_correction=False), []
    whole, _ = written(original, quantize, tmp_path / "cpu")
    place = activations.place
    monkeypatch.setattr(activations, "free_bytes", lambda device: free)
    monkeypatch.setattr(loop, "place", lambda *at: places.append(place(*at)) or places[-1])
    with emulation() as device:
        got, _ = written(original, quantize, tmp_path / "device", device, memory_gb=memory_gb)
    assert got == whole
    assert places == [expected] or isinstance(expected, Path) and places[0].is_relative_to(tmp_path)


@pytest.mark.parametrize("where", [CPU, DEVICE], ids=str)
def test_activations_in_memory_are_where_they_were_put(where):
    with emulation() as device:
        x, chunk = Activations((2, 3, 4), 1, where, device), torch.ones(1, 3, 4, device=device)
        x[0] = chunk
        assert x[0].device == device and bool((x[0] == 1).all())
        assert (x[0] is chunk) == (where == device)  # of the CPU's memory it is a copy


def test_memory_that_does_not_suffice_is_an_error_that_says_so(tmp_path):
    def full(operator):
        if operator.overloadpacket.__name__ == "linalg_cholesky_ex":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has less.")

    with emulation(full) as device, pytest.raises(ResourceError, match="emulated.*CUDA out of memory$") as refused:
        written(source(), Quantize(beam=1, fisher=False), tmp_path / "out", device)
    assert "--device cuda" in refused.value.hint


@pytest.mark.parametrize("windows", [3, 5])
def test_the_original_runs_on_it(windows, monkeypatch):
    original, ids = source(2), WINDOWS[:windows]
    monkeypatch.setattr(reference, "SLAB_BYTES", 3 * 4 * 128 * ids.shape[1])  # 5 windows take two passes
    monkeypatch.setattr(reference, "free_bytes", lambda device: 1 << 30)
    on_cpu = Reference(original, original.config, ids, "")
    expected = [on_cpu.logits(i) for i in range(windows)]
    with emulation() as device:
        got = Reference(original, original.config, ids, "", Compute(device))
        for i in range(windows):
            assert np.abs(got.logits(i) - expected[i]).max() <= 1e-5
    assert (got.how.device, on_cpu.how.device) == ("emulated", "cpu")
    assert got.how.weights == ("kept in memory" if windows == 5 else "one layer at a time")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_before_anything_is_done(tmp_path):
    done = pythia_export("run", "demo", "--out", tmp_path / "out", "--device", "cuda", env=os.environ, check=6)
    assert "a GPU was asked for" in done.stderr and "--device cuda" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EnvironmentProblem):
        device_called("cuda")
    with pytest.raises(RecipeError, match="tpu"):
        device_called("tpu")
