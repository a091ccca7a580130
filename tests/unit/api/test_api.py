"""`from pythia_export import Artifact`: text in, text and numbers out, without torch; the documents' own snippets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from places import ROOT

import pythia_export
from pythia_export import Artifact, api
from pythia_export.base.errors import IntegrityError, RecipeError
from pythia_export.commands.run import run
from pythia_export.model import likelihood
from pythia_export.recipe import parse_recipe

RECIPE = {
    "model": {"id": "demo"},
    "quantize": {"method": "rtn", "bits": 4, "group_size": 32},
    "verify": {"source": "python-stdlib", "tokens": 256, "sequence_length": 64},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "build" / "demo"
    run(parse_recipe(RECIPE), out)
    return out


@pytest.fixture(scope="module")
def artifact(folder):
    return Artifact.open(folder)


def by_hand(folder: Path, artifact, ids: list[int]) -> np.ndarray:
    """Logits [T, V] of one window, by a bare ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    c = artifact.config
    empty = np.zeros((1, c.num_heads, 0, c.head_dim), np.float32)
    feeds = {i.name: empty for i in session.get_inputs() if i.name.startswith("past")}
    feeds |= {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    return session.run(["logits"], feeds | {"position_ids": np.arange(len(ids))[None]})[0][0]


def test_text_is_continued_whole_or_in_pieces(artifact):
    text = artifact.generate("def main(", 24)
    assert text and text == "".join(artifact.stream("def main(", 24))
    assert text.partition("(")[0] == artifact.generate("def main(", 24, stop=["("])
    drawn = [artifact.generate("import ", 16, temperature=1.0, top_k=20, seed=s) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(RecipeError, match="512 positions"):
        artifact.generate("def main(", 600)


def test_a_list_of_prompts_gives_a_list_of_texts(artifact):
    prompts = ["def main(", "import ", "class Node:\n    def __init__"]
    assert artifact.generate(prompts, 12) == [artifact.generate(prompt, 12) for prompt in prompts]
    assert artifact.generate(tuple(prompts[:1]), 12, stop=["("]) == [artifact.generate(prompts[0], 12, stop="(")]
    assert artifact.generate([], 12) == []


def test_prompts_of_several_lengths_that_end_apart_are_as_one_by_one(artifact):
    """The shorter are padded on the left, and a row that ended goes on as padding: neither changes another's text."""
    prompts = ["d", "for name in sorted(names):\n    if name not in found and", "import os\n", "class Node:\n" * 6]
    stops = [artifact.generate(prompt, 24)[3 * i : 3 * i + 2] for i, prompt in enumerate(prompts)]
    stop = [text for text in stops if text]
    assert artifact.generate(prompts, 24, stop=stop) == [artifact.generate(p, 24, stop=stop) for p in prompts]


def test_a_draft_changes_no_text_and_has_to_have_the_same_tokenizer(artifact, folder, tmp_path):
    prompts = ["def main(", "import "]
    expected = artifact.generate(prompts, 24)
    draft = Artifact.open(folder)
    assert artifact.generate(prompts, 24, draft=draft) == expected
    assert "".join(artifact.stream(prompts[1], 24, draft=draft)) == expected[1]
    drawn = [artifact.generate("import ", 16, temperature=1.0, seed=seed, draft=draft) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    draft._tokenizer.add_tokens(["zebra"])
    with pytest.raises(RecipeError, match="another tokenizer"):
        Artifact.open(folder).generate("x", 4, draft=draft)


def test_ids_may_be_lists(artifact):
    ids = [[5, 6, 7], [8, 9, 10]]
    assert (artifact.logits(ids) == artifact.logits(np.array(ids))).all()
    assert (artifact.logits(np.array(ids, np.uint16)) == artifact.logits(ids)).all()
    alone = artifact.logits([[9, 10]])
    padded = artifact.logits([[0, 9, 10], [5, 6, 7]], [[0, 1, 1], [1, 1, 1]])
    assert np.abs(padded[:1, 1:] - alone).max() < 1e-3


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda a: a.generate([1, 2]), TypeError, "a str, or a list of them, not a list of int"),
        (lambda a: a.generate(None), TypeError, "not a NoneType"),
        (lambda a: a.generate("x", "5"), TypeError, "max_new_tokens is a whole number, not a str"),
        (lambda a: a.stream(["x"]), TypeError, "stream takes one prompt, a str, not a list of str"),
        (lambda a: a.score([b"x"]), TypeError, "score takes a text, a str, or a list of them, not a list of bytes"),
        (lambda a: a.score(b"x"), TypeError, "not a bytes"),
        (lambda a: a.logits([1, 2]), ValueError, r"ids of shape \(2,\); \[batch, tokens\] was expected"),
        (lambda a: a.logits([[1, 2], [3]]), ValueError, "several lengths.*pad the shorter rows on the left"),
        (lambda a: a.logits([[0.5]]), TypeError, "whole numbers"),
        (lambda a: a.logits("x"), TypeError, "ids of a str; whole numbers"),
        (lambda a: a.logits([[1, 2]], [[True, True]]), TypeError, "the mask of a list of list"),
        (lambda a: a.logits([[10**6]]), IntegrityError, "vocabulary is 0 to"),
    ],
)
def test_what_is_no_text_and_no_ids_says_what_was_expected(artifact, call, kind, says):
    with pytest.raises(kind, match=says):
        call(artifact)


def test_who_trusts_a_graph_says_so_when_it_is_opened(artifact, folder, monkeypatch):
    seen = []
    monkeypatch.setattr(
        api.runtime.Session, "open", lambda a, *, trust_graph=False: seen.append(trust_graph) or artifact.session
    )
    for trust in (False, True):
        Artifact.open(folder, trust_graph=trust).logits([[1, 2]])
    assert seen == [False, True]


def test_scores_are_the_log_probabilities_of_the_tokens(artifact, folder):
    text = "import os\n\ndef main(argv):\n    return os.path.join(*argv)\n"
    ids = artifact.tokenizer().encode(text).ids
    logits = by_hand(folder, artifact, ids).astype(np.float64)
    expected = [row[i] - np.log(np.exp(row).sum()) for row, i in zip(logits, ids[1:], strict=False)]
    found = artifact.score(text)
    assert found.shape == (len(ids) - 1,) and np.abs(found - expected).max() < 1e-4
    assert np.abs(artifact.logits(np.array([ids]))[0] - logits).max() < 1e-3
    assert artifact.score("").size == 0 and artifact.score("x").size == 0


def test_many_texts_are_scored_as_each_alone(artifact, monkeypatch):
    """Of all lengths, empty ones and one beyond the context among them, several in a pass."""
    texts = ["import os\n", "x", "", "def main(argv):\n    return argv\n", "value = compute(1)\n" * 90, "a = b\n" * 3]
    passes, logits = [], artifact.session.logits
    monkeypatch.setattr(artifact.session, "logits", lambda ids: passes.append(ids.shape) or logits(ids))
    found = artifact.score(texts)
    assert [len(x) for x in found] == [max(0, len(artifact.tokenizer().encode(text).ids) - 1) for text in texts]
    assert len(found[4]) > artifact.config.max_positions and len(passes) < 4
    for together, text in zip(found, texts, strict=True):
        assert np.abs(together - artifact.score(text)).max(initial=0) < 1e-4
    assert artifact.score([]) == []


def test_a_text_beyond_the_context_is_scored_in_windows_that_share_a_token(artifact):
    text = "".join(f"value_{i} = compute({i}, other={i * i})\n" for i in range(120))
    tokenizer = artifact.tokenizer()
    ids, window = tokenizer.encode(text).ids, artifact.config.max_positions
    assert 2 * window < len(ids)
    found = artifact.score(text)
    logits = artifact.logits(np.array([ids[window - 1 : 2 * window - 2]]))[0].astype(np.float64)
    expected = [row[i] - np.log(np.exp(row).sum()) for row, i in zip(logits, ids[window:], strict=False)]
    assert found.shape == (len(ids) - 1,) and np.abs(found[window - 1 : 2 * window - 2] - expected).max() < 1e-4


def test_a_window_is_scored_in_little_memory_beside_its_logits(artifact, monkeypatch):
    text = "".join(f"value_{i} = compute({i})\n" for i in range(40))
    logits = artifact.logits(np.array([artifact.tokenizer().encode(text).ids])[:, :-1])
    expected, peaks = artifact.score(text), {}
    monkeypatch.setattr(artifact.session, "logits", lambda ids: logits)
    for chunk in (likelihood.CHUNK_LOGITS, 10**9):
        monkeypatch.setattr(likelihood, "CHUNK_LOGITS", chunk)
        tracemalloc.start()
        np.testing.assert_allclose(artifact.score(text), expected, rtol=1e-14)
        peaks[chunk] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert min(peaks) == 1 << 17 and peaks[1 << 17] < logits.nbytes < peaks[10**9] / 2


def test_running_an_artifact_imports_no_torch(folder):
    code = (
        "import sys; from pythia_export import Artifact\n"
        f"a = Artifact.open({str(folder)!r}); a.generate('x', 2); a.score('def f(x):')\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "transformers", "onnx", "safetensors", "huggingface_hub"} & set(done.stdout.split())


def test_what_the_package_lacks_is_named():
    with pytest.raises(AttributeError, match="no attribute 'Artefact'"):
        pythia_export.Artefact  # noqa: B018


def snippets() -> list:
    """Every block of Python in the documents that runs on build/demo with what the tests have."""
    found = []
    for path in (ROOT / "README.md", ROOT / "docs" / "guides" / "consumers.md"):
        for i, block in enumerate(re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.S | re.M)):
            if "pythia_export" in block or "onnxruntime.InferenceSession" in block:
                found.append(pytest.param(block, id=f"{path.name}-{i}"))
    return found


def test_the_loop_that_the_contract_shows_writes_what_we_write(folder):
    (loop,) = (x.values[0] for x in snippets() if "outputs = [" in x.values[0])
    done = subprocess.run([sys.executable, "-c", loop], capture_output=True, text=True, cwd=folder.parent.parent)
    assert done.returncode == 0 and not done.stderr, done.stderr
    prompts = ["def main(", "import os\nimport sys\n"]
    ours = Artifact.open(folder).generate(prompts, max_new_tokens=16)
    assert json.loads(done.stdout) == [prompt + text for prompt, text in zip(prompts, ours, strict=True)]


@pytest.mark.parametrize("snippet", snippets())
def test_the_documents_snippets_run(snippet, folder):
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, cwd=folder.parent.parent)
    assert done.returncode == 0 and done.stdout.strip() and not done.stderr, done.stderr
