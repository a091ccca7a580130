"""The steps, the cheapest that settle most first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from bench import Bench

FORKS = "a process that can fork"  # which has loaded nothing of the GPU's driver
PRELOADED = ["torch", "onnx", "pythia_export.commands.run", "pythia_export.cli"]  # once, for all steps
GPU, LIBRARY, SESSIONS = "a GPU that torch reaches", "the kernels for a GPU", "ONNX Runtime with CUDA"


@dataclass(frozen=True)
class Step:
    """`work` is "module:function", called with a Bench. `least` and `limit` are seconds: with less than `least` left it
    is not begun, and at `limit` it is ended. `needs` are what lines of kind `has` say."""

    name: str
    settles: str
    work: str
    least: float
    limit: float
    needs: tuple[str, ...] = ()

    def function(self) -> Callable[[Bench], None]:
        module, _, name = self.work.partition(":")
        found: Callable[[Bench], None] = getattr(import_module(module), name)
        return found


ENVIRONMENT = Step("environment", "what is there, and whether the assumptions hold", "steps.environment:look", 5, 120)
STEPS = (
    ENVIRONMENT,
    Step("library", "the kernels load here; where they do not, nvcc builds them", "steps.environment:library", 5, 240),
    Step("kernels", "attention and rotary against the contract", "steps.kernels:contract", 15, 150, (GPU, LIBRARY)),
    Step("beam", "GPTQ's beam against the CPU's codes", "steps.kernels:beam", 10, 60, (GPU, LIBRARY)),
    Step(
        "attention", "attention beside the memory's rate and torch's", "steps.attention:speed", 10, 60, (GPU, LIBRARY)
    ),
    Step("demo", "quantize --device cuda beside the CPU's weights", "steps.demo:quantize", 30, 150, (GPU, LIBRARY)),
    Step("verify", "verify --device cuda beside the CPU's figures", "steps.demo:verify", 30, 150, (GPU, LIBRARY)),
)
