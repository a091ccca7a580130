"""Log-probabilities of tokens, computed where the logits are: behind them in the graph, in the memory of the session.

Logits that leave a session are 200 KB a token, written once more and read back. In the graph ONNX Runtime's LogSoftmax
takes a tenth of what NumPy's exponential does; but summed in float32 over 50,000 classes it is off by 1e-5. So the
vocabulary is cut into parts, whose sums of exponentials are taken in float32, and the parts are added in float64: what
is left is below 1e-6 for a token. A part answers with its largest logit, whose log-softmax is near zero and so exact;
that of a class far below would be rounded with its distance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..artifact import Artifact
from ..base.errors import NumericsError
from ..runtime import MODEL, Session, check_graph

PART = 512  # classes at most
_TARGETS, _SCORES = "score.targets", ("score.tops", "score.of_log_softmax", "score.came")
_BOTTOMS = "score.bottoms"  # for the check alone: minus infinity shows nowhere else


class ScoringSession(Session):
    """A session that scores tokens as well; in everything else it is a `Session`."""

    inputs = (*Session.inputs, _TARGETS)
    outputs = (*Session.outputs, *_SCORES, _BOTTOMS)
    operators = Session.operators | {("", "GatherElements"), ("", "LogSoftmax"), ("", "ReduceMin")}

    @classmethod
    def of(cls, artifact: Artifact, *, threads: int | None = None, native: bool = True) -> ScoringSession:
        """Open a published artifact."""
        check_graph(artifact)
        model = onnx.load_from_string(artifact.file(MODEL).read_bytes())
        append_scores(model.graph, artifact.config.vocab_size)
        return cls.open(artifact, threads=threads, native=native, model_bytes=model.SerializeToString())

    def score(self, ids: np.ndarray, mask: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Natural logarithms of targets' probabilities [B, K, C] float64, and whether each is the likeliest, bool.

        ids [B, S] int64 and mask [B, S] 1 or 0, with nothing before them; targets [B, K, C] int64 are C candidates to
        follow each of the last K tokens. Of equal logits each counts as the likeliest.

        Raises:
            NumericsError: a logit is NaN or infinite.
        """
        batch, kept, choices = targets.shape
        parts = self.config.vocab_size // part_size(self.config.vocab_size)
        cache = self.start(*ids.shape)
        found = {name: np.empty((batch * kept * parts, 1), np.float32) for name in (*_SCORES[:2], _BOTTOMS)}
        found[_SCORES[2]] = np.empty((batch, kept, choices), np.float32)
        on_device = {name: self._memory.value(array) for name, array in found.items()}
        cache.bind({_TARGETS: self._memory.value(np.ascontiguousarray(targets, np.int64))}, on_device)
        self._advance(cache, ids, mask, kept)
        values = {name: value.numpy().reshape(batch, kept, -1) for name, value in on_device.items()}
        # Of a part with a NaN or an infinity in it the log-softmax is NaN.
        good = np.isfinite([values[name] for name in (*_SCORES[:2], _BOTTOMS)]).all(axis=(0, 3))
        bad = ~good & (mask[:, -kept:] != 0)
        if bad.any():
            row, at = np.argwhere(bad)[0]
            raise NumericsError(f"the logits of {bad.sum():,} tokens are not finite, first at place {at} of row {row}")
        return combine(*(values[name] for name in _SCORES))


def part_size(classes: int) -> int:
    """Return the size of equal parts of a vocabulary; the whole of it if it has too few divisors."""
    size = next(n for n in range(min(PART, classes), 0, -1) if classes % n == 0)
    return size if size * size >= classes else classes


def append_scores(graph: onnx.GraphProto, classes: int) -> None:
    """Let a graph whose output `logits` is [B, K, classes] also give what `combine` takes.

    Of each part of the vocabulary [B * K * parts, 1]: its largest logit, the log-softmax of that one, and its smallest.
    Of the targets, an input [B, K, C] with a default, their logits [B, K, C].
    """
    tops, of_log_softmax, came = _SCORES
    graph.initializer.extend(
        [
            helper.make_tensor("score.parts", TensorProto.INT64, [2], [-1, part_size(classes)]),
            helper.make_tensor("score.axis", TensorProto.INT64, [1], [1]),
            helper.make_tensor(_TARGETS, TensorProto.INT64, [1, 1, 1], [0]),
        ]
    )
    graph.node.extend(
        [
            _node("Reshape", ["logits", "score.parts"], "score.of_parts"),
            _node("ReduceMax", ["score.of_parts", "score.axis"], tops),
            _node("ReduceMin", ["score.of_parts", "score.axis"], _BOTTOMS),
            _node("LogSoftmax", ["score.of_parts"], "score.log_softmax", axis=1),
            _node("ReduceMax", ["score.log_softmax", "score.axis"], of_log_softmax),
            _node("GatherElements", ["logits", _TARGETS], came, axis=2),
        ]
    )
    graph.input.append(helper.make_tensor_value_info(_TARGETS, TensorProto.INT64, [None, None, None]))
    graph.output.extend(
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in (tops, of_log_softmax, _BOTTOMS)]
        + [helper.make_tensor_value_info(came, TensorProto.FLOAT, [None, None, None])]
    )


def combine(tops: np.ndarray, of_log_softmax: np.ndarray, came: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores [B, K, C] float64 and whether each is the likeliest, from tops and of_log_softmax [B, K, parts] and
    came [B, K, C], float32."""
    of_parts = tops - of_log_softmax.astype(np.float64)
    largest = of_parts.max(-1, keepdims=True)
    log_sums = largest + np.log(np.exp(of_parts - largest).sum(-1, keepdims=True))
    return came - log_sums, came == tops.max(-1, keepdims=True)


def _node(operator: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], f"{output}/{operator}", **attributes)
