"""Values from inside the model, against transformers' own; what is changed there; and that nothing else moves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import hugging_face, save_checkpoint, small_config
from places import ROOT
from transformers.models.gpt_neox import modeling_gpt_neox

from pythia_export import Artifact
from pythia_export.base.errors import NumericsError, RecipeError, SourceError
from pythia_export.commands.export import add_taps, export
from pythia_export.commands.quantize import quantize
from pythia_export.model.hooks import hooks_of, tap_of
from pythia_export.model.neox import NeoXConfig
from pythia_export.recipe import parse_recipe
from pythia_export.runtime import Session, TapSession

LAYERS, HEADS, WIDTH = 3, 2, 64
CONFIG = NeoXConfig(4096, HEADS * WIDTH, LAYERS, HEADS, 256, max_positions=48)  # heads that GroupQueryAttention rotates
VERIFY = {"source": "python-stdlib", "tokens": 256, "sequence_length": 32}
TEXTS = ("def main(", "import os\n\nclass Node:\n    def __init__(self, name):", "x = 1")


@dataclass
class Made:
    """A checkpoint of random weights in float32, as transformers runs it, and an artifact of it with every tap."""

    model: torch.nn.Module
    folder: Path

    def artifact(self) -> Artifact:
        return Artifact.open(self.folder)


def made(folder: Path, config: NeoXConfig = CONFIG, quantization=None, **options) -> Made:
    model = hugging_face(config)
    save_checkpoint(model, config, folder / "model", ROOT / "demo" / "main" / "tokenizer.json")
    recipe = {
        "model": {"path": str(folder / "model")},
        "quantize": quantization or {"method": "none"},
        "verify": VERIFY,
    }
    quantize(parse_recipe(recipe), folder / "weights")
    export(folder / "weights", folder / "out", **({"taps": ["all"]} | options))
    return Made(model, folder / "out")


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    return made(tmp_path_factory.mktemp("made"))


# What transformers computes, by TransformerLens's names


def oracle(model, ids, mask=None, edit=None, edited=lambda value: value) -> dict[str, np.ndarray]:
    """Every hook's value of ids [B, T], and the logits, where the value of hook `edit` goes through `edited`."""
    found: dict[str, torch.Tensor] = {}

    def seen(hook, value):
        if hook == edit:
            value = edited(value.clone())
        found[hook] = value
        return value

    def output(hook, shape=None):
        def see(module, args, value):
            whole = value[0] if isinstance(value, tuple) else value
            changed = seen(hook, whole if shape is None else whole.reshape(*whole.shape[:2], *shape))
            changed = changed.reshape(whole.shape)
            return (changed, *value[1:]) if isinstance(value, tuple) else changed

        return see

    def into(hook, shape=None):
        def see(module, args):
            value = args[0]
            changed = seen(hook, value if shape is None else value.reshape(*value.shape[:2], *shape))
            return (changed.reshape(value.shape), *args[1:])

        return see

    def qkv(at):
        def see(module, args, value):
            parts = value.reshape(*value.shape[:2], heads, 3, -1)  # as the checkpoint has them
            parts = torch.stack([seen(f"{at}.hook_{name}", parts[..., i, :]) for i, name in enumerate("qkv")], -2)
            return parts.reshape(value.shape)

        return see

    heads, body = model.config.num_attention_heads, model.gpt_neox
    eager = modeling_gpt_neox.eager_attention_forward
    layers = iter(range(len(body.layers)))

    def attend(module, query, key, value, attention_mask, scaling, **others):
        scores = query @ key.transpose(2, 3) * scaling
        if attention_mask is not None:
            scores = scores + attention_mask[:, :, :, : key.shape[-2]]
        shares = seen(f"blocks.{next(layers)}.attn.hook_pattern", scores.softmax(-1))
        return (shares @ value).transpose(1, 2).contiguous(), shares

    on = [body.embed_in.register_forward_hook(output("embed.hook_out"))]
    for i, layer in enumerate(body.layers):
        at = f"blocks.{i}"
        on += [
            layer.register_forward_pre_hook(into(f"{at}.hook_in")),
            layer.attention.query_key_value.register_forward_hook(qkv(f"{at}.attn")),
            layer.attention.dense.register_forward_pre_hook(into(f"{at}.attn.hook_z", (heads, -1))),
            layer.attention.dense.register_forward_hook(output(f"{at}.attn.hook_out")),
            layer.mlp.dense_h_to_4h.register_forward_hook(output(f"{at}.mlp.hook_pre")),
            layer.mlp.act.register_forward_hook(output(f"{at}.mlp.hook_post")),
            layer.mlp.register_forward_hook(output(f"{at}.mlp.hook_out")),
            layer.register_forward_hook(output(f"{at}.hook_out")),
        ]
        if not model.config.use_parallel_residual:
            on.append(layer.post_attention_layernorm.register_forward_pre_hook(into(f"{at}.ln2.hook_in")))

    def final(module, args, value):
        norm = body.final_layer_norm
        unit = torch.nn.functional.layer_norm(args[0], args[0].shape[-1:], eps=norm.eps)
        return seen("ln_final.hook_normalized", unit) * norm.weight + norm.bias

    on.append(body.final_layer_norm.register_forward_hook(final))
    mask = np.ones_like(ids) if mask is None else mask
    modeling_gpt_neox.eager_attention_forward = attend
    try:
        with torch.no_grad():
            places = torch.tensor(np.clip(mask.cumsum(1) - 1, 0, None))
            out = model(torch.tensor(ids), attention_mask=torch.tensor(mask), position_ids=places, use_cache=False)
    finally:
        modeling_gpt_neox.eager_attention_forward = eager
        for handle in on:
            handle.remove()
    return {hook: value.numpy() for hook, value in {**found, "logits": out.logits}.items()}


def batch(seed=0, rows=3, tokens=11):
    """Ids [B, T] and a mask with padding on the left."""
    ids = np.random.default_rng(seed).integers(1, 500, (rows, tokens))
    mask = np.ones_like(ids)
    for row in range(rows):
        mask[row, : 2 * row] = 0
    return ids, mask


def differs(hook, got, expected, mask) -> float:
    """The largest difference at a token that is no padding; of patterns, of what such tokens attend to."""
    apart = np.abs(got - expected)
    if hook != "logits" and tap_of(hook)[0].shape == "pattern":
        return float((apart * mask[:, None, :, None]).max())
    return float((apart.reshape(*apart.shape[:2], -1).max(-1) * mask).max())


@pytest.mark.parametrize("native", [True, False], ids=["native", "function"])
def test_every_place_is_what_transformers_has_there(every, native):
    ids, mask = batch()
    expected = oracle(every.model, ids, mask)
    session = TapSession(every.artifact(), ["all", "logits"], native=native)
    assert session.speed == ("native" if native else "function")
    found = session.read(ids, mask)
    assert set(found) == set(expected) == {*hooks_of(["all"], CONFIG), "logits"}
    for hook, value in found.items():
        assert value.shape == expected[hook].shape and value.dtype == np.float32, hook
        assert differs(hook, value, expected[hook], mask) < 2e-5, hook


@pytest.mark.parametrize(
    "config, options",
    [
        (replace(CONFIG, parallel_residual=False), {}),
        (small_config(layers=2, vocab=4096), {}),  # heads that it does not rotate
        (CONFIG, {"rotary": "onnx"}),
        (CONFIG, {"rotary": "gqa"}),
        (CONFIG, {"kv_cache": "int8"}),
    ],
    ids=["sequential", "14m", "onnx", "gqa", "int8"],
)
def test_every_form_of_the_graph_gives_them(tmp_path, config, options):
    other = made(tmp_path, config, **options)
    ids, mask = batch()
    expected = oracle(other.model, ids, mask)
    bound = 0.05 if "kv_cache" in options else 2e-5
    for native in (True, False):
        session = TapSession(other.artifact(), ["all"], native=native)
        found = session.read(ids, mask)
        assert set(found) == set(expected) - {"logits"}
        for hook, value in found.items():
            assert differs(hook, value, expected[hook], mask) < bound, (hook, native)


def test_step_by_step_it_is_the_same(every):
    ids, mask = batch()
    for native in (True, False):
        session = TapSession(every.artifact(), ["all", "logits"], native=native)
        whole = session.read(ids, mask)
        cache = session.start(*ids.shape)
        # ONNX Runtime's own operator takes one new token of several rows; ours takes any number.
        for begin, end in ((0, 6), (6, 7), (7, 11)) if native else ((0, 9), (9, 10), (10, 11)):
            found = session.read(ids[:, begin:end], mask[:, begin:end], cache=cache)
            for hook, value in found.items():
                pattern = hook.endswith("pattern")
                there = whole[hook][:, :, begin:end, :end] if pattern else whole[hook][:, begin:end]
                assert differs(hook, value, there, mask[:, begin:end]) < 2e-5, (hook, begin)


def test_positions_are_counted_in_each_text(every):
    artifact = every.artifact()
    names = ["resid", "attn.z", "attn.pattern", "logits"]
    whole = artifact.trace(list(TEXTS), names)
    for positions, places in (("last", [-1]), ([0, 2], [0, 2]), ([-1, 1], [-1, 1])):
        for seen, text in zip(artifact.trace(list(TEXTS), names, positions=positions), whole, strict=True):
            assert seen.positions.tolist() == [p % len(text.tokens) for p in places]
            for hook in seen.values:
                there = text[hook][:, places] if hook.endswith("pattern") else text[hook][places]
                np.testing.assert_allclose(seen[hook], there, atol=2e-5)


def test_texts_of_several_lengths_are_as_one_by_one(every):
    artifact = every.artifact()
    together = artifact.trace(list(TEXTS), "all")
    assert [t.index for t in together] == [0, 1, 2]
    for seen, text in zip(together, TEXTS, strict=True):
        alone = artifact.trace(text, "all")
        tokens = artifact.tokenizer().encode(text).ids
        assert seen.tokens.tolist() == alone.tokens.tolist() == tokens
        assert list(seen.values) == list(hooks_of(["all"], CONFIG))
        for hook, value in seen.values.items():
            assert value.shape == alone[hook].shape
            np.testing.assert_allclose(value, alone[hook], atol=2e-5)
    ids = together[0].tokens
    again = artifact.trace(np.stack([ids, ids]), ["blocks.1.hook_in"])
    assert (again[0]["blocks.1.hook_in"] == again[1]["blocks.1.hook_in"]).all() and list(again[0].values) == [
        "blocks.1.hook_in"
    ]


@pytest.mark.parametrize("bits, level", [(None, 0), (4, 0), (4, 4), (8, 4)])
def test_logits_are_the_untapped_graphs_bit_for_bit(tmp_path, bits, level):
    how = {"method": "none"} if bits is None else {"method": "rtn", "bits": bits, "group_size": 32}
    artifact = made(tmp_path, quantization=how, accuracy_level=level).artifact()
    ids, mask = batch(tokens=21)
    for native in (True, False):
        plain = Session.open(artifact, threads=1, native=native).logits(ids, mask)
        changed = hooks_of(["all"], CONFIG)
        for change in ((), changed):
            session = TapSession(artifact, ["all", "logits"], change, threads=1, native=native)
            found = session.read(ids, mask)["logits"]
            if native and level == 4:  # one node for all layers: its norms differ in float32's last digits
                assert change or np.abs(found - plain).max() < 0.05 * np.abs(plain).max()
            else:
                assert change or (found == plain).all()


# Interventions


def one_head(value):
    value[:, [1, 4], 1] = 0.5
    return value


CHANGES = {
    "embed.hook_out": ({"op": "scale", "factor": 2.0}, lambda v: v * 2),
    "blocks.1.hook_in": ({"op": "add", "value": np.linspace(-1, 1, 128)}, lambda v: v + torch.linspace(-1, 1, 128)),
    "blocks.1.attn.hook_q": ({"op": "set", "value": 0.5, "heads": 1, "pos": [1, 4]}, one_head),
    "blocks.0.attn.hook_k": ({"op": "suppress"}, torch.zeros_like),
    "blocks.2.attn.hook_v": ({"op": "set", "value": 0.5, "heads": [1], "pos": [1, 4]}, one_head),
    "blocks.1.attn.hook_z": ({"op": "set", "value": np.full(64, 0.5), "heads": [1], "pos": [1, 4]}, one_head),
    "blocks.1.attn.hook_pattern": (
        [{"op": "scale", "factor": 0.5}, {"op": "suppress", "heads": 0}],
        lambda v: v * torch.tensor([0.0, 0.5])[:, None, None],
    ),
    "blocks.1.attn.hook_out": ({"op": "suppress"}, torch.zeros_like),
    "blocks.0.mlp.hook_pre": ({"op": "add", "value": -1}, lambda v: v - 1),
    "blocks.0.mlp.hook_post": ({"op": "scale", "factor": -1}, lambda v: -v),
    "blocks.1.mlp.hook_out": ({"op": "set", "value": 0.25}, lambda v: torch.full_like(v, 0.25)),
    "blocks.2.hook_out": ({"op": "add", "value": np.linspace(-1, 1, 128)}, lambda v: v + torch.linspace(-1, 1, 128)),
    "ln_final.hook_normalized": ({"op": "scale", "factor": 0.1}, lambda v: v * 0.1),
}


@pytest.mark.parametrize("hook", CHANGES)
def test_a_change_is_what_it_is_in_transformers(every, hook):
    ids, _ = batch(rows=2)
    spec, edited = CHANGES[hook]
    expected = oracle(every.model, ids, edit=hook, edited=edited)
    session = TapSession(every.artifact(), ["all", "logits"], [hook])
    plain = session.read(ids)
    found = session.read(ids, changes={hook: spec})
    for place, value in found.items():
        assert np.abs(value - expected[place]).max() < 5e-5, place
    assert np.abs(found["logits"] - plain["logits"]).max() > 1e-2
    if hook != "ln_final.hook_normalized":  # and what is before the place stays as it was
        assert (found["embed.hook_out"] == plain["embed.hook_out"]).all() or hook == "embed.hook_out"
    assert (session.read(ids)["logits"] == plain["logits"]).all()  # and only as long as it is asked for


def test_the_stream_of_one_text_goes_into_another(every):
    """Activation patching: behind the last token's stream of every layer but the first few, the donor's follow."""
    artifact = every.artifact()
    donor, receiver = artifact.trace(["a = b", "import os"], ["resid", "logits"])
    hook = "blocks.2.hook_in"
    spec = {hook: {"op": "set", "value": donor[hook][-1], "pos": -1}}
    patched = artifact.trace("import os", ["resid", "logits"], intervene=spec)
    np.testing.assert_array_equal(patched[hook][-1], donor[hook][-1])
    np.testing.assert_allclose(patched[hook][:-1], receiver[hook][:-1], atol=1e-5)
    assert np.abs(patched["logits"][-1] - receiver["logits"][-1]).max() > 1e-2
    np.testing.assert_allclose(patched["logits"][:-1], receiver["logits"][:-1], atol=1e-5)


def test_older_names_and_taps_name_what_is_changed(every):
    artifact, silent = every.artifact(), {"op": "suppress"}
    by_hand = artifact.trace("x = 1", "logits", intervene={f"blocks.{i}.hook_out": silent for i in range(LAYERS)})
    for name in ("resid_post", "blocks.2.hook_resid_post"):  # behind an empty stream only the last counts
        found = artifact.trace("x = 1", "logits", intervene={name: silent})
        np.testing.assert_allclose(found["logits"], by_hand["logits"], atol=1e-5)


# Only what is asked for


def test_nothing_behind_the_last_place_is_computed(every):
    artifact = every.artifact()
    whole = TapSession(artifact, ["all"], threads=1)
    first = TapSession(artifact, ["blocks.1.attn.hook_q"], threads=1)
    assert first.hooks == ("blocks.1.attn.hook_q",) and first.config.num_layers == LAYERS
    cached = [[i.name for i in s._session.get_inputs() if i.name.endswith(".key")] for s in (whole, first)]
    assert cached == [[f"past_key_values.{i}.key" for i in range(n)] for n in (LAYERS, 1)]
    ids, mask = batch()
    hook = "blocks.1.attn.hook_q"
    np.testing.assert_allclose(first.read(ids, mask)[hook], whole.read(ids, mask)[hook], atol=1e-5)
    assert TapSession(artifact, ["embed"]).read(ids)["embed.hook_out"].shape == (3, 11, 128)


def test_taps_are_added_to_an_artifact_that_is_there(tmp_path):
    artifact = made(tmp_path, taps=None).artifact()
    before = {p.name: p.read_bytes() for p in artifact.folder.iterdir() if p.name != "manifest.json"}
    with pytest.raises(SourceError, match="has no taps: no taps.onnx") as refused:
        artifact.trace("x", ["resid"])
    assert f"`pythia-export export {artifact.folder} --taps resid`" in refused.value.hint
    with pytest.raises(SourceError) as refused:
        artifact.trace(
            "x", ["blocks.1.hook_resid_pre", "attn.z", "logits"], intervene={"hook_embed": {"op": "suppress"}}
        )
    assert "--taps resid_pre,attn.z,embed`" in refused.value.hint
    add_taps(artifact.folder, ["resid"])
    again = Artifact.open(artifact.folder)
    again.check()
    assert {p.name: p.read_bytes() for p in artifact.folder.iterdir() if p.name in before} == before
    assert again.recipe.export.taps == ("resid",)
    assert (artifact.folder / "taps.onnx").stat().st_size < 100_000  # no weight among it
    assert list(again.trace("x = 1", "resid").values) == list(hooks_of(["resid"], CONFIG))
    with pytest.raises(RecipeError, match=r"does not give blocks\.0\.attn\.hook_q; it has resid_pre, resid_post") as e:
        again.trace("x", ["attn.q"])
    assert "--taps resid_pre,resid_post,attn.q" in e.value.hint


@pytest.mark.parametrize("layout", ["flat", "transformers.js"])
def test_another_graph_keeps_the_taps(tmp_path, layout):
    first = made(tmp_path, taps=["resid", "attn.pattern"])
    export(first.folder, tmp_path / "second", rotary="gqa", target="web", layout=layout)
    again = Artifact.open(tmp_path / "second")
    again.check()
    assert again.recipe.export.taps == ("resid", "attn.pattern")
    ids, _ = batch()
    got = TapSession(again, ["resid"]).read(ids)
    for hook, value in TapSession(first.artifact(), ["resid"]).read(ids).items():
        np.testing.assert_allclose(got[hook], value, atol=1e-5)


# Bad input


@pytest.mark.parametrize(
    "capture, change, error, message",
    [
        (
            ["blocks.0.hook_resid"],
            None,
            RecipeError,
            r"no place in this model; the nearest are blocks\.0\.hook_resid_p",
        ),
        (["atn.z"], None, RecipeError, r"'atn\.z' is no place in this model; the nearest are attn\.z"),
        (["blocks.3.hook_in"], None, RecipeError, r"'blocks\.3\.hook_in' is no place"),
        (["resid_mid"], None, RecipeError, "'resid_mid' is no place"),
        ("resid", {"blocks.9.hook_in": {"op": "suppress"}}, RecipeError, r"'blocks\.9\.hook_in' is no place"),
        ("resid", {"blocks.1.hook_in": {"op": "zero"}}, RecipeError, "op 'zero'; one of set, add, scale, suppress"),
        ("resid", {"blocks.1.hook_in": {"scale": 0}}, RecipeError, "no `op` beside scale; one of set, add"),
        ("resid", {"blocks.1.hook_in": lambda x: x}, RecipeError, "a function; what ONNX Runtime computes"),
        ("resid", {"blocks.1.hook_in": {"op": "set"}}, RecipeError, "set without value"),
        ("resid", {"blocks.1.hook_in": {"op": "set", "value": 1, "position": 1}}, RecipeError, "set with position"),
        ("resid", {"blocks.1.hook_in": {"op": "set", "value": "x"}}, RecipeError, "no array of numbers"),
        ("resid", {"blocks.1.hook_in": {"op": "set", "value": np.nan}}, NumericsError, "not finite"),
        ("resid", {"blocks.1.hook_in": {"op": "suppress", "pos": 7}}, RecipeError, "position 7 of a text of 5 tokens"),
        ("resid", {"blocks.1.hook_in": {"op": "suppress", "pos": 0.5}}, RecipeError, "pos 0.5; a whole number"),
        ("resid", {"blocks.1.hook_in": {"op": "suppress", "heads": 0}}, RecipeError, "has no heads"),
        ("resid", {"blocks.1.attn.hook_z": {"op": "suppress", "heads": 2}}, RecipeError, "head 2; heads are 0 to 1"),
        (
            "resid",
            {"blocks.1.hook_in": {"op": "set", "value": np.ones(7), "pos": [1, 2]}},
            RecipeError,
            r"a value of shape \[7\]; a number, or what NumPy stretches to \[2, 128\] \(tokens, width\)",
        ),
        (
            "resid",
            {"blocks.2.mlp.hook_post": {"op": "set", "value": 3e38}},
            NumericsError,
            r"2\.hook_out is not finite",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(every, capture, change, error, message):
    with pytest.raises(error, match=message):
        every.artifact().trace(np.array([[5, 6, 7, 8, 9]]), capture, intervene=change)


def test_texts_and_positions_that_do_not_fit(every):
    artifact = every.artifact()
    for texts, positions, message in [
        (["x = 1", ""], "all", "text 1 has 0 tokens; 1 to 48 were expected"),
        ([[1] * 49], "all", "text 0 has 49 tokens"),
        (["x = 1", [5, 6]], [0, 2], "position 2 of a text of 2 tokens; 0 to 1 was expected"),
        (["x = 1"], "first", "positions 'first'; 'all', 'last' or a list"),
    ]:
        with pytest.raises(RecipeError, match=message):
            artifact.trace(texts, positions=positions)
    with pytest.raises(TypeError, match="a text is a str, or its token ids"):
        artifact.trace([[0.5]])


def test_places_of_the_recipe(tmp_path):
    raw = {"model": {"id": "demo"}, "verify": VERIFY, "export": {"taps": ["resid", "attn.patern"]}}
    with pytest.raises(RecipeError, match=r"no tap is called 'attn\.patern'; the nearest are attn\.pattern"):
        parse_recipe(raw)
    fused = {"method": "rtn", "products": 2, "group_size": 32}
    with pytest.raises(RecipeError, match=r"attn\.out is not computed with products = 2"):
        made(tmp_path / "a", quantization=fused, taps=["attn.out"])
    other = made(tmp_path / "b", quantization=fused, taps=["all"])
    ids, mask = batch()
    found = TapSession(other.artifact(), ["resid", "attn.z", "mlp.post", "attn.pattern"]).read(ids, mask)
    assert found["blocks.0.attn.hook_z"].shape == (3, 11, HEADS, WIDTH)
