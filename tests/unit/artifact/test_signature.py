"""Signatures of an artifact, made and verified by the real model-signing with keys of this test."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub import environment, serve
from models import InMemory, hugging_face, on_disk, small_config
from processes import pythia_export
from sessions import export_and_publish
from tokenizers import Tokenizer

from pythia_export.artifact import Artifact
from pythia_export.artifact.signature import SIGNATURE, Identity, require_signature, sign
from pythia_export.base.errors import EnvironmentProblem, IntegrityError, OutputError, RecipeError, SourceError
from pythia_export.checkpoint import demo_folder
from pythia_export.recipe import Export, Quantize

pytest.importorskip("model_signing", reason="model-signing is not installed; the extra `sign` brings it")

REPO = "me/demo-int4"


def new_key(folder: Path, name: str, curve: str = "SECP256R1") -> tuple[Path, Path]:
    """Write a private key and its public key, as openssl does."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(getattr(ec, curve)())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> tuple[Path, Path]:
    return new_key(tmp_path_factory.mktemp("keys"), "mine")


@pytest.fixture(scope="module")
def made(tmp_path_factory, keys) -> Path:
    out = tmp_path_factory.mktemp("made") / "artifact"
    config = small_config(layers=1, vocab=4096)
    source = InMemory(config, on_disk(hugging_face(config)))
    tokenizer = Tokenizer.from_file(str(demo_folder() / "main" / "tokenizer.json"))
    export_and_publish(source, tokenizer, out, Export(), Quantize(method="none"))
    sign(Artifact.open(out), keys[0])
    return out


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "artifact"))


def changed(folder: Path) -> Path:
    """Change config.json by a byte; the manifest agrees with it."""
    data = (folder / "config.json").read_bytes() + b"\n"
    (folder / "config.json").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["config.json"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_signature_is_of_every_file_and_of_the_manifest(made, keys):
    require_signature(Artifact.open(made), keys[1])
    # By the library's own command, which reads the files themselves.
    line = ["verify", "key", made, "--signature", made / SIGNATURE, "--public_key", keys[1]]
    done = subprocess.run([sys.executable, "-m", "model_signing", *map(str, line)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with (made / "config.json").open("rb") as file:
        changed = file.read() + b"\n"
    copy = Path(shutil.copytree(made, made.with_name("copy")))
    (copy / "config.json").write_bytes(changed)
    done = subprocess.run(
        [sys.executable, "-m", "model_signing", "verify", "key", copy, "--signature", copy / SIGNATURE,
         "--public_key", keys[1]], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1


def test_other_bytes_are_named(folder, keys):
    """An artifact that is whole and not what was signed: its manifest agrees with its files."""
    other = folder / "config.json"
    before = other.read_bytes()
    data = before + b"\n"
    other.write_bytes(data)
    (folder / "new.txt").write_text("x")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["config.json"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["files"]["new.txt"] = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    opened = Artifact.open(folder)
    opened.check()
    with pytest.raises(IntegrityError) as raised:
        require_signature(opened, keys[1])
    said = str(raised.value)
    assert "a valid signature of other bytes" in said and "new.txt: here, and not signed" in said
    then, now = (hashlib.sha256(x).hexdigest()[:12] for x in (before, data))
    assert f"config.json: sha256 {now}... is here, {then}... was signed" in said
    assert "manifest.json: sha256" in said and said.count("\n") == 3 and "--sign" in raised.value.hint


def test_a_signature_by_another_is_none(folder, keys, tmp_path):
    other = new_key(tmp_path, "other", "SECP384R1")
    with pytest.raises(IntegrityError, match="made with another key"):
        require_signature(Artifact.open(folder), other[1])
    bundle = json.loads((folder / SIGNATURE).read_text())
    bundle["verificationMaterial"]["publicKey"]["hint"] = ""  # and who hides whose it is
    (folder / SIGNATURE).write_text(json.dumps(bundle))
    with pytest.raises(IntegrityError, match="no valid signature by"):
        require_signature(Artifact.open(folder), other[1])


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff\xfe", b'{"dsseEnvelope": 3}', b"x" * 10_000_001])
def test_what_is_no_signature_is_refused(folder, keys, data):
    (folder / SIGNATURE).write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model\.sig") as raised:
        require_signature(Artifact.open(folder), keys[1])
    assert "verificationMaterial" not in str(raised.value), "no key of the file's own form"


def test_a_statement_that_was_changed_after_signing_is_refused(folder, keys):
    bundle = json.loads((folder / SIGNATURE).read_text())
    statement = base64.b64decode(bundle["dsseEnvelope"]["payload"]).replace(b"config.json", b"konfig.json")
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(statement).decode()
    (folder / SIGNATURE).write_text(json.dumps(bundle))
    with pytest.raises(IntegrityError, match="changed after it was signed"):
        require_signature(Artifact.open(folder), keys[1])


def test_keys_that_cannot_be_used_are_told(folder, keys, tmp_path):
    opened = Artifact.open(folder)
    for key in (tmp_path / "none.pem", keys[1], new_key(tmp_path, "bitcoin", "SECP256K1")[0], folder / "config.json"):
        with pytest.raises(RecipeError, match="no private key") as raised:
            sign(opened, key)
        assert "openssl" in raised.value.hint
    with pytest.raises(RecipeError, match="no public key"):
        require_signature(opened, keys[0])
    (folder / SIGNATURE).unlink()
    with pytest.raises(SourceError, match="is not signed"):
        require_signature(opened, keys[1])


def test_without_a_network_sigstore_says_so(folder, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(OutputError, match="Sigstore could not be used"):
        sign(Artifact.open(folder), None)
    with pytest.raises((OutputError, IntegrityError), match=r"Sigstore|no valid signature by me@example\.com"):
        require_signature(Artifact.open(folder), Identity("me@example.com", "https://accounts.google.com"))


def test_without_the_library_the_extra_is_named(folder, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(EnvironmentProblem) as raised:
        require_signature(Artifact.open(folder), keys[1])
    assert raised.value.hint == "pip install 'pythia-export[sign]'"


def test_a_signature_is_pushed_fetched_and_verified(folder, keys, tmp_path):
    (folder / SIGNATURE).unlink()
    with serve({}) as hub:
        hub.scratch = str(tmp_path)
        at = environment(hub, tmp_path / "home") | {"HF_TOKEN": "hf_of_a_test"}
        done = pythia_export("push", folder, REPO, "--sign", keys[0], "--dry-run", env=at)
        assert SIGNATURE not in done.stdout and not (folder / SIGNATURE).exists(), "a dry run signs nothing"
        assert SIGNATURE in pythia_export("push", folder, REPO, "--sign", keys[0], env=at).stdout
        found = pythia_export("inspect", REPO, "--verify-signature", keys[1], env=at).stdout
        assert "model.sig is of these bytes" in found
        said = json.loads(pythia_export("inspect", REPO, "--verify-signature", keys[1], "--json", env=at).stdout)
        assert said["here"]["signed_by"] == str(keys[1])
        there = hub.repositories[REPO]["main"] / SIGNATURE
        pythia_export("push", folder, REPO, env=at)
        assert there.exists(), "these bytes were signed"
        assert "model.sig of other bytes" in pythia_export("push", changed(folder), REPO, env=at).stderr
        assert not there.exists() and sum("/commit/" in line for line in hub.requests) == 3, "in the same commit"
        elsewhere = environment(hub, tmp_path / "elsewhere")  # a cache without the signature
        said = pythia_export("inspect", REPO, "--verify-signature", keys[1], env=elsewhere, check=3).stderr
        assert "is not signed" in said


def test_an_identity_needs_who_issued_it(folder):
    done = pythia_export("inspect", folder, "--verify-signature", "me@example.com", check=2)
    assert "--signature-issuer" in done.stderr
