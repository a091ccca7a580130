"""What a CI system gets of a verdict: JUnit XML, a summary in Markdown, annotations, outputs, the action's steps."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock
from xml.etree import ElementTree

import pytest
import yaml
from checkpoints import demo_of
from models import SMALL_RECIPE
from places import ROOT
from processes import pythia_export
from records import junit, summary, typed
from typer.testing import CliRunner

from pythia_export import cli
from pythia_export.base.errors import OutputError, ResourceError
from pythia_export.cli.github import announce
from pythia_export.commands.verify import Unwritten

# One gate that passes, one that cannot, and one for which the text is too short.
RECIPE = (
    SMALL_RECIPE
    + """
[verify.gates]
export_max_abs = 1e-3
kld_mean = 1e-6
min_tokens = 1000000
"""
)
HOSTILE = "50 %: a,b\n::error::<b>|`\x1b"


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A job of GitHub Actions that runs the recipe: its folder, and the command as it ended."""
    folder = tmp_path_factory.mktemp("job")
    demo_of(2, folder / "model")
    (folder / "recipe.toml").write_text(RECIPE)
    environment = runner(folder)
    line = [sys.executable, "-m", "pythia_export", "run", "recipe.toml", "--out", "out", "--junit", "x.xml", "--json"]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return folder, done


def runner(folder: Path) -> dict[str, str]:
    """The environment of a step."""
    (folder / "summary.md").write_text("From a step before.\n")
    (folder / "output.txt").write_text("")
    return os.environ | {
        "HF_HUB_OFFLINE": "1", "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "GITHUB_OUTPUT": str(folder / "output.txt"), "RUNNER_TEMP": str(folder / "temp"),
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip


@pytest.fixture(scope="module")
def parity(job) -> dict:
    return json.loads((job[0] / "out" / "parity.json").read_text())


def test_a_job_gets_the_exit_code_the_files_and_a_stdout_of_json_alone(job, parity):
    folder, done = job
    assert done.returncode == 10, done.stderr
    assert json.loads(done.stdout)["parity"] == parity
    written = (folder / "summary.md").read_text()
    assert written.startswith("From a step before.\n") and written.endswith(summary(parity))
    outputs = dict(line.split("=", 1) for line in (folder / "output.txt").read_text().splitlines())
    assert outputs["verdict"] == "failed"
    assert float(outputs["kld_mean"]) == parity["cost"]["kld"]["mean"]
    assert (folder / "x.xml").read_text() == junit(parity)


def test_each_gate_that_did_not_pass_is_annotated_by_its_outcome(job):
    commands = [line for line in job[1].stderr.splitlines() if line.startswith("::")]
    assert [line.split("::")[1].split(" ")[0] for line in commands] == ["error", "warning", "notice"]
    assert commands[0].startswith("::error title=Gate kld_mean%3A failed::KL divergence, mean, nats a token: ")
    assert "more tokens would decide" in commands[1] and "Look first" in commands[2]


def test_an_annotation_is_one_line_whatever_it_says(parity):
    gate = parity["gates"][0] | {"passed": False, "outcome": "failed", "run": HOSTILE}
    (line,) = announce(
        typed(parity=parity | {"gates": [gate], "passed": False, "cost": parity["cost"] | {"suspects": None}}),
        {"GITHUB_ACTIONS": "true"},
    )
    assert "\n" not in line and line.count("::error") == 2  # the runner looks for a command at the start of a line
    assert "50 %25: a,b%0A" in line


def test_elsewhere_nothing_is_announced(parity):
    assert announce(typed(parity=parity), {"GITHUB_ACTIONS": "false", "PATH": "/bin"}) == []


def test_junit_has_a_case_a_gate_and_says_what_was_found(parity):
    suites = ElementTree.fromstring(junit(parity))
    (suite,) = suites
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert list(cases) == ["export_max_abs", "kld_mean", "min_tokens"]
    assert cases["export_max_abs"].get("classname") == "pythia-export.export"
    assert cases["export_max_abs"].find("failure") is None and cases["export_max_abs"].find("error") is None
    failure = cases["kld_mean"].find("failure")
    assert "limit ≤ 10⁻⁶: failed" in failure.get("message") and "Look first" in failure.text
    assert "998,976 more tokens would decide" in cases["min_tokens"].find("error").get("message")
    properties = {p.get("name"): p.get("value") for p in suite.iter("property")}
    assert properties["corpus.sha256"] == parity["corpus"]["sha256"]


def test_names_from_outside_stay_text(parity):
    hostile = parity | {"source": parity["source"] | {"name": HOSTILE}}
    assert ElementTree.fromstring(junit(hostile))[0].get("name").startswith("50 %: a,b\n::error::<b>|`\ufffd at")
    headline = summary(hostile).splitlines()[0]
    assert "\\<b\\>\\|\\`" in headline


def test_the_summary_says_the_verdict_first_and_holds_every_gate(parity):
    text = summary(parity)
    assert text.startswith("## ❌ ") and "failed, 1 of 3 gates: KL divergence" in text.splitlines()[0]
    for gate in parity["gates"]:
        assert f"| `{gate['name']}` |" in text
    assert "> Look first" in text
    passed = parity | {"gates": parity["gates"][:1], "passed": True}
    assert summary(passed).startswith("## ✅ ")
    waiting = parity | {"gates": parity["gates"][2:]}
    assert summary(waiting).startswith("## ⚠️ ")


def test_a_summary_shows_the_comparison(parity):
    found = {"mean": 0.001, "se": 1e-4, "dof": 9, "low": 0.0008, "high": 0.0012}
    against = {
        "created": None, "machine": None, "versions": None, "tokens": 1016, "clusters": parity["cost"]["clusters"],
        "delta_nll": found, "kld": found, "same_top": found,
        "export": dict.fromkeys(("max_abs", "decode_max_abs", "other_max_abs", "other_decode_max_abs"), 1e-5),
    }  # fmt: skip
    assert "| KL divergence from the original | +0.00100 | +8.0 × 10⁻⁴ to +0.00120 |" in summary(
        parity | {"against": against}
    )


@pytest.mark.parametrize(("option", "file"), [("--junit", "nowhere/x.xml"), ("--junit", "."), ("--per-token", ".")])
def test_a_file_that_cannot_be_written_is_found_before_the_long_part(job, option, file):
    done = pythia_export("verify", "out", option, file, cwd=job[0], check=8)
    assert "Hint" in done.stderr and "windows" not in done.stderr


# A module without torch in the place of the one that proves: two seconds a command.
MADE = """
import sys
from types import ModuleType
from pythia_export import Artifact, cli

made = sys.modules["pythia_export.commands.verify"] = ModuleType("verify")
made.Unwritten = type("Unwritten", (Exception,), {})
made.verify = lambda *a, **k: Artifact.open("out").parity
cli.main()
"""


def shell(job, line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of bash in the job's folder, in which `verify` is the command with the proof of `out` already made."""
    (job[0] / "made.py").write_text(MADE)
    verify = f'verify() {{ "{sys.executable}" made.py verify "$@"; }}\n'
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUTF8"} | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(["bash", "-c", verify + line], cwd=job[0], env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("verify out --junit j.xml | true; exit ${PIPESTATUS[0]}", "Gate kld_mean: failed"),
        ("verify out --junit j.xml --json > /dev/full", "stdout cannot be written: No space left"),
        ("verify out --junit j.xml >&-", "stdout is closed"),
        ("verify out --junit j.xml 2>&1 | true; exit ${PIPESTATUS[0]}", ""),
        ("PYTHONIOENCODING=latin-1 verify out --junit j.xml > verdict.txt", "Gate kld_mean: failed"),
    ],
)
def test_whatever_becomes_of_stdout_a_failed_gate_is_10_and_its_junit_is_written(job, parity, line, said):
    (job[0] / "j.xml").unlink(missing_ok=True)
    done = shell(job, line)
    assert done.returncode == 10 and said in done.stderr and "Unexpected" not in done.stderr, done
    assert "Broken pipe" not in done.stderr  # whoever reads a part of it has what was wanted
    assert (job[0] / "j.xml").read_text() == junit(parity)


def test_what_an_encoding_lacks_is_replaced_and_in_json_escaped(job, parity):
    shell(job, "PYTHONIOENCODING=latin-1 verify out > verdict.txt; PYTHONIOENCODING=latin-1 verify out --json > v.json")
    assert "? 10" in (job[0] / "verdict.txt").read_text("latin-1")
    assert json.loads((job[0] / "v.json").read_text("latin-1")) == parity


@pytest.mark.parametrize("command", ["models", "models --json", "recipes", "--version", "plan demo"])
def test_a_full_disk_or_a_closed_stdout_is_8_of_every_command(job, command):
    for to in ("/dev/full", "&-"):
        done = shell(job, f'"{sys.executable}" -m pythia_export {command} >{to}')
        assert done.returncode == 8 and "stdout" in done.stderr and len(done.stderr.splitlines()) == 2, done


@pytest.mark.parametrize("option", ["--junit", "--per-token"])
def test_a_file_inside_the_artifact_is_refused_before_anything_is_done(job, option):
    before = sorted((job[0] / "out").iterdir())
    done = pythia_export("verify", "out", option, "out/parity.json", cwd=job[0], check=8)
    assert "out/parity.json lies in the artifact out" in done.stderr and "windows" not in done.stderr
    assert sorted((job[0] / "out").iterdir()) == before
    if option == "--junit":
        done = pythia_export("run", "recipe.toml", "--out", "new", option, "new/j.xml", cwd=job[0], check=8)
        assert "new/j.xml lies in the artifact new" in done.stderr and not (job[0] / "new").exists()


@pytest.mark.parametrize("place", ["out", "tables"])
def test_a_place_that_cannot_be_written_is_found_before_the_long_part(job, place, monkeypatch):
    (job[0] / "tables").mkdir(exist_ok=True)
    monkeypatch.chdir(job[0])
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and Path(path).name == place))
    monkeypatch.setattr("pythia_export.commands.verify.pull_checkpoint", None)
    for option in ("--junit", "--per-token"):
        done = CliRunner().invoke(cli.app, ["verify", "out", option, "tables/file"])
        assert done.exit_code == 8 and f"{place} cannot be written" in done.stderr, done


def test_a_proof_that_can_no_longer_be_written_is_told_all_the_same(job, parity, tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.chdir(job[0])
    command = ["verify", "out", "--junit", str(tmp_path / "j.xml"), "--json"]
    monkeypatch.setattr("pythia_export.artifact.read.write_atomically", full)
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == 10, "a gate that did not pass is more than a full disk"
    found = json.loads(done.stdout)
    assert found["gates"] == parity["gates"] and "no space left while writing" in done.stderr
    assert (tmp_path / "j.xml").read_text() == junit(found)
    passed = parity | {"passed": True, "gates": parity["gates"][:1]}
    for kind, code in ((ResourceError, 7), (OutputError, 8)):
        monkeypatch.setattr(
            "pythia_export.commands.verify.verify", Mock(side_effect=Unwritten(kind("full"), typed(parity=passed)))
        )
        done = CliRunner().invoke(cli.app, command)
        assert done.exit_code == code and json.loads(done.stdout) == passed and "Error: full" in done.stderr


def steps() -> dict[str, dict]:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    return {step["name"]: step for step in action["runs"]["steps"] if "run" in step}


def run_step(name: str, folder: Path, **inputs: str) -> tuple[int, str, dict[str, str]]:
    """One step of the action as the runner runs it: exit code, what it printed, its outputs."""
    step, environment = steps()[name], runner(folder)
    tools = folder / "temp" / "pythia-export" / "bin"
    tools.mkdir(parents=True, exist_ok=True)
    for tool, what in (("python", ""), ("pythia-export", " -m pythia_export")):
        (tools / tool).write_text(f'#!/bin/sh\nexec "{sys.executable}"{what} "$@"\n')
        (tools / tool).chmod(0o755)
    defaults = yaml.safe_load((ROOT / "action.yml").read_text())["inputs"]
    for variable, value in step["env"].items():
        wanted = value.removeprefix("${{ inputs.").removesuffix(" }}")
        assert value == f"${{{{ inputs.{wanted} }}}}"
        environment[variable] = inputs.get(wanted.replace("-", "_"), defaults[wanted]["default"])
    script = folder / "step.sh"
    script.write_text(step["run"])
    line = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    outputs = dict(line.split("=", 1) for line in (folder / "output.txt").read_text().splitlines())
    return done.returncode, done.stdout + done.stderr, outputs


def test_the_actions_cache_is_of_the_checkpoint_and_not_of_the_recipe(job, tmp_path):
    folder = job[0]
    keys = {
        run_step("Name the checkpoint", folder, **given)[2]["key"]
        for given in ({"recipe": "pythia-70m-int4"}, {"recipe": "pythia-70m-int8"})
    }
    assert len(keys) == 1
    of_artifact = run_step("Name the checkpoint", folder, artifact="out")[2]["key"]
    assert of_artifact not in keys
    for wrong in ({}, {"recipe": "demo", "artifact": "out"}):
        code, printed, _ = run_step("Name the checkpoint", folder, **wrong)
        assert code == 2 and "::error" in printed


def test_the_action_runs_a_recipe_and_its_verdict_is_the_jobs(job, parity):
    folder = job[0]
    (folder / "good.toml").write_text(RECIPE.replace("1e-6", "1.0").replace("1000000", "1000"))
    code, printed, outputs = run_step("Prove", folder, recipe="good.toml", out="good", rtn="true")
    assert code == 0, printed
    assert outputs["verdict"] == "passed" and outputs["artifact"] == "good"
    assert json.loads((folder / "good" / "parity.json").read_text())["cost"]["rounding"]
    written = (folder / "summary.md").read_text()
    assert written.count("## ✅") == 1  # one verdict, though the recipe ran and was verified


def test_the_action_verifies_an_artifact_against_another(job):
    folder = job[0]
    code, printed, outputs = run_step("Prove", folder, artifact="out", against="out/parity.json")
    assert code == 10, printed
    assert outputs["verdict"] == "failed" and "Against the other artifact" in (folder / "summary.md").read_text()
    assert (folder / "parity-junit.xml").is_file()
