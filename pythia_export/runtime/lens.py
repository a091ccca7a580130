"""The logit lens: what a residual stream, read anywhere in the model, says of the next token.

The last normalisation and the head of an artifact, as a session of their own (nostalgebraist 2020).
"""

from __future__ import annotations

import numpy as np

from ..artifact import Artifact
from ..base.errors import ResourceError
from .graph import read_graph, require_files, require_ours
from .onnxruntime import is_memory, onnxruntime, open_graph
from .snapshot import as_blobs
from .speed import provider_of, speed_of


class Lens:
    """`Lens(artifact, graph)`: `graph` is that of `graph.decoder.build_lens`, over the artifact's weights.

    Raises as `Session`.
    """

    def __init__(self, artifact: Artifact, graph: bytes, *, threads: int | None = None, native: bool = True) -> None:
        where = f"{artifact.folder} (logit lens)"
        contents = read_graph(graph, where)
        require_files(contents, artifact.folder, artifact.manifest.files, where)
        require_ours(contents, where)
        provider = provider_of(artifact)
        _, _, library = speed_of(graph, provider, native)
        self._session = open_graph(onnxruntime(), *as_blobs(graph, artifact.folder), threads, provider, library)

    def logits(self, stream: np.ndarray) -> np.ndarray:
        """Return logits [T, vocab] float32 of residual streams [T, d_model], of the artifact's activations' type.

        Raises:
            ResourceError: no memory for them.
        """
        try:
            (found,) = self._session.run(["logits"], {"stream": stream[None]})
        except Exception as e:  # a class of ONNX Runtime's own
            if is_memory(e):
                raise ResourceError(f"no memory for the logits of {len(stream)} tokens: {e}") from e
            raise
        return np.asarray(found[0])
