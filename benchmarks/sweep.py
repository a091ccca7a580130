"""How long the report of a whole sweep takes: 16 models x 154 steps x 8 quantisations, drawn from the published law.

python benchmarks/sweep.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as parquet

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
from sweep_rows import sweep  # noqa: E402

from pythia_export.model import suite  # noqa: E402
from pythia_export.study import page as report  # noqa: E402
from pythia_export.sweep import table  # noqa: E402

SIZES = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
MODELS = SIZES + tuple(f"{size}-deduped" for size in SIZES[2:8])


def main() -> None:
    steps = [int(revision.removeprefix("step")) for revision in suite.REVISIONS]
    results, subsets = sweep(models=MODELS, steps=steps, bits=(2, 3, 4, 8), groups=(-1, 128))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        table.write(out, results, subsets)
        began = time.perf_counter()
        read, parts = table.read(out / "results.parquet"), parquet.read_table(out / "subsets.parquet")
        written = report.write(read, parts, out, title="All", left_out=[], failed=0, outstanding=0)
        seconds = time.perf_counter() - began
        print(f"{len(results):,} results, {len(subsets):,} of parts of the text")
        print(f"read, fitted and drawn in {seconds:.1f} s")
        print(f"a page of {written[0].stat().st_size / 1e6:.1f} MB and {len(written) - 1} plots")


if __name__ == "__main__":
    main()
