"""Where codes of 3 bits are stored in 3, and where in 4."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError

from pythia_export.model.suite import geometry
from pythia_export.recipe import Export, Quantize
from pythia_export.weights.layout import layout


def test_three_bits_are_stored_in_three_where_a_kernel_reads_them_and_a_note_says_where_not():
    for rule in ({"bits": 3}, {"head": {"bits": 3}}, {"override": [{"pattern": "*", "bits": 3}]}):
        found, notes = Quantize(**rule).settled("float16", True, "float32", Export().reads_three_bits)
        assert (found.three_bit_field, notes) == (3, [])
    for export, more in ((Export(target="web"), {}), (Export(rotary="gqa"), {}), (Export(), {"products": 2})):
        found, notes = Quantize(bits=3, **more).settled("float16", True, "float32", export.reads_three_bits)
        assert found.three_bit_field == 4 and "stored in 4" in notes[0]
        asked = Quantize(bits=3, three_bit_field=4).settled("float16", True, "float32", export.reads_three_bits)
        assert asked == (Quantize(bits=3, three_bit_field=4), [])
    assert Quantize(bits=4).settled("float16", True, "float32", True)[0].three_bit_field is None
    assert "three_bit_field" not in Quantize(bits=3).model_dump()  # as recipes were
    with pytest.raises(ValidationError, match="need codes in 4 bits"):
        Quantize(bits=3, three_bit_field=3, products=2)


def test_the_file_has_three_bits_a_weight_where_rows_allow_it():
    narrow = Quantize(bits=3, three_bit_field=3, head={"bits": 3})
    wide = narrow.model_copy(update={"three_bit_field": None})
    for size in ("14m", "160m"):
        config = geometry(f"EleutherAI/pythia-{size}")
        assert layout(config, narrow, "float32").bits_per_weight == pytest.approx(3.25, abs=1e-9)
        assert layout(config, wide, "float32").bits_per_weight == pytest.approx(4.25, abs=1e-9)
    odd = replace(geometry("EleutherAI/pythia-14m"), hidden_size=96, intermediate_size=384)
    plans = layout(odd, narrow.model_copy(update={"group_size": 32}), "float32").linears
    stored = {name.rpartition(".")[2]: plan.stored_bits for name, plan in plans.items() if plan.layer == 0}
    assert stored == {"query_key_value": 4, "dense": 4, "dense_h_to_4h": 4, "dense_4h_to_h": 3}
    assert "dtype" not in Quantize().model_dump()["head"], "what was recorded before compares equal"
