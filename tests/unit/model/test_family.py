"""GPT-NeoX models that are not Pythia, against Hugging Face's GPTNeoXForCausalLM: in torch, as a graph, quantised."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from models import Exported, InMemory, export_model, hugging_face, on_disk, save_checkpoint, small_config
from texts import Told
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.activations import ACT2FN
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

from pythia_export.artifact import Artifact
from pythia_export.base.errors import RecipeError, SourceError
from pythia_export.base.native_library import kernels_path
from pythia_export.calibrate import allocate, quantize_together
from pythia_export.calibrate.balance import canonical
from pythia_export.checkpoint import demo_folder
from pythia_export.commands.dequantize import dequantize
from pythia_export.commands.plan import plan
from pythia_export.commands.quantize import quantize as quantize_recipe
from pythia_export.commands.run import run
from pythia_export.graph.decoder import _activation, _Tape, build_decoder
from pythia_export.model.block import DENSE, Block, Rotary, activate, final_norm, head
from pythia_export.model.neox import ACTIVATIONS, QKV, NeoXConfig, layer_prefix
from pythia_export.model.rope import Rope
from pythia_export.model.rotary import rotary_tables
from pythia_export.proof.divergence import first_divergence
from pythia_export.proof.subject import Subject
from pythia_export.proof.suspects import suspects
from pythia_export.recipe import Export, Quantize, Recipe, parse_recipe
from pythia_export.records.manifest import Checkpoint
from pythia_export.rounding.attention import Basis
from pythia_export.runtime import Session
from pythia_export.weights.layout import layout
from pythia_export.weights.names import DATA_FILE
from pythia_export.weights.writer import WeightsWriter

ROPES = {
    "linear": Rope("linear", (("factor", 4.0),)),
    "dynamic": Rope("dynamic", (("factor", 2.0),)),
    "llama3": Rope(
        "llama3",
        (
            ("factor", 8.0), ("low_freq_factor", 1.0), ("high_freq_factor", 4.0),
            ("original_max_position_embeddings", 16),
        ),
    ),
    "yarn": Rope("yarn", (("factor", 4.0), ("original_max_position_embeddings", 16))),
    "yarn untruncated": Rope(
        "yarn", (("factor", 4.0), ("beta_fast", 8.0), ("beta_slow", 2.0), ("mscale", 2.0), ("mscale_all_dim", 0.5),
                 ("truncate", False))
    ),
    "yarn stretched": Rope("yarn", (("factor", 4.0), ("attention_factor", 1.5))),
}  # fmt: skip
BASE = small_config()
VARIANTS = {
    "sequential": replace(BASE, parallel_residual=False),
    "no attention bias": replace(BASE, attention_bias=False),
    "tied": replace(BASE, tied_head=True, hidden_act="gelu_new"),
    "odd rotary": replace(BASE, rotary_pct=0.35, hidden_act="relu2"),  # 11 dimensions of 32: 12 turn
    "RedPajama": replace(BASE, parallel_residual=False, rotary_pct=1.0, hidden_size=160, num_heads=2),
    "20B": replace(BASE, hidden_size=192, num_heads=2, hidden_act="gelu_fast"),
    "yarn": replace(BASE, rope=ROPES["yarn"], hidden_act="quick_gelu"),
    "all at once": replace(
        BASE, parallel_residual=False, attention_bias=False, tied_head=True, hidden_act="silu", rotary_pct=0.5,
        rope=ROPES["linear"],
    ),
}  # fmt: skip
OURS = {"architectures", "model_type", "torch_dtype", "rope_parameters"}
BATCH, LENGTH = 3, 16


def relative(got: np.ndarray, expected: np.ndarray, mask: np.ndarray) -> float:
    seen = mask.astype(bool)
    return float(np.abs(got - expected)[seen].max() / np.abs(expected[seen]).max())


@pytest.fixture(scope="module", params=VARIANTS)
def oracle(request, tmp_path_factory):
    """One variant: its float weights, exported, a left-padded batch, and Hugging Face's logits."""
    config = VARIANTS[request.param]
    model = hugging_face(config)
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(0, config.vocab_size, (BATCH, LENGTH)), np.ones((BATCH, LENGTH), np.int64)
    mask[1, :3] = mask[2, :7] = 0
    positions = np.clip(mask.cumsum(1) - 1, 0, None)
    with torch.no_grad():
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        logits = model(**{k: torch.from_numpy(v) for k, v in inputs.items()}).logits.numpy()
    source = InMemory(config, on_disk(model))
    graph = export_model(source, tmp_path_factory.mktemp("graph"), Quantize(method="none"), Export())
    return source, graph, ids, mask, logits


@pytest.mark.parametrize("rotary", ["custom", "onnx"])
def test_the_graph_is_what_hugging_face_computes(oracle, rotary):
    source, graph, ids, mask, logits = oracle
    export = Export(rotary=rotary)
    graph = replace(graph, model=build_decoder(graph.config, graph.places, export), export=export)
    (graph.folder / "model.onnx").write_bytes(graph.model.SerializeToString())
    onnx.checker.check_model(str(graph.folder / "model.onnx"), full_check=True)
    session = graph.session()
    assert relative(session.run(None, graph.feeds(ids, mask))[0], logits, mask) <= 1e-5
    if rotary == "custom" and (library := kernels_path()) is not None:
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(str(library))
        path = str(graph.folder / "model.onnx")
        native = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        assert relative(native.run(None, graph.feeds(ids, mask))[0], logits, mask) <= 1e-5
    past, steps = None, []
    for t in range(LENGTH):
        out = session.run(None, graph.feeds(ids[:, t : t + 1], mask[:, : t + 1], past))
        past = out[1:]
        steps.append(out[0])
    assert relative(np.concatenate(steps, 1), logits, mask) <= 1e-5


def test_the_block_is_what_hugging_face_computes(oracle):
    source, _, ids, _, logits = oracle
    config, read = source.config, source.tensor
    rotary = Rotary.of(config, LENGTH, torch.float32)
    x = read("gpt_neox.embed_in.weight")[torch.from_numpy(ids[:1])]
    for layer in range(config.num_layers):
        x = Block(config, layer, read)(x, rotary)
    assert relative(head(final_norm(x, config, read), read).numpy(), logits[:1], np.ones((1, LENGTH))) <= 1e-5


@pytest.mark.parametrize("name", ROPES)
def test_scaled_rotary_tables_are_those_of_transformers(name):
    """Of 96 dimensions and a base other than 10,000, so that some are scaled, some are not, some are between."""
    config = replace(small_config(), hidden_size=384, rotary_pct=1.0, rotary_base=500.0, rope=ROPES[name])
    embedding = GPTNeoXRotaryEmbedding(GPTNeoXConfig(**{k: v for k, v in config.to_dict().items() if k not in OURS}))
    for expected, table in zip(embedding(torch.zeros(1), torch.arange(64)[None]), rotary_tables(config), strict=True):
        assert np.abs(expected[0, :, :48].numpy() - table).max() < 2e-5  # float32 angles


def test_every_activation_is_that_of_transformers():
    x = torch.linspace(-12, 12, 4001)
    for name in ACTIVATIONS:
        expected = ACT2FN[name](x)
        assert (activate(x, ACTIVATIONS[name]) - expected).abs().max() <= 2e-6, name
        tape = _Tape(layout(BASE, Quantize(method="none"), "float32"))
        y = _activation(tape, ACTIVATIONS[name], onnx.TensorProto.FLOAT, "/mlp", "x")
        ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [4001]) for n in ("x", y)]
        graph = onnx.helper.make_graph(tape.nodes, name, ends[:1], ends[1:], list(tape.initializers.values()))
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        assert np.abs(session.run(None, {"x": x.numpy()})[0] - expected.numpy()).max() <= 2e-6, name


def test_config_json_comes_back_from_either_spelling():
    for config in [*VARIANTS.values(), *(replace(BASE, rope=rope) for rope in ROPES.values())]:
        both = config.to_dict()
        old = {k: v for k, v in both.items() if k != "rope_parameters"}
        new = {k: v for k, v in both.items() if k not in ("rope_scaling", "rotary_pct", "rotary_emb_base")}
        assert NeoXConfig.from_dict(both) == NeoXConfig.from_dict(old) == NeoXConfig.from_dict(new) == config


GARBAGE = {
    "rope_scaling": [
        "linear", {"type": []}, {"type": "su"}, {"factor": 2.0}, {"type": "linear"}, {"type": "linear", "factor": "4"},
        {"type": "linear", "factor": 1e-320}, {"type": "linear", "factor": float("nan")},
        {"type": "linear", "factor": 2.0, "rope_type": "dynamic"}, {"rope_type": "longrope", "factor": 2.0},
        {"type": "yarn", "factor": 4.0, "beta_fast": -1}, {"type": "yarn", "factor": 4.0, "truncate": 1},
        {"type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
         "original_max_position_embeddings": 16},
    ],
    "rope_parameters": [{"rope_type": "proportional"}, {"rope_type": "linear", "factor": None}],
    "hidden_act": [None, [], "prelu", "selu", "GELU"],
    "use_parallel_residual": [None, 0, "false"],
    "attention_bias": [None, 1],
    "tie_word_embeddings": [None, "no"],
    "rotary_emb_base": [0.5, 1e-300],
    "rotary_pct": [0.01, 1.5],
    "head_dim": [64, "32"],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in GARBAGE.items() for value in values])
def test_what_the_family_does_not_have_is_refused_by_name(field, value):
    given = {k: v for k, v in BASE.to_dict().items() if k != "rope_parameters"} | {field: value}
    with pytest.raises(SourceError) as caught:
        NeoXConfig.from_dict(given, "config.json")
    assert field in str(caught.value) or caught.value.hint


def test_a_plain_scaling_is_plain():
    for plain in ({"type": "default"}, {"rope_type": "default"}, {}, None):
        assert NeoXConfig.from_dict(BASE.to_dict() | {"rope_scaling": plain}) == BASE


# Quantised

WINDOWS = np.random.default_rng(0).integers(0, BASE.vocab_size, (32, 32))
SMALL = {"hidden_size": 64, "num_heads": 2, "intermediate_size": 128}
LAYERED = {name: replace(VARIANTS[name], **SMALL) for name in ("sequential", "no attention bias", "all at once")}


def distance(source: InMemory, exported: Exported, ids: np.ndarray) -> float:
    """Mean divergence of the stored weights' predictions from the original's, in nats a token."""
    found = []
    for read in (source.tensor, exported.reader().tensor):
        config = source.config
        rotary = Rotary.of(config, ids.shape[1], torch.float32)
        x = read("gpt_neox.embed_in.weight")[torch.from_numpy(ids)]
        for layer in range(config.num_layers):
            x = Block(config, layer, read)(x, rotary)
        found.append(head(final_norm(x, config, read), read).double().log_softmax(-1))
    return float((found[0].exp() * (found[0] - found[1])).sum(-1).mean())


@pytest.fixture(scope="module", params=LAYERED)
def layered(request) -> InMemory:
    config = LAYERED[request.param]
    return InMemory(config, on_disk(hugging_face(config)))


def test_each_step_of_the_quantiser_gains(layered, tmp_path):
    """On text that was not calibrated on: rounding to nearest, GPTQ, its error correction, and what the loss feels."""
    common = {"bits": 3, "group_size": 32, "embedding": "float32", "head": {"method": "none"}}
    held_out = np.random.default_rng(1).integers(0, BASE.vocab_size, (64, 32))
    steps = {
        "rtn": Quantize(method="rtn", **common),
        "gptq": Quantize(error_correction=False, fisher=False, **common),
        "corrected": Quantize(fisher=False, **common),
        "fisher": Quantize(**common),
    }
    found = {}
    for name, quantize in steps.items():
        (tmp_path / name).mkdir()
        found[name] = distance(layered, export_model(layered, tmp_path / name, quantize, Export(), WINDOWS), held_out)
    assert found["fisher"] < found["corrected"] < found["gptq"] < found["rtn"]


def test_quantisations_of_one_pass_are_those_of_each_alone(tmp_path):
    config = LAYERED["sequential"]
    source, made = InMemory(config, on_disk(hugging_face(config))), []
    chosen = [Quantize(bits=b, group_size=32, hessian="original", error_correction=False) for b in (4, 3)]
    with ExitStack() as stack:
        outputs = []
        for i, quantize in enumerate(chosen):
            places = layout(config, quantize, "float32")
            outputs.append(stack.enter_context(WeightsWriter(tmp_path / str(i), places)))
        quantize_together(source, outputs, WINDOWS)
    for i, quantize in enumerate(chosen):
        (tmp_path / f"alone{i}").mkdir()
        made.append(export_model(source, tmp_path / f"alone{i}", quantize, Export(), WINDOWS))
        assert (made[i].folder / DATA_FILE).read_bytes() == (tmp_path / str(i)).read_bytes()


def subject_of(source: InMemory, exported: Exported, quantize: Quantize) -> Subject:
    origin = Checkpoint(name="layered", revision="main", commit="x")
    reader, model = exported.reader(), exported.model
    return Subject(origin, source, reader, source.config, model, exported.folder, quantize, exported.export)


def test_no_operator_of_a_graph_differs_and_no_weight_is_suspect(layered, tmp_path):
    exported = export_model(layered, tmp_path, Quantize(method="rtn", group_size=32), Export())
    window = WINDOWS[0].repeat(2)
    quantize = Quantize(method="rtn", group_size=32)
    subject = subject_of(layered, exported, quantize)
    found = first_divergence(subject, window)
    per_layer = 9 if layered.config.parallel_residual else 10
    operators = 3 + layered.config.num_layers * per_layer
    assert found.op is None and found.checked in (2 * operators, 4 * operators)
    assert suspects(subject, window).first is None


def test_a_head_in_another_basis_is_no_suspect_and_one_of_other_weights_is(layered, tmp_path):
    """As `effort = "best"` rounds them: dense follows v, and q follows k where the rotary embedding turns neither."""
    config, best = layered.config, Quantize(effort="best", group_size=32)
    text = WINDOWS[:2].flatten()
    plain, drawn = canonical(layered, best), torch.Generator().manual_seed(0)
    moved = {name: plain.tensor(name) for name in layered.tensors}
    for layer in range(config.num_layers):
        qkv, dense = (f"{layer_prefix(layer)}.{linear}" for linear in (QKV, DENSE))
        basis = Basis.unchanged(config.num_heads, config.head_dim, moved[f"{qkv}.weight"])
        for part, first in ((1, config.rotary_dim), (2, 0)):
            for at in range(config.num_heads if first < config.head_dim else 0):
                size = config.head_dim - first
                A = torch.eye(size) + 0.3 * torch.randn(size, size, generator=drawn) / size**0.5
                basis.change(at, part, first, A)
        changed = {name: basis.of_qkv(moved[name]) for name in (f"{qkv}.weight", f"{qkv}.bias") if name in moved}
        moved |= changed | {f"{dense}.weight": basis.of_dense(moved[f"{dense}.weight"])}
    exported = export_model(InMemory(config, moved), tmp_path, Quantize(method="rtn", group_size=32), Export())
    assert suspects(subject_of(layered, exported, best), text).first is None
    name = f"{layer_prefix(1)}.{QKV}"
    moved[f"{name}.weight"] = moved[f"{name}.weight"].clone()
    moved[f"{name}.weight"][: config.head_dim] *= 3  # the first head's q
    exported = export_model(InMemory(config, moved), tmp_path, Quantize(method="rtn", group_size=32), Export())
    found = suspects(subject_of(layered, exported, best), text).first
    assert found is not None and found.name == name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parallel_residual": False}, "model's is sequential"),
        ({"attention_bias": False}, "attention_bias = false"),
    ],
)
def test_two_products_are_refused_where_layers_cannot_be_folded(changes, said):
    with pytest.raises(RecipeError, match=f"products = 2: .*{said}"):
        layout(replace(BASE, **changes), Quantize(products=2), "float32")


@pytest.mark.parametrize("parallel", [True, False])
def test_joint_hessian_is_off_and_told_where_it_has_no_part(parallel, tmp_path):
    config = replace(BASE, parallel_residual=parallel, vocab_size=4096, **SMALL)
    model = save_checkpoint(hugging_face(config), config, tmp_path / "m", demo_folder() / "main" / "tokenizer.json")
    text = {"source": "python-stdlib", "sequence_length": 16}
    recipe = parse_recipe(
        {
            "model": {"path": str(model)}, "calibration": text | {"samples": 2}, "verify": text | {"tokens": 64},
            "quantize": {"group_size": 32, "beam": 1, "fisher": False},
        }
    )  # fmt: skip
    told = "joint_hessian is off: this model's residual is sequential"
    assert any(warning.startswith(told) for warning in plan(recipe).warnings) != parallel
    notes = Told()
    quantize_recipe(recipe, tmp_path / "out", progress=notes)
    assert any(note.startswith(told) for note in notes.notes) != parallel
    assert Artifact.open(tmp_path / "out").recipe.quantize.joint_hessian == parallel


def test_one_weight_that_widens_a_whole_scale_is_named(tmp_path):
    """Rounded to nearest it costs as much, so no ratio shows it."""
    source = InMemory(LAYERED["no attention bias"], on_disk(hugging_face(LAYERED["no attention bias"])))
    name = "gpt_neox.layers.1.attention.query_key_value"
    quantize = Quantize(method="rtn", group_size=32)
    export_model(source, tmp_path, quantize, Export())
    for factor, expected in ((1.0, None), (1e6, name), (1e18, name)):
        source.tensors[f"{name}.weight"][3, 5] = 0.1 * factor
        exported = export_model(source, tmp_path, quantize, Export())
        found = suspects(subject_of(source, exported, quantize), WINDOWS[0])
        assert (found.extreme and found.extreme.name) == expected


def test_a_budget_of_bits_is_met_with_a_sequential_residual(tmp_path):
    config = LAYERED["sequential"]
    source, quantize = (
        InMemory(config, on_disk(hugging_face(config))),
        Quantize(bits=3, group_size=32, bits_per_weight=7.0),
    )
    resolved, found = allocate(source, quantize, "float32", WINDOWS)
    assert found.raised and found.reached <= 7.0 and resolved.bits_per_weight is None


# The whole way


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """RedPajama's residual with everything else that differs from Pythia, by `run` as anyone would."""
    folder = tmp_path_factory.mktemp("family")
    config = VARIANTS["all at once"]
    words = Tokenizer(WordLevel({chr(c): c - 32 for c in range(32, 127)}, unk_token="?"))
    words.pre_tokenizer = Split("", "isolated")
    words.save(str(folder / "tokenizer.json"))
    save_checkpoint(hugging_face(config), config, folder / "model", folder / "tokenizer.json")
    text = {"source": "python-stdlib", "sequence_length": 32}
    recipe = Recipe(
        model={"path": folder / "model"},
        calibration=text | {"samples": 8},
        quantize={"bits": 4, "group_size": 32},
        verify=text | {"tokens": 256},
    )
    run(recipe, folder / "out")
    return folder / "out"


def test_the_way_from_recipe_to_artifact_is_whole(published):
    artifact = Artifact.open(published)
    assert artifact.config == VARIANTS["all at once"]
    parity = artifact.read_json("parity.json")
    assert len(parity["export"]["runs"]) > 1 and all(way["max_abs"] <= 1e-4 for way in parity["export"]["runs"])
    assert parity["cost"]["kld"]["mean"] < 0.01
    theirs = GPTNeoXConfig.from_pretrained(published)
    assert (theirs.use_parallel_residual, theirs.attention_bias, theirs.hidden_act) == (False, False, "silu")
    assert theirs.rope_scaling == {"rope_type": "linear", "factor": 4.0} and theirs.tie_word_embeddings


def test_transformers_computes_what_the_artifact_computes(published, tmp_path):
    """The dequantised checkpoint has two ends, since each was rounded in a form of its own."""
    dequantize(published, tmp_path / "plain")
    model, info = GPTNeoXForCausalLM.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not any(info.values()) and not model.config.tie_word_embeddings
    session = Session.open(Artifact.open(published), threads=1)
    with torch.no_grad():
        found = model.eval()(torch.from_numpy(WINDOWS[:2])).logits.numpy()
    np.testing.assert_allclose(found, session.logits(WINDOWS[:2]), rtol=0, atol=1e-4)
