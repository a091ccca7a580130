"""Follow the tensor of one weight through the house while it is quantised, and print where it changes rooms.

    python benchmarks/climbs.py [CHECKOUT]

It looks at `quantize` of the demo (GPTQ at 4 bits), and at the matrices of `mlp.dense_h_to_4h`: nothing else has their
shape. A line is one place where a function of one room takes such a tensor from another room, or returns it to one. UP
means to a higher floor, by the list in the checkout's tests/test_house.py. A call upwards is a closure or a callback
that a higher room handed down; a return upwards is how a function answers. Any checkout can be followed that has this
list, so that two can be compared.
"""

from __future__ import annotations

import ast
import sys
import tempfile
from collections import Counter
from pathlib import Path, PurePath
from types import FrameType
from typing import Any

ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()
PACKAGE = f"{ROOT / 'pythia_export'}/"
# An editable installation finds its own checkout before anything on the path.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
sys.path.insert(0, str(ROOT))

RECIPE = {
    "model": {"id": "demo"},
    "calibration": {"source": "python-stdlib", "samples": 2, "sequence_length": 64},
    "quantize": {"method": "gptq", "bits": 4, "group_size": 32, "beam": 1},
    "verify": {"source": "python-stdlib", "tokens": 1024, "sequence_length": 64},
}


def floors() -> dict[str, int]:
    """Return the floor of each room, lowest 0."""
    for node in ast.parse((ROOT / "tests" / "test_house.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "FLOORS":
            listed = ast.literal_eval(node.value)
            return {room: floor for floor, rooms in enumerate(listed) for room in rooms}
    raise SystemExit("tests/test_house.py has no list FLOORS")


def room_of(frame: FrameType | None) -> str | None:
    file = "" if frame is None else frame.f_code.co_filename
    return PurePath(file.removeprefix(PACKAGE)).with_suffix("").parts[0] if file.startswith(PACKAGE) else None


def main() -> None:
    import numpy as np
    import torch

    from pythia_export.checkpoint import open_checkpoint, pull
    from pythia_export.recipe import parse_recipe

    try:
        from pythia_export.commands.quantize import quantize
    except ImportError:  # before the layout in rooms
        from pythia_export.pipeline import quantize

    recipe, floor, way = parse_recipe(RECIPE), floors(), Counter()
    config = open_checkpoint(pull(recipe.model)).config
    shape = (config.intermediate_size, config.hidden_size)

    def is_the_weight(x: Any) -> bool:
        return isinstance(x, torch.Tensor | np.ndarray) and tuple(x.shape) == shape

    def look(frame: FrameType, event: str, returned: Any) -> None:
        here = room_of(frame)
        if here is None or event not in ("call", "return"):
            return
        caller = frame.f_back
        while caller is not None and room_of(caller) is None:  # libraries between two rooms
            caller = caller.f_back
        other, code = room_of(caller), frame.f_code
        if other is None or other == here:
            return
        taken = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if event == "call" and any(is_the_weight(frame.f_locals.get(name)) for name in taken):
            way[other, here, code.co_name, event] += 1
        elif event == "return" and is_the_weight(returned):
            way[here, other, code.co_name, event] += 1

    with tempfile.TemporaryDirectory() as scratch:
        sys.setprofile(look)
        try:
            quantize(recipe, Path(scratch) / "out")
        finally:
            sys.setprofile(None)
    climbs: Counter[str] = Counter()
    for (source, target, name, event), times in way.items():
        up = floor[source] < floor[target]
        climbs[event] += up
        print(
            f"{'UP' if up else 'down':4} {event:6} {source} -> {target}  {name}, {times / config.num_layers:g} a layer"
        )
    print(f"{climbs['call']} calls and {climbs['return']} returns lead to a higher floor")


if __name__ == "__main__":
    main()
