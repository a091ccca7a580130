"""Numbers of 16 bits are looked at in pieces: an odd one is found wherever it is, and the largest is finite."""

from __future__ import annotations

import pytest
import torch

from pythia_export.base.finite import all_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_one_that_is_not_finite_is_found_wherever_it_is(dtype):
    x = torch.randn(3, 65536 // 2 + 7).to(dtype)
    x[1, 1], x[2, -1] = torch.finfo(dtype).max, -torch.finfo(dtype).max
    assert all_finite(x) and all_finite(x.T) and all_finite(x[:0])
    for at in ((0, 0), (1, 70), (2, -1)):
        for odd in (float("nan"), float("inf"), float("-inf")):
            y = x.clone()
            y[at] = odd
            assert not all_finite(y) and not all_finite(y.T)
