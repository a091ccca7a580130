"""Each mean of checkpoints beside the last checkpoint of its run, document by document, on the same tokens.

Two intervals that overlap say little: most of their width is how documents differ, which both models share. The
difference is taken in each document first, and its interval is that of `proof.statistics`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from ..model.mean import is_mean
from ..proof.statistics import Estimate, mean_of_clusters
from ..records.parity import Sums
from .folder import Folder
from .jobs import Job, label
from .records import Result

DIFFERENCES = ("delta_nll", "kld", "nll_original", "nll_quantized")  # of the mean, less the last checkpoint's; nats
COLUMNS: dict[str, pa.DataType] = {
    "key": pa.string(),  # the mean's job
    "last_key": pa.string(),
    "name": pa.string(),
    "revision": pa.string(),
    "last_revision": pa.string(),  # the last step that the sweep has of this run, and that and all below null without
    "quantization": pa.string(),
    "clusters": pa.int64(),
    **{f"{name}{end}": pa.float64() for name in DIFFERENCES for end in ("", "_low", "_high")},
}


def pairs(folder: Folder, keys: Iterable[str]) -> pa.Table:
    """Return one row a mean and quantisation that rounds; raises as `tables`."""
    found: list[tuple[Job, Result]] = []
    for key in keys:
        record = folder.result(key)
        if record is not None:
            found.append((Job.from_json(record.job, f"the result of {key}"), record))
    rows = [
        _row(job, record, _last(job, found))
        for job, record in found
        if is_mean(job.model.revision) and job.quantize.method != "none"
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema(list(COLUMNS.items())))


def _last(mean: Job, found: list[tuple[Job, Result]]) -> tuple[Job, Result] | None:
    """Return the last checkpoint of a mean's run, as far as the sweep has one with this quantisation and text."""
    alike = [
        (job, record)
        for job, record in found
        if job.snapshot.name == mean.snapshot.name
        and not is_mean(job.model.revision)
        and (job.quantize, job.verify) == (mean.quantize, mean.verify)
    ]
    return max(alike, key=lambda each: _when(each[0]), default=None)


def _when(job: Job) -> tuple[bool, int]:
    return job.model.revision == "main", -1 if job.snapshot.step is None else job.snapshot.step


def _row(job: Job, mean: Result, last: tuple[Job, Result] | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "key": mean.key, "name": job.snapshot.name, "revision": job.model.revision, "quantization": label(job.quantize)
    }  # fmt: skip
    if last is None:
        return row
    job, record = last
    row |= {"last_key": record.key, "last_revision": job.model.revision, "clusters": len(record.cost.sums.tokens)}
    for name in DIFFERENCES:
        apart = difference(mean, record, name)
        row |= {name: apart.value, f"{name}_low": apart.low, f"{name}_high": apart.high}
    return row


def difference(one: Result, other: Result, name: str) -> Estimate:
    """Return by how much one result is above another on the same text, nats a token; `name` is of `DIFFERENCES`."""
    return mean_of_clusters(one.cost.sums.tokens, _sums(one.cost.sums, name) - _sums(other.cost.sums, name))


def _sums(sums: Sums, name: str) -> np.ndarray:
    if name == "delta_nll":
        return np.subtract(sums.nll_quantized, sums.nll_original)
    return np.asarray(getattr(sums, name), np.float64)
