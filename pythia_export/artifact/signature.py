"""Who vouches for an artifact: `model.sig`, a signature of the SHA-256 of each of its files, manifest.json included.

The form is that of OpenSSF's model-signing: a Sigstore bundle around an in-toto statement, which its own command line
verifies too (https://github.com/sigstore/model-transparency). No byte of the weights is read for it: `Artifact.check`
compared them with the manifest's hashes, and those are what is signed.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from ..base.errors import EnvironmentProblem, IntegrityError, OutputError, PythiaExportError, RecipeError, SourceError
from ..base.strict_json import shown
from ..disk.write import explained, write_atomically
from ..records.manifest import MANIFEST
from .read import Artifact

SIGNATURE = "model.sig"
_LARGEST = 10_000_000  # bytes; that of an artifact has some thousands
_AGAIN = "Sign these bytes (`pythia-export push --sign`), or get the artifact again from who signed it."


@dataclass(frozen=True)
class Identity:
    """Who signed without a key: the name in the certificate, and who issued the token that proved it."""

    name: str
    issuer: str


Signer = Path | Identity  # a public key's file, or an identity


def sign(artifact: Artifact, key: Path | None) -> Path:
    """Write `model.sig` into an artifact whose files were checked; return its path.

    key: a private key on an elliptic curve (PEM); None signs by Sigstore, with an identity of this machine's (a CI's
        token) or one that a browser asks for.

    Raises:
        EnvironmentProblem: model-signing is not installed.
        RecipeError: no such key, or one that cannot sign.
        OutputError: Sigstore gave no signature, or the folder cannot be written.
    """
    signing = _library().signing
    config = signing.Config().set_hashing_config(_hashes(artifact))
    try:
        if key is None:
            config.use_sigstore_signer(use_ambient_credentials=True)
        else:
            config.use_elliptic_key_signer(private_key=key)
    except Exception as e:
        raise (_no_sigstore(e) if key is None else _no_key(key, "private", e)) from e
    with TemporaryDirectory() as scratch:
        made = Path(scratch) / SIGNATURE
        try:
            config.sign(artifact.folder, made)
        except Exception as e:  # of Sigstore's servers, and of whatever gives an identity
            raise (_no_sigstore(e) if key is None else _no_key(key, "private", e)) from e
        data = made.read_bytes()
    path = artifact.folder / SIGNATURE
    with explained(path):
        write_atomically(path, data)
    return path


def require_signature(artifact: Artifact, by: Signer) -> None:
    """Compare `model.sig` with the artifact's hashes and with who should have signed; `Artifact.check` reads the files.

    Raises:
        EnvironmentProblem: model-signing is not installed.
        SourceError: the artifact is not signed.
        RecipeError: `by` is no public key.
        IntegrityError: no signature, one by somebody else, or of other bytes: names what differs.
    """
    verifying = _library().verifying
    path = artifact.folder / SIGNATURE
    try:
        size = path.stat().st_size
    except OSError as e:
        raise SourceError(
            f"{artifact.folder} is not signed: it has no {SIGNATURE}",
            hint="`pythia-export push --sign KEY` signs what it sends.",
        ) from e
    if size > _LARGEST:
        raise IntegrityError(f"{path}: {size:,} bytes are no signature", hint=_AGAIN)
    config = verifying.Config().set_hashing_config(_hashes(artifact))
    try:
        if isinstance(by, Identity):
            config.use_sigstore_verifier(identity=by.name, oidc_issuer=by.issuer)
        else:
            config.use_elliptic_key_verifier(public_key=by)
    except Exception as e:
        raise (_no_sigstore(e) if isinstance(by, Identity) else _no_key(by, "public", e)) from e
    try:
        config.verify(artifact.folder, path)
    except Exception as e:
        if str(e).startswith("Signature mismatch"):  # it is theirs, and valid
            raise IntegrityError(
                f"{path} is a valid signature of other bytes than those in {artifact.folder}:\n  "
                + "\n  ".join(_differences(artifact, path)),
                hint=_AGAIN,
            ) from e
        raise _invalid(path, by, e) from e


def is_of(path: Path, artifact: Artifact) -> bool:
    """Return whether a signature, whoever made it, is of the artifact's bytes. It is not verified."""
    try:
        return path.stat().st_size <= _LARGEST and not _differences(artifact, path)
    except (ValueError, LookupError, TypeError, AttributeError):  # no signature at all
        return False


def _invalid(path: Path, by: Signer, error: Exception) -> PythiaExportError:
    who = f"{by.name} ({by.issuer})" if isinstance(by, Identity) else str(by)
    said = " ".join(str(error).split())
    if said.startswith("Key mismatch"):
        return IntegrityError(
            f"{path} was made with another key than that of {who}",
            hint="Verify with the public key of who signed, or get the artifact again from whom you expected.",
        )
    if type(error).__name__ == "InvalidSignature":
        why = "it was changed after it was signed"
    elif isinstance(error, LookupError | TypeError | AttributeError):  # JSON, of something else
        why = "it lacks what every signature has"
    else:
        why = shown(said or type(error).__name__)
    return IntegrityError(f"{path} is no valid signature by {who}: {why}", hint=_AGAIN)


def _differences(artifact: Artifact, path: Path) -> list[str]:
    """Return one line for each file that is not as it was signed, as the signature has it."""
    statement = json.loads(base64.b64decode(json.loads(path.read_bytes())["dsseEnvelope"]["payload"]))
    signed = {entry["name"]: entry["digest"] for entry in statement["predicate"]["resources"]}
    here = _sha256s(artifact)
    lines = [f"{shown(name)}: signed, and not here" for name in sorted(signed.keys() - here.keys())]
    lines += [f"{name}: here, and not signed" for name in sorted(here.keys() - signed.keys())]
    lines += [
        f"{name}: sha256 {here[name][:12]}... is here, {_short(signed[name])} was signed"
        for name in sorted(here.keys() & signed.keys())
        if here[name] != signed[name]
    ]
    return lines


def _short(digest: str) -> str:
    return f"{digest[:12]}..." if digest.isalnum() else shown(digest)  # the file may be anybody's


def _sha256s(artifact: Artifact) -> dict[str, str]:
    found = {name: entry.sha256 for name, entry in artifact.manifest.files.items()}
    return found | {MANIFEST: hashlib.sha256((artifact.folder / MANIFEST).read_bytes()).hexdigest()}


def _hashes(artifact: Artifact) -> Any:
    """A hashing configuration of the library that has the manifest's hashes, where its own would read every byte."""
    from model_signing import hashing, manifest
    from model_signing._hashing.hashing import Digest  # what its manifests hold; it has no public name

    class Recorded(hashing.Config):  # type: ignore[misc]
        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> Any:
            kind = {"method": "files", "hash_type": "sha256", "allow_symlinks": True, "ignore_paths": [SIGNATURE]}
            items = [
                manifest.FileManifestItem(path=PurePosixPath(name), digest=Digest("sha256", bytes.fromhex(digest)))
                for name, digest in _sha256s(artifact).items()
            ]
            return manifest.Manifest(artifact.manifest.source.name, items, manifest.SerializationType.from_args(kind))

    return Recorded()


def _library() -> Any:
    try:
        import model_signing
        import model_signing.signing
        import model_signing.verifying
    except ImportError as e:
        raise EnvironmentProblem(
            f"signatures are made and verified by model-signing; {e.name} is not installed",
            hint="pip install 'pythia-export[sign]'",
        ) from e
    return model_signing


def _no_key(key: Path, kind: str, error: Exception) -> PythiaExportError:
    said = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    return RecipeError(
        f"{key} is no {kind} key that signatures are made with: {said or type(error).__name__}",
        hint="A PEM file on the curve P-256, P-384 or P-521, without a password, was expected: `openssl ecparam -name "
        "prime256v1 -genkey -noout -out key.pem`, and `openssl ec -in key.pem -pubout -out key.pub`.",
    )


def _no_sigstore(error: Exception) -> PythiaExportError:
    said = " ".join(str(error).split())
    return OutputError(
        f"Sigstore could not be used: {said or type(error).__name__}",
        hint="Signing without a key needs a network and an identity; --sign KEY.pem needs neither.",
    )
