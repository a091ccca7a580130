"""What `serve` tells of the inside of artifacts, against Hugging Face's model and our own sessions; and who may ask."""

from __future__ import annotations

import http.client
import json
import threading
from dataclasses import asdict

import numpy as np
import pytest
import torch
from models import InMemory, hugging_face, on_disk, small_config
from session_fixtures import artifact, source, tokenizer  # noqa: F401  (fixtures)
from sessions import QUANTIZE, VOCAB, export_and_publish

from pythia_export import serve
from pythia_export.artifact import Artifact
from pythia_export.base import errors
from pythia_export.recipe import Export, Quantize
from pythia_export.runtime import Session
from pythia_export.serve.inside import LIKELIEST, TOKENS, Inside
from pythia_export.serve.prepare import ready

PLAIN = Export()
TEXT = "the cat sat on the mat and the dog"


@pytest.fixture(scope="module")
def make(source, tokenizer, tmp_path_factory):  # noqa: F811
    """A function: an artifact of the tiny model."""

    def make_it(of=source[0], export: Export = PLAIN, **quantize):
        out = tmp_path_factory.mktemp("made") / "out"
        export_and_publish(of, tokenizer, out, export, Quantize(**{"method": "none"} | quantize))
        return out

    return make_it


@pytest.fixture(scope="module")
def floats(make):
    return make()


@pytest.fixture(scope="module")
def rounded(make):
    return make(**QUANTIZE | {"bits": 4})


@pytest.fixture(scope="module")
def inside(floats, rounded):
    return Inside([ready(floats), ready(rounded)])


@pytest.fixture(scope="module")
def look(inside):
    return inside.look(TEXT)


@pytest.fixture(scope="module")
def oracle(source, look):  # noqa: F811
    """Probabilities [boundaries, T, vocab] of the logit lens, and patterns [layers, heads, T, T], by Hugging Face."""
    model, streams = source[1], []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: streams.append(args[0])) for layer in model.gpt_neox.layers
    ]
    hooks.append(model.gpt_neox.final_layer_norm.register_forward_pre_hook(lambda _, args: streams.append(args[0])))
    with torch.no_grad():
        found = model(torch.tensor([look.tokens]), output_attentions=True)
        for hook in hooks:
            hook.remove()
        lens = model.get_output_embeddings()(model.gpt_neox.final_layer_norm(torch.stack([x[0] for x in streams])))
    return lens.softmax(-1).numpy(), torch.stack(found.attentions)[:, 0].numpy()


def softmax(logits):
    p = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def test_the_lens_is_final_norm_and_head_of_each_stream(look, oracle):
    p, seen = oracle[0], look.seen[0]
    order = np.argsort(-p, axis=-1, kind="stable")[..., :LIKELIEST]
    assert np.array_equal(seen.top, order)
    np.testing.assert_allclose(seen.p, np.take_along_axis(p, order, -1), rtol=2e-3)
    follows = np.array(look.tokens[1:])[None, :, None]
    of = np.take_along_axis(p[:, :-1], np.broadcast_to(follows, (len(p), *follows.shape[1:])), -1)
    np.testing.assert_allclose(seen.following, of[..., 0], rtol=2e-3)
    assert np.array_equal(seen.rank, 1 + (p[:, :-1] > of).sum(-1))


def test_patterns_are_those_of_the_model_a_triangle_of_each_head(inside, look, oracle):
    layers, heads, T, _ = oracle[1].shape
    for layer, head in ((0, 0), (layers - 1, heads - 1)):
        rows = inside.pattern(TEXT, layer, head).rows[0]
        assert [len(row) for row in rows] == list(range(1, T + 1))
        for query, row in enumerate(rows):
            np.testing.assert_allclose(row, oracle[1][layer, head, query, : query + 1], atol=2e-5)
    p = oracle[1]
    elsewhere = [
        [np.mean([1 - p[i, h, q, 0] - p[i, h, q, q] for q in range(2, T)]) for h in range(heads)] for i in range(layers)
    ]
    np.testing.assert_allclose(look.seen[0].heads, elsewhere, rtol=2e-3)


def test_the_difference_is_kl_of_the_lens_and_divergence_of_patterns(inside, look, rounded):
    p, q = (look_at(folder, look.tokens) for folder in (inside._models[0].folder, rounded))
    np.testing.assert_allclose(look.difference.kl[-1], (p * np.log(p / q)).sum(-1), rtol=2e-2, atol=1e-6)
    a, b = (
        np.array([row + [0.0] * (len(look.tokens) - len(row)) for row in x]) for x in inside.pattern(TEXT, 1, 2).rows
    )
    middle = (a + b) / 2 + 1e-30
    js = (a * np.log(a / middle + 1e-30) + b * np.log(b / middle + 1e-30)).sum(-1).mean() / 2
    assert look.difference.heads[1][2] == pytest.approx(js, rel=0.05)
    assert Inside([inside._models[0]] * 2).look(TEXT).difference.kl == [[0.0] * len(look.tokens)] * 3


def look_at(folder, ids):
    return softmax(Session.open(Artifact.open(folder)).logits(np.array([ids]))[0])


def test_every_form_of_artifact_has_an_inside_without_taps(artifact):  # noqa: F811
    assert "taps.onnx" not in artifact.manifest.files
    found = Inside([ready(artifact.folder)]).look(TEXT)
    p = look_at(artifact.folder, found.tokens)
    assert found.difference is None and [row[0] for row in found.seen[0].top[-1]] == p.argmax(-1).tolist()
    np.testing.assert_allclose([row[0] for row in found.seen[0].p[-1]], p.max(-1), rtol=2e-3)


def test_packed_weights_have_an_inside_as_they_are_computed(make):
    folder = make(export=Export(accuracy_level=4), **QUANTIZE)
    found = Inside([ready(folder)]).look(TEXT)
    p = look_at(folder, found.tokens)
    np.testing.assert_allclose([row[0] for row in found.seen[0].p[-1]], p.max(-1), rtol=2e-3)


def test_models_of_other_shapes_are_shown_and_not_subtracted(make, floats):
    config = small_config(layers=3, vocab=VOCAB, positions=48)
    inside = Inside([ready(floats), ready(make(InMemory(config, on_disk(hugging_face(config)))))])
    found = inside.look(TEXT)
    assert found.difference is None and [len(seen.top) for seen in found.seen] == [3, 4]
    rows = inside.pattern(TEXT, 2, 0).rows
    assert rows[0] is None and len(rows[1]) == len(found.tokens)


def test_a_long_text_is_cut_and_says_so(inside):
    found = inside.look("the cat sat " * 200)
    assert len(found.tokens) == min(TOKENS, 48) < found.total


@pytest.mark.parametrize(("text", "layer", "head", "said"), [
    ("", 0, 0, "no text to look into"), (TEXT, 2, 0, "2 layers of 4 heads were expected"), (TEXT, 0, -1, "head -1"),
])  # fmt: skip
def test_what_cannot_be_shown_is_said(inside, text, layer, head, said):
    with pytest.raises(errors.RecipeError, match=said):
        inside.pattern(text, layer, head)


def test_weights_that_changed_since_they_were_hashed_are_not_read(make):
    made = ready(make())
    with made.weights.open("r+b") as file:
        file.write(b"\1")
    with pytest.raises(errors.IntegrityError, match="changed since it was hashed"):
        Inside([made]).look(TEXT)


# The server


@pytest.fixture(scope="module")
def server(floats):
    with serve.Server(serve.routes([ready(floats)], {})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(server, body, path="/inside/look", method="POST", **headers):
    """Status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(
        method, path, data, {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    )
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read().decode()
    connection.close()
    return found


def test_a_page_of_this_server_asks_and_is_answered_in_json(server, floats):
    origin = {"Origin": f"http://127.0.0.1:{server.server_port}"}
    status, headers, body = ask(server, {"text": TEXT}, **origin)
    assert status == 200 and headers["Content-Type"].startswith("application/json")
    expected = asdict(Inside([ready(floats)]).look(TEXT))
    assert json.loads(body) | {"seconds": 0} == expected | {"seconds": 0}
    status, _, body = ask(server, {"text": TEXT, "layer": 1, "head": 3}, "/inside/pattern", **origin)
    assert status == 200 and len(json.loads(body)["rows"][0]) == len(expected["tokens"])


@pytest.mark.parametrize(("headers", "status"), [
    ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Origin": "http://127.0.0.1:1"}, 403),
    ({"Host": "evil.example"}, 421), ({"Content-Type": "text/plain"}, 415),
    ({"Content-Type": "application/x-www-form-urlencoded"}, 415), ({"Content-Length": "9999999"}, 413),
    ({"Content-Length": "-1"}, 411), ({"Content-Length": "x"}, 411),
])  # fmt: skip
def test_nobody_else_makes_it_compute(server, headers, status):
    assert ask(server, {"text": TEXT}, **headers)[0] == status


@pytest.mark.parametrize("body", [
    b"no JSON", b"[]", b"{}", b'{"text": 1}', b'{"text": "\\ud800"}', b'{"text": "a", "text": "b"}', b"\xff", b"",
    b'{"text": "a", "more": 1}', b'{"text": ""}',
])  # fmt: skip
def test_a_question_that_is_none_is_refused_in_a_sentence(server, capfd, body):
    status, headers, said = ask(server, body)
    assert status == 422 and headers["Content-Type"] == "text/plain" and len(said) > 20
    assert "Traceback" not in capfd.readouterr().err


def test_what_is_computed_is_asked_by_post_alone(server):
    for method in ("GET", "HEAD", "PUT"):
        status, headers, body = ask(server, b"", method=method)
        assert status == 405 and headers["Allow"] == "POST" and (method != "HEAD" or not body)
    assert ask(server, {"text": TEXT}, "/nowhere")[0] == 405
