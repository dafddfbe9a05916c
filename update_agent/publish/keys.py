"""Signing keys: where each is, and who may use it; never what it is.

A key ring is a folder with ``keyring.json``: public keys, and for each of them the URI by which
securesystemslib reaches its private half: a file beside it, a PKCS#11 token, a cloud's KMS, Vault.
Several rings make one: the offline one comes on a stick, the online one lives on the server.

A private key in a file is PKCS#8, with a passphrase or readable by its owner alone.
"""

import getpass
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from msgspec import Meta
from securesystemslib.exceptions import Error as SigningError
from securesystemslib.signer import (
    SIGNER_FOR_URI_SCHEME,
    AWSSigner,
    CryptoSigner,
    GCPSigner,
    GPGSigner,
    HSMSigner,
    Key,
    SecretsHandler,
    Signer,
    SSlibKey,
    VaultSigner,
)

from update_agent.core import document
from update_agent.core.document import Format
from update_agent.errors import HostError
from update_agent.host import files

RING = "keyring.json"
PASSPHRASE = "UPDATE_PUBLISH_PASSPHRASE"  # noqa: S105  the name of a variable
"""The environment variable that answers where nobody can be asked."""

_OTHERS = 0o077
"""Permission bits of everyone but the owner."""


_NAME = r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z"
"""Of a key, and so of its file."""


class KeyFileError(HostError):
    """A key, or the way to it, cannot be used."""


def ask(what: str) -> str:
    """Return a passphrase or PIN, from the environment or the terminal."""
    if (given := os.environ.get(PASSPHRASE)) is not None:
        return given
    try:
        return getpass.getpass(f"{what}: ")
    except (EOFError, OSError) as error:
        raise KeyFileError(
            f"{what} is needed, and nobody can be asked", hint=f"set {PASSPHRASE}"
        ) from error


# Keys in files -----------------------------------------------------------------------------------


class FileSigner(CryptoSigner):
    """A key in a PEM file, ``file:PATH``; the library's own, ``file2:``, takes no passphrase."""

    SCHEME = "file"

    @classmethod
    def from_priv_key_uri(
        cls,
        priv_key_uri: str,
        public_key: Key,
        secrets_handler: SecretsHandler | None = None,
    ) -> "FileSigner":
        """Return the signer. Raises KeyFileError."""
        path = Path(priv_key_uri.removeprefix(f"{cls.SCHEME}:"))
        if not isinstance(public_key, SSlibKey):
            raise KeyFileError(f"{path} cannot hold a key of the type {public_key.keytype}")
        private = _load(path, secrets_handler or ask)
        try:
            return cls(private, public_key)
        except (SigningError, ValueError) as error:
            raise KeyFileError(f"{path} holds another key: {error}") from error


SIGNER_FOR_URI_SCHEME[FileSigner.SCHEME] = FileSigner


def _load(path: Path, secrets: SecretsHandler) -> Any:  # noqa: ANN401  one of many kinds of key
    try:
        if path.stat().st_mode & _OTHERS:
            raise KeyFileError(f"{path} can be read by others", hint=f"chmod 600 {path}")
        pem = path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"cannot read the key {path}: {error.strerror}") from error
    passphrase = secrets(f"passphrase of {path.name}").encode() if b"ENCRYPTED" in pem else None
    try:
        return load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        why = "the passphrase is wrong, or it is no key" if passphrase else str(error)
        raise KeyFileError(f"{path} cannot be used: {why}") from error


def generate(path: Path, passphrase: str | None) -> SSlibKey:
    """Write a new Ed25519 key to ``path`` and return its public half. Never replaces a file."""
    key = Ed25519PrivateKey.generate()
    encryption: KeySerializationEncryption = (
        BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    try:
        _write_once(path, pem)
    except FileExistsError as error:
        raise KeyFileError(f"{path} exists; keys are never overwritten") from error
    except OSError as error:
        raise KeyFileError(f"cannot write {path}: {error.strerror}") from error
    return SSlibKey.from_crypto(key.public_key())


def _write_once(path: Path, data: bytes) -> None:
    """Let ``path`` hold ``data``, all of it, for its owner alone. Raises FileExistsError."""
    whole = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        whole.touch(mode=0o600)
        with whole.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(whole)
    finally:
        whole.unlink(missing_ok=True)
    files.flush_folder(path.parent)


# Any key -----------------------------------------------------------------------------------------


def _hsm(rest: str, secrets: SecretsHandler) -> Key:
    parts = urlsplit(rest)
    label = dict(parse_qsl(parts.query)).get("label")
    return HSMSigner.import_(int(parts.path) if parts.path else None, label, secrets)[1]


_IMPORTS: Mapping[str, Callable[[str, SecretsHandler], Key]] = {
    HSMSigner.SCHEME: _hsm,
    AWSSigner.SCHEME: lambda rest, _: AWSSigner.import_(rest)[1],
    GCPSigner.SCHEME: lambda rest, _: GCPSigner.import_(rest)[1],
    VaultSigner.SCHEME: lambda rest, _: VaultSigner.import_(rest.partition("/")[0])[1],
    GPGSigner.SCHEME: lambda rest, _: GPGSigner.import_(rest)[1],
}
"""How to learn the public half of a key that is not in a file."""


def public_key(uri: str, public: Path | None = None, secrets: SecretsHandler = ask) -> Key:
    """Return the public half of the key at ``uri``; from the PEM file ``public`` if that is given.

    Raises KeyFileError.
    """
    scheme, _, rest = uri.partition(":")
    if scheme not in SIGNER_FOR_URI_SCHEME:
        known = ", ".join(sorted(SIGNER_FOR_URI_SCHEME))
        raise KeyFileError(f"{uri}: nobody knows keys of the kind {scheme}", hint=f"known: {known}")
    if public is None and scheme not in (FileSigner.SCHEME, "file2", *_IMPORTS):
        raise KeyFileError(f"{uri}: name its public key too", hint="--public-key FILE.pem")
    try:
        if public is not None:
            return SSlibKey.from_crypto(load_pem_public_key(public.read_bytes()))
        if scheme in _IMPORTS:
            return _IMPORTS[scheme](rest, secrets)
        return SSlibKey.from_crypto(_load(Path(rest), secrets).public_key())
    except HostError:
        raise
    except Exception as error:
        # The libraries behind it, of all clouds and tokens, fail in ways of their own.
        raise KeyFileError(f"the public key of {uri} cannot be had: {error}") from error


# Rings -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A key of a ring: a name for people, where it is, its public half as in TUF."""

    name: Annotated[str, Meta(pattern=_NAME)]
    key_id: document.Sha256
    uri: Annotated[str, Meta(max_length=1000)]
    public: dict[str, Any]

    @property
    def key(self) -> Key:
        """The public half."""
        return Key.from_dict(self.key_id, dict(self.public))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ring:
    format: Format = 1
    keys: tuple[Entry, ...] = ()


class Keyring:
    """All keys of the rings in ``folders``; new ones go to the first. Raises KeyFileError."""

    def __init__(self, folders: Sequence[Path], secrets: SecretsHandler = ask) -> None:
        self.folders = list(folders)
        self._secrets = secrets
        self._entries: dict[str, tuple[Path, Entry]] = {}
        self._signers: dict[str, Signer] = {}
        for folder in folders:
            for entry in _read(folder).keys:
                self._entries.setdefault(entry.key_id, (folder, entry))

    def __iter__(self) -> Iterator[Entry]:
        return iter([entry for _, entry in self._entries.values()])

    def name(self, key_id: str) -> str | None:
        """Return what people call a key, if it is here."""
        return self._entries[key_id][1].name if key_id in self._entries else None

    def find(self, name: str) -> Entry:
        """Return the key with this name, key id, or beginning of a key id. Raises KeyFileError."""
        found = [
            entry
            for _, entry in self._entries.values()
            if entry.name == name or (len(name) > 3 and entry.key_id.startswith(name))  # noqa: PLR2004
        ]
        if len(found) != 1:
            known = ", ".join(sorted(entry.name for _, entry in self._entries.values())) or "none"
            raise KeyFileError(f"{len(found)} keys are called {name}", hint=f"known: {known}")
        return found[0]

    def add(self, name: str, uri: str, public: Path | None = None) -> Key:
        """Remember the key at ``uri``, under ``name``. Returns its public half."""
        self._want_free(name)
        return self._remember(name, uri, public_key(uri, public, self._secrets))

    def generate(self, name: str, passphrase: str | None = None) -> Key:
        """Make a key in a file of the first ring. One of this name that is there is taken."""
        if not re.fullmatch(_NAME, name):
            raise KeyFileError(f"{name!a} is no name for a key", hint="letters, digits, . _ -")
        for _, entry in self._entries.values():
            if entry.name == name:
                return entry.key
        uri = f"{FileSigner.SCHEME}:{name}.pem"
        path = self._first / f"{name}.pem"
        if path.exists():  # made by a run that ended before it wrote the ring
            return self._remember(name, uri, public_key(f"file:{path}", None, self._secrets))
        return self._remember(name, uri, generate(path, passphrase))

    def signers(self, key_ids: Iterable[str]) -> list[Signer]:
        """Return a signer for each of the keys that is in a ring. Raises KeyFileError."""
        return [self._signer(key_id) for key_id in key_ids if key_id in self._entries]

    def _signer(self, key_id: str) -> Signer:
        if key_id not in self._signers:
            folder, entry = self._entries[key_id]
            scheme, _, rest = entry.uri.partition(":")
            uri = f"{scheme}:{folder / rest}" if scheme == FileSigner.SCHEME else entry.uri
            try:
                made = Signer.from_priv_key_uri(uri, entry.key, self._secrets)
            except HostError:
                raise
            except Exception as error:
                raise KeyFileError(f"key {entry.name} ({uri}) cannot sign: {error}") from error
            self._signers[key_id] = made
        return self._signers[key_id]

    @property
    def _first(self) -> Path:
        if not self.folders:
            raise KeyFileError("no key ring is named", hint="--keys FOLDER")
        try:
            self.folders[0].mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise KeyFileError(f"cannot make {self.folders[0]}: {error.strerror}") from error
        return self.folders[0]

    def _want_free(self, name: str) -> None:
        if any(entry.name == name for _, entry in self._entries.values()):
            raise KeyFileError(f"a key is called {name} already")

    def _remember(self, name: str, uri: str, key: Key) -> Key:
        if key.keyid in self._entries:
            return self._entries[key.keyid][1].key
        entry = Entry(name=name, key_id=key.keyid, uri=uri, public=key.to_dict())
        folder = self._first
        ring = _Ring(keys=(*_read(folder).keys, entry))
        try:
            files.replace(folder / RING, document.encode(ring))
        except OSError as error:
            raise KeyFileError(f"cannot write {folder / RING}: {error.strerror}") from error
        self._entries[key.keyid] = (folder, entry)
        return key


def _read(folder: Path) -> _Ring:
    path = folder / RING
    try:
        return document.decode(path.read_bytes(), _Ring, str(path))
    except FileNotFoundError:
        return _Ring()
    except OSError as error:
        raise KeyFileError(f"cannot read {path}: {error.strerror}") from error
