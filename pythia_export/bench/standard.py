"""The artifact's weights under a graph of standard operators, for runtimes that know none of ONNX's functions."""

from __future__ import annotations

from pathlib import Path

from ..artifact import Artifact
from ..disk import copy_weights
from ..graph.decoder import build_decoder
from ..recipe import Export
from ..weights.layout import layout_of
from ..weights.names import DATA_FILE, MODEL, data_name


def write_standard(artifact: Artifact, folder: Path) -> Path:
    """Write what `export --rotary onnx` makes of an artifact into `folder`; return the graph's path.

    The weights are copied: OpenVINO refuses a link that leads out of the graph's folder.
    """
    kept = artifact.recipe.export
    export = Export(rotary="onnx", dtype=kept.dtype, target=kept.target, accuracy_level=kept.accuracy_level)
    recipe = artifact.recipe.model_copy(update={"export": export})
    folder.mkdir()
    copy_weights(artifact.folder / data_name(artifact.recipe), folder / DATA_FILE)
    model = build_decoder(artifact.config, layout_of(recipe, artifact.config), export)
    (folder / MODEL).write_bytes(model.SerializeToString())
    return folder / MODEL
