"""A job: one snapshot, one quantisation, two texts; named by the hash of all that its result depends on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..base.errors import IntegrityError
from ..recipe import Head, Model, Quantize
from ..records.record import Json
from .records import SCHEMA, Facts

KEY = 16  # hexadecimal digits: 64 bits, of which twenty thousand jobs are far from sharing one
COMPUTE = ("pythia-export", "torch")  # whose versions may change a result; the text comes in by its hash


def versions() -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in COMPUTE}


@dataclass(frozen=True)
class Job:
    """snapshot: what the results say of the checkpoint, `name`, `size`, `step`, `tokens` and so on. commit: which
    weights. calibration, verify: hashes of the texts; the first is None where none is read. inside: what is computed
    inside the model is compared too, with the features of the autoencoders in `sae`, whose hash is `features`."""

    model: Model
    commit: str
    snapshot: Facts
    quantize: Quantize
    calibration: str | None
    verify: str
    versions: dict[str, str]
    inside: bool = False
    sae: Path | None = None
    features: str | None = None

    @cached_property
    def key(self) -> str:
        depends: Json = {
            "schema": SCHEMA,
            "name": self.snapshot.name,
            "revision": self.model.revision,
            "commit": self.commit,
            "quantize": self.quantize.model_dump(mode="json"),
            "calibration": self.calibration,
            "verify": self.verify,
            "versions": {**self.versions},
        }
        return _digest(depends | self._more)

    @property
    def _more(self) -> Json:
        """What jobs of before did not have: without it they keep their keys."""
        found: Json = {"inside": True} if self.inside else {}
        return found if self.features is None else found | {"features": self.features}

    @property
    def title(self) -> str:
        return f"{self.snapshot.name} at {self.model.revision}, {label(self.quantize)}"

    def to_json(self) -> Json:
        fields: Json = {
            "schema": SCHEMA,
            "key": self.key,
            "model": self.model.model_dump(mode="json", exclude_none=True),
            "commit": self.commit,
            "snapshot": self.snapshot.to_json(),
            "quantize": self.quantize.model_dump(mode="json"),
            "calibration": self.calibration,
            "verify": self.verify,
            "versions": {**self.versions},
        }
        return fields | self._more | ({} if self.sae is None else {"sae": str(self.sae)})

    @classmethod
    def from_json(cls, raw: Json, where: str) -> Job:
        """Raises:
        IntegrityError: not a job of this schema, or not the one that its name says.
        """
        if raw.get("schema") != SCHEMA:
            raise IntegrityError(
                f"{where}: schema {raw.get('schema')!r}; this version of pythia-export knows {SCHEMA}",
                hint="Go on with the version that began this sweep, or begin another.",
            )
        fields: Any = raw
        try:
            job = cls(
                Model(**fields["model"]), fields["commit"], Facts.model_validate(fields["snapshot"]),
                Quantize(**fields["quantize"]), fields["calibration"], fields["verify"], fields["versions"],
                fields.get("inside") is True, None if fields.get("sae") is None else Path(fields["sae"]),
                fields.get("features"),
            )  # fmt: skip
            named, made = fields["key"], job.key
        except (KeyError, TypeError, ValueError) as e:
            why = "; ".join(x["msg"] for x in e.errors()) if isinstance(e, ValidationError) else e
            raise IntegrityError(f"{where}: not a job: {why}", hint="`sweep run` writes it again.") from e
        if made != named:
            raise IntegrityError(
                f"{where}: its content makes the key {made}; it says {named}",
                hint="It was changed by hand or by another version. `sweep run` writes it again.",
            )
        return job


def task_key(snapshot: Facts, revision: str, commit: str) -> str:
    """Return the key that all jobs of one snapshot share."""
    return _digest({"name": snapshot.name, "revision": revision, "commit": commit})


def label(quantize: Quantize) -> str:
    """`int4 group 128`, `int3 row rtn`: for people. Quantisations that differ have different ones."""
    plain = Quantize(bits=quantize.bits, group_size=quantize.group_size)
    words = _scheme(quantize, bool(quantize.override))
    if "gptq" in (quantize.method, *(rule.method for rule in quantize.override)):
        values = {key: getattr(quantize, key) for key in Quantize.search_keys()}
        changed = [key for key, value in values.items() if value != getattr(plain, key)]
        words += [_setting(key, values[key]) for key in sorted(changed, key=lambda key: _kind(values[key]))]
    if quantize.products != plain.products:
        words.append(f"{quantize.products} products")
    if quantize.head != plain.head:
        words += ["head", *_scheme(quantize.head, bool(quantize.override))]
    if quantize.embedding != plain.embedding:
        words.append(f"embedding {quantize.embedding}")
    if quantize.three_bit_field is not None:
        words.append(_setting("three_bit_field", quantize.three_bit_field))
    if quantize.override:
        told = json.dumps([rule.model_dump(exclude_none=True) for rule in quantize.override])
        words.append(f"override {hashlib.sha256(told.encode()).hexdigest()[:6]}")
    return " ".join(words)


def _kind(value: Any) -> int:
    """Return where a setting stands in a label: switches first, then words, then numbers."""
    return 0 if isinstance(value, bool) else 1 if isinstance(value, str) else 2


def _setting(key: str, value: Any) -> str:
    """`no act order`, `original's hessian`, `beam 4`: a word of its own is in the schema."""
    extra, name = Quantize.model_fields[key].json_schema_extra, key.replace("_", " ")
    if isinstance(extra, dict) and "label" in extra:
        return str(extra["label"]).format(value)
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {value}"


def _scheme(of: Quantize | Head, rules: bool) -> list[str]:
    """rules: there are some, and what they do not say of a linear is said here, even beside method none."""
    group = "row" if of.group_size == -1 else f"group {of.group_size}"
    words = [f"int{of.bits}", group] + ([] if of.symmetric else ["asymmetric"])
    if of.method == "none":
        return ["float", *words] if rules else ["float"]
    return words if of.method == "gptq" else [*words, of.method]


def _digest(value: Json) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:KEY]
