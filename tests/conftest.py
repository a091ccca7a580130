"""What a CI system around these tests says in the environment is not meant for the commands that they run."""

from __future__ import annotations

import os

for _name in ("GITHUB_ACTIONS", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(_name, None)
