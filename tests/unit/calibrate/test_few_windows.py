"""Little or foreign calibration text: what is added to GPTQ costs no more than GPTQ alone does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import export_model
from test_balance import TINY, WINDOWS, divergence, logits, source

from pythia_export.recipe import Export, Quantize

FOREIGN = np.random.default_rng(2).integers(48, 96, (4, 32))  # half of the tokens that the model is asked about
PLAIN = {"clip": False, "beam": 1, "error_correction": False, "fisher": False}
STORED = {"group_size": 32, "head": {"method": "none"}, "embedding": "float32"}


@pytest.mark.parametrize(
    ("windows", "effort"),
    [
        (WINDOWS[:4], "default"),
        (FOREIGN, "default"),
        pytest.param(WINDOWS[:4], "best", marks=pytest.mark.long),
        pytest.param(FOREIGN, "best", marks=pytest.mark.long),
    ],
    ids=["own-default", "foreign-default", "own-best", "foreign-best"],
)
def test_four_windows_are_no_worse_than_plain_gptq(windows, effort, tmp_path):
    """There are as many tokens as inputs of 4h_to_h: fits to them that are not shortened cost 4 to 5 % more.

    That was seen with torch 2.13. Another torch adds in another order, and codes that are ties fall on the other side:
    that alone moves the ratio by several hundredths.
    """
    most = 1.02 if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13) else 1.1
    found = {}
    for name, settings in (("plain", PLAIN), ("ours", {"effort": effort})):
        (tmp_path / name).mkdir()
        exported = export_model(source(), tmp_path / name, Quantize(**STORED, **settings), Export(), windows)
        found[name] = divergence(logits(source(), TINY), logits(exported.reader(), TINY))
    assert found["ours"] < most * found["plain"], found
