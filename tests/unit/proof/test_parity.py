"""The two questions on small models of random weights: every graph's ways to the same logits, slabs, comparisons."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from models import InMemory, export_model, hugging_face, on_disk, small_config
from records import words
from sessions import needs_fixed_scales

from pythia_export.base.compute import Compute
from pythia_export.base.errors import EnvironmentProblem, SourceError
from pythia_export.base.progress import SILENT
from pythia_export.corpus import Subset, Windows
from pythia_export.proof import cost, export, reference
from pythia_export.proof.against import comparable, compare, require_same
from pythia_export.proof.divergence import first_divergence
from pythia_export.proof.metrics import TokenFigures
from pythia_export.proof.prove import prove, runs
from pythia_export.proof.reference import Reference
from pythia_export.proof.statistics import clustered_mean
from pythia_export.proof.subject import Subject
from pythia_export.proof.table import token_table
from pythia_export.recipe import Export, Gates, Quantize
from pythia_export.records.manifest import Checkpoint
from pythia_export.records.parity import PARITY_SCHEMA as SCHEMA
from pythia_export.records.parity import Against, Parity

CONFIG = small_config(layers=2, vocab=96, positions=64)


@pytest.fixture(scope="module")
def source() -> InMemory:
    return InMemory(CONFIG, on_disk(hugging_face(CONFIG)))


def some_windows(rows: int = 9, length: int = 40, seed: int = 0) -> Windows:
    """Random tokens; a document is three windows and a bit, the odd ones are of one subset."""
    ids = np.random.default_rng(seed).integers(0, 96, (rows, length))
    documents = (np.arange(rows * length) // 130).reshape(rows, length)
    odd = sorted({int(d) for d in documents.ravel() if d % 2})
    return Windows(ids, documents, "noise", f"{seed:064d}", 4 * ids.size, {"odd": Subset(odd, 500)})


def subject(source, folder, quantize, chosen=None) -> Subject:
    chosen = chosen or Export()
    made = export_model(source, folder, quantize, chosen)
    origin = Checkpoint(name="noise", revision="main", commit="c0ffee")
    return Subject(origin, source, made.reader(), CONFIG, made.model, folder, quantize, chosen)


def compared(this: Parity, other: Parity) -> Against:
    return compare(this.cost, this.export, other)


@pytest.fixture(scope="module")
def proofs(source, tmp_path_factory):
    """Round to nearest at 4 and at 8 bits, on the same text."""
    return [
        prove(
            subject(source, tmp_path_factory.mktemp(f"int{bits}"), Quantize(method="rtn", bits=bits)),
            some_windows(),
            Gates(),
        )
        for bits in (4, 8)
    ]


# A. Every way to the same logits


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"rotary": "gqa"},
        {"rotary": "onnx"},
        {"kv_cache": "float16"},
        {"kv_cache": "int8"},
        pytest.param({"rotary": "gqa", "kv_cache": "int8"}, marks=needs_fixed_scales),
    ],
    ids=lambda x: "-".join(x.values()) or "custom",
)
def test_cache_batch_and_padding_give_the_logits_of_one_pass(chosen, source, tmp_path):
    it, ids = subject(source, tmp_path, Quantize(method="rtn"), Export(**chosen)), some_windows().ids
    (run, *_) = runs(it, it.session(0, native=False))
    found = export.measure(run, Reference(it.stored, CONFIG, ids, ""), ids).to_json()
    assert [cut["at"] for cut in found["splits"]] == [0, 1, 13, 26, 39]
    rounds = "kv_cache" in chosen  # such a cache rounds keys; what was rounded the other way may be a whole step off
    limit = 0.05 if rounds else 2e-5
    assert max(cut["max_abs"] for cut in found["splits"]) < limit
    assert found["batch_max_abs"] < limit and found["padding_max_abs"] < limit
    assert found["decode_max_abs"] >= max(found["batch_max_abs"], found["padding_max_abs"])
    assert rounds or found["max_abs"] < 5e-5
    assert found["name"] == "level 0" and found["gated"] and found["same_top"] > 0.95


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_windows_of_the_least_length_are_measured_too(rows, source, tmp_path):
    it, ids = subject(source, tmp_path, Quantize(method="none")), some_windows(rows, 8).ids
    found = export.measure(
        runs(it, it.session(0, native=False))[0], Reference(it.stored, CONFIG, ids, ""), ids
    ).to_json()
    assert found["decode_max_abs"] < 2e-5 and [cut["at"] for cut in found["splits"]] == [0, 1, 2, 5, 7]


@pytest.mark.parametrize(("rows", "length"), [(9, 40), (2, 8), (1, 40), (1, 8)])
def test_a_graph_that_attends_to_padding_is_found_whatever_text_there_is(rows, length, source, tmp_path):
    it, ids = subject(source, tmp_path, Quantize(method="none")), some_windows(rows, length).ids
    nodes = list(it.model.graph.node)
    for node in nodes:
        node.input[:] = ["every_token" if name == "attention_mask" else name for name in node.input]
    real = onnx.helper.make_node("Clip", ["attention_mask", "a_real_one"], ["every_token"], "every_token")
    it.model.graph.initializer.append(onnx.helper.make_tensor("a_real_one", onnx.TensorProto.INT64, [], [1]))
    del it.model.graph.node[:]
    it.model.graph.node.extend([real, *nodes])
    found = export.measure(
        runs(it, it.session(0, native=False))[0], Reference(it.stored, CONFIG, ids, ""), ids
    ).to_json()
    assert found["padding_max_abs"] > 1e-2 and found["batch_max_abs"] < 2e-5


@pytest.mark.parametrize(("rows", "length"), [(1, 40), (1, 8)])
def test_one_window_is_batched_too(rows, length, source, tmp_path, monkeypatch):
    it, ids = subject(source, tmp_path, Quantize(method="none")), some_windows(rows, length).ids
    session = it.session(0, native=False)
    logits = session.logits
    monkeypatch.setattr(session, "logits", lambda ids: logits(ids) + 0.1 * (len(ids) > 1))
    run = export.Run("level 0", 0, True, lambda: session)
    found = export.measure(run, Reference(it.stored, CONFIG, ids, ""), ids).to_json()
    assert found["batch_max_abs"] == pytest.approx(0.1, abs=1e-3) and found["padding_max_abs"] < 2e-5


@pytest.mark.parametrize("products", [4, 2])
@pytest.mark.parametrize("rotary", ["custom", "gqa", "onnx"])
def test_no_operator_of_any_graph_differs(products, rotary, source, tmp_path):
    it = subject(source, tmp_path, Quantize(method="rtn", group_size=32, products=products), Export(rotary=rotary))
    found = first_divergence(it, some_windows().ids[0])
    operators = 3 + CONFIG.num_layers * (9 if products == 4 else 7)
    assert found.op is None and found.diverging == 0 and found.checked in (2 * operators, 4 * operators)
    assert found.rounded_cache is None and "rounded" not in words.look_in_graph(
        {"export": {"first_divergence": found.to_json()}}
    )


@pytest.mark.parametrize("cache", ["float16", "int8"])
def test_a_cache_that_rounds_is_named_where_no_operator_differs(cache, source, tmp_path):
    it = subject(source, tmp_path, Quantize(method="rtn", group_size=32), Export(kv_cache=cache))
    found = first_divergence(it, some_windows().ids[0])
    assert found.op is None
    assert words.look_in_graph({"export": {"first_divergence": found.to_json()}}).endswith(
        f"on its own inputs; but the KV cache is rounded to {cache}, for which limits are wider."
    )


# B. Slabs, subsets, pairs


def test_slabs_of_windows_give_the_logits_of_all_at_once(source, monkeypatch):
    ids = some_windows().ids
    whole = Reference(source, CONFIG, ids, "")
    assert whole.how.passes == 1 and whole.how.weights == "one layer at a time"
    monkeypatch.setattr(reference, "SLAB_BYTES", 2 * 4 * 40 * CONFIG.hidden_size)
    read: list[str] = []

    class Counted(InMemory):
        def tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            return super().tensor(name)

    counted = Counted(CONFIG, source.tensors)
    kept = Reference(counted, CONFIG, ids, "")
    once = [kept.logits(i) for i in range(9)]
    layers = [name for name in read if ".layers." in name]
    assert kept.how.passes == 5 and kept.how.weights == "kept in memory" and len(layers) == len(set(layers))
    monkeypatch.setattr(reference, "_free_memory", lambda: 100)
    read.clear()
    small = Reference(counted, CONFIG, ids, "")
    assert small.how.weights == "one layer at a time" and small.how.free_bytes == 100
    for i in (*range(9), 3):  # and back again
        np.testing.assert_allclose(small.logits(i), whole.logits(i), atol=1e-5)
        np.testing.assert_array_equal(once[i], kept.logits(i))
    assert sum(".layers.0.attention.dense.weight" in name for name in read) == 6


def test_a_proof_holds_what_its_schema_promises(proofs):
    parity = proofs[0].parity.to_json()
    assert parity["schema"] == SCHEMA and parity["passed"] and parity["gates"] == []
    assert json.loads(json.dumps(parity, allow_nan=False)) == parity
    assert parity["source"]["commit"] == "c0ffee" and parity["against"] is None
    cost = parity["cost"]
    assert cost["tokens"] == 9 * 39 and cost["clusters"] == {"by": "document", "count": 3}
    assert cost["tokens_per_second"] > 0 and cost["reference"]["passes"] == 1
    (odd,) = cost["subsets"]
    own = proofs[0].figures.clusters == 1
    assert odd["name"] == "odd" and odd["tokens"] == own.sum()
    assert odd["nll_quantized"] == pytest.approx(proofs[0].figures.nll_quantized[own].mean())


def test_two_artifacts_are_compared_token_by_token(proofs):
    four, eight = proofs
    found = compared(four.parity, eight.parity).to_json()
    clusters = four.figures.clusters
    for name, figure in (("delta_nll", "nll_quantized"), ("kld", "kld")):
        paired = clustered_mean(getattr(four.figures, figure) - getattr(eight.figures, figure), clusters)
        for key, value in (("mean", paired.value), ("se", paired.se), ("low", paired.low), ("high", paired.high)):
            assert found[name][key] == pytest.approx(value, rel=1e-6)
    assert found["kld"]["mean"] > 0 > compared(eight.parity, four.parity).kld.mean
    top = four.figures.same_top.mean() - eight.figures.same_top.mean()
    assert found["same_top"]["mean"] == pytest.approx(top)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("corpus", "sha256"), "f" * 64, "held-out text"),
        (("source", "commit"), "other", "source checkpoint: other there, c0ffee here"),
        (("cost", "sums", "tokens"), [1, 2], "tokens of each document: differ"),
    ],
)
def test_what_cannot_be_paired_is_refused(place, value, said, proofs):
    other = copy.deepcopy(proofs[1].parity.to_json())
    section = other
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = value
    this = proofs[0].parity
    if place[-1] == "tokens":
        other["cost"]["sums"] = dict.fromkeys(other["cost"]["sums"], value)  # lists of one length
    with pytest.raises(SourceError, match=said):
        require_same(this.source, this.corpus, comparable(other, "there"))
        compared(this, comparable(other, "there"))


def test_another_text_is_refused_before_anything_is_measured(source, tmp_path, proofs):
    other, measured = copy.deepcopy(proofs[0].parity.to_json()), []
    other["corpus"]["sha256"] = "1" * 64

    class Watched(type(SILENT)):
        def track(self, title, *args, **kwargs):
            measured.append(title)
            return super().track(title, *args, **kwargs)

    it = subject(source, tmp_path, Quantize(method="rtn", group_size=32))
    with pytest.raises(SourceError, match="held-out text"):
        prove(it, some_windows(rows=30), Gates(), Compute(progress=Watched()), against=comparable(other, "there"))
    assert not measured


@pytest.mark.parametrize("lacks", ["cost", "export", "source", "corpus", "cost.sums", "cost.sums.kld"])
def test_half_a_proof_is_refused_by_name(proofs, lacks):
    other = copy.deepcopy(proofs[0].parity.to_json())
    *sections, name = lacks.split(".")
    section = other
    for key in sections:
        section = section[key]
    del section[name]
    with pytest.raises(SourceError, match=f"there.json: no `{lacks}`.*not a whole parity.json"):
        comparable(other, "there.json")


@pytest.mark.parametrize("other", [{"schema": 1}, {}, [], "x"])
def test_another_schema_is_refused_before_the_long_part(other):
    with pytest.raises(SourceError, match="there.json: schema .*schema 2 was expected"):
        comparable(other, "there.json")


def test_rounding_to_nearest_is_scored_beside_the_artifact(source, tmp_path):
    """Of an artifact that is itself round-to-nearest nothing was recovered; of the original everything."""
    quantize, windows = Quantize(method="rtn", group_size=32), some_windows(rows=30)
    (tmp_path / "a").mkdir()
    it = subject(source, tmp_path / "a", quantize)
    found = prove(it, windows, Gates(), nearest=it.stored).parity.to_json()["cost"]["rounding"]["kld"]
    assert found["artifact"] == found["rtn"] and found["saved"]["mean"] == 0 and found["recovered"]["value"] == 0
    (tmp_path / "b").mkdir()
    exact = subject(source, tmp_path / "b", Quantize(method="none", embedding="float32", head={"method": "none"}))
    found = prove(exact, windows, Gates(), nearest=it.stored).parity.to_json()["cost"]["rounding"]["kld"]
    recovered = found["recovered"]
    assert recovered["value"] > 0.9 and recovered["low"] <= recovered["value"] <= recovered["high"]


def test_three_models_at_once_keep_their_weights_within_the_share_of_one(source, tmp_path, monkeypatch):
    made, windows, need = [], some_windows(rows=30), 4 * CONFIG.parameters

    class Noted(reference.Reference):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            made.append(self.how.weights)

    itself = replace(subject(source, tmp_path, Quantize(method="rtn")), stored=source)
    monkeypatch.setattr(cost, "Reference", Noted)
    monkeypatch.setattr(reference, "SLAB_BYTES", 8 * 4 * 40 * CONFIG.hidden_size)
    for free in (6 * need - 1, 6 * need):
        monkeypatch.setattr(reference, "_free_memory", lambda free=free: free)
        cost.measure_rounding(itself, source, windows)
    assert made == 3 * ["one layer at a time"] + 3 * ["kept in memory"]


# The table of tokens


def test_the_table_has_a_row_for_every_scored_token(proofs, tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    windows = some_windows()
    (tmp_path / "t.parquet").write_bytes(token_table(proofs[0].figures, windows))
    table = parquet.read_table(tmp_path / "t.parquet")
    assert table.num_rows == 9 * 39 and table.schema.metadata[b"corpus_sha256"].decode() == windows.sha256
    rows = table.to_pylist()
    for row in (rows[0], rows[150], rows[-1]):
        assert row["token"] == windows.ids[row["window"], row["position"]]
        assert row["document"] == windows.documents[row["window"], row["position"]]
        assert row["subset"] == ("odd" if row["document"] % 2 else None)
    np.testing.assert_array_equal([row["kld"] for row in rows], proofs[0].figures.kld)
    assert sum(row["same_top"] for row in rows) == proofs[0].figures.same_top.sum()


def test_without_pyarrow_the_table_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EnvironmentProblem, match="pyarrow") as caught:
        token_table(TokenFigures(), some_windows())
    assert "pythia-export[parquet]" in caught.value.hint
