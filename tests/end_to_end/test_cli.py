"""The command line's manners: help with examples, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from records import WRITTEN, typed
from typer.testing import CliRunner

from pythia_export import cli
from pythia_export.base import errors
from pythia_export.base.progress import SILENT
from pythia_export.model.neox import NeoXConfig

COMMANDS = (
    *("run", "plan", "pull", "quantize", "export", "verify", "inspect", "generate", "dequantize", "bench", "eval"),
    *("recipes", "models", "push", "serve"),
)


def failed_proof():
    """What production wrote, but for the outcome of two gates."""
    gates = {gate["name"]: gate for gate in copy.deepcopy(WRITTEN["gates"])}
    gates["ppl_ratio"] |= {"passed": False, "outcome": "failed"}
    gates["kld_mean"] |= {"passed": False, "outcome": "inconclusive", "more_tokens": 12000}
    return typed(parity=WRITTEN | {"gates": list(gates.values())})


def invoke(*args: str):
    return CliRunner().invoke(cli.app, list(args))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_shows_examples(command):
    done = invoke(command, "--help")
    assert done.exit_code == 0 and f"pythia-export {command}" in done.output.split("Examples")[1]


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from pythia_export import cli; from typer.testing import CliRunner;"
        "assert CliRunner().invoke(cli.app, ['--help']).exit_code == 0;"
        "heavy = 'torch', 'onnx', 'onnxruntime', 'transformers', 'numpy', 'rich', 'pydantic';"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.RecipeError, 2), (errors.SourceError, 3), (errors.IntegrityError, 4), (errors.NumericsError, 5),
        (errors.EnvironmentProblem, 6), (errors.ResourceError, 7), (errors.OutputError, 8), (MemoryError, 7),
        (KeyboardInterrupt, 130),
    ],
)  # fmt: skip
def test_every_kind_of_error_has_its_exit_code_and_no_traceback(kind, code, monkeypatch):
    def fail(*args, **kwargs):
        raise (
            kind("found this") if not issubclass(kind, errors.PythiaExportError) else kind("found this", hint="do that")
        )

    monkeypatch.setattr("pythia_export.commands.run.run", fail)
    done = invoke("run", "demo", "--out", "never")
    assert done.exit_code == code and done.stdout == "" and "Traceback" not in done.stderr
    if issubclass(kind, errors.PythiaExportError):
        assert "Error: found this\nHint: do that" in done.stderr
    assert ("Traceback" in invoke("run", "demo", "--out", "never", "--debug").stderr) == issubclass(
        kind, errors.PythiaExportError | MemoryError
    )


@pytest.mark.parametrize(
    "command", [("run", "demo", "--out", "x"), ("quantize", "demo", "--out", "x"), ("verify", "x")]
)
def test_ctrl_c_names_resume_where_there_is_such_an_option(command, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    for name in ("run", "quantize", "verify"):
        monkeypatch.setattr(f"pythia_export.commands.{name}.{name}", stop)
    done = invoke(*command)
    assert done.exit_code == 130 and "What was there before is intact" in done.stderr
    assert ("--resume" in done.stderr) == (command[0] != "verify")


def test_a_failed_gate_is_10_and_is_named(monkeypatch):
    proof = failed_proof()
    monkeypatch.setattr("pythia_export.commands.verify.verify", lambda *args, **kwargs: proof)
    done = invoke("verify", "somewhere", "--json")
    assert done.exit_code == 10 and json.loads(done.stdout) == proof.to_json()
    assert "Gate ppl_ratio: failed" in done.stderr and "min_tokens" not in done.stderr
    assert "Gate kld_mean: inconclusive: about 12,000 more tokens would decide" in done.stderr


@pytest.mark.parametrize(
    "args",
    [("run", "demo"), ("run", "demo", "--ot", "x"), ("nonsense",), ("export", "a", "--out", "b", "--rotary", "c")],
)
def test_wrong_usage_is_2_and_reads_like_every_other_error(args):
    done = invoke(*args)
    assert done.exit_code == 2 and done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error.startswith("Error: ") and hint.startswith("Hint: `") and "--help` shows how it is used." in hint


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("run", "demo", "--ot", "x"), "no such option: --ot; did you mean --out"),
        (("rnu",), "no such command 'rnu'. Did you mean 'run'?"),
        (("run",), "missing argument 'RECIPE'"),
        (("bench", "x", "--repeats", "0"), "--repeats"),
        (("--nonsense",), "no such option: --nonsense"),
    ],
)
def test_wrong_usage_is_named(args, said):
    assert said in invoke(*args).stderr


def every_command(group=None, path=("pythia-export",)):
    group = group or typer.main.get_command(cli.app)
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from every_command(command, (*path, name))


@pytest.mark.parametrize(("path", "command"), [pytest.param(p, c, id=" ".join(p)) for p, c in every_command()])
def test_help_fits_80_columns_and_cuts_no_name(path, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = invoke(*path[1:], "--help").output
    head, _, examples = said.partition("\nExamples:\n")
    assert max(map(len, head.splitlines())) <= 80 and "…" not in head
    usage = head.splitlines()[0]
    assert usage.startswith(f"Usage: {' '.join(path)} ") and "{" not in usage and "[[" not in usage
    for parameter in command.params:
        for name in (*parameter.opts, *parameter.secondary_opts):
            assert name in head if name.startswith("--") else True, name
    assert examples.count("pythia-export") >= 1


def test_the_version_has_a_short_option():
    assert invoke("-V").output == invoke("--version").output != ""


def test_a_shell_completes_options_recipes_and_models():
    def completed(line):
        words = {
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split()) - 1),
            "_PYTHIA_EXPORT_COMPLETE": "complete_bash",
        }
        return CliRunner().invoke(cli.app, [], prog_name="pythia-export", env=words).output.split()

    assert "--group-size" in completed("pythia-export run --gro")
    assert {"410m", "410m-int8", "410m-deduped"} <= set(completed("pythia-export run 410m"))
    assert completed("pythia-export run dem") == ["demo", "demo-int8"]


def test_an_unknown_recipe_is_2_with_a_guess():
    done = invoke("plan", "pythia-160-int4")
    assert done.exit_code == 2 and "pythia-160m-int4" in done.stderr and done.stdout == ""


def test_plan_shows_size_memory_and_steps():
    done = invoke("plan", "pythia-2.8b-int8")
    assert done.exit_code == 0
    for said in ("model.onnx_data", "embed_out", "EleutherAI/pythia-2.8b", "1. pull"):
        assert said in done.stdout
    assert json.loads(invoke("plan", "pythia-2.8b-int8", "--json").stdout)["geometry"]["head_dim"] == 80
    assert "Warning" not in done.stdout and "KV cache" in done.stdout and "GFLOP/s" in done.stdout
    slow = invoke("plan", "410m", "--set", "export.accuracy_level=0").stdout
    assert "Warning: embed_out of 8 bits at accuracy level 0" in slow
    for recipe in ("demo", "demo-int8"):
        assert "Warning" not in invoke("plan", recipe).stdout, "what ships does not warn of itself"


PLAIN = """
[model]
id = "70m"
[calibration]
source = "python-stdlib"
[quantize]
{}
[verify]
source = "python-stdlib"
tokens = 1024
[verify.gates]
min_tokens = {}
"""


def test_plan_finds_what_cannot_come_to_anything(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(PLAIN.format("bits_per_weight = 0.5", 1024))
    done = invoke("plan", str(path))
    assert done.exit_code == 2 and "quantize.bits_per_weight = 0.5: this recipe takes" in done.stderr
    path.write_text(PLAIN.format("override = [{pattern = '*.layer.0.*', bits = 8}]", 1024))
    done = invoke("plan", str(path))
    assert done.exit_code == 2 and "'*.layer.0.*' matches no linear" in done.stderr
    path.write_text(PLAIN.format("", 1_000_000))
    assert "min_tokens is 1,000,000, verify.tokens 1,024: the gate cannot pass" in " ".join(
        invoke("plan", str(path)).stdout.split()
    )
    path.write_text(PLAIN.format("", 1024))
    assert "cannot pass" not in invoke("plan", str(path)).stdout


def test_recipes_lists_them_and_prints_the_schema():
    assert "MODEL-int4" in invoke("recipes").stdout
    schema = json.loads(invoke("recipes", "--schema").stdout)
    assert schema["title"] == "Recipe" and schema["required"] == ["model"]
    assert {r["name"] for r in json.loads(invoke("recipes", "--json").stdout)} >= {"demo", "pythia-160m-web"}


def test_a_recipe_that_is_shown_is_read_again(tmp_path):
    (tmp_path / "my.toml").write_text(
        invoke("recipes", "show", "410m@step3000", "--bits", "8", "--text", "x.txt").stdout
    )
    done = invoke("recipes", "show", str(tmp_path / "my.toml"), "--set", "quantize.beam=2")
    assert done.exit_code == 0 and 'revision = "step3000"' in done.stdout and "beam = 2" in done.stdout
    assert "bits = 8" in done.stdout and str(Path("x.txt").absolute()) in done.stdout


@pytest.mark.parametrize("command", ["run", "quantize", "plan"])
def test_options_and_set_change_the_recipe_of_every_command_that_takes_one(command, monkeypatch):
    """By what the command hands on: the options by their own names, then --set, both over the recipe."""
    taken = []

    def take(recipe, *args, **kwargs):
        taken.append(recipe)
        raise errors.SourceError("that is enough")

    monkeypatch.setattr(f"pythia_export.commands.{command}.{command}", take)
    out = () if command == "plan" else ("--out", "never")
    changed = ("--bits", "8", "--group-size", "64", "--method", "rtn", "--set", "quantize.beam=2", "--adapter", "lora")
    texts = ("--text", "held.txt", "--tokens", "4096", "--set", "verify.gates.kld_mean=", "--target", "cuda")
    assert invoke(command, "410m@step3000", *out, *changed, *texts).exit_code == 3
    (recipe,) = taken
    q = recipe.quantize
    assert (q.bits, q.group_size, q.method, q.beam) == (8, 64, "rtn", 2)
    assert recipe.model.revision == "step3000" and recipe.model.adapter == Path("lora").absolute()
    assert recipe.verify.path == Path("held.txt").absolute() and recipe.verify.tokens == 4096
    assert recipe.export.target == "cuda" and recipe.verify.gates.kld_mean is None
    failed = invoke(command, "410m", *out, "--bits", "5", "--set", "quantize.beem=1")
    assert failed.exit_code == 2 and "--bits: `quantize.bits`" in failed.stderr
    assert "--set quantize.beem: unknown key `quantize.beem`; did you mean `beam`?" in failed.stderr


@pytest.mark.parametrize(
    ("options", "both"),
    [
        (("--bits", "8", "--set", "quantize.bits=3"), "--bits and --set quantize.bits both set `quantize.bits`"),
        (("--text", "a.txt", "--set", "verify.source=hub"), "--text and --set verify.source both set `verify.source`"),
    ],
)
def test_an_option_and_a_set_of_one_key_are_refused(options, both):
    done = invoke("recipes", "show", "410m", *options)
    assert done.exit_code == 2 and both in done.stderr and not done.stdout


def test_a_recipe_of_other_bits_says_which_gates_it_lost():
    done = invoke("recipes", "show", "demo", "--bits", "3")
    assert "do not count at 3 bits" in done.stderr and "ppl_ratio" not in done.stdout


def test_no_recipe_is_shown_of_a_folder_that_is_no_checkpoint(tmp_path):
    done = invoke("recipes", "show", str(tmp_path))
    assert done.exit_code == 3 and str(tmp_path) in done.stderr and not done.stdout


def test_no_artifact_is_3(tmp_path):
    extras = {"generate": ["--prompt", "x"], "dequantize": [str(tmp_path / "out")]}
    for command in ("inspect", "verify", "generate", "dequantize", "bench"):
        done = invoke(command, str(tmp_path / "nothing"), *extras.get(command, []))
        assert done.exit_code == 3 and "nothing" in done.stderr


def test_silent_progress_does_nothing():
    with SILENT.track("x", 3) as advance:
        advance(1)
    assert SILENT.note("x") is None


NEOX = {"model_type": "gpt_neox"}


@pytest.mark.parametrize(
    ("raw", "said"), [({}, "model_type"), (NEOX, "vocab_size"), (NEOX | {"hidden_act": "prelu"}, "'prelu'")]
)
def test_configurations_are_refused_by_field(raw, said):
    with pytest.raises(errors.SourceError, match=said):
        NeoXConfig.from_dict(raw)


def test_both_spellings_of_the_rotary_fields_are_read():
    config = NeoXConfig(96, 128, 2, 4, 512, rotary_pct=0.5, rotary_base=5000.0)
    both = config.to_dict()
    old = {k: v for k, v in both.items() if k != "rope_parameters"}
    new = {k: v for k, v in both.items() if not k.startswith("rotary_")}
    assert NeoXConfig.from_dict(old) == NeoXConfig.from_dict(new) == config


def test_pull_reads_a_directory_where_there_is_one():
    from pythia_export.checkpoint import demo_folder

    done = invoke("pull", str(demo_folder() / "main"), "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["commit"].startswith("sha256:")
    failed = invoke("pull", "./no-such-directory")
    assert failed.exit_code == 3 and "no-such-directory: no such checkpoint directory" in failed.stderr
