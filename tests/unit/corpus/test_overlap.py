"""Held-out text that quantisation has observed is refused; what documents have in common by nature is not."""

from __future__ import annotations

import numpy as np
import pytest
from demo_job import RECIPE, run
from sweeps import RTN, checkpoints, sweep

from pythia_export.base.errors import RecipeError
from pythia_export.checkpoint import demo_folder
from pythia_export.corpus import Windows
from pythia_export.corpus.overlap import require_held_out, seen_share
from pythia_export.sweep.folder import Folder
from pythia_export.sweep.run import run as run_sweep


def windows(ids: np.ndarray, length: int) -> Windows:
    count = ids.size // length
    return Windows.of(
        ids[: count * length].reshape(count, length).copy(), np.zeros((count, length), int), "noise", 1, {}
    )


@pytest.mark.parametrize(("length", "other"), [(128, 128), (128, 200), (16, 64), (500, 31)])
@pytest.mark.parametrize("begin", [0, 7, 1000])
def test_text_is_found_wherever_it_lies_and_however_it_is_cut(length, other, begin):
    stream = np.random.default_rng(0).integers(0, 4096, 20_000)
    seen = seen_share(windows(stream[begin : begin + 4000], length), windows(stream, other))
    assert seen == 1
    assert seen_share(windows(stream[:8000], length), windows(stream[8000:], other)) == 0


def test_the_share_is_that_of_the_held_out_text():
    stream = np.random.default_rng(0).integers(0, 4096, 64 * 100)
    text, some = windows(stream, 64), windows(stream[: 64 * 30], 64)
    assert seen_share(text, some) == pytest.approx(0.3)
    with pytest.raises(RecipeError, match=r"30 % of the held-out text \(noise\) is calibration text") as refused:
        require_held_out(text, some, Told())
    assert "[verify]" in refused.value.hint
    told = Told()
    require_held_out(text, windows(stream[: 64 * 10], 64), told)
    assert len(told.notes) == 1 and "10 % of the held-out text" in told.notes[0]
    require_held_out(text, windows(stream[: 64 * 10] + 1, 64), told)
    assert len(told.notes) == 1


class Told:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_a_run_and_a_sweep_refuse_it_before_anything_is_quantised(tmp_path):
    (tmp_path / "text.txt").write_text((demo_folder() / "main" / "tokenizer.json").read_text()[:200_000])
    recipe = RECIPE.replace('"model"', f'"{demo_folder() / "main"}"').replace(
        'source = "python-stdlib"', 'source = "file", path = "text.txt"'
    )
    (tmp_path / "recipe.toml").write_text(recipe)
    done = run("run", tmp_path / "recipe.toml", "--out", tmp_path / "out", check=2)
    assert "100 % of the held-out text" in done.stderr and not (tmp_path / ".out.work").exists()
    run("quantize", tmp_path / "recipe.toml", "--out", tmp_path / "out")  # which proves nothing
    same = {"source": "file", "path": str(tmp_path / "text.txt"), "sequence_length": 128}
    texts = {"calibration": same | {"samples": 8}, "verify": same | {"tokens": 1024}}
    template = checkpoints(tmp_path / "of", "step1")
    with pytest.raises(RecipeError, match="is calibration text"):
        run_sweep(sweep(template, {"group_size": 32}, texts=texts), Folder(tmp_path / "sweep"))
    assert run_sweep(sweep(template, RTN, texts=texts), Folder(tmp_path / "rtn")).done == 1
