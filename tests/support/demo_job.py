"""A job on a copy of the demo checkpoint, without a hub."""

from __future__ import annotations

import os
import subprocess

from processes import pythia_export

RECIPE = """
model = {path = "model"}
calibration = {source = "python-stdlib", samples = 4, sequence_length = 128, memory_gb = 0.0}
quantize = {bits = 4, group_size = 32}
verify = {source = "python-stdlib", tokens = 256, sequence_length = 128}
"""
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "160"}


def run(*args: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    return pythia_export(*args, env=ENVIRONMENT, check=check)
