"""What an int8 KV cache changes: the KL divergence of an artifact from itself with a cache of floats, form by form.

    python benchmarks/int8_cache.py ARTIFACT [--windows 40] [--length 512]

ARTIFACT has a [calibration] section. Windows are of its held-out text. "a scale a channel" is what rotary = "gqa"
writes; the lines below it have other margins, and one scale for each layer (PER_TENSOR), in the same graph.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from pythia_export.artifact import Artifact
from pythia_export.base.machine import machine
from pythia_export.commands.cache_scales import MARGIN
from pythia_export.commands.export import export
from pythia_export.corpus import verify_windows
from pythia_export.runtime import Session

MARGINS = (1.0, 1.05, 1.1, 1.25, 1.5, 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--length", type=int, default=512)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        export(args.artifact, folder / "floats", rotary="gqa", kv_cache="float32")
        export(args.artifact, folder / "token", rotary="custom", kv_cache="int8")
        export(args.artifact, folder / "channel", rotary="gqa", kv_cache="int8")
        floats = Artifact.open(folder / "floats")
        text = floats.recipe.verify.model_copy(
            update={"tokens": args.windows * args.length, "sequence_length": args.length}
        )
        ids = verify_windows(text, floats.tokenizer(), floats.config).ids
        print(f"{args.artifact.name}, {ids.size:,} held-out tokens in {len(ids)} windows; {machine()}\n")
        print("| int8 cache | KL divergence, nats a token | same likeliest token |\n|---|---|---|")
        expected = [distribution(Session.open(floats), window) for window in ids]
        channel = Artifact.open(folder / "channel")
        model = onnx.load(channel.file("model.onnx"), load_external_data=False)
        said = {"a scale for each head and token": Session.open(Artifact.open(folder / "token"))}
        for margin in MARGINS:
            graph = scaled(model, margin / MARGIN, whole=False)
            said[f"a scale a channel, margin {margin:g}"] = Session.open(channel, model_bytes=graph)
        said[f"a scale a layer, margin {MARGIN:g}"] = Session.open(channel, model_bytes=scaled(model, 1, whole=True))
        for name, session in said.items():
            divergences, same = [], []
            for window, p in zip(ids, expected, strict=True):
                q = distribution(session, window)
                divergences.append((np.exp(p) * (p - q)).sum(-1))
                same.append(p.argmax(-1) == q.argmax(-1))
            print(f"| {name} | {np.mean(divergences):.5f} | {100 * np.mean(same):.2f} % |", flush=True)


def distribution(session: Session, window: np.ndarray) -> np.ndarray:
    """Return the logarithm of every token's probability at every place, [S, V] float64."""
    logits = session.logits(window[None])[0].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def scaled(model: onnx.ModelProto, factor: float, whole: bool) -> bytes:
    """Return the graph with its scales times `factor`; `whole` is for one of a layer, the largest."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name.startswith("cache."):
            scale = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(scale.max().reshape(1) if whole else scale, tensor.name))
    for node in copy.graph.node:
        for attribute in node.attribute:
            if whole and attribute.name in ("k_quant_type", "v_quant_type"):
                attribute.s = b"PER_TENSOR"
    return bytes(copy.SerializeToString())


if __name__ == "__main__":
    main()
