"""Text that the original writes itself, to train on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import InMemory, hugging_face, on_disk, small_config

from pythia_export.base.compute import Compute
from pythia_export.calibrate import drawn
from pythia_export.calibrate.end_to_end import text_read
from pythia_export.model.block import Block, Rotary, final_norm, head
from pythia_export.model.neox import EMBEDDING
from pythia_export.recipe import Quantize
from pythia_export.weights.layout import layout

WINDOWS = np.random.default_rng(0).integers(0, 96, (5, 24))


@torch.no_grad()
def logits(source: InMemory, ids: np.ndarray) -> torch.Tensor:
    rotary = Rotary.of(source.config, ids.shape[1], torch.float32)
    x = source.tensor(f"{EMBEDDING}.weight")[torch.from_numpy(ids)]
    for layer in range(source.config.num_layers):
        x = Block(source.config, layer, source.tensor)(x, rotary)
    return head(final_norm(x, source.config, source.tensor), source.tensor)


def original(sharpness: float, parallel: bool = True) -> InMemory:
    config = replace(small_config(layers=2), parallel_residual=parallel)
    tensors = on_disk(hugging_face(config))
    tensors["embed_out.weight"] *= sharpness
    return InMemory(config, tensors)


@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "sequential"])
def test_every_token_is_what_the_model_predicts_behind_all_before_it(parallel):
    source = original(1e6, parallel)  # it is certain of each next token
    found = drawn.draw(source, WINDOWS, 15, Compute())
    assert found.shape == (15, 24) and len(np.unique(found, axis=0)) > 10
    assert np.array_equal(found[:, 12:], logits(source, found).argmax(-1).numpy()[:, 11:-1])
    openings = {tuple(row[i : i + 12]) for row in WINDOWS for i in range(13)}
    assert {tuple(row[:12]) for row in found} <= openings


def test_tokens_come_as_often_as_they_are_predicted():
    source = original(8.0)
    found = drawn.draw(source, WINDOWS[:, :2], 2000, Compute())
    p = logits(source, found)[:, 0].double().softmax(-1)
    seen = torch.zeros_like(p[0]).index_add_(0, torch.from_numpy(found[:, 1]), torch.ones(len(found)).double())
    expected, variance = p.sum(0), (p * (1 - p)).sum(0)
    assert float(((seen - expected).square() / variance).mean()) == pytest.approx(1, abs=0.6)


def test_the_same_text_is_drawn_whatever_is_drawn_at_once(monkeypatch):
    source = original(8.0)
    whole = drawn.draw(source, WINDOWS, 15, Compute())
    assert np.array_equal(whole, drawn.draw(source, WINDOWS, 15, Compute()))
    monkeypatch.setattr(drawn, "CACHE_BYTES", 4 * drawn._cached(source.config, 24))
    few = drawn.draw(source, WINDOWS, 15, Compute())
    assert np.array_equal(whole[:, :12], few[:, :12]) and few.shape == whole.shape


def test_nothing_is_drawn_where_there_is_no_memory_for_it_or_text_enough(monkeypatch):
    config = small_config(layers=2)
    places = layout(config, Quantize(effort="best"), "float32")
    whole = text_read(places, 8, 24, 1e12)
    assert (whole.given, whole.drawn, whole.held_out) == (7, 21, 1)
    little = text_read(places, 8, 24, whole.nbytes - 1)
    assert (little.given, little.drawn) == (7, 0) and little.nbytes < whole.nbytes
    monkeypatch.setattr(drawn, "TOKENS", 24 * 9)
    assert text_read(places, 8, 24, 1e12).drawn == 2 and text_read(places, 80, 24, 1e12).drawn == 0
    monkeypatch.setattr(drawn, "CACHE_BYTES", 3 * drawn._cached(config, 24))
    assert text_read(places, 8, 24, 1e12).drawn == 0
