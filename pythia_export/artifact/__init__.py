"""The artifact directory: whole, or absent.

`Staging` writes it: into a hidden sibling, then one rename. Whatever ends the process in between (an exception,
Ctrl-C, SIGTERM, kill -9, a power cut) leaves the name with the old artifact or with the new one. What a killed process
left behind is found by the next `Staging` of the same name.

`Artifact` reads it: the manifest tells the size and the SHA-256 of every other file, so that truncation is found on
opening and a changed byte on `check`.

No torch, no onnx: consumers of an artifact import this package.
"""

from ..records.manifest import MANIFEST
from ..records.parity import Parity
from ..records.quantization import Quantization
from .publish import Kind, Publisher
from .read import Artifact
from .snapshot import is_own_file, is_snapshot
from .staging import Staging

__all__ = [
    "MANIFEST", "Artifact", "Kind", "Parity", "Publisher", "Quantization", "Staging", "is_own_file", "is_snapshot",
]  # fmt: skip
