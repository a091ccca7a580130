"""The recipe's limits against what was measured.

What was measured outright (the largest difference of two computations) is held to the limit itself. What was estimated
from held-out text passes only when its confidence bound clears the limit: a lucky sample is not a proof, and where no
bound exists nothing passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..recipe import Gates


def judge(gates: Gates, parity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One dict a gate that the recipe sets, in the recipe's order: `name`, `limit`, `value`, `bound`, `passed`.

    `bound` is what was held to the limit: the value itself where it was measured, the far end of its interval where it
    was estimated, None where there is none (and the gate fails). `parity` holds the sections `export` and `cost`.
    """
    export, cost = parity.get("export") or {}, parity.get("cost") or {}
    graphs = [export, *([export["native"]] if export.get("native") else [])]  # each speed is held to the limit
    worst = {
        key: None if any(g.get(key) is None for g in graphs) else float(np.max([g[key] for g in graphs]))
        for key in ("max_abs", "decode_max_abs")
    }
    ratio, kld, top = (cost.get(name) or {} for name in ("ppl_ratio", "kld", "same_top"))
    found = {
        "export_max_abs": (worst["max_abs"], worst["max_abs"]),
        "decode_max_abs": (worst["decode_max_abs"], worst["decode_max_abs"]),
        "ppl_ratio": (ratio.get("value"), ratio.get("high")),
        "kld_mean": (kld.get("mean"), kld.get("high")),
        "same_top": (top.get("value"), top.get("low")),
    }
    verdicts = []
    for name in Gates.model_fields:
        limit = getattr(gates, name)
        if limit is None:
            continue
        value, bound = found[name]
        passed = bound is not None and (bound >= limit if name == "same_top" else bound <= limit)
        verdicts.append({"name": name, "limit": limit, "value": value, "bound": bound, "passed": passed})
    return verdicts
