"""Artifacts of one tiny model, a form of export each, and their sessions."""

from __future__ import annotations

import pytest
import torch
from models import InMemory, hugging_face, on_disk, small_config
from sessions import VOCAB, export_and_publish, needs_fixed_scales
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from pythia_export.artifact import Artifact
from pythia_export.recipe import Export, Quantize
from pythia_export.runtime import Session

WITH_SCALES = Export(rotary="gqa", kv_cache="int8")
EXPORTS = [Export(rotary=rotary) for rotary in ("custom", "gqa", "onnx")]
EXPORTS += [Export(kv_cache=kept) for kept in ("float16", "int8")]
EXPORTS += [pytest.param(WITH_SCALES, marks=needs_fixed_scales)]


@pytest.fixture(scope="module")
def source() -> tuple[InMemory, torch.nn.Module]:
    config = small_config(layers=2, vocab=VOCAB, positions=48)
    model = hugging_face(config)
    return InMemory(config, on_disk(model)), model


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """As Pythia's: byte-level, <|endoftext|> special and first, runs of spaces added as plain text; ids to spare."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 20,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the cat sat on the mat and the dog sat on the log"] * 20, trainer)
    made.add_tokens([AddedToken(" " * n, normalized=False) for n in (8, 4, 2)])
    return made


@pytest.fixture(scope="module", params=EXPORTS, ids=lambda e: f"{e.rotary}-{e.cache_dtype}")
def artifact(request, source, tokenizer, tmp_path_factory) -> Artifact:
    out = tmp_path_factory.mktemp("artifact") / "out"
    export_and_publish(source[0], tokenizer, out, request.param, Quantize(method="none"))
    return Artifact.open(out)


@pytest.fixture(scope="module")
def session(artifact: Artifact) -> Session:
    return Session.open(artifact, threads=1)
