"""Does a mean of checkpoints cost less to round than the last one, and is it the better model?

    make sweep-demo                                             # trains, and runs the sweep
    python benchmarks/means.py build/sweep-demo/decay-and-means

First what each checkpoint costs, then differences of two checkpoints on the same tokens, with 95 % intervals paired by
document. The runs are those of demo/branches.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pythia_export.proof.statistics import Estimate
from pythia_export.sweep.folder import Folder
from pythia_export.sweep.jobs import Job
from pythia_export.sweep.pairs import DIFFERENCES, difference
from pythia_export.sweep.records import Result
from pythia_export.sweep.status import keys

LAST, MEAN = "step2300", "mean(step2200..step2300)"
COMPARED = (
    (("constant", MEAN), ("constant", LAST)),
    (("decayed", MEAN), ("decayed", LAST)),
    (("decayed", LAST), ("constant", LAST)),
    (("constant", MEAN), ("decayed", LAST)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    folder = Folder.existing(parser.parse_args().sweep)
    found: dict[tuple[str, str, int], Result] = {}
    for key in keys(folder):
        record = folder.result(key)
        if record is not None:
            job = Job.from_json(record.job, key)
            found[job.snapshot.name, job.model.revision, job.quantize.bits] = record
    (machine,) = {record.machine for record in found.values()}
    some = next(iter(found.values())).cost
    print(f"{some.tokens:,} held-out tokens of {some.clusters.count} documents; {machine}\n")
    print("| checkpoint | bits | loss before | dNLL | KL | stream error | pattern JS | induction before, after |")
    print("|---|---|---|---|---|---|---|---|")
    for (name, revision, bits), one in found.items():
        side = None if one.inside is None else one.inside.artifact
        within = "| | " if side is None else (
            f"{side.residual_error.mean:.4f} | {side.pattern_js.mean:.5f} | "
            f"{side.induction_original:.3f}, {side.induction:.3f}"
        )  # fmt: skip
        print(
            f"| {name} {revision} | {bits} | {one.cost.nll_original:.4f} | {one.cost.delta_nll.mean:.4f} | "
            f"{one.cost.kld.mean:.4f} | {within} |"
        )
    print("\n| less | bits | loss before | dNLL | KL | loss after |\n|---|---|---|---|---|---|")
    for one_of, other_of in COMPARED:
        for bits in sorted({bits for *_, bits in found}):
            if (*one_of, bits) not in found or (*other_of, bits) not in found:
                continue
            apart = {n: difference(found[*one_of, bits], found[*other_of, bits], n) for n in DIFFERENCES}
            cells = " | ".join(_told(apart[n]) for n in ("nll_original", "delta_nll", "kld", "nll_quantized"))
            print(f"| {' '.join(one_of)} less {' '.join(other_of)} | {bits} | {cells} |")


def _told(e: Estimate) -> str:
    return f"{e.value:+.4f}" + ("" if e.low is None or e.high is None else f" [{e.low:+.4f}, {e.high:+.4f}]")


if __name__ == "__main__":
    main()
