"""Kill `run` at random moments, many times over, and see that nothing is lost: `make test-kill`.

docs/concepts/durability.md has the figures.

Two recipes of one small checkpoint take turns under one name, each with --overwrite, and with --resume wherever there
is something to go on from. Every process is ended by SIGKILL at a moment drawn uniformly from the time that a whole run
takes. After each: the name carries an artifact that is whole, and it is one of the two. Half of the kills, on average,
are followed by a run that is let go on to its end: its artifact must be that of a run that was never interrupted, byte
for byte (times in records apart), and nothing else may lie beside it.

    python tests/support/kill_storm.py [--kills 200] [--seed 0] [--folder build/kill-storm]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import torch
from models import hugging_face, save_checkpoint, small_config
from tokenizers import ByteLevelBPETokenizer

from pythia_export.artifact import Artifact
from pythia_export.commands.options import Options
from pythia_export.commands.run import run
from pythia_export.recipe import load_recipe

RECIPE = """
model = {{path = "model"}}
calibration = {{source = "file", path = "calibration.txt", samples = 2, sequence_length = 64, memory_gb = 0.0}}
quantize = {{bits = {bits}, group_size = 32, beam = 1}}
verify = {{source = "file", path = "held-out.txt", tokens = 256, sequence_length = 64}}
"""
LAYERS = 3
KILLED = -signal.SIGKILL


class Storm:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random, self.seen = folder, random.Random(seed), Counter[str]()
        self.out, self.work = folder / "out", folder / ".out.work"
        self.recipes = [folder / f"{bits}-bits.toml" for bits in (4, 3)]
        self.seconds = 0.0

    def prepare(self) -> None:
        """A checkpoint, two recipes, and what each gives when nobody interrupts it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for name, module in (("calibration", argparse), ("held-out", random)):
            (self.folder / f"{name}.txt").write_text(Path(module.__file__).read_text()[:20_000])
        tokenizer = ByteLevelBPETokenizer()
        tokenizer.train(
            [str(self.folder / "calibration.txt")], 320, special_tokens=["<|endoftext|>"], show_progress=False
        )
        tokenizer.save(str(self.folder / "tokenizer.json"))
        config = small_config(layers=LAYERS, vocab=320, ff=128)
        save_checkpoint(hugging_face(config), config, self.folder / "model", self.folder / "tokenizer.json")
        (self.folder / "tokenizer.json").unlink()
        self.expected = []
        for recipe, bits in zip(self.recipes, (4, 3), strict=True):
            recipe.write_text(RECIPE.format(bits=bits))
            began = time.monotonic()
            assert ended(started(recipe, self.folder / recipe.stem)) == 0
            self.seconds = time.monotonic() - began
            self.expected.append(content(self.folder / recipe.stem))
        assert self.expected[0] != self.expected[1]
        shutil.copytree(self.folder / self.recipes[1].stem, self.out)

    def rage(self, kills: int) -> None:
        turn, left = 0, kills
        while left:
            resumes = self.begun()
            began = time.monotonic()
            process = started(self.recipes[turn], self.out, resume=resumes)
            code = ended(process, self.random.uniform(0, self.seconds))
            if code == KILLED:
                left -= 1
                how = "of which with --resume" if resumes else "of which from the beginning"
                self.count("kills", how, self.stage())
            else:
                self.count("runs that ended before their kill")
            assert code in (KILLED, 0), code
            which = self.expected.index(content(self.out))  # whole, and one of the two, or this raises
            if code != KILLED:
                self.seconds = 0.8 * self.seconds + 0.2 * (time.monotonic() - began)  # other work slows us down
                self.require_finished(turn)
                turn = 1 - turn
                continue
            self.count("the new artifact is there" if which == turn else "the old artifact is there")
            if self.random.random() < 0.5:
                self.go_on(turn)
                turn = 1 - turn
            print(f"{kills - left} kills, {self.seconds:.1f} s a run", file=sys.stderr, flush=True)

    def go_on(self, turn: int) -> None:
        resumes = self.begun()
        self.count("gone on with --resume to the end" if resumes else "started anew: no layer was finished")
        assert ended(started(self.recipes[turn], self.out, resume=resumes)) == 0
        self.require_finished(turn)

    def require_finished(self, turn: int) -> None:
        assert content(self.out) == self.expected[turn], "other bytes than those of a run that nobody interrupted"
        beside = {
            "model",
            "out",
            "calibration.txt",
            "held-out.txt",
            *(x.name for x in self.recipes),
            *(x.stem for x in self.recipes),
        }
        found = {path.name for path in self.folder.iterdir()}
        assert found == beside, f"left over: {found - beside}"
        self.count("artifacts finished, the same bytes")

    def begun(self) -> bool:
        return (self.work / "journal.json").is_file()

    def stage(self) -> str:
        """Where the kill hit, as far as what it left tells."""
        if not self.begun():
            return "before a layer was finished"
        state = json.loads((self.work / "journal.json").read_text())
        if state["publication"] is not None:
            return "while it was published"
        if len(state["finished"]) < LAYERS:
            return "between layers"
        return "after the last layer: head, graph, proof"

    def count(self, *what: str) -> None:
        self.seen.update(what)

    def table(self) -> str:
        rows = [
            "kills", "of which from the beginning", "of which with --resume", "before a layer was finished",
            "between layers", "after the last layer: head, graph, proof", "while it was published",
            "the old artifact is there", "the new artifact is there", "gone on with --resume to the end",
            "started anew: no layer was finished", "runs that ended before their kill",
            "artifacts finished, the same bytes",
        ]  # fmt: skip
        lines = ["| what | times |", "|---|---:|", *(f"| {row} | {self.seen[row]} |" for row in rows)]
        return "\n".join([*lines, "| artifacts lost, contradictory or of other bytes | 0 |"])


def started(recipe: Path, out: Path, resume: bool = False) -> int:
    """`pythia-export run RECIPE --out OUT --overwrite`, in a process that has nothing to import any more; its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(load_recipe(str(recipe)), out, Options(overwrite=True, resume=resume))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def ended(process: int, seconds: float | None = None) -> int:
    """Wait for it, or kill it when `seconds` have passed; its exit code, -9 where it was killed."""
    deadline = time.monotonic() + seconds if seconds is not None else None
    while deadline is not None and time.monotonic() < deadline:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    if deadline is not None:
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def content(folder: Path) -> str:
    """A hash of everything in an artifact but times and addresses; raises where it is not whole."""
    opened = Artifact.open(folder)
    opened.check()
    record = opened.read_json("quantization.json")
    for part in (record, *record["linears"], *record["layers"]):
        part.pop("seconds")
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name in sorted(opened.manifest.files):
        if name not in ("quantization.json", "parity.json", "report.html", "README.md"):  # these hold times
            digest.update(opened.file(name).read_bytes())
    assert {"parity.json", "report.html", "README.md"} <= opened.manifest.files.keys(), "the proof is gone"
    return digest.hexdigest()


def main() -> None:
    torch.set_num_threads(1)  # a process that forks has no other threads
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("build/kill-storm"))
    options = parser.parse_args()
    storm, began = Storm(options.folder.absolute(), options.seed), time.monotonic()
    storm.prepare()
    storm.rage(options.kills)
    print(storm.table())
    print(f"\nSeed {options.seed}, {(time.monotonic() - began) / 60:.0f} minutes.")
    shutil.rmtree(storm.folder)


if __name__ == "__main__":
    main()
