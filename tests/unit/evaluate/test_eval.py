"""lm-evaluation-harness over an artifact: its own `hf` model, on the artifact's weights, is the oracle."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from places import ROOT
from processes import script
from transformers import AutoModelForCausalLM, AutoTokenizer

from pythia_export.artifact import Artifact
from pythia_export.base.errors import RecipeError
from pythia_export.cli.tables import eval_table
from pythia_export.commands.dequantize import dequantize
from pythia_export.commands.export import export
from pythia_export.commands.run import run
from pythia_export.evaluate.model import PythiaOnnx, _generation
from pythia_export.evaluate.published import published
from pythia_export.evaluate.result import Evaluation
from pythia_export.evaluate.run import evaluate
from pythia_export.evaluate.scores import ScoringSession
from pythia_export.model.likelihood import log_softmax
from pythia_export.recipe import parse_recipe
from pythia_export.runtime import Sampling

LAMBADA = ROOT.parent / "shared" / "data" / "lambada" / "lambada_test.jsonl.gz"
RECIPE = """
[model]
id = "demo"
[quantize]
method = "rtn"
bits = 8
group_size = 32
[export]
accuracy_level = 0
[verify]
source = "python-stdlib"
tokens = 256
sequence_length = 128
"""
PAIRS = [
    ("def add(a, b):\n    return", " a + b"),
    ("def add(a, b):\n    return", " a"),  # the same input as the next: one row
    ("def add(a, b):\n    return", " b"),
    ("import ", "os"),  # the space goes to the continuation
    ("", "import sys\n"),  # nothing before: the separator is
    ("", "<|endoftext|>x"),
    ("for i in range(10):\n" * 300, "    print(i)\n"),  # too long: cut on the left
    ("x", " = y" * 60),
    ("class A:\n    pass\n\n\n" * 20, "class B:\n    pass\n"),
]
TEXTS = ["", "import os\n", "def f(x):\n    return x\n" * 250]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("eval") / "artifact"
    run(parse_recipe(tomllib.loads(RECIPE)), out)
    return out


@pytest.fixture(scope="module")
def ours(artifact) -> PythiaOnnx:
    return PythiaOnnx(artifact)


@pytest.fixture(scope="module")
def oracle(artifact, tmp_path_factory) -> HFLM:
    folder = tmp_path_factory.mktemp("float32") / "model"
    dequantize(artifact, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=1)


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, one, i) for i, one in enumerate(arguments)]


def test_loglikelihoods_are_those_of_the_harness(ours, oracle):
    asked = requests("loglikelihood", PAIRS)
    expected, found = oracle.loglikelihood(asked, disable_tqdm=True), ours.loglikelihood(asked, disable_tqdm=True)
    assert [x for x, _ in found] == pytest.approx([x for x, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_a_greedy_continuation_is_said_to_be_one(ours):
    (text,) = ours.generate_until(requests("generate_until", [("import ", {"max_gen_toks": 3})]), disable_tqdm=True)
    flags = ours.loglikelihood(requests("loglikelihood", [("import", f" {text}"), ("import", " zzz")]))
    assert [greedy for _, greedy in flags] == [True, False] or text.startswith(" ")


def test_whole_texts_are_those_of_the_harness(ours, oracle):
    asked = requests("loglikelihood_rolling", [(text,) for text in TEXTS])
    expected = oracle.loglikelihood_rolling(asked, disable_tqdm=True)
    assert ours.loglikelihood_rolling(asked, disable_tqdm=True) == pytest.approx(expected, rel=5e-5, abs=1e-3)


@pytest.mark.parametrize("until", [["\n"], ["return", "\n\n"], []])
def test_generations_are_those_of_the_harness(ours, oracle, until):
    kwargs = {"until": until, "max_gen_toks": 20, "do_sample": False}
    asked = requests("generate_until", [(context, kwargs) for context in ("def main(", "import os\nimport ", "x")])
    assert ours.generate_until(asked, disable_tqdm=True) == oracle.generate_until(asked, disable_tqdm=True)


def test_of_stop_strings_in_one_token_the_first_to_begin_cuts_as_the_harness_has_it(ours, oracle):
    (token,) = ours.generate_until(requests("generate_until", [("import os\nimport", {"max_gen_toks": 1})]), True)
    kwargs = {"until": [token, token[1]], "max_gen_toks": 3}
    asked = requests("generate_until", [("import os\nimport", kwargs)])
    assert len(token) > 2 and ours.generate_until(asked, True) == oracle.generate_until(asked, True) == [""]


def test_a_context_that_is_too_long_for_what_is_asked_loses_its_beginning(ours, oracle):
    asked = requests("generate_until", [("x = 1\n" * 900 + "def main(", {"until": ["\n"], "max_gen_toks": 8})])
    assert ours.generate_until(asked, disable_tqdm=True) == oracle.generate_until(asked, disable_tqdm=True)


def test_an_answer_does_not_depend_on_what_else_is_in_the_batch(artifact, ours):
    alone = PythiaOnnx(artifact, batch_size=1)
    asked = requests("loglikelihood", PAIRS)
    together = [x for x, _ in ours.loglikelihood(asked, disable_tqdm=True)]
    assert [x for x, _ in alone.loglikelihood(asked, disable_tqdm=True)] == pytest.approx(together, abs=1e-3)


def test_requests_with_one_input_are_one_row(ours, monkeypatch):
    rows, score = [], ours._session.score
    monkeypatch.setattr(ours._session, "score", lambda ids, *a: rows.append(len(ids)) or score(ids, *a))
    ours.loglikelihood(requests("loglikelihood", PAIRS[1:3]), disable_tqdm=True)
    assert rows == [1]


@pytest.mark.parametrize(
    "kwargs", [{"num_beams": 4}, {"do_sample": True, "temperature": -1}, {"max_gen_toks": 100_000}]
)
def test_what_it_cannot_do_is_refused(ours, kwargs):
    with pytest.raises(RecipeError):
        ours.generate_until(requests("generate_until", [("x", kwargs)]), disable_tqdm=True)


@pytest.mark.parametrize(
    ("asked", "new", "sampling"),
    [
        ({}, 256, Sampling()),
        ({"max_gen_toks": None, "temperature": None, "until": None}, 256, Sampling()),
        ({"max_tokens": 5, "max_gen_toks": 9}, 9, Sampling()),
        ({"temperature": 0.7}, 256, Sampling(0.7, 50)),  # 50 is transformers' own
        ({"do_sample": True, "temperature": 0.0, "top_p": 0.9}, 256, Sampling()),
        ({"do_sample": False, "temperature": 0.7, "top_k": 5}, 256, Sampling()),
        ({"do_sample": True, "temperature": 0.5, "top_k": 0, "num_beams": 1, "seed": 3}, 256, Sampling(0.5, seed=3)),
        ({"do_sample": True, "temperature": 1, "top_k": 5, "top_p": 0.9}, 256, Sampling(1.0, 5, 0.9)),
    ],
    ids=str,
)
def test_settings_of_a_task_are_read_as_the_harness_reads_them(asked, new, sampling):
    assert _generation(asked, "<|endoftext|>") == (["<|endoftext|>"], new, sampling)
    assert _generation(asked | {"until": "\n"}, "<|endoftext|>")[0] == ["\n", "<|endoftext|>"]


@pytest.mark.parametrize("seeded", [{}, {"seed": 7}])
def test_samples_follow_the_harnesss_seed_and_differ_where_a_question_is_asked_again(artifact, seeded):
    model = PythiaOnnx(artifact, batch_size=1)
    kwargs = {"until": ["\n\n"], "temperature": 1.0, "max_gen_toks": 12} | seeded

    def answers(seed: int) -> list[str]:
        np.random.seed(seed)  # as the harness does before a run
        return model.generate_until(requests("generate_until", [("def main(", kwargs)] * 2), disable_tqdm=True)

    first = answers(1234)
    assert first == answers(1234) and first[0] != first[1]
    assert (first == answers(1)) == bool(seeded)


def test_the_harnesss_automatic_batch_sizes_are_taken(artifact, ours):
    assert PythiaOnnx(artifact, batch_size="auto:4")._rows is ours._rows is None


TASK = """
task: last_word
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder of tasks with one in it, and nowhere to fetch others from."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"text": "import os, " + "sys " * n + "as b"} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "last_word.yaml").write_text(TASK.replace("DATA", str(tmp_path / "rows.jsonl")))
    return tmp_path


def command(*args: object, module: str = "pythia_export", check: int = 0) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", module, *map(str, args)]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=300)
    assert done.returncode == check, f"{done.stdout}\n{done.stderr}"
    return done


def test_the_command_runs_a_task_of_ones_own_and_its_stdout_is_json_alone(artifact, folder, ours):
    args = ("eval", artifact, "--tasks", "last_word", "--include-path", folder, "--json")
    result = json.loads(command(*args).stdout)
    rows = {row["metric"]: row for row in result["rows"]}
    texts = [json.loads(line)["text"].rpartition(" ") for line in (folder / "rows.jsonl").read_text().splitlines()]
    answers = ours.loglikelihood(requests("loglikelihood", [(a, f" {b}") for a, _, b in texts]))
    assert rows["acc"]["value"] == sum(greedy for _, greedy in answers) / 20 and rows["acc"]["samples"] == 20
    assert rows["acc"]["stderr"] is not None and rows["acc"]["published"] is None


@pytest.mark.skipif(not LAMBADA.is_file(), reason="LAMBADA's rows do not lie beside the project")
def test_lambada_without_the_hub_is_what_the_harness_finds(artifact, folder, oracle):
    (folder / "last_word.yaml").write_text(TASK.replace("DATA", str(LAMBADA)))
    found = {row.metric: row.value for row in evaluate(artifact, ["last_word"], include_path=folder, limit=20).rows}
    with gzip.open(LAMBADA, "rt") as f:
        texts = [json.loads(next(f))["text"].rpartition(" ") for _ in range(20)]
    expected = oracle.loglikelihood(requests("loglikelihood", [(a, f" {b}") for a, _, b in texts]), disable_tqdm=True)
    assert found["acc"] == sum(greedy for _, greedy in expected) / 20
    assert math.log(found["perplexity"]) == pytest.approx(-sum(x for x, _ in expected) / 20, abs=1e-4)


def test_the_harnesss_own_command_line_knows_the_model(artifact, folder):
    args = ("run", "--model", "pythia-onnx", "--model_args", f"artifact={artifact}", "--include_path", folder)
    done = command(*args, "--tasks", "last_word", "--limit", "4", module="pythia_export.evaluate.model")
    assert "last_word" in done.stdout and "|perplexity" in done.stdout.replace(" ", "")


# The command twice, in one process: to index the harness's own tasks takes ten seconds.
TWICE = """
import sys
from functools import cache
from pythia_export.cli import main
from pythia_export.evaluate import run

run.TaskManager = cache(run.TaskManager)
artifact, folder, *tasks = sys.argv[1:]
for task in tasks:
    sys.argv = ["pythia-export", "eval", artifact, "--tasks", task, "--include-path", folder]
    try:
        main()
    except SystemExit as e:
        print(e.code)
"""


def test_a_task_that_is_not_there_and_data_that_is_not_there(artifact, folder):
    (folder / "twice.py").write_text(TWICE)
    done = script(folder / "twice.py", artifact, folder, "last_wodr", "piqa")
    assert done.returncode == 0 and done.stdout.split() == ["2", "3"], done
    named, _, away = done.stderr.partition("Did you mean last_word")
    assert "no task 'last_wodr'" in named
    assert "the data of piqa cannot be had" in away and "--include-path" in away.partition("piqa")[2]


def test_without_the_harness_the_command_says_what_to_install(tmp_path):
    (tmp_path / "lm_eval.py").write_text("raise ModuleNotFoundError(\"No module named 'lm_eval'\", name='lm_eval')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['x', 'eval', 'a', '--tasks', 'b'];"
        "from pythia_export.cli import main; main()"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 6 and "pip install 'pythia-export[eval]'" in done.stderr


def test_published_figures_are_found_by_hub_id_and_step():
    of_main = published("EleutherAI/pythia-160m", "main")
    assert of_main == published("EleutherAI/pythia-160m", "step143000")
    assert of_main["lambada_openai", "acc"] == (0.328352, 0.006543)
    assert of_main["lambada_openai", "perplexity"][0] == 38.0649
    assert published("EleutherAI/pythia-1b", "main") and not published("EleutherAI/pythia-1b-bf16", "step2")
    for name, revision in (("someone/pythia-160m", "main"), ("EleutherAI/pythia-160m", "step2000"), ("demo", "main")):
        assert published(name, revision) == {}


@pytest.mark.skipif(not LAMBADA.is_file(), reason="the published results do not lie beside the project")
def test_the_shipped_figures_are_all_that_were_published():
    with gzip.open(LAMBADA.parent.parent / "pythia" / "eval_reference.csv.gz", "rt") as f:
        rows = [row for row in csv.DictReader(f) if not row["metric"].endswith("_stderr")]
    assert len(rows) == 6048
    for row in rows:
        name, metric = "EleutherAI/" + row["model"].removesuffix("-bf16"), row["metric"].replace("ppl", "perplexity")
        value, _ = published(name, f"step{row['step']}")[row["task"], metric]
        assert value == pytest.approx(float(row["value"]), rel=1e-5)


def test_published_stands_beside_measured():
    from rich.console import Console

    row = {
        "task": "piqa", "metric": "acc", "filter": "none", "value": 0.61, "stderr": 0.011, "higher_is_better": True,
        "samples": 1838, "published": {"value": 0.6273, "stderr": 0.0113},
    }  # fmt: skip
    result = {
        "source": {"name": "EleutherAI/pythia-160m", "revision": "main", "commit": "c0ffee"}, "rows": [row],
        "versions": {}, "seconds": 3.0, "speed": "native", "limit": None, "num_fewshot": None, "machine": "a machine",
    }  # fmt: skip
    console = Console(width=100)
    with console.capture() as capture:
        console.print(eval_table(Evaluation.model_validate(result)))
    text = capture.get()
    assert "piqa  acc ↑     1,838      0.61    0.011     0.6273    0.011     -0.0173" in text
    assert "the harness of 2023" in text


@pytest.mark.parametrize("rotary", ["custom", "onnx"])  # a shared cache, and one that grows
def test_scores_are_those_of_the_sessions_own_logits(artifact, tmp_path, rotary):
    export(artifact, tmp_path / "a", rotary=rotary)
    session = ScoringSession.of(Artifact.open(tmp_path / "a"))
    rng = np.random.default_rng(0)
    ids, targets, mask = rng.integers(0, 4096, (3, 20)), rng.integers(0, 4096, (3, 5, 2)), np.ones((3, 20), np.int64)
    mask[1, :7] = 0
    expected = np.take_along_axis(log_softmax(session.logits(ids, mask)[:, -5:]), targets, 2)
    targets[0, 0, 0] = session.logits(ids, mask)[0, -5].argmax()
    for _ in range(2):  # it can be asked again
        scores, likeliest = session.score(ids, mask, targets)
        np.testing.assert_allclose(scores.ravel()[1:], expected.ravel()[1:], atol=2e-6)
        assert likeliest.ravel().tolist() == [True] + 29 * [False]
