"""Run everything that needs a GPU, step by step, in the time that there is (README.md beside this file).

    python benchmarks/gpu/run.py --budget 540            # what is still to do, in the order of worth
    python benchmarks/gpu/run.py kernels beam            # these steps, whatever was found before
    python benchmarks/gpu/run.py --dry --out build/dry   # every step on a CPU: an emulated device, tiny shapes

Exit code: 0, all steps are done; 1, something is wrong; 3, steps are still to do; 130, ended from outside.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PATHS = [str(path) for path in (ROOT / "benchmarks" / "gpu", ROOT / "benchmarks", ROOT / "tests" / "support", ROOT)]
sys.path[:0] = [path for path in _PATHS if path not in sys.path]

EXIT_WRONG, EXIT_TO_DO, EXIT_INTERRUPTED = 1, 3, 130


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help="run these alone, done before or not")
    parser.add_argument("--budget", type=float, default=540, metavar="SECONDS", help="end within (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="results, logs and work (%(default)s)")
    parser.add_argument("--mirror", type=Path, action="append", default=[], help="a folder that gets the results too")
    parser.add_argument("--dry", action="store_true", help="on a CPU, emulated, with tiny shapes")
    args = parser.parse_args()

    os.environ["PYTHONPATH"] = os.pathsep.join([*_PATHS, *filter(None, [os.environ.get("PYTHONPATH")])])
    from journal import DONE, Journal, table
    from plan import PRELOADED, PROBE, STEPS
    from runner import Runner

    names = [step.name for step in STEPS]
    if unknown := sorted(set(args.steps) - set(names)):
        parser.error(f"no step is called {', '.join(unknown)}; the steps are {', '.join(names)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    journal = Journal(args.out.absolute(), *(mirror.absolute() for mirror in args.mirror))
    journal.add("run", "run", dry=args.dry, budget=args.budget, steps=args.steps)
    interrupted = False
    try:
        # The emulation takes seconds to import torch._dynamo, in every step.
        preloaded = [*PRELOADED, "torch._dynamo"] if args.dry else PRELOADED
        Runner(journal, args.budget, args.dry, PROBE, preloaded).run(STEPS, args.steps)
    except KeyboardInterrupt:
        interrupted = True
    print(f"\n{table(journal, names)}\n\n{journal.path}")
    statuses = [journal.status(name) for name in args.steps or names]
    if interrupted:
        return EXIT_INTERRUPTED
    if any(status not in (None, DONE, "interrupted") for status in statuses):
        return EXIT_WRONG
    return 0 if all(status == DONE for status in statuses) else EXIT_TO_DO


if __name__ == "__main__":
    sys.exit(main())
