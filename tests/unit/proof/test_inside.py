"""Question C against a slow oracle: Hugging Face's own hidden states and attentions of both models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from autoencoders import save_autoencoder
from models import InMemory, hugging_face, on_disk, small_config
from safetensors.torch import save_file

from pythia_export.base.errors import NumericsError, SourceError
from pythia_export.corpus import Windows
from pythia_export.model.block import DENSE, DOWN, UP
from pythia_export.model.neox import HEAD, QKV
from pythia_export.proof import features, inside, reference
from pythia_export.proof.activations import Activations
from pythia_export.proof.autoencoder import autoencoders
from pythia_export.proof.gates import judge
from pythia_export.proof.inside import Inside
from pythia_export.proof.likeness import jensen_shannon, repeated_tokens
from pythia_export.proof.reference import Reference
from pythia_export.proof.statistics import clustered_mean, clustered_share
from pythia_export.recipe import Gates
from pythia_export.records import parity as records

CONFIG = small_config(layers=3, vocab=96, positions=64)


def rounded(weights: dict[str, torch.Tensor], by: float = 0.02) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: w + by * w.std(correction=0) * torch.randn(w.shape, generator=generator) for name, w in weights.items()
    }


@pytest.fixture(scope="module")
def windows() -> Windows:
    ids = np.random.default_rng(0).integers(0, 96, (9, 40))
    documents = (np.arange(ids.size) // 130).reshape(ids.shape) * 7  # labels need not be counted from 0 without gaps
    return Windows(ids, documents, "noise", "0" * 64, 4 * ids.size, {})


@pytest.fixture(scope="module")
def sources():
    original = on_disk(hugging_face(CONFIG))
    return InMemory(CONFIG, original), InMemory(CONFIG, rounded(original))


def looked(sources, windows, config=CONFIG, **options) -> records.Inside:
    original, stored = sources
    watch = Inside(original, {"artifact": stored}, config, windows, **options)
    Reference(original, config, windows.ids, "", watch=watch).watched()
    return watch.result()


@pytest.fixture(scope="module")
def found(sources, windows) -> records.Inside:
    return looked(sources, windows)


def by_hugging_face(source: InMemory, ids: np.ndarray):
    """Residual streams, what the lens makes of each, and attention patterns: lists by boundary or by layer."""
    model = hugging_face(CONFIG)
    head = "embed_out" if hasattr(model, "embed_out") else "lm_head"  # transformers 4, and 5
    model.load_state_dict({k.replace("embed_out", head): v for k, v in source.tensors.items()}, strict=False)
    model.config._attn_implementation = "eager"
    streams: list[torch.Tensor] = []
    for layer in model.gpt_neox.layers:
        layer.register_forward_hook(lambda _, __, out: streams.append(out[0] if isinstance(out, tuple) else out))
    model.gpt_neox.embed_in.register_forward_hook(lambda _, __, out: streams.append(out))
    with torch.no_grad():
        patterns = model(torch.from_numpy(ids), output_attentions=True).attentions
        lens = [
            getattr(model, head)(model.gpt_neox.final_layer_norm(x)).double().log_softmax(-1).numpy() for x in streams
        ]
    return [x.double().numpy() for x in streams], lens, [p.double().numpy() for p in patterns]


def test_every_figure_is_what_hugging_face_gives(found, sources, windows):
    x, lens_x, p = by_hugging_face(sources[0], windows.ids)
    y, lens_y, q = by_hugging_face(sources[1], windows.ids)
    assert len(x) == 4 and len(found.artifact.depth) == 4 and found.clusters.count == 3
    rows = inside._sampled(*windows.ids.shape)
    assert rows.min() >= 1 and rows.max() < windows.ids.shape[1]  # the first token has but itself to look at
    where = np.arange(len(rows))[:, None], rows
    labels = windows.documents[where].ravel()
    for at, boundary in enumerate(found.artifact.depth):
        assert boundary.layer == (None if at == 0 else at - 1)
        error = np.linalg.norm(y[at] - x[at], axis=-1) / np.linalg.norm(x[at], axis=-1)
        expected = clustered_mean(error.ravel(), windows.documents.ravel())
        assert boundary.residual_error.mean == pytest.approx(expected.value, rel=1e-4)
        assert boundary.residual_error.high == pytest.approx(expected.high, rel=1e-3)
        cosine = (x[at] * y[at]).sum(-1) / np.linalg.norm(x[at], axis=-1) / np.linalg.norm(y[at], axis=-1)
        assert boundary.cosine.mean == pytest.approx(cosine.mean(), abs=1e-6)
        kld = (np.exp(lens_x[at]) * (lens_x[at] - lens_y[at])).sum(-1)[where].ravel()
        assert boundary.lens_kld.mean == pytest.approx(kld.mean(), rel=1e-3, abs=1e-7)
        same = (lens_x[at].argmax(-1) == lens_y[at].argmax(-1))[where].ravel()
        share = clustered_share(same, labels)
        assert (boundary.lens_same_top.value, boundary.lens_same_top.low) == pytest.approx((share.value, share.low))
    assert [(h.layer, h.head) for h in found.artifact.heads] == list(np.ndindex(3, CONFIG.num_heads))
    for head in found.artifact.heads:
        a, b = (side[head.layer][:, head.head][where].reshape(rows.size, -1) for side in (p, q))
        m = (a + b) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            js = sum(np.nan_to_num(z * np.log(z / m)).sum(-1) for z in (a, b)) / 2
        expected = clustered_mean(js, labels)
        assert head.pattern_js.mean == pytest.approx(expected.value, rel=1e-3, abs=1e-7)
        assert head.pattern_js.se == pytest.approx(expected.se, rel=1e-2, abs=1e-7)


def test_induction_is_attention_to_what_followed_the_first_time(found, sources):
    length = found.repeated
    assert length == 31  # what a context of 64 holds twice, behind the end-of-text token
    ids = repeated_tokens(96, CONFIG.eos_token_id, found.sequences, length)
    assert ids.shape == (16, 63) and (ids[:, 1:32] == ids[:, 32:]).all() and (ids[:, 0] == CONFIG.eos_token_id).all()
    for side, name in zip(sources, ("induction_original", "induction"), strict=True):
        _, _, patterns = by_hugging_face(side, ids)
        for head in found.artifact.heads:
            # The query of token i of the second half, and the token after its first occurrence.
            scores = [patterns[head.layer][:, head.head, 1 + length + i, 1 + i + 1] for i in range(length)]
            assert getattr(head, name) == pytest.approx(np.mean(scores), rel=1e-4)
    lost = [h.induction_original - h.induction for h in found.artifact.heads]
    assert [h.induction_lost.mean for h in found.artifact.heads] == pytest.approx(lost)
    assert found.artifact.induction_original == max(h.induction_original for h in found.artifact.heads)


def test_figures_of_the_whole_model_are_means_without_the_embedding(found):
    side, layers = found.artifact, found.artifact.depth[1:]
    for name in ("residual_error", "cosine", "lens_kld"):
        mean = np.mean([getattr(x, name).mean for x in layers])
        assert getattr(side, name).mean == pytest.approx(mean), name
        assert mean != pytest.approx(np.mean([getattr(x, name).mean for x in side.depth])), name
    assert side.lens_same_top.value == pytest.approx(np.mean([x.lens_same_top.value for x in layers]))
    assert side.pattern_js.mean == pytest.approx(np.mean([head.pattern_js.mean for head in side.heads]))
    assert side.induction == max(head.induction for head in side.heads)


def test_activations_are_rounded_on_the_artifacts_side_alone(sources, windows):
    """The same weights: what differs is what is rounded. A rounded head shows in the lens and nowhere else."""
    same = sources[0], sources[0]
    blocks = {f"gpt_neox.layers.1.{name}": 32 for name in (QKV, DENSE, UP, DOWN)}
    found = looked(same, windows, activations=Activations(blocks))
    assert (found.activations, found.cache) == ("int8", "float32")
    error = [x.residual_error.mean for x in found.artifact.depth]
    assert error[:2] == [0, 0] and min(error[2:]) > 1e-4
    of_head = looked(same, windows, activations=Activations({HEAD: 32})).artifact
    assert of_head.residual_error.mean == 0 and of_head.lens_kld.mean > 1e-8


def test_several_passes_give_what_one_does(found, sources, windows, monkeypatch):
    monkeypatch.setattr(reference, "SLAB_BYTES", 2 * 4 * 2 * 40 * CONFIG.hidden_size)  # two windows of two sides
    monkeypatch.setattr(inside, "LENS_LOGITS", 40 * 96)
    again = looked(sources, windows)
    for one, other in zip(found.artifact.heads, again.artifact.heads, strict=True):
        assert other.pattern_js.mean == pytest.approx(one.pattern_js.mean, rel=1e-4)
        assert other.induction == pytest.approx(one.induction, rel=1e-4)
    for one, other in zip(found.artifact.depth, again.artifact.depth, strict=True):
        assert other.residual_error.mean == pytest.approx(one.residual_error.mean, rel=1e-4)
        assert other.lens_same_top == one.lens_same_top


def test_the_same_weights_compute_alike(sources, windows):
    same = looked((sources[0], sources[0]), windows).artifact
    assert same.residual_error.mean == 0 and same.lens_same_top.value == 1 and same.pattern_js.mean < 1e-9
    assert all(head.induction_lost.mean == 0 for head in same.heads)


def test_a_sequential_residual_and_one_document(windows):
    config = replace(CONFIG, parallel_residual=False)
    original = on_disk(hugging_face(config))
    sides = InMemory(config, original), InMemory(config, rounded(original))
    one = replace(windows, documents=np.zeros_like(windows.documents))
    found = looked(sides, one, config)
    assert (found.clusters.by, found.clusters.count) == ("window", 9)
    assert 0 < found.artifact.residual_error.low < found.artifact.residual_error.mean < 0.5


def test_an_infinity_inside_is_an_error(sources, windows):
    broken = dict(sources[1].tensors)
    name = "gpt_neox.layers.1.attention.query_key_value.bias"
    broken[name] = broken[name] * torch.inf
    with pytest.raises(NumericsError, match="inside the model"):
        looked((sources[0], InMemory(CONFIG, broken)), windows)


def test_patterns_apart_are_log_2_and_alike_are_0():
    p = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    assert jensen_shannon(p, p.flip(1)[[0, 1]])[0] == pytest.approx(np.log(2))
    assert jensen_shannon(p, p).tolist() == [0, 0]


def test_a_gate_holds_the_layer_or_head_that_is_worst_off(found):
    worst = max(found.artifact.heads, key=lambda head: head.pattern_js.high)
    deepest = max(found.artifact.depth, key=lambda x: x.residual_error.high)

    def verdicts(**gates):
        return judge(Gates(**gates), None, None, None, inside=found)

    (passed,) = verdicts(pattern_js=1.01 * worst.pattern_js.high)
    assert passed.outcome == "passed" and passed.bound == pytest.approx(worst.pattern_js.high)
    assert passed.place == f"layer {worst.layer}, head {worst.head}"
    stream, js = verdicts(pattern_js=0.99 * worst.pattern_js.high, residual_error=0.5 * deepest.residual_error.low)
    assert js.outcome == "inconclusive" and js.place == passed.place and js.more_tokens
    assert stream.outcome == "failed" and stream.place == f"layer {deepest.layer}"
    (lens,) = verdicts(lens_same_top=1)
    least = min(found.artifact.depth[1:], key=lambda x: x.lens_same_top.low)
    assert not lens.passed and lens.value == least.lens_same_top.value
    assert judge(Gates(pattern_js=1), None, None, None) == []  # not looked at: not judged


@pytest.fixture(scope="module")
def through(sources, windows, tmp_path_factory):
    """Figures of two autoencoders, and their tensors by name."""
    folder = tmp_path_factory.mktemp("sae")
    tensors = {
        "first/stream": save_autoencoder(folder / "first" / "stream", "blocks.1.hook_resid_post", 128, 192),
        "values": save_autoencoder(folder / "values", "blocks.2.attn.hook_z", 32, 80, hook_head_index=1),
    }
    found = autoencoders(folder, CONFIG)
    return looked(sources, windows, autoencoders=found), tensors, found


def test_features_that_survive_and_what_is_unexplained(through, sources, windows):
    """Each figure again, from Hugging Face's hidden states and the formulas as they stand in a textbook."""
    found, tensors, _ = through
    assert [one.name for one in found.artifact.features] == ["first/stream", "values"]
    one, w = found.artifact.features[0], {name: x.double().numpy() for name, x in tensors["first/stream"].items()}
    assert (one.hook, one.head, one.features) == ("blocks.1.hook_out", None, 192)
    rows = inside._sampled(*windows.ids.shape)
    where = np.arange(len(rows))[:, None], rows
    labels = windows.documents[where].ravel()
    active, unexplained = [], []
    for source in sources:
        x = by_hugging_face(source, windows.ids)[0][2][where].reshape(rows.size, -1)
        a = np.maximum(0, (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
        active.append(a > 0)
        error = ((x - a @ w["W_dec"] - w["b_dec"]) ** 2).sum(1)
        unexplained.append(error.sum() / ((x - x.mean(0)) ** 2).sum())
    before, after = active
    assert one.active_original == pytest.approx(before.sum(1).mean()) and one.active == pytest.approx(
        after.sum(1).mean()
    )
    token, _ = np.nonzero(before)
    survived = clustered_share(after[before], labels[token])
    assert (one.survived.value, one.survived.low) == pytest.approx((survived.value, survived.low), rel=1e-4)
    assert 0.5 < one.survived.value < 1 and one.inherited.value == pytest.approx(before[after].mean())
    assert one.inherited.value != one.survived.value
    assert [one.unexplained_original.mean, one.unexplained.mean] == pytest.approx(unexplained, rel=1e-4)
    assert one.unexplained.low < one.unexplained.mean < one.unexplained.high
    counts = [(x.active_original, x.survived.value) for x in found.artifact.features]
    both = sum(n * share for n, share in counts) / sum(n for n, _ in counts)
    assert found.artifact.feature_survival.value == pytest.approx(both)


def test_a_wide_autoencoder_goes_by_few_tokens_at_a_time(through, sources, windows, monkeypatch):
    found, _, opened = through
    monkeypatch.setattr(features, "FEATURES", 5 * 192)
    again = looked(sources, windows, autoencoders=opened)
    for one, other in zip(found.artifact.features, again.artifact.features, strict=True):
        assert other.survived == one.survived and other.unexplained.mean == pytest.approx(one.unexplained.mean)


def test_a_gate_on_features_holds_the_worst_autoencoder(through, found):
    worst = min(through[0].artifact.features, key=lambda one: one.survived.low)
    (passed,) = judge(Gates(feature_survival=0.99 * worst.survived.low), None, None, None, inside=through[0])
    assert passed.passed and passed.place == worst.name and passed.bound == pytest.approx(worst.survived.low)
    (failed,) = judge(Gates(feature_survival=0.999), None, None, None, inside=through[0])
    assert failed.outcome == "failed" and failed.place == worst.name
    assert judge(Gates(feature_survival=0.9), None, None, None, inside=found) == []


def test_an_autoencoder_in_which_nothing_is_active_is_refused(sources, windows, tmp_path):
    tensors = save_autoencoder(tmp_path, "blocks.0.hook_out", 128, 8)
    save_file(tensors | {"b_enc": torch.full((8,), -1e6)}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(SourceError, match="none of its 8 features is active in the original, on 288 tokens"):
        looked(sources, windows, autoencoders=autoencoders(tmp_path, CONFIG))
