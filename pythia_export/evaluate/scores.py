"""Log-probabilities of tokens from float32 logits, as fast as ONNX Runtime reads them.

NumPy's exponential takes as long as a small model's layers do, ONNX Runtime's LogSoftmax a tenth of that; but summed in
float32 over 50,000 classes it is off by 1e-5. So the vocabulary is cut into parts, whose sums of exponentials are taken
in float32, and the parts are added in float64: what is left is below 1e-6 for a token. A part answers with its largest
logit, whose log-softmax is near zero and so exact; that of a class far below would be rounded with its distance.
"""

from __future__ import annotations

import numpy as np
import onnx.parser

from ..runtime.session import onnxruntime

PART = 512  # classes at most
CHUNK = 1 << 22  # logits in work at a time: 16 MiB
_TOPS = """
<ir_version: 10, opset_import: ["" : 18]>
tops (float[rows, classes] x) => (float[rows, 1] top, float[rows, 1] of_log_softmax) {
    axis = Constant<value = int64[1] {1}>()
    top = ReduceMax(x, axis)
    all = LogSoftmax<axis = 1>(x)
    of_log_softmax = ReduceMax(all, axis)
}
"""


class TokenScores:
    """For logits over `vocab_size` classes."""

    def __init__(self, vocab_size: int) -> None:
        self._part = next(n for n in range(min(PART, vocab_size), 0, -1) if vocab_size % n == 0)
        if self._part * self._part < vocab_size:  # a prime number of classes, or nearly one
            self._part = vocab_size
        ort = onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # more would wait for those of the model's session, which spin for a while
        model = onnx.parser.parse_model(_TOPS).SerializeToString()
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Natural logarithm of each target's probability, [T] float64; logits [T, V] float32, targets [T]."""
        scores = np.empty(len(logits))
        step = max(1, CHUNK // logits.shape[1])
        for at in range(0, len(logits), step):
            chunk = logits[at : at + step]
            came = np.take_along_axis(chunk, targets[at : at + step, None], 1)[:, 0]
            scores[at : at + step] = came - self._log_sum(chunk)
        return scores

    def _log_sum(self, logits: np.ndarray) -> np.ndarray:
        """Logarithm of the sum of exponentials, [T] float64."""
        parts = np.ascontiguousarray(logits).reshape(-1, self._part)
        top, of_log_softmax = self._session.run(None, {"x": parts})
        of_parts = (top - of_log_softmax.astype(np.float64)).reshape(len(logits), -1)
        largest = of_parts.max(1)
        total: np.ndarray = largest + np.log(np.exp(of_parts - largest[:, None]).sum(1))
        return total
