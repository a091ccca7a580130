"""What production wrote is read as types and written again, byte for byte."""

from __future__ import annotations

import json

import pytest
from places import SUPPORT

from pythia_export.artifact.manifest import json_bytes
from pythia_export.records.manifest import Manifest
from pythia_export.records.parity import Parity
from pythia_export.records.quantization import Quantization
from pythia_export.records.record import checked

KINDS = {"manifest.json": Manifest, "quantization.json": Quantization, "parity.json": Parity}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_a_record_is_written_as_it_was_read(name, kind):
    data = (SUPPORT / "written" / name).read_bytes()
    assert json_bytes(checked(kind, json.loads(data), name).to_json()) == data


def test_a_manifest_keeps_what_this_version_does_not_know():
    raw = json.loads((SUPPORT / "written" / "manifest.json").read_text())
    raw["later"], raw["source"]["licence"] = {"key": [1, None]}, "apache-2.0"
    raw["files"]["config.json"]["mode"] = 420
    assert checked(Manifest, raw, "manifest.json").to_json() == raw
