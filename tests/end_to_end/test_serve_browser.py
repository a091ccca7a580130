"""The page of `serve` in a real Chromium, with real artifacts: what it writes and shows, and that nothing leaves."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from chromium import CHROMIUM, CONTROL, SHIFT, Page
from places import ROOT, SUPPORT

from pythia_export import serve
from pythia_export.artifact import Artifact
from pythia_export.commands.export import export
from pythia_export.commands.quantize import quantize as quantize_recipe
from pythia_export.recipe import parse_recipe
from pythia_export.runtime import Sampling, Session, StreamDecoder, generate
from pythia_export.runtime.sampling import choose
from pythia_export.serve import server as room
from pythia_export.serve.inside import Inside

MODULES = ROOT / "build" / "consumers" / "node_modules"
LOOK = (SUPPORT / "look.js").read_text()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the page is not looked at"),
    pytest.mark.skipif(not (MODULES / "onnxruntime-web").is_dir(), reason="no ONNX Runtime Web: make consumers"),
]

PROMPTS = ["import os\nimport sys\n\ndef main(", "class Parser:\n    def __init__(self", "def test_parse(self):"]
PROMPT, NEW = PROMPTS[1], 64
SOUND = {"outside": [], "overlap": [], "faint": [], "small": []}
IDLE = "['Ready', 'Done', 'Stopped', 'Failed', 'Not loaded'].includes(document.getElementById('state').textContent)"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Four bits, with an embedding that browsers lack the operator of; and two bits, which write other texts."""
    out = tmp_path_factory.mktemp("made")
    for name, quantize in {
        "four-bits": {"method": "rtn", "bits": 4, "group_size": 32, "embedding": "int8"},
        "two-bits": {"method": "rtn", "bits": 2, "group_size": 16, "embedding": "int4"},
    }.items():
        verify = {"source": "python-stdlib", "tokens": 256, "sequence_length": 64}
        recipe = parse_recipe({"model": {"id": "demo"}, "quantize": quantize, "verify": verify})
        quantize_recipe(recipe, out / "weights" / name)
        export(out / "weights" / name, out / name)
    return [out / "four-bits", out / "two-bits"]


@pytest.fixture(scope="module")
def ours(folders):
    """Session and tokenizer of each, by our own runtime."""
    return [(Session.open(Artifact.open(f)), Artifact.open(f).tokenizer()) for f in folders]


@pytest.fixture(scope="module")
def tables(folders):
    modules = serve.fetch_modules(MODULES)
    return {n: serve.routes([serve.ready(f) for f in folders[:n]], modules) for n in (1, 2)}


@pytest.fixture(scope="module")
def asked():
    """Every path that any server here was asked for."""
    with pytest.MonkeyPatch.context() as patch:
        found: list[str] = []
        patch.setattr(room._Handler, "log_message", lambda self, *args: found.append(self.path))
        yield found


@pytest.fixture(scope="module")
def open_page(tables, asked, tmp_path_factory):
    """A function: the page of one artifact or of two, loaded; or of a table of addresses."""
    opened = []

    def open_it(table: int | dict) -> Page:
        server = room.Server(tables[table] if isinstance(table, int) else table)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = Page(tmp_path_factory.mktemp("profile"))
        opened.append((page, server))
        page.look_as(1280, 900)
        page.go(server.url)
        page.until(f"document.getElementById('state') && {IDLE}")
        return page

    yield open_it
    for page, server in opened:
        page.__exit__()
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def one(open_page):
    return open_page(1)


@pytest.fixture(scope="module")
def two(open_page):
    return open_page(2)


def fill(page: Page, **values) -> None:
    for name, value in values.items():
        field = f"document.getElementById({name!r})"
        page.do(f"{field}.value = {json.dumps(value)}; {field}.dispatchEvent(new Event('input'))")


def write(page: Page, prompt: str, *, view: str = "follow", **values) -> list[list[int]]:
    """Ask for a text by the keys; the token ids in each column once all is done."""
    fill(page, **{"prompt": prompt, "count": NEW, "temperature": 0, "top-p": 1, "seed": ""} | values)
    page.do(f"document.querySelector('[name=view][value={view}]').checked = true")
    page.press("Enter", CONTROL)
    page.until(IDLE)
    return tokens(page)


def tokens(page: Page) -> list[list[int]]:
    return page.do("[...document.querySelectorAll('.tokens')].map(x => [...x.children].map(t => Number(t.dataset.id)))")


def text(page: Page, selector: str) -> str:
    return page.do(f"document.querySelector({selector!r}).textContent")


def greedy(of, prompt: str, count: int = NEW, **sampling) -> list[int]:
    session, tokenizer = of
    return list(generate(session, tokenizer, tokenizer.encode(prompt).ids, count, **sampling))


def log_probabilities(of, ids: list[int]) -> np.ndarray:
    logits = of[0].logits(np.array([ids], np.int64))[0].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


# What it writes


@pytest.mark.parametrize("prompt", PROMPTS)
def test_it_writes_the_tokens_that_our_runtime_writes(one, ours, prompt):
    expected = greedy(ours[0], prompt)
    assert write(one, prompt) == [expected] and len(expected) == NEW
    decoder = StreamDecoder(ours[0][1])
    assert text(one, ".tokens") == "".join(map(decoder.push, expected)) + decoder.finish()
    assert text(one, ".prompt") == prompt
    assert one.do("crossOriginIsolated"), "no shared memory, no threads"


def test_a_seed_draws_what_the_command_line_draws(one, ours):
    values = {"temperature": 0.8, "top-p": 0.95, "seed": 7}
    expected = greedy(ours[0], PROMPT, temperature=0.8, top_p=0.95, seed=7)
    assert write(one, PROMPT, **values) == [expected] != [greedy(ours[0], PROMPT)]
    assert write(one, PROMPT, **values | {"seed": 8}) != [expected]


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 10**30])
def test_random_numbers_are_numpys(one, seed):
    script = f"import('/random.js').then(m => {{ const d = m.generator('{seed}'); return [d(), d(), d(), d()]; }})"
    assert one.do(script) == list(np.random.default_rng([seed, 0]).random(4))


def test_choices_are_our_samplers(one):
    rng = np.random.default_rng(3)
    logits = (rng.normal(size=(40, 300)) * 4).astype(np.float32)
    logits[:, 17] = logits[:, 5]  # of two equals the lower id is the likelier
    for sampling in (Sampling(0.7, top_p=0.9, seed=1), Sampling(1.3, seed=2), Sampling(0.0), Sampling(1e-3, seed=4)):
        draw = np.random.default_rng([sampling.seed or 0, 0])
        expected = [choose(row, sampling, draw) for row in logits]
        script = f"""Promise.all([import('/sampling.js'), import('/random.js')]).then(([s, r]) => {{
            const draw = r.generator('{sampling.seed or 0}');
            const asked = {{ temperature: {sampling.temperature}, topP: {json.dumps(sampling.top_p)} }};
            return {json.dumps(logits.tolist())}.map((row) => s.choose(Float32Array.from(row), asked, draw)); }})"""
        assert one.do(script) == expected, sampling


@pytest.mark.parametrize(
    "sample", ["naïve 日本語 🙂🙂", "a\tb\r\n  c\n\n", "<|endoftext|>x", "ÿ \u00ad\u0301\ufeff~", ""]
)
def test_text_and_tokens_are_those_of_the_tokenizer_and_no_character_breaks(one, ours, sample):
    tokenizer = ours[0][1]
    ids = tokenizer.encode(sample).ids
    script = f"""Promise.all([import('/text.js'), fetch('/artifacts/0/tokenizer.json').then((r) => r.json())])
        .then(([m, json]) => {{ const words = new m.Words(json), ids = words.encode({json.dumps(sample)});
        const stream = words.stream(); return [ids, ids.map(stream.push), stream.finish()]; }})"""
    found, pieces, rest = one.do(script)
    decoder = StreamDecoder(tokenizer)
    assert found == ids and [*pieces, rest] == [*map(decoder.push, ids), decoder.finish()]


def test_speeds_and_probabilities_are_told(one, ours):
    ids = ours[0][1].encode(PROMPT).ids
    (found,) = write(one, PROMPT)
    assert "64 tokens, " in text(one, ".speed") and f"text of {len(ids)} tokens read in " in text(one, ".speed")
    one.do("document.querySelector('#token-0-5').click()")
    p = np.exp(log_probabilities(ours[0], ids + found[:5])[-1])
    order = np.argsort(-p, kind="stable")[:10]
    rows = one.do(
        "[...document.querySelectorAll('.bars li')].map(x => [x.querySelector('b').textContent, x.className,"
        " parseFloat(x.querySelector('i').style.width)])"
    )
    assert len(rows) == 10 and [row[1] for row in rows] == ["taken"] + [""] * 9
    assert [row[2] for row in rows] == pytest.approx(100 * p[order], abs=0.05)
    assert rows[0][0] == f"{100 * p[order[0]]:.1f} %"
    assert text(one, ".where").startswith("Token 6 of 64: ")


def test_a_token_beyond_the_ten_likeliest_is_shown_too(one):
    write(one, PROMPT, temperature=3, seed=5)
    beyond = one.do("""[...document.querySelectorAll('.tokens .token')].filter(x => { x.click();
        return document.querySelectorAll('.bars li.beyond.taken').length === 1; }).length""")
    assert beyond > 5


# Two


def test_the_second_reads_what_the_first_writes(two, ours):
    first, second = write(two, PROMPT)
    ids = ours[0][1].encode(PROMPT).ids
    assert first == second == greedy(ours[0], PROMPT)
    a, b = (log_probabilities(of, ids + first)[len(ids) - 1 : -1] for of in ours)
    kl = (np.exp(a) * (a - b)).sum(-1)
    parts = int(np.flatnonzero(a.argmax(-1) != b.argmax(-1))[0])
    said = text(two, "#changed")
    same = int((a.argmax(-1) == b.argmax(-1)).sum())
    assert f"likeliest at {same} of 64 places" in said and f"most at token {kl.argmax() + 1} " in said
    assert float(said.split("mean ")[1].split()[0]) == pytest.approx(kl.mean(), rel=0.05)
    assert f"part at token {parts + 1}: " in said
    marked = two.do(
        "[...document.querySelectorAll('.tokens')].map(x => [...x.children].findIndex(t => t.matches('.parts')))"
    )
    assert marked == [parts, parts]
    tinted = two.do(
        "[...document.querySelectorAll('.tokens')[1].children].map(t => /far-(\\d)/.exec(t.className)?.[1])"
    )
    assert [int(x or 0) for x in tinted] == [sum(x >= limit for limit in (0.02, 0.1, 0.5)) for x in kl]
    other = two.do("[...document.querySelectorAll('.tokens')[1].children].map(t => t.matches('.other'))")
    assert other == (a.argmax(-1) != b.argmax(-1)).tolist()
    two.do("document.getElementById('token-0-2').click()")
    facts = two.do("[...document.querySelectorAll('.facts')].map(x => x.textContent)")
    here, there = (f"{100 * np.exp(x[2, first[2]]):.1f} %" for x in (a, b))
    assert f"{here}, {there} in two-bits." in facts[0] and f"{there}, {here} in four-bits." in facts[1]
    assert two.do("document.querySelectorAll('.token.chosen').length") == 2


def test_the_second_writes_its_own_text_and_where_they_part_is_marked(two, ours):
    first, second = write(two, PROMPT, view="free")
    assert [first, second] == [greedy(of, PROMPT) for of in ours]
    parts = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
    assert f"part at token {parts + 1}: " in text(two, "#changed")
    two.do("document.getElementById('jump').click()")
    assert two.do("document.activeElement.getAttribute('aria-activedescendant')") == f"token-0-{parts}"
    assert two.do("document.querySelectorAll('.token.chosen.parts').length") == 2
    two.do(f"document.getElementById('token-0-{parts + 1}').click()")  # beyond, the two have nothing in common
    assert two.do("document.querySelectorAll('.token.chosen')[1].id") == f"token-1-{parts}"
    speeds = two.do("[...document.querySelectorAll('.speed')].map(x => x.textContent)")
    assert all("64 tokens, " in speed and " tokens/s" in speed for speed in speeds)


# By keys alone


def focus(page: Page) -> str:
    return page.do("document.activeElement.id || document.activeElement.className")


def test_it_is_used_by_keys_alone(open_page, ours):
    page = open_page(1)
    assert focus(page) == "prompt"
    page.press("a", CONTROL)
    page.call("Input.dispatchKeyEvent", type="rawKeyDown", key="a", commands=["selectAll"])
    page.type(PROMPT)
    page.press("Enter", CONTROL)
    page.until("document.getElementById('state').textContent === 'Done'")
    (found,) = tokens(page)
    assert found == greedy(ours[0], PROMPT)
    reached = []
    while focus(page) != "tokens":
        page.press("Tab")
        reached.append(focus(page))
        assert len(reached) < 8, reached
    assert reached == ["count", "temperature", "generate", "tokens"]
    at = "document.activeElement.getAttribute('aria-activedescendant')"
    assert page.do(at) == "token-0-0"
    page.press("ArrowRight")
    page.press("ArrowRight")
    page.press("ArrowLeft")
    assert page.do(at) == "token-0-1" and text(page, ".where").startswith("Token 2 of 64")
    page.press("End")
    page.press("ArrowRight")
    assert page.do(at) == "token-0-63"
    page.press("ArrowUp")
    above = page.do(
        "[63, Number(document.activeElement.getAttribute('aria-activedescendant').split('-')[2])]"
        ".map(i => document.getElementById(`token-0-${i}`).getClientRects()[0].top)"
    )
    assert above[1] < above[0]
    page.press("Home")
    assert page.do(at) == "token-0-0"
    page.press("Tab", SHIFT)
    assert focus(page) == "generate"
    assert page.do("getComputedStyle(document.activeElement).outline").endswith("solid 3px")


def test_escape_stops_at_once_and_the_next_text_is_whole(one, ours):
    fill(one, prompt=PROMPT, count=500, temperature=1, seed="3")
    one.press("Enter", CONTROL)
    one.until("document.querySelectorAll('.tokens .token').length > 3")
    began = time.monotonic()
    one.press("Escape")
    one.until("document.getElementById('state').textContent === 'Stopped'")
    assert time.monotonic() - began < 3 and 3 < len(tokens(one)[0]) < 450
    assert "; stopped" in text(one, ".speed")
    assert write(one, PROMPT) == [greedy(ours[0], PROMPT)]


def test_a_screen_reader_hears_pieces_and_names(two):
    write(two, PROMPT)
    assert "64 tokens" in text(two, "#said") and two.do("document.getElementById('said').ariaLive") == "polite"
    nodes = two.call("Accessibility.getFullAXTree")["nodes"]
    named = {(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if "role" in n}
    assert ("textbox", "Text to continue") in named and ("listbox", "Tokens of two-bits") in named
    assert ("region", "Next-token probabilities of four-bits") in named
    asking = ("textbox", "spinbutton", "button", "radio", "listbox")
    assert not [role for role, name in named if role in asking and not name]


# Inside


def percent(p: float) -> str:
    return f"{100 * p:.1f} %" if p >= 0.0005 else "< 0.1 %"


def look_inside(page: Page, prompt: str = PROMPT, side: int | None = None) -> None:
    """Have the page show the inside of a text, of one artifact (0 or 1) or of the difference (2)."""
    fill(page, prompt=prompt)
    page.do("document.querySelectorAll('.prompt').forEach((x) => (x.textContent = 'other'))")  # not what was written
    page.do("document.getElementById('looked').textContent = ''; document.getElementById('look').click()")
    page.until(
        "/s\\.$/.test(document.getElementById('looked').textContent) && !document.getElementById('look').disabled"
    )
    if side is not None:
        page.do(f"document.querySelector('[name=side][value=\"{side}\"]').click()")
    page.until("document.getElementById('said-pattern').textContent !== ''")


def choose_head(page: Page, layer: int, head: int) -> None:
    page.do(f'document.querySelector(\'#heads [data-row="{layer}"][data-column="{head}"]\').click()')
    page.until(f"document.querySelector('#attended caption')?.textContent.startsWith('Layer {layer}, head {head}:')")


@pytest.fixture(scope="module")
def seen(folders):
    """What our runtime finds inside both, and what answers of a head."""
    inside = Inside([serve.ready(folder) for folder in folders])
    return inside.look(PROMPT), lambda layer, head: inside.pattern(PROMPT, layer, head).rows


def test_the_lens_shows_what_our_runtime_finds_at_each_depth(one, ours, seen):
    look_inside(one)
    found, (_, tokenizer) = seen[0], ours[0]
    assert text(one, "#looked").startswith(f"{len(found.tokens)} tokens, ")
    rows = one.do("[...document.querySelectorAll('#lens tbody tr')].map(r => [...r.querySelectorAll('td')].map(c =>"
                  " [...c.children].map(x => x.textContent)))")  # fmt: skip
    assert [len(row) for row in rows] == [len(found.tokens)] * len(found.seen[0].top) and len(rows) == 7
    for shown, tops, shares in zip(rows, found.seen[0].top, found.seen[0].p, strict=True):
        for (token, share), top, p in zip(shown, tops, shares, strict=True):
            spelt = tokenizer.decode([top[0]]).replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
            assert token == spelt and share == percent(p[0])
    following = one.do("[...document.querySelectorAll('#lens tbody tr:last-child td')].map(c => c.matches('.follows'))")
    assert following == [rank == 1 for rank in found.seen[0].rank[-1]] + [False] and any(following)
    last = one.do("[...document.querySelectorAll('#likeliest tbody td:last-child')].map(x => x.textContent)")
    assert last == [percent(p) for p in found.seen[0].p[-1][-1]]


def test_a_chosen_head_is_drawn_and_what_the_token_looks_at_is_listed(one, seen):
    look_inside(one)
    choose_head(one, 3, 1)
    row = seen[1](3, 1)[0][-1]
    shares = one.do("[...document.querySelectorAll('#attended tbody tr')].map(r => r.cells[2].textContent)")
    assert shares == [percent(x) for x in sorted(row, reverse=True)[:8]]
    strongest = one.do(
        "[...document.querySelectorAll('#strip .token')].map(x => parseFloat(x.style.getPropertyValue('--share')))"
    )
    assert np.argmax(strongest) == np.argmax(row) and max(strongest) == 100
    assert text(one, "#strip") == PROMPT
    pixels = one.do("""(() => { const c = document.querySelector('#pattern canvas'), d = c.getContext('2d')
        .getImageData(0, 0, c.width, c.height).data; let n = 0;
        for (let i = 0; i < d.length; i += 4) if (d[i + 3] && d[i + 2] > d[i] + 60) n++; return n; })()""")
    assert pixels > 300


def test_the_difference_of_two_and_each_by_itself(two, seen):
    look_inside(two, side=2)
    found = seen[0]
    shown = two.do("[...document.querySelectorAll('#lens tbody tr')].map(r => [...r.querySelectorAll('td')].map(c =>"
                   " c.matches('.other')))")  # fmt: skip
    a, b = ([[token[0] for token in row] for row in side.top] for side in found.seen)
    assert shown == [[x != y for x, y in zip(*rows, strict=True)] for rows in zip(a, b, strict=True)]
    column = two.do(
        "[...document.querySelectorAll('#depths tbody tr')].map(r => Number(r.lastElementChild.textContent))"
    )
    assert column == pytest.approx([row[-1] for row in found.difference.kl], rel=0.06)
    layer, head = np.unravel_index(np.argmax(found.difference.heads), np.shape(found.difference.heads))
    assert text(two, "#attended caption").startswith(f"Layer {layer}, head {head}:"), "begins where they are most apart"
    rows = [row[-1] for row in seen[1](int(layer), int(head))]
    change = two.do("[...document.querySelectorAll('#attended tbody tr')].map(r => r.lastElementChild.textContent)")
    most = max((y - x for x, y in zip(*rows, strict=True)), key=abs)
    assert change[0] == f"{'−' if most < 0 else '+'}{abs(100 * most):.1f}"
    for side, name in enumerate(("four-bits", "two-bits")):
        two.do(f"document.querySelector('[name=side][value=\"{side}\"]').click()")
        last = two.do("document.querySelector('#lens tbody tr:last-child td:last-child small').textContent")
        assert last == percent(found.seen[side].p[-1][-1][0])
        assert two.do("document.getElementById('lens').ariaLabel").startswith(f"Logit lens of {name}: ")


def test_the_inside_is_gone_through_by_keys_alone(one, seen):
    look_inside(one)
    count, at = len(seen[0].tokens), "document.activeElement.ariaLabel"
    one.do("document.getElementById('look').focus()")
    reached = []
    for _ in range(4):
        one.press("Tab")
        reached.append(one.do("document.activeElement.closest('table')?.id ?? document.activeElement.id"))
    assert reached == ["lens", "heads", "pattern", "strip"]
    one.do("document.querySelector('#lens td[tabindex=\"0\"]').focus()")
    assert one.do(at).startswith("After layer 5, at ")
    one.press("ArrowUp")
    assert one.do(at).startswith("After layer 4, at ") and text(one, "#depths .chosen th") == "layer 4"
    one.press("Home")
    assert text(one, "#depths caption").startswith("At token 1, ")
    one.press("End", CONTROL)
    assert one.do(at).startswith("After layer 5") and text(one, "#depths caption").startswith(f"At token {count}, ")
    assert one.do("getComputedStyle(document.activeElement).outline").endswith("solid 3px")
    one.do("document.querySelector('#heads td[tabindex=\"0\"]').focus()")
    before = text(one, "#attended caption")
    one.press("ArrowDown" if before.startswith("Layer 0") else "ArrowUp")
    one.until(f"document.querySelector('#attended caption').textContent !== {json.dumps(before)}")
    one.do("document.getElementById('pattern').focus()")
    one.press("ArrowUp")
    one.press("Home")
    one.press("ArrowRight")
    assert text(one, "#said-pattern").startswith(f"Token {count - 1} ") and " to token 2 " in text(one, "#said-pattern")
    one.do("document.getElementById('strip').focus()")
    one.press("ArrowLeft")
    assert one.do("document.activeElement.getAttribute('aria-activedescendant')") == f"strip-{count - 3}"
    assert text(one, "#depths caption").startswith(f"At token {count - 2}, ")


def test_what_cannot_be_looked_into_is_said_and_the_page_goes_on(one):
    fill(one, prompt="")
    one.do("document.getElementById('look').click()")
    one.until("!document.getElementById('trouble').hidden")
    assert text(one, "#trouble").startswith("There is no text to look into.")
    look_inside(one, "x = 1\n" * 200)
    assert "; the first 96 are shown." in text(one, "#looked") and one.do("document.getElementById('trouble').hidden")
    write(one, PROMPT, count=4)  # what was written is looked into as well
    one.do("document.getElementById('look').click()")
    one.until("!document.getElementById('look').disabled")
    assert text(one, "#strip") == PROMPT + text(one, ".tokens")


def test_a_screen_reader_finds_grids_and_tables(two):
    look_inside(two, side=2)
    nodes = two.call("Accessibility.getFullAXTree")["nodes"]
    named = {(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if "role" in n}
    assert ("grid", "Logit lens of four-bits against two-bits: likeliest next token by depth and token") in named
    assert ("grid", "Heads of four-bits against two-bits, by layer") in named
    assert ("listbox", "Tokens of the text: which one looks") in named
    cells = [name for role, name in named if role == "gridcell"]
    assert len(cells) > 24 and all(cells), "every cell has a name"
    assert any("nats" in name for name in cells)


# How it is computed


def told(page: Page) -> list[str]:
    return page.do("[...document.querySelectorAll('.engine')].map(x => x.textContent)")


def test_without_a_gpu_it_is_webassembly_and_says_why(one, two):
    for page, count in ((one, 1), (two, 2)):
        assert told(page) == ["Computed by WebAssembly (this browser finds no GPU)."] * count
    assert not any("webgpu" in url for url in one.asked), "the adapter is asked before anything is loaded"


WORKERS = """
    const scripts = SCRIPTS, ended = [];  // by the way of computing, what a worker answers to each job
    globalThis.Worker = class {
      postMessage({ do: job, by }) {
        this.by ??= by;
        const answer = scripts[this.by][job], failed = { is: "failed", why: answer, broken: true };
        setTimeout(() => this.onmessage({ data: typeof answer === "string" ? failed : answer }));
      }
      terminate() { ended.push(this.by); }
    };
    const { Model } = await import("/model.js"), model = new Model({});
"""


def way(seconds=0.1, logits=(1, -2.5, 0.5), **other) -> dict:
    """A worker that does everything."""
    measured = {"is": "measured", "seconds": seconds, "logits": logits}
    return {"load": {"is": "ready"}, "measure": measured, "generate": {"is": "generated"}} | other


@pytest.mark.parametrize(
    ("gpu", "cpu", "by", "why"),
    [
        (way(0.1), way(0.2), "webgpu", "measured here: WebGPU 10.0 tokens/s, WebAssembly 5.0 tokens/s"),
        (way(0.4), way(0.2), "webassembly", "measured here: WebGPU 2.5 tokens/s, WebAssembly 5.0 tokens/s"),
        (way(0.1, (1, -2.4, 0.5)), way(0.2), "webassembly", "WebGPU computes something else here"),
        (way(0.1, (1, -2.499, 0.5)), way(0.2), "webgpu", "measured here"),
        (way(load="no adapter"), way(), "webassembly", "WebGPU failed: no adapter"),
        (way(measure="device lost"), way(), "webassembly", "WebGPU failed: device lost"),
        (way(), way(load="too large"), "webgpu", "by WebAssembly it cannot be computed: too large"),
    ],
)
def test_the_faster_way_is_taken_where_both_compute_the_same(one, gpu, cpu, by, why):
    scripts = json.dumps({"webgpu": gpu, "webassembly": cpu})
    script = f"(async () => {{ const real = Worker; {WORKERS.replace('SCRIPTS', scripts)}"
    script += "await model.loadFaster(() => {}); globalThis.Worker = real; return [model.by, model.told, ended]; })()"
    taken, said, ended = one.do(script)
    name = "WebGPU" if by == "webgpu" else "WebAssembly"
    assert taken == by and said.startswith(f"Computed by {name} ({why}") and by not in ended
    assert ended == ["webassembly" if by == "webgpu" else "webgpu"], "the other one ends"


def test_a_gpu_that_fails_later_is_replaced_and_what_was_wrongly_asked_is_not_its_fault(one):
    scripts = json.dumps({"webgpu": way(generate="the GPU was lost"), "webassembly": way()})
    script = f"(async () => {{ const real = Worker; {WORKERS.replace('SCRIPTS', scripts)}"
    script += """await model.load("webgpu", "", () => {});
        const before = model.by, failed = await model.job({ do: "generate" }).catch((e) => e.message);
        const after = (await model.job({ do: "generate" })).is;
        globalThis.Worker = real; return [before, failed, model.by, after, ended, model.told]; })()"""
    before, failed, by, after, ended, said = one.do(script)
    assert (before, by, after, ended) == ("webgpu", "webassembly", "generated", ["webgpu"])
    assert failed == "WebGPU failed: the GPU was lost It goes on by WebAssembly: ask again."
    assert said == "Computed by WebAssembly (WebGPU failed: the GPU was lost)."


# Nothing leaves


def test_nothing_is_asked_of_another_address(two, tables, asked):
    reached = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reached.append(self.path)
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()

        def log_message(self, *args) -> None:
            pass

    write(two, PROMPT, count=4)
    with HTTPServer(("127.0.0.1", 0), Elsewhere) as elsewhere:
        threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
        there = f"http://127.0.0.1:{elsewhere.server_port}/"
        held = {
            "fetched": "fetch(there)", "imported": "import(there)", "socket": _waits("new WebSocket(there)", "open"),
            "image": _waits("Object.assign(new Image(), { src: there })", "load"),
            "worker": _waits("new Worker(there)", "message"),
        }  # fmt: skip
        for name, attempt in held.items():
            said = f"(there => {attempt})('{there}{name}').then(() => 'went', () => 'held')"
            assert two.do(said) == "held", name
        for worker in two.workers:  # where the models are
            assert two.do(f"fetch('{there}from-worker').then(() => 'went', () => 'held')", of=worker) == "held"
        assert two.do(f"navigator.sendBeacon('{there}beacon', 'x') && 'tried'") in ("tried", False)
        time.sleep(0.3)
        elsewhere.shutdown()
    assert reached == [] and len(two.workers) == 2
    here = two.do("location.origin")
    assert all(url.startswith((here, "data:")) or there in url for url in two.asked)
    assert set(asked) <= {*tables[2], "/nowhere"}


def _waits(made: str, event: str) -> str:
    return (
        f"new Promise((went, held) => {{ const x = {made}; x.addEventListener('error', held);"
        f" x.addEventListener('{event}', went); }})"
    )


# How it looks


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 700, 1280])
@pytest.mark.parametrize("count", [1, 2])
def test_nothing_sticks_out_overlaps_or_is_too_faint(one, two, count, width, dark):
    page = [one, two][count - 1]
    page.look_as(1280, 900)
    write(page, PROMPT)
    page.do("document.getElementById('token-0-4').click()")
    look_inside(page)
    page.look_as(width, 900, dark=dark)
    time.sleep(0.3)  # bars grow
    page.do(f"{{ {LOOK} }}")
    found = json.loads(text(page, "#found"))
    page.do("document.getElementById('found').remove()")
    page.look_as(1280, 900)
    assert found == {"width": width, "scroll": width} | SOUND


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_picture_of_it_shows_two_texts_and_their_bars(two, tmp_path, dark):
    write(two, PROMPT)
    two.look_as(1280, 900, dark=dark)
    time.sleep(0.3)
    picture = two.picture()
    picture.save(tmp_path / "serve.png")
    two.look_as(1280, 900)
    grey = np.asarray(picture.convert("L"), float)
    assert picture.width == 1280 and picture.height > 900
    assert grey.mean() < 45 if dark else grey.mean() > 225
    blue = [sum(n for n, (r, g, b) in half.getcolors(1 << 24) if b > r + 60) for half in halves(picture)]
    assert all(n > 500 for n in blue), "bars on both sides"
    assert all(np.asarray(half.convert("L"), float).std() > 10 for half in halves(picture)), "something is written"


def halves(picture):
    middle, top = picture.width // 2, picture.height // 2
    return [picture.crop((0, top, middle, picture.height)), picture.crop((middle, top, picture.width, picture.height))]


def test_who_wants_less_motion_gets_none(one):
    one.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    write(one, PROMPT, count=2)
    assert one.do("getComputedStyle(document.querySelector('.bars i')).transitionDuration") == "0s"
    one.look_as(1280, 900)


# What goes wrong


@pytest.mark.parametrize(
    ("prompt", "count", "said"),
    [("", 5, "There is no text to continue"), ("x = 1\n" * 400, 5, "positions"), (PROMPT, 512, "Ask for at most")],
)
def test_what_cannot_be_written_is_said_plainly_and_the_page_goes_on(one, ours, prompt, count, said):
    positions = ours[0][0].config.max_positions
    if count == 512 and positions >= 520:
        pytest.skip(f"{positions} positions: the page's 512 tokens fit")
    write(one, prompt, count=count)
    assert said in text(one, "#alert") and one.do("document.getElementById('alert').hidden") is False
    assert write(one, PROMPT, count=4) == [greedy(ours[0], PROMPT, 4)]
    assert one.do("document.getElementById('alert').hidden")


def broken(table: dict, address: str, body: bytes | None) -> dict:
    kept = {path: content for path, content in table.items() if path != address or body is not None}
    return kept if body is None else kept | {address: dataclasses.replace(table[address], body=body)}


def test_threads_run_under_the_policy_of_the_page(open_page, tables, ours):
    """Where there are few cores the page takes one thread, which needs no workers of its own; here it takes two."""
    script = tables[1]["/session.js"].body.read_bytes()
    assert b"Math.ceil(navigator.hardwareConcurrency / 2)" in script
    changed = script.replace(b"Math.ceil(navigator.hardwareConcurrency / 2)", b"2")
    page = open_page(broken(tables[1], "/session.js", changed))
    assert write(page, PROMPT) == [greedy(ours[0], PROMPT)]


@pytest.mark.parametrize(
    ("address", "body", "said"),
    [
        (
            "/modules/onnxruntime-web/ort-wasm-simd-threaded.wasm",
            b"no wasm",
            "WebAssembly does not run in this browser",
        ),
        ("/artifacts/0/model.onnx_data", None, "the server answers 404"),
        ("/artifacts/0/model.onnx_data", b"short", "5 bytes came of"),
        ("/artifacts/0/model.onnx", b"no graph", "protobuf"),
        ("/modules/onnxruntime-web/ort.wasm.min.mjs", None, "ONNX Runtime Web cannot be loaded"),
        ("/worker.js", None, "The worker could not be started"),
    ],
)
def test_what_cannot_be_loaded_is_said_plainly(open_page, tables, address, body, said):
    page = open_page(broken(tables[1], address, body))
    assert said in text(page, "#alert") and text(page, "#state") == "Not loaded"
    assert page.do("document.getElementById('generate').disabled")
