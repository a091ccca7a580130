"""A small sweep on a GPU: two revisions of the demo at three bit widths, in this process."""

from __future__ import annotations

import shutil

from bench import ROOT, Bench

from steps.demo import command, recipe

SWEEP = """
[sweep]
models = [{{ name = "demo", path = "{folder}/{{revision}}", revisions = "{revisions}" }}]
[quantize]
bits = {bits}
group_size = -1
beam = {beam}
[calibration]
{calibration}
samples = {samples}
sequence_length = {length}
[verify]
{verify}
tokens = {tokens}
sequence_length = {length}
[resources]
cores = 1
device = "cuda"
"""


def demo(bench: Bench) -> None:
    """`sweep run` with `resources.device = "cuda"`; every job must end."""
    folder, revisions = ROOT / "demo", "step2000,main"
    if bench.dry:
        recipe(bench)
        folder, revisions = bench.work / "swept", "main"
        if not folder.exists():
            shutil.copytree(bench.work / "tiny", folder / "main")
            shutil.copy2(ROOT / "demo" / "main" / "training.json", folder / "main")
    bits, samples, tokens, length, beam = bench.sized(([2, 3, 4], 128, 32768, 256, 16), ([4], 2, 256, 32, 1))
    file, out = bench.work / "sweep.toml", bench.work / "sweep"
    texts = {name: f'source = "file"\npath = "{bench.work / name}.txt"' for name in ("calibration", "verify")}
    content = bench.sized(dict.fromkeys(texts, 'source = "python-stdlib"'), texts)
    content |= {"folder": folder, "revisions": revisions, "bits": bits, "beam": beam, "length": length}
    file.write_text(SWEEP.format(**content, samples=samples, tokens=tokens))
    shutil.rmtree(out, ignore_errors=True)
    command(bench, "sweep", "run", file, "--out", out, "--engine", "inline", on_gpu=True)
    done, wanted = len(list((out / "results").iterdir())), len(bits) * len(revisions.split(","))
    bench.check("jobs done", done == wanted, f"{done} of {wanted}")
