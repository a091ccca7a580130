"""Training the quantised model end to end: it predicts more as the original does, on text that it has not seen."""

from __future__ import annotations

import hashlib
import os
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import InMemory, export_model, hugging_face, on_disk, small_config

from pythia_export.base.compute import Compute
from pythia_export.base.errors import IntegrityError
from pythia_export.calibrate import Journal, drawn, end_to_end, quantize_stream
from pythia_export.calibrate.divergence import divergence
from pythia_export.model.block import Block, Rotary, final_norm, head
from pythia_export.model.neox import EMBEDDING
from pythia_export.recipe import Export, Quantize, Scheme
from pythia_export.records.quantization import Training
from pythia_export.rounding.learned import Learned
from pythia_export.rounding.rtn import rtn
from pythia_export.weights.layout import LinearPlan, layout
from pythia_export.weights.names import DATA_FILE
from pythia_export.weights.packing import pack, unpack, unpack_codes
from pythia_export.weights.reader import WeightsReader
from pythia_export.weights.writer import WeightsWriter

DRAWN = np.random.default_rng(0)
WINDOWS, UNSEEN = DRAWN.integers(0, 96, (192, 32)), torch.from_numpy(DRAWN.integers(0, 96, (32, 32)))
# Leaves much to be learned, and `best` rounds as the default does.
PLAIN = {"beam": 1, "clip": False, "fisher": False, "error_correction": False}


@pytest.fixture(scope="module")
def original() -> InMemory:
    config = small_config(layers=2)
    tensors = on_disk(hugging_face(config))
    tensors["embed_out.weight"] *= 8  # predictions that rounding changes
    return InMemory(config, tensors)


@torch.no_grad()
def logits(source: InMemory | WeightsReader, config, ids: torch.Tensor) -> torch.Tensor:
    rotary = Rotary.of(config, ids.shape[1], torch.float32)
    x = source.tensor(f"{EMBEDDING}.weight")[ids]
    for layer in range(config.num_layers):
        x = Block(config, layer, source.tensor)(x, rotary)
    return head(final_norm(x, config, source.tensor), source.tensor).double()


def kl(original: InMemory, found: WeightsReader) -> float:
    p, q = (F.log_softmax(logits(x, original.config, UNSEEN), -1) for x in (original, found))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 3, "group_size": -1, "symmetric": False},
        {"bits": 2, "group_size": 32, "products": 2},
    ],
    ids=["3 bits, zero points", "2 bits, two products"],
)
def test_the_divergence_on_unseen_text_falls(original, tmp_path, settings, monkeypatch):
    monkeypatch.setattr(end_to_end, "BATCH_TOKENS", 512)
    monkeypatch.setattr(end_to_end, "OF_VECTORS", 0.01)  # what few steps get anywhere with
    monkeypatch.setattr(end_to_end, "EPOCHS", 4)
    found = {}
    for effort in ("default", "best"):
        folder = tmp_path / effort
        folder.mkdir()
        quantize = Quantize(effort=effort, **PLAIN, embedding="float32", **settings)
        exported = export_model(original, folder, quantize, Export(), WINDOWS)
        found[effort] = kl(original, exported.reader()), exported.record.get("training")
    (before, nothing), (after, told) = found["default"], found["best"]
    assert nothing is None and after < 0.8 * before
    assert told["done"] and told["kept"] > 0 and told["after"] < told["before"]
    assert (told["windows"], told["drawn"], told["held_out"]) == (168, 504, 24)


def test_rounding_observes_text_of_the_originals_own_as_well(original, tmp_path, monkeypatch):
    """Of little text, and where nothing is trained after it; the unseen text is the original's own, too."""
    text = drawn.draw(original, WINDOWS, 56, Compute())
    monkeypatch.setattr(
        "pythia_export.calibrate.loop.train", lambda *_: (Training(done=False, reason="left out"), None)
    )
    monkeypatch.setitem(globals(), "UNSEEN", torch.from_numpy(text[16:]))
    found = {}
    for effort in ("default", "best"):
        (tmp_path / effort).mkdir()
        settings = PLAIN | {"error_correction": True, "bits": 3, "group_size": 32, "embedding": "float32"}
        exported = export_model(original, tmp_path / effort, Quantize(effort=effort, **settings), Export(), text[:16])
        found[effort] = kl(original, exported.reader()), {one["tokens"] for one in exported.record["linears"]}
    assert found["best"][0] < 0.85 * found["default"][0], found
    assert (found["default"][1], found["best"][1]) == ({16 * 32}, {2 * 16 * 32})


def test_codes_and_grids_are_read_back_as_they_were_packed():
    W = torch.randn(12, 256, generator=torch.Generator().manual_seed(0))
    for bits in (2, 3, 4, 8):
        for group, symmetric in ((32, True), (-1, True), (32, False)):
            scheme = Scheme(bits=bits, group_size=group, symmetric=symmetric)
            start = rtn(W, scheme)
            for three_bits in (False, True):
                plan = LinearPlan("x", 0, (12, 256), "rtn", scheme, False, three_bits)
                parts = pack(start, plan, "float32")
                assert parts["qweight"].size == 12 * 256 * plan.stored_bits // 8
                back = unpack_codes(parts, plan)
                assert torch.equal(back.q, start.q) and torch.equal(back.scale, start.scale)
                assert torch.equal(back.dequantize(), start.dequantize())
                assert torch.equal(unpack(parts, plan), start.dequantize())


def test_what_is_learned_of_a_linear_has_the_gradient_of_its_matrix():
    start = rtn(torch.randn(5, 40, generator=torch.Generator().manual_seed(0)), Scheme(bits=4, group_size=16))
    learned = Learned(start)
    learned.grown.data.normal_(0, 0.1)
    behind = torch.randn(5, 40)
    (learned.weight() * behind).sum().backward()
    wanted = torch.stack([part.sum(1) for part in (start.dequantize() * behind).split(16, 1)], 1)
    assert torch.allclose(learned.grown.grad, wanted, atol=1e-5)
    assert torch.allclose(learned.weight(), learned.result(1.0, torch.float32).dequantize(), atol=1e-6)
    assert torch.equal(learned.result(0.0, torch.float32).dequantize(), start.dequantize())


def test_the_divergence_and_its_gradient_are_those_of_whole_logits(monkeypatch):
    g = torch.Generator().manual_seed(0)
    h, W, wanted, V = (torch.randn(n, 8, generator=g) for n in (11, 30, 11, 30))
    monkeypatch.setattr("pythia_export.calibrate.divergence.LOGITS", 90)  # three rows at once
    found = []
    for of in (divergence, plain_divergence):
        a, b = h.clone().requires_grad_(), W.clone().requires_grad_()
        value = of(a, b, wanted, V)
        (3 * value).backward()
        found.append((value.detach(), a.grad, b.grad))
    for ours, oracle in zip(*found, strict=True):
        assert torch.allclose(ours, oracle, atol=1e-6)


def plain_divergence(h, W, wanted, V):
    p, q = F.log_softmax(wanted @ V.T, -1), F.log_softmax(h @ W.T, -1)
    return F.kl_div(q, p, log_target=True, reduction="batchmean")


def test_the_same_text_gives_the_same_bytes(original, tmp_path, monkeypatch):
    monkeypatch.setattr(end_to_end, "EPOCHS", 1)
    found = []
    for name in "ab":
        (tmp_path / name).mkdir()
        export_model(original, tmp_path / name, Quantize(effort="best", **PLAIN), Export(), WINDOWS[:16])
        found.append(hashlib.sha256((tmp_path / name / DATA_FILE).read_bytes()).hexdigest())
    assert found[0] == found[1]


class Listener:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def track(self, title, total, unit=""):
        from contextlib import nullcontext

        return nullcontext(lambda n: None)


@pytest.mark.parametrize(
    ("windows", "memory_gb", "why"), [(WINDOWS[:1], 4.0, "one calibration window"), (WINDOWS, 0.0, "memory_gb")]
)
def test_where_nothing_can_be_trained_that_is_told_and_recorded(original, tmp_path, windows, memory_gb, why):
    found, listener = [], Listener()
    for effort in ("default", "best"):
        quantize = Quantize(effort=effort, **PLAIN)
        places, path = layout(original.config, quantize, "float32"), tmp_path / effort
        with WeightsWriter(path, places) as writer:
            record = quantize_stream(original, writer, windows, Compute(progress=listener, memory_gb=memory_gb))
        found.append(path.read_bytes())
    assert found[0] == found[1]
    assert record.training is not None and not record.training.done and why in (record.training.reason or "")
    assert [note for note in listener.notes if "Not trained end to end" in note and why in note]


def test_what_does_not_help_on_windows_that_were_not_trained_on_is_not_kept(original, tmp_path, monkeypatch):
    monkeypatch.setattr(end_to_end, "OF_SCALES", 3.0)  # steps that ruin any model
    monkeypatch.setattr(end_to_end, "OF_VECTORS", 3.0)
    monkeypatch.setattr(end_to_end, "EPOCHS", 1)
    found = []
    for effort in ("default", "best"):
        (tmp_path / effort).mkdir()
        exported = export_model(original, tmp_path / effort, Quantize(effort=effort, **PLAIN), Export(), WINDOWS[:16])
        found.append((tmp_path / effort / DATA_FILE).read_bytes())
    assert found[0] == found[1]
    told = exported.record["training"]
    assert told["done"] and told["kept"] == 0 and told["after"] == told["before"]


@pytest.mark.parametrize("placed", [True, False], ids=["after its file was put in its place", "just before"])
def test_a_run_that_was_killed_when_it_had_trained_goes_on_from_there(original, tmp_path, monkeypatch, placed):
    monkeypatch.setattr(end_to_end, "OF_VECTORS", 0.01)
    quantize = Quantize(effort="best", **PLAIN | {"error_correction": True}, bits=2)
    places = layout(original.config, quantize, "float32")

    def run(folder, resume=False):
        with Journal(folder, {}, resume) as journal:
            with WeightsWriter(journal.weights, places, keep=bool(journal.finished)) as writer:
                record = quantize_stream(original, writer, WINDOWS[:96], journal=journal)
            return record, journal.weights.read_bytes()

    whole, content = run(tmp_path / "whole")
    assert whole.training is not None and whole.training.kept > 0

    def again_in_vain(*_):
        raise AssertionError

    with monkeypatch.context() as patch:
        replaced = os.replace

        def replace(a, b):
            if str(a).endswith(".trained"):
                if placed:
                    replaced(a, b)
                raise KeyboardInterrupt
            replaced(a, b)

        patch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed")
    if placed:
        for name in ("train", "written"):
            monkeypatch.setattr(f"pythia_export.calibrate.loop.{name}", again_in_vain)
    again, same = run(tmp_path / "killed", resume=True)
    assert same == content
    assert [x.name for x in again.linears] == [x.name for x in whole.linears]
    assert again.training is not None and again.training.kept == whole.training.kept


def test_a_run_that_goes_on_observes_the_text_that_it_began_with(original, tmp_path, monkeypatch):
    """However much memory is free by then. A damaged text is refused."""
    quantize = Quantize(effort="best", **PLAIN | {"error_correction": True}, bits=3)
    places = layout(original.config, quantize, "float32")

    def run(folder, resume=False):
        with Journal(folder, {}, resume) as journal:
            with WeightsWriter(journal.weights, places, keep=bool(journal.finished)) as writer:
                quantize_stream(original, writer, WINDOWS[:16], journal=journal)
            return journal.weights.read_bytes()

    content = run(tmp_path / "whole")
    committed = Journal.commit

    def commit(*arguments):
        committed(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "commit", commit)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed")
    shutil.copytree(tmp_path / "killed", tmp_path / "damaged")
    kept = next((tmp_path / "damaged").glob("own*"))
    kept.write_bytes(kept.read_bytes()[:-1] + b"\1")
    with pytest.raises(IntegrityError, match=f"{kept.name} is not what was written"):
        run(tmp_path / "damaged", resume=True)
    monkeypatch.setattr("pythia_export.calibrate.loop.written", lambda *_: WINDOWS[:0])
    assert run(tmp_path / "killed", resume=True) == content


@pytest.mark.parametrize(("missing", "expected"), [(0, 0), (1, 1)], ids=["enough memory", "a byte too little"])
def test_text_that_is_not_written_for_want_of_memory_is_told(original, monkeypatch, missing, expected):
    places, listener = layout(original.config, Quantize(effort="best"), "float32"), Listener()
    needed = end_to_end.text_read(places, 16, 32, 1e12)
    monkeypatch.setattr(end_to_end, "_budget", lambda _: needed.nbytes - missing)
    own = end_to_end.written(original, places, WINDOWS[:16], Compute(progress=listener))
    assert len(own) == (0 if missing else needed.drawn)
    assert sum("The original writes no text" in note for note in listener.notes) == expected


def test_fast_leaves_out_what_is_not_asked_for_and_old_records_stay_equal():
    fast = Quantize(effort="fast", fisher=True)
    assert (fast.beam, fast.fisher, fast.joint_hessian) == (1, True, False)
    assert (Quantize(effort="best").beam, Quantize(effort="best", beam=8).beam, Quantize().beam) == (64, 8, 16)
    assert "effort" not in Quantize().model_dump() and Quantize(effort="best").model_dump()["effort"] == "best"
    with pytest.raises(ValueError, match="needs method = 'gptq'"):
        Quantize(effort="best", method="rtn")
