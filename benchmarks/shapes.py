"""An artifact of a size's shapes with random weights, for `pythia-export bench`: speed and memory, no meaning.

    python benchmarks/shapes.py 160m build/160m [--tokenizer build/demo]

Int4 in groups of 128, accuracy level 4. The artifact is OUT/artifact, its checkpoint OUT/checkpoint; both are needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scoring import made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=Path("build/demo"), help="an artifact that has one")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    print(made(args.size, args.tokenizer, args.out.absolute()))


if __name__ == "__main__":
    main()
