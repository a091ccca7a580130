"""What a plan counts is what a job computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import InMemory, hugging_face, on_disk, small_config
from torch.utils.flop_counter import FlopCounterMode

from pythia_export.calibrate import activations, problem, quantize_stream
from pythia_export.commands import footprint
from pythia_export.model.suite import geometry
from pythia_export.recipe import Calibration, Quantize, load_recipe
from pythia_export.weights.layout import layout
from pythia_export.weights.writer import WeightsWriter

WINDOWS = np.random.default_rng(0).integers(0, 96, (512, 8))  # so short that attention takes next to nothing


@pytest.mark.parametrize("kept", [True, False], ids=["middles are kept", "middles are computed again"])
@pytest.mark.parametrize("corrected", [True, False], ids=["error correction", "none"])
def test_observing_takes_the_operations_that_are_planned(tmp_path, monkeypatch, corrected, kept):
    monkeypatch.setattr(problem, "BLOCK", 64)  # of both widths half is summed
    if not kept:
        monkeypatch.setattr(activations, "WIDTH_A_THREAD", 1 << 20)
        for module in (activations, footprint):
            monkeypatch.setattr(module, "KEPT_BYTES", 0)
    config = small_config(layers=2)
    settings = {"beam": 1, "clip": False, "fisher": False, "joint_hessian": False, "error_correction": corrected}
    quantize = Quantize(**settings, act_order=False)
    text = Calibration(source="python-stdlib", samples=len(WINDOWS), sequence_length=WINDOWS.shape[1])
    counts = {}
    for windows in (WINDOWS, WINDOWS[: len(WINDOWS) // 2]):  # their difference is what grows with the text
        with (
            WeightsWriter(tmp_path / "weights", layout(config, quantize, "float32")) as writer,
            FlopCounterMode(display=False) as counter,
        ):
            quantize_stream(InMemory(config, on_disk(hugging_face(config))), writer, windows)
        counts[len(windows)] = counter.get_total_flops()
    grown = 2 * (counts[len(WINDOWS)] - counts[len(WINDOWS) // 2])
    planned = footprint.observing_operations(config, quantize, text, torch.get_num_threads())
    assert planned == pytest.approx(grown, rel=0.06)


def test_the_best_effort_counts_a_hessian_for_each_head():
    """QKV takes more than half as long again (benchmarks/README.md), and no other matrix does."""
    config = small_config(size="410m", ff=4096)
    default, best, kept = (
        footprint.cubic_operations(config, Quantize(**settings))
        for settings in ({}, {"effort": "best"}, {"effort": "best", "balance": False})
    )
    assert default < kept < best < 1.5 * default


def test_text_that_the_original_writes_is_counted_where_it_is_observed():
    best, default, alone = (
        load_recipe("70m", {"quantize.effort": effort, "quantize.error_correction": corrected})
        for effort, corrected in (("best", True), ("default", True), ("best", False))
    )
    config, samples = geometry("EleutherAI/pythia-70m"), best.calibration.samples
    own = min(samples, footprint.trained_on(config, best).drawn)
    assert own > 0
    assert footprint.observed_text(config, best).samples == samples + own
    assert footprint.observed_text(config, default) == footprint.observed_text(config, alone) == default.calibration
