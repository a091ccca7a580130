"""Where a report says the error is: heads, the residual stream, expected costs, a budget of bits."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from records import Page, findings, head_maps, linear, model_card, records, render_report, residual_panel, words

# --- what the quantiser records beyond losses


def recorded(layers=3, heads=2):
    """Records with everything that schema 2 may hold; head errors differ everywhere and are largest at layer 1."""
    manifest, quantization, parity = records(layers=layers)
    for x in quantization["linears"]:
        x["expected_cost"] = None if x["layer"] is None else 1e-5
        if x["name"].endswith("query_key_value"):
            x["heads"] = [[1e-4 * (1 + 3 * h + i) * (1 + x["layer"] / 64) for i in range(3)] for h in range(heads)]
    linear_of(quantization, "layers.1.attention.query_key_value")["heads"][:2] = [
        [1e-4, 2e-4, 3e-4],
        [1e-4, 0.041, 9e-3],
    ]
    linear_of(quantization, "layers.1.attention.dense")["expected_cost"] = 0.0012
    linear_of(quantization, "layers.2.mlp.dense_4h_to_h")["expected_cost"] = 0.0034
    quantization["layers"] = [
        {"layer": i, "residual_error": e, "seconds": 1.5 + i} for i, e in enumerate((1e-3, 4e-3, 0.021)[:layers])
    ]
    quantization["allocation"] = {"asked": 4.25, "reached": 4.249, "raised": ["gpt_neox.layers.0.attention.dense"]}
    return manifest, quantization | {"schema": 2}, parity


def linear_of(quantization, name):
    return next(x for x in quantization["linears"] if x["name"] == f"gpt_neox.{name}")


def cells(panel) -> dict[str, dict[str, float]]:
    """Each cell's place, size and opacity by what it says when pointed at."""
    root = ElementTree.fromstring(panel)
    return {x.find("title").text: {k: float(v) for k, v in x.attrib.items()} for x in root.iter("rect")}


def rows(page: str) -> list[list[str]]:
    """The table of linears: a list of cells a row."""
    table = page[page.index("<table", page.index("Every linear")) :]
    found = re.findall(r"<tr>(.*?)</tr>", table[: table.index("</table>")], re.S)
    return [
        [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", cell)).strip() for cell in re.split(r"</t[hd]>", row)[:-1]]
        for row in found
    ]


def test_every_heads_error_is_in_the_cell_of_its_layer_and_head():
    _, quantization, _ = recorded(layers=6, heads=4)
    panels = [cells(panel) for panel in head_maps(quantization["linears"]).panels]
    assert len(panels) == 3
    origin = panels[0]["layer 0 head 0 q: 0.01 %"]
    for x in quantization["linears"]:
        for head, errors in enumerate(x.get("heads", ())):
            for panel, part, error in zip(panels, "qkv", errors, strict=True):
                cell = panel[f"layer {x['layer']} head {head} {part}: {words.percent(error)}"]
                # Cells and gaps are of one size.
                assert cell["x"] == pytest.approx(origin["x"] + head * (320 - 40) / 4, abs=0.2)
                assert cell["y"] == pytest.approx(origin["y"] + x["layer"] * 20, abs=0.2)
    assert sum(map(len, panels)) == 6 * 4 * 3


def test_equal_ratios_of_errors_are_equal_steps_of_colour_in_all_panels():
    errors = [[1e-4, 1e-3, 1e-2], [1e-3, 1e-4, 1e-3]]
    maps = head_maps([linear("gpt_neox.layers.0.attention.query_key_value", 0, 1, 1, heads=errors)])
    opacity = {
        name.split()[3] + name.split()[4]: cell["fill-opacity"]
        for panel in maps.panels
        for name, cell in cells(panel).items()
    }
    assert opacity["0v:"] == 1 and opacity["0q:"] == opacity["1k:"] == pytest.approx(0.06)
    assert opacity["0k:"] == opacity["1q:"] == opacity["1v:"] == pytest.approx(0.53)
    legend = ElementTree.fromstring(maps.legend)
    assert [t.text for t in legend.iter("text")] == ["0.01 %", "0.05 %", "0.1 %", "0.2 %", "1 %"]


def test_a_map_says_without_colour_where_its_largest_error_is():
    page = render_report(*recorded())
    labels = [a["aria-label"] for tag, a in Page(page).tags if tag == "svg" and a.get("role") == "img"]
    assert "Relative output error of keys (k), layer by head; largest layer 1 head 1 k, 4.1 %" in labels
    text = Page(page).text
    assert "those of layer 1 head 1 k (4.1 %), layer 1 head 1 v (0.9 %), layer 2 head 1 v (0.062 %)." in text


def test_few_heads_have_their_figures_in_the_cells_and_many_do_not():
    def figures(panel):
        return [
            x.text for x in ElementTree.fromstring(panel).iter("text") if x.get("class") in ("under", "mid", "over")
        ]

    few = head_maps(recorded(heads=4)[1]["linears"]).panels[1]
    assert len(figures(few)) == 12 and "4.1" in figures(few)
    assert not figures(head_maps(recorded(heads=16)[1]["linears"]).panels[1])


def test_a_model_of_36_layers_and_40_heads_stays_inside_its_picture():
    manifest, quantization, parity = recorded(layers=36, heads=40)
    for panel in head_maps(quantization["linears"]).panels:
        _, _, width, height = map(float, ElementTree.fromstring(panel).attrib["viewBox"].split())
        found = cells(panel)
        assert len(found) == 36 * 40 and height < 320
        for cell in found.values():
            assert cell["x"] > 30 and cell["x"] + cell["width"] <= width and cell["width"] > 5
            assert cell["y"] > 15 and cell["y"] + cell["height"] < height - 20
    assert len(render_report(manifest, quantization, parity)) < 1_000_000


def test_a_layer_without_heads_leaves_its_row_empty():
    _, quantization, _ = recorded(layers=3, heads=2)
    whole = cells(head_maps(quantization["linears"]).panels[0])
    linear_of(quantization, "layers.1.attention.query_key_value")["heads"] = None
    holed = cells(head_maps(quantization["linears"]).panels[0])
    gone = {name for name in whole if name.startswith("layer 1 ")}
    assert len(gone) == 2 and holed.keys() == whole.keys() - gone
    assert all(holed[name]["y"] == whole[name]["y"] for name in holed)


def test_a_silent_or_exact_head_takes_the_colour_from_no_other():
    """An output of zero energy makes the quantiser's quotient 3e38; an exact one 0."""
    heads = [[3.4e38, 0.0, 1e-3], [1e-3, 1e-3, 1e-2]]
    linears = [linear("gpt_neox.layers.0.attention.query_key_value", 0, 1, 1, heads=heads)]
    maps = head_maps(linears)
    assert [len(cells(panel)) for panel in maps.panels] == [1, 2, 2]
    assert cells(maps.panels[1])["layer 0 head 0 k: 0 %"]["fill-opacity"] == pytest.approx(0.06)
    assert "those of layer 0 head 1 v (1 %), layer 0 head 0 v (0.1 %)" in findings.worst_heads(linears)
    assert [t.text for t in ElementTree.fromstring(maps.legend).iter("text")][0] == "≤ 0.1 %"
    assert head_maps([linears[0] | {"heads": [[0.0, 0.0, 0.0]]}]) is None


def residual_heights(*errors):
    """Of the dots, from the bottom of the picture up."""
    plot = residual_panel([{"layer": i, "residual_error": e, "seconds": 1} for i, e in enumerate(errors)])
    root = ElementTree.fromstring(plot)
    grid = [float(x.attrib["y1"]) for x in root.iter("line") if x.attrib["class"] == "grid"]
    labels = [x.text for x in root.iter("text")]
    return [max(grid) - float(c.attrib["cy"]) for c in root.iter("circle")], labels


def test_the_residual_streams_scale_is_logarithmic_beyond_a_decade_else_from_zero():
    (a, b, c), labels = residual_heights(1e-4, 1e-3, 1e-2)
    assert c - b == pytest.approx(b - a, abs=0.2) and c > b > a
    assert labels[0] == "10⁻⁴"
    (a, none, b, c), labels = residual_heights(0.002, 0.0, 0.004, 0.008)
    assert (b, c, none) == (pytest.approx(2 * a, abs=0.2), pytest.approx(4 * a, abs=0.2), 0) and labels[0] == "0"
    assert len(residual_heights(None, 0.004, None)[0]) == 1 and residual_panel([]) is None
    assert residual_heights(0.0, 0.0)[0] == [0, 0]


def test_the_residual_stream_stands_in_figures_too():
    page = render_report(*recorded())
    assert "Relative squared error of the residual stream, layer by layer" in page
    assert (
        "Behind layer 2 the residual stream differs from the original model's by 2.1 % of its energy."
        in Page(page).text
    )
    titles = [row[0] for row in rows(page) if len(row) == 1]
    assert titles[1:] == ["Layer 1 residual stream 0.00400 · 2.5 s", "Layer 2 residual stream 0.0210 · 3.5 s", "Head"]
    manifest, quantization, parity = recorded()
    quantization["layers"] = [x | {"residual_error": None} for x in quantization["layers"]]
    page = render_report(manifest, quantization, parity)
    assert ["Layer 1 2.5 s"] in rows(page) and "esidual stream" not in page


def test_expected_costs_are_a_column_and_the_three_largest_a_sentence():
    page = render_report(*recorded())
    head, *table = rows(page)
    assert head == [
        "Linear", "Shape", "Stored as", "RTN", "GPTQ", "Recovered", "Expected cost nats a token", "Damp", "Time",
    ]  # fmt: skip
    dense = [
        "attention.dense",
        "384 × 128",
        "int4, groups of 32",
        "0.00880",
        "0.00440",
        "50 %",
        "0.00120",
        "0.01",
        "0.2 s",
    ]
    assert dense in table
    assert table[-1][6] == "–"  # the head's is not known
    text = Page(page).text
    assert "expected to cost 0.00470 nats a token in 12 linears, most in layers.2.mlp.dense_4h_to_h (0.00340), " in text
    assert "layers.1.attention.dense (0.00120), layers.0.attention.query_key_value (10⁻⁵)." in text
    assert "weighed in the blocks by how much the loss feels" in text


def test_the_budget_is_said_and_its_linears_marked():
    manifest, quantization, parity = recorded()
    page = render_report(manifest, quantization, parity)
    assert "4.25 bits a weight asked for, 4.249 reached; raised to 8 bits: layers.0.attention.dense." in Page(page).text
    names = [row[0] for row in rows(page)]
    assert names[2:4] == ["attention.query_key_value", "attention.dense ▲ raised"] and page.count("▲") == 1
    quantization["allocation"]["raised"] = [x["name"] for x in quantization["linears"][:11]]
    page = render_report(manifest, quantization, parity)
    assert "raised to 8 bits: 11 linears (3 attention.query_key_value, 3 attention.dense, 3 mlp.dense_h_to_4h, " in (
        Page(page).text
    )
    assert page.count("▲") == 11
    quantization["allocation"]["raised"] = []
    assert "raised to 8 bits: none." in Page(render_report(manifest, quantization, parity)).text


def test_the_card_says_where_the_error_is():
    manifest, quantization, parity = recorded()
    card = model_card(manifest, quantization, parity)
    section = card.split("## Where the error is\n\n")[1].split("\n\n## Use")[0]
    assert section.splitlines() == [f"- {sentence}" for sentence in findings.sentences(quantization)]
    for part in ("2.1 % of its energy", "layer 1 head 1 k (4.1 %)", "0.00470 nats a token", "4.249 reached"):
        assert part in section


TRACES = (
    "fused QKV", "expected to cost", "Expected cost", "asked for", "▲", "esidual stream", "weighed", "loss feels",
    "layer by head", "Where the error is\n",
)  # fmt: skip


@pytest.mark.parametrize("how", ["absent", "null", "rtn", "none"])
def test_what_was_not_recorded_leaves_no_trace(how):
    manifest, quantization, parity = records(method=how) if how in ("rtn", "none") else records()
    if how == "null":
        quantization |= {"layers": [], "allocation": None}
        for x in quantization["linears"]:
            x |= {"heads": None, "expected_cost": None}
    page, card = render_report(manifest, quantization, parity), model_card(manifest, quantization, parity)
    for part in TRACES:
        assert part not in Page(page).text and part not in card
    assert "residual" not in page and 'class="heads"' not in page
    if how != "none":
        assert {len(row) for row in rows(page)} == {1, 8}


@pytest.mark.parametrize(
    ("x", "said"), [(0, "0 %"), (0.041, "4.1 %"), (1.534, "150 %"), (3e-4, "0.03 %"), (2e-8, "2.0 × 10⁻⁶ %")]
)
def test_percents(x, said):
    assert words.percent(x) == said
