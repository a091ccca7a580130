"""The steps, the cheapest that settle most first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from bench import Bench

FORKS = "a process that can fork"  # which has loaded nothing of the GPU's driver
PRELOADED = ["torch", "onnx", "pythia_export.commands.run", "pythia_export.cli"]  # once, for all steps
GPU, LIBRARY, SESSIONS = "a GPU that torch reaches", "the kernels, for a GPU and for the CPU", "ONNX Runtime with CUDA"
KERNELS = (GPU, LIBRARY)
IN_SESSIONS = (*KERNELS, SESSIONS)


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


PROBE = Step("probe", "the GPU still answers", "steps.environment:probe", 1, 60)
STEPS = (
    Step("environment", "what is there, and whether the assumptions hold", "steps.environment:look", 5, 120),
    Step("library", "the kernels load here; where they do not, nvcc builds them", "steps.environment:library", 5, 240),
    Step("kernels", "attention and rotary against the contract", "steps.kernels:contract", 15, 150, KERNELS),
    Step("beam", "GPTQ's beam against the CPU's codes", "steps.kernels:beam", 10, 60, KERNELS),
    Step("attention", "attention beside the memory's rate and torch's", "steps.attention:speed", 10, 60, KERNELS),
    Step("demo", "quantize --device cuda beside the CPU's weights", "steps.demo:quantize", 30, 150, KERNELS),
    Step(
        "two-layers",
        "two of 6.9b's layers quantised: time and memory",
        "steps.shapes:two_layers",
        20,
        120,
        KERNELS,
    ),
    Step("verify", "verify --device cuda beside the CPU's figures", "steps.demo:verify", 30, 150, KERNELS),
    Step("operators", "our operators in sessions on a GPU", "steps.sessions:contract", 15, 120, IN_SESSIONS),
    Step("parity", "artifacts for cuda against torch", "steps.sessions:parity", 30, 150, IN_SESSIONS),
    Step("speed", "decode and prompts of 6.9b's shapes", "steps.sessions:speed", 45, 200, IN_SESSIONS),
    Step("1.4b", "all of 1.4b's shapes quantised", "steps.shapes:middle", 30, 150, KERNELS),
    Step("6.9b", "all of 6.9b's shapes quantised", "steps.shapes:whole", 120, 400, KERNELS),
    Step("sanitizer", "reads and writes beyond a buffer, and races", "steps.kernels:sanitized", 20, 150, KERNELS),
    Step("sweep", "a sweep on the GPU", "steps.sweeps:demo", 20, 90, KERNELS),
    Step("training", "a better demo checkpoint for tests", "steps.training:demo", 60, 200, (GPU,)),
)
