"""What does the third question of the proof cost beside the second?

    python benchmarks/inside.py [--artifact build/demo] [--tokens 32768] [--rounds 3] [--json FILE]

"cost" is question B alone: the original in torch, the artifact in ONNX Runtime, figures of every token. "inside" is
what question C adds to it: the artifact's weights in step with the original's, compared by layer and head.
Contestants take turns; medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import onnx

from pythia_export.artifact import Artifact
from pythia_export.base.machine import machine
from pythia_export.checkpoint import open_checkpoint, pull
from pythia_export.corpus import verify_windows
from pythia_export.proof import cost
from pythia_export.proof.activations import Activations
from pythia_export.proof.inside import Inside
from pythia_export.proof.subject import Subject
from pythia_export.weights.names import MODEL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, default=Path("build/demo"))
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    artifact = Artifact.open(args.artifact)
    recipe, config = artifact.recipe, artifact.config
    source = open_checkpoint(pull(recipe.model))
    section = recipe.verify.model_copy(update={"tokens": args.tokens})
    windows = verify_windows(section, artifact.tokenizer(), config)
    model = onnx.load(artifact.file(MODEL), load_external_data=False)
    subject = Subject(
        artifact.manifest.source, source, artifact.weights(), config, model, artifact.folder, recipe.quantize,
        recipe.export,
    )  # fmt: skip
    rounds = Activations.of(model, config, recipe.export)
    shipped = subject.session(recipe.export.accuracy_level, native=True)
    seconds: dict[str, list[float]] = {"cost": [], "cost and inside": []}
    for _ in range(args.rounds):
        for name, found in seconds.items():
            watch = None
            if "inside" in name:
                watch = Inside(source, {"artifact": subject.stored}, config, windows, activations=rounds)
            began = time.perf_counter()
            cost.measure(subject, shipped, windows, watch=watch)
            if watch is not None:
                watch.result()
            found.append(time.perf_counter() - began)
    alone, both = (statistics.median(found) for found in seconds.values())
    result = {
        "machine": machine(), "tokens": int(windows.ids.size), "rounds": args.rounds, "cost_seconds": round(alone, 2),
        "inside_seconds": round(both - alone, 2), "inside_over_cost": round((both - alone) / alone, 2),
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
