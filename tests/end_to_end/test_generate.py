"""`generate` as a person uses it: in a pipe, and on a real terminal, with Ctrl-C and Ctrl-D."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pythia_export import Artifact
from pythia_export.commands.run import run
from pythia_export.recipe import parse_recipe

pty = pytest.importorskip("pty")

RECIPE = {
    "model": {"id": "demo"},
    "quantize": {"method": "rtn", "bits": 4, "group_size": 32},
    "verify": {"source": "python-stdlib", "tokens": 256, "sequence_length": 64},
}
PROMPT = "def main("


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "artifact"
    run(parse_recipe(RECIPE), out)
    return out


def command(folder: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "pythia_export", "generate", str(folder), *args]


def test_text_goes_to_stdout_and_ends_before_a_stop_string(folder):
    text = Artifact.open(folder).generate(PROMPT, 24)
    done = subprocess.run(
        command(folder, "--max-new-tokens", "24"), input=PROMPT + "\n", capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout == text + "\n" and "tokens/s" in done.stderr
    stop = text[10:14]
    args = ("-p", PROMPT, "--max-new-tokens", "24", "--stop", "never there", "--stop", stop)
    done = subprocess.run(command(folder, *args), capture_output=True, text=True)
    assert done.stdout == text.partition(stop)[0] + "\n"


def test_with_a_draft_the_text_is_the_same_and_what_it_brought_is_told(folder):
    """Proposals of the model itself all count. It is no smaller, and that is said before."""
    line = command(folder, "--max-new-tokens", "40", "-p", PROMPT)
    plain = subprocess.run(line, capture_output=True, text=True)
    drafted = subprocess.run([*line, "--draft", str(folder)], capture_output=True, text=True)
    assert plain.returncode == drafted.returncode == 0, drafted.stderr
    assert drafted.stdout == plain.stdout and "no fewer than" in drafted.stderr
    assert re.search(r"draft: 100% of \d+ proposals accepted, [\d.]+ tokens a pass", drafted.stderr), drafted.stderr
    assert "times as fast as without" in drafted.stderr and "draft" not in plain.stderr


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_prompt_that_is_not_utf_8_is_2(folder, errors):
    env = os.environ | {"PYTHONIOENCODING": f"utf-8:{errors}"}
    for args, given in (((), b"caf\xe9"), ((b"-p", b"caf\xe9"), b"")):
        line = [*map(os.fsencode, command(folder)), *args]
        done = subprocess.run(line, input=given, capture_output=True, env=env)
        said = done.stderr.decode(errors="replace")
        assert done.returncode == 2 and done.stdout == b"" and "not utf-8" in said.lower() and "Hint" in said, said


def test_without_a_stdin_a_prompt_has_to_be_given(folder):
    line = ["sh", "-c", 'exec "$@" <&-', "sh", *command(folder, "--max-new-tokens", "2")]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 2 and "stdin is closed" in done.stderr and "--prompt" in done.stderr, done
    assert subprocess.run([*line, "-p", PROMPT], capture_output=True).returncode == 0


def test_without_a_stderr_the_text_is_written(folder):
    wanted = Artifact.open(folder).generate(PROMPT, 6) + "\n"
    line = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command(folder, "--max-new-tokens", "6", "-p", PROMPT)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, wanted)


def test_an_interrupted_text_is_kept(folder):
    slow = "import time, runpy, sys; from pythia_export.runtime import Session; step = Session.step\n"
    slow += "def later(*args, **kw):\n    time.sleep(0.05)\n    return step(*args, **kw)\n"
    slow += "Session.step = later; sys.argv = sys.argv[1:]; from pythia_export.cli import main; main()"
    line = [sys.executable, "-c", slow, *command(folder, "-p", PROMPT, "--max-new-tokens", "400")[2:]]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    begun = process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=30)
    text = begun + rest
    assert process.returncode == 130 and text.endswith("\n") and "interrupted; " in said and "tokens/s" in said
    assert Artifact.open(folder).generate(PROMPT, 400).startswith(text.removesuffix("\n")) and len(text) > 5


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, line: list[str]) -> None:
        self.seen = ""  # and not yet waited for
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.environ |= {"TERM": "dumb", "COLUMNS": "200"}
            os.execv(line[0], line)

    def until(self, wanted: str, seconds: float = 60) -> str:
        end = time.monotonic() + seconds
        while wanted not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, f"{wanted!r} did not come: {self.seen!r}"
            self.seen += os.read(self.master, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(wanted)
        return before + wanted

    def interrupt_until(self, wanted: str) -> None:
        """Ctrl-C, again where it came just before readline listened: that then waits for a key."""
        for _ in range(20):
            self.type("\x03")
            with suppress(AssertionError):
                self.until(wanted, 1)
                return
        raise AssertionError(f"{wanted!r} did not come after Ctrl-C")

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


def test_a_terminal_is_asked_again_and_again(folder):
    terminal = Terminal(command(folder, "--max-new-tokens", "60"))
    terminal.until("> ")
    terminal.type(f"{PROMPT}\n")
    seen = terminal.until("tokens/s")
    expected = Artifact.open(folder).generate(PROMPT, 60)
    assert expected.splitlines()[0] in seen
    terminal.until("> ")
    terminal.type("x " * 600 + "\n")  # longer than the context: told, and the next prompt is asked for
    assert "Error: a prompt of" in terminal.until("> ")
    terminal.interrupt_until("> ")  # at the prompt: a new one
    terminal.type("import \n")
    terminal.until("tokens/s")
    terminal.until("> ")
    terminal.type("\x04")
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 0
