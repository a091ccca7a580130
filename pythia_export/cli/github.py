"""What GitHub Actions shows of a verdict: the step's summary, annotations, and outputs for the steps that follow.

The runner says by environment variables that it is there, and where it reads from ("Workflow commands for GitHub
Actions" in its documentation). Elsewhere nothing happens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..records.parity import Parity
from ..report import words
from ..report.summary import summary

_LEVELS = {"failed": "error", "inconclusive": "warning"}


def announce(parity: Parity, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Append to the files that the runner names; return the annotations, for a stream that it reads.

    Raises:
        OSError: one of the files cannot be written.
    """
    for variable, render in (("GITHUB_STEP_SUMMARY", summary), ("GITHUB_OUTPUT", _outputs)):
        if environment.get(variable):
            with Path(environment[variable]).open("a", encoding="utf-8") as f:
                f.write(render(parity))
    return list(_annotations(parity)) if environment.get("GITHUB_ACTIONS") == "true" else []


def _outputs(parity: Parity) -> str:
    cost = parity.cost
    found = {
        "verdict": words.verdict(parity)[0].lower(),
        "ppl_ratio": cost.ppl_ratio.value,
        "delta_nll": cost.delta_nll.mean,
        "kld_mean": cost.kld.mean,
        "same_top": cost.same_top.value,
    }
    return "".join(f"{name}={'' if value is None else value}\n" for name, value in found.items())


def _annotations(parity: Parity) -> Iterator[str]:
    for gate in parity.gates:
        if not gate.passed:
            yield _command(_LEVELS[gate.outcome], f"Gate {gate.name}: {gate.outcome}", words.gate_sentence(gate))
    for line in (words.look_in_graph(parity), words.look_in_weights(parity)):
        if line:
            yield _command("notice", "Look first", line)


def _command(level: str, title: str, message: str) -> str:
    """Percent signs, ends of lines, and in a title what ends it, are escaped as the runner unescapes them."""

    def data(text: str) -> str:
        return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

    return f"::{level} title={data(title).replace(':', '%3A').replace(',', '%2C')}::{data(message)}"
