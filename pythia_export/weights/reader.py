"""`model.onnx_data` read back, as the matrices that its tensors stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..base.errors import IntegrityError
from ..model.neox import EMBEDDING, QKV
from ..rounding.grid import Quantized
from .layout import Layout, LinearPlan, packed_qkv_rows
from .packing import unpack, unpack_codes, unpack_rows


class WeightsReader:
    """Tensors of an artifact by their checkpoint names, dequantised to float32, rows of QKV as on disk.

    With a `Checkpoint` it shares `tensor(name)`: whatever computes from one computes from the other.

    Raises:
        IntegrityError: the file is shorter than the layout.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        found = path.stat().st_size
        if found < layout.nbytes:
            raise IntegrityError(f"{path}: {found} bytes; its recipe lays out {layout.nbytes}")
        self._bytes = np.memmap(path, np.uint8, mode="r")
        self._layout, self._hidden = layout, layout.config.hidden_size
        self._unpack_rows = np.argsort(packed_qkv_rows(layout.config))

    def stored(self, name: str) -> np.ndarray:
        """One tensor as it is stored."""
        return self._layout.slots[name].view(self._bytes)

    def tensor(self, name: str) -> Tensor:
        """``name`` is that of the checkpoint, `gpt_neox.layers.0.attention.dense.weight` say; float32.

        With two products a layer the shifts of the norms and the bias of dense lie in other weights: here they are 0.
        """
        base, part = name.rsplit(".", 1)
        if self._layout.fused and part == "bias" and name not in self._layout.slots:
            return torch.zeros(self._hidden)
        plan = self._layout.linears.get(base)
        scheme = self._layout.embedding
        if name == f"{EMBEDDING}.weight" and scheme is not None:
            rows = {x: self.stored(f"{EMBEDDING}.{x}") for x in ("qweight", "scales")}
            return unpack_rows(rows, self._hidden, scheme)
        if plan is not None and part == "weight" and plan.method != "none":
            tensor = unpack(self._parts(plan), plan)
        else:
            tensor = torch.from_numpy(self.stored(name).astype(np.float32))
            if plan is not None and part == "weight":
                tensor = tensor.T
        if base.endswith(QKV):
            tensor = tensor[torch.from_numpy(self._unpack_rows)]
        return tensor.contiguous()

    def quantized(self, plan: LinearPlan) -> Quantized:
        """Return codes and grid of a linear that is quantised, rows of QKV as on disk."""
        found = unpack_codes(self._parts(plan), plan)
        return found.rows(torch.from_numpy(self._unpack_rows)) if plan.name.endswith(QKV) else found

    def _parts(self, plan: LinearPlan) -> dict[str, np.ndarray]:
        names = {part: f"{plan.name}.{part}" for part in ("qweight", "scales", "zero_points")}
        return {part: self.stored(name) for part, name in names.items() if name in self._layout.slots}
