"""The results as tidy tables: one row a job, and beside it one row a job and part of the text.

`COLUMNS` is the schema; docs/guides/sweeps.md says the same for people. Nats are a token's; low and high are the ends
of the 95 % interval, clustered by document, and are null where there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as parquet

from ..base.errors import IntegrityError, SourceError
from ..disk import explained, write_atomically
from ..recipe import Quantize
from ..records.parity import Inside, Part
from .folder import WHEN_FULL, Folder
from .jobs import Job, label
from .records import SCHEMA, Facts, Result, Times

RESULTS, SUBSETS, MEANS = "results", "subsets", "means"
MARK = b"pythia-export.sweep.schema"

_ARROW = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}

_SNAPSHOT = {
    "name": pa.string(),  # pythia-160m-deduped; of a run of one's own, its name in the sweep
    "size": pa.string(),  # 160m
    "family": pa.string(),  # v1, v0, polypythias, intervention, own
    "data": pa.string(),  # standard, deduped, own
    "seed": pa.int64(),
    "step": pa.int64(),
    "training_tokens": pa.int64(),
    "learning_rate": pa.float64(),  # at that step
    "parameters": pa.int64(),
    "non_embedding_parameters": pa.int64(),
}


def _column_type(annotation: Any) -> pa.DataType:
    """Return the column type of a key: that of its Python type, or of the values that it may have."""
    (kind,) = {part if isinstance(part, type) else type(part) for part in _parts(annotation)} - {type(None)}
    return _ARROW[kind]


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield the types and values that an annotation is made of."""
    inner = get_args(annotation)
    if not inner:
        yield annotation
    for part in inner:
        yield from _parts(part)


# Every key of [quantize] that is one value, from the schema; bits_per_weight is what was reached.
_QUANTIZE = {
    key: _column_type(field.annotation)
    for key, field in Quantize.model_fields.items()
    if key not in ("bits_per_weight", "head", "override")
}
_INTERVAL = ("", "_se", "_low", "_high")
_COST = {
    "tokens": pa.int64(),
    "clusters": pa.int64(),  # documents, or windows where the text is one document
    "clustered_by": pa.string(),
    "nll_original": pa.float64(),
    "nll_quantized": pa.float64(),
    "ppl_original": pa.float64(),
    "ppl_quantized": pa.float64(),
    **{f"delta_nll{x}": pa.float64() for x in _INTERVAL},
    **{f"kld{x}": pa.float64() for x in _INTERVAL},
    "kld_p99": pa.float64(),
    **{f"same_top{x}": pa.float64() for x in _INTERVAL},
    "bits_per_byte_original": pa.float64(),
    "bits_per_byte_quantized": pa.float64(),
}
# With `inside = true`; null without it. Means over layers, or over heads.
_INSIDE = {
    **{
        f"{name}{x}": pa.float64()
        for name in ("stream_error", "stream_cosine", "pattern_js", "lens_kld", "lens_same_top", "feature_survival")
        for x in _INTERVAL
    },
    "induction_original": pa.float64(),  # largest score of a head
    "induction": pa.float64(),
    "unexplained_original": pa.float64(),  # of the variance, by autoencoders; the mean over them
    "unexplained": pa.float64(),
}
COLUMNS: dict[str, pa.DataType] = {
    "key": pa.string(),
    **_SNAPSHOT,
    "revision": pa.string(),
    "commit": pa.string(),
    "quantization": pa.string(),  # all of what follows in a few words: int4 group 128
    **_QUANTIZE,
    "head_method": pa.string(),
    "head_bits": pa.int64(),
    "head_group_size": pa.int64(),
    "bits_per_weight": pa.float64(),  # stored, scales and head included
    "expected_cost": pa.float64(),  # nats, of the second-order model, summed over the linears; GPTQ with fisher
    "residual_error": pa.float64(),  # of the last layer's output, relative and squared, on the calibration text
    **_COST,
    **_INSIDE,
    "seconds_share": pa.float64(),  # pulling, sensitivities: what the first job of a task does for the others too
    "seconds_quantize": pa.float64(),
    "seconds_score": pa.float64(),
    "peak_memory_bytes": pa.int64(),  # of the process so far
    "threads": pa.int64(),
    "attempt": pa.int64(),
    "machine": pa.string(),
    "device": pa.string(),  # cpu, or the GPU's name
    "when": pa.string(),
    "torch": pa.string(),
    "pythia_export": pa.string(),
    "calibration": pa.string(),  # SHA-256 of the windows
    "verify": pa.string(),
}
SUBSET_COLUMNS: dict[str, pa.DataType] = {"key": pa.string(), "subset": pa.string(), **_COST}


def tables(folder: Folder, keys: Iterable[str]) -> tuple[pa.Table, pa.Table]:
    """Return the tables of results and of parts of the text, with the jobs that have a result in the order of `keys`.

    What is said of a snapshot (its tokens, learning rate, seed) is what the sweep's manifest says of it now: a
    measurement does not depend on that, and a run of one's own may have told it later.

    Raises:
        IntegrityError: a result of another schema, or none at all.
    """
    rows, parts = [], []
    manifest = folder.manifest()
    facts: dict[str, Facts] = {}
    for snapshot in manifest.snapshots if manifest is not None else ():
        if manifest is not None and snapshot.facts is not None:
            facts |= dict.fromkeys(manifest.jobs[snapshot.task], snapshot.facts)
    for key in keys:
        record = folder.result(key)
        if record is None:
            continue
        rows.append(_row(record, facts.get(key)))
        parts += [{"key": key, "subset": part.name} | _cost(part) for part in record.cost.subsets]
    return _table(rows, COLUMNS), _table(parts, SUBSET_COLUMNS)


def _row(record: Result, facts: Facts | None) -> dict[str, Any]:
    """Return one row; `facts` of the snapshot, or those that were known when it was measured."""
    job = Job.from_json(record.job, f"the result of {record.key}")
    facts = job.snapshot if facts is None else facts
    quantize = job.quantize.model_dump()
    return (
        {"key": record.key}
        | {name: getattr(facts, name) for name in _SNAPSHOT}
        | {"revision": job.model.revision, "commit": job.commit, "quantization": label(job.quantize)}
        | {name: getattr(job.quantize, name) for name in _QUANTIZE}
        | {f"head_{name}": quantize["head"][name] for name in ("method", "bits", "group_size")}
        | {name: getattr(record, name) for name in ("bits_per_weight", "expected_cost", "residual_error")}
        | _cost(record.cost)
        | _inside(record.inside)
        | {f"seconds_{name}": getattr(record.seconds, name) for name in Times.model_fields}
        | {
            name: getattr(record, name)
            for name in ("peak_memory_bytes", "threads", "attempt", "machine", "device", "when")
        }
        | {"torch": job.versions["torch"], "pythia_export": job.versions["pythia-export"]}
        | {"calibration": job.calibration, "verify": job.verify}
    )


def _cost(cost: Part) -> dict[str, Any]:
    found: dict[str, Any] = {"clusters": cost.clusters.count, "clustered_by": cost.clusters.by}
    for name in ("tokens", "nll_original", "nll_quantized", "ppl_original", "ppl_quantized"):
        found[name] = getattr(cost, name)
    for name, of, figure in (
        ("delta_nll", cost.delta_nll, cost.delta_nll.mean),
        ("kld", cost.kld, cost.kld.mean),
        ("same_top", cost.same_top, cost.same_top.value),
    ):
        found |= {name: figure, f"{name}_se": of.se, f"{name}_low": of.low, f"{name}_high": of.high}
    ends = {f"bits_per_byte_{x}": getattr(cost, f"bits_per_byte_{x}") for x in ("original", "quantized")}
    return found | {"kld_p99": cost.kld.p99} | ends


def _inside(found: Inside | None) -> dict[str, Any]:
    if found is None:
        return dict.fromkeys(_INSIDE)
    side = found.artifact
    row: dict[str, Any] = {"induction_original": side.induction_original, "induction": side.induction}
    for name, of in (
        ("stream_error", side.residual_error),
        ("stream_cosine", side.cosine),
        ("pattern_js", side.pattern_js),
        ("lens_kld", side.lens_kld),
    ):
        row |= {name: of.mean, f"{name}_se": of.se, f"{name}_low": of.low, f"{name}_high": of.high}
    for name, part in (("lens_same_top", side.lens_same_top), ("feature_survival", side.feature_survival)):
        ends = (None, None, None, None) if part is None else (part.value, part.se, part.low, part.high)
        row |= dict(zip((f"{name}{x}" for x in _INTERVAL), ends, strict=True))
    seen = side.features
    for name in ("unexplained_original", "unexplained"):
        row[name] = sum(getattr(one, name).mean for one in seen) / len(seen) if seen else None
    return row


def _table(rows: list[dict[str, Any]], columns: dict[str, pa.DataType]) -> pa.Table:
    schema = pa.schema(list(columns.items()), metadata={MARK: str(SCHEMA).encode()})
    return pa.Table.from_pylist(rows, schema=schema)


def write(folder: Path, results: pa.Table, subsets: pa.Table, means: pa.Table | None = None) -> list[Path]:
    """`results.parquet` and `.csv`; the same of `subsets` where the text has parts, of `means` where there is one."""
    written = []
    for name, table in ((RESULTS, results), (SUBSETS, subsets), (MEANS, means)):
        for suffix in ("parquet", "csv"):
            path = folder / f"{name}.{suffix}"
            if table is None or (name != RESULTS and not len(table)):
                path.unlink(missing_ok=True)  # of the text or the revisions that the sweep had before
                continue
            sink = pa.BufferOutputStream()
            parquet.write_table(table, sink) if suffix == "parquet" else csv.write_csv(table, sink)
            with explained(path, WHEN_FULL):
                write_atomically(path, sink.getvalue().to_pybytes())
            written.append(path)
    return written


def read(path: Path) -> pa.Table:
    """Read a results.parquet, of this machine or of another.

    One of a version whose [quantize] had fewer keys gets the columns of the others, with their defaults.

    Raises:
        SourceError: there is no such file.
        IntegrityError: it is no Parquet file, or its schema is not this version's.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such file", hint="`pythia-export sweep results DIR` writes it.")
    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowInvalid) as e:
        raise IntegrityError(f"{path}: not a Parquet file: {e}") from e
    found = (table.schema.metadata or {}).get(MARK, b"none").decode()
    if found != str(SCHEMA):
        raise IntegrityError(
            f"{path}: its schema is {found}; this version of pythia-export reads {SCHEMA}",
            hint="Write it again with `pythia-export sweep results`, or read it with the version that wrote it.",
        )
    for key in _QUANTIZE:
        if key not in table.column_names:  # a key that came later: what it does by default was done
            default = Quantize.model_fields[key].default
            table = table.append_column(key, pa.array([default] * len(table), _QUANTIZE[key]))
    for key in _INSIDE:
        if key not in table.column_names:  # of a version that did not look inside
            table = table.append_column(key, pa.nulls(len(table), _INSIDE[key]))
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise IntegrityError(f"{path}: the columns {', '.join(missing)} are missing")
    return table
