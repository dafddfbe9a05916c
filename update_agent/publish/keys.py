"""Signing keys: where each is, and who may use it; never what it is.

A key ring is a folder with ``keyring.json``: public keys, and for each of them the URI by which
securesystemslib reaches its private half: a file beside it, a PKCS#11 token, a cloud's KMS, Vault.
Several rings make one: the offline one comes on a stick, the online one lives on the server.

A private key in a file is PKCS#8, with a passphrase or readable by its owner alone. Its path is
relative to the ring, or to any other ring that is named: a file that was moved to a stick is found
there, and one that is on no ring named is not at hand, which is no error.
"""

import copy
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
    HSMSigner,
    Key,
    SecretsHandler,
    Signer,
    SSlibKey,
    VaultSigner,
)
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata

from update_agent.core import document
from update_agent.core.document import DocumentError, Format
from update_agent.errors import HostError
from update_agent.host import files

RING = "keyring.json"
KEYS = "UPDATE_PUBLISH_KEYS"
"""The environment variable with the folders of rings, colons between."""
PASSPHRASE = "UPDATE_PUBLISH_PASSPHRASE"  # noqa: S105  the name of a variable
"""The environment variable that answers where nobody can be asked."""

_ENOUGH = 4
"""Characters of a key id that name a key."""

_OTHERS = 0o077
"""Permission bits of everyone but the owner."""


class KeyFileError(HostError):
    """A key, or the way to it, cannot be used."""


def ask_new(what: str) -> str:
    """Return a passphrase to be set. Raises KeyFileError for one that was mistyped, or is empty."""
    given = ask(what)
    if not given:
        raise KeyFileError(f"{what} is empty, which protects nothing")
    if PASSPHRASE not in os.environ and ask(f"{what}, again") != given:
        raise KeyFileError(f"{what} was typed in two ways", hint="repeat the command")
    return given


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
        with path.open("rb") as file:
            mode, pem = os.fstat(file.fileno()).st_mode, file.read()
    except OSError as error:
        raise KeyFileError(f"cannot read the key {path}: {error.strerror}") from error
    is_locked = b"ENCRYPTED" in pem
    if mode & _OTHERS and not is_locked:
        raise KeyFileError(f"{path} can be read by others", hint=f"chmod 600 {path}")
    passphrase = secrets(f"passphrase of {path.name}").encode() if is_locked else None
    try:
        return load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        why = "the passphrase is wrong, or it is no key" if is_locked else "it is no key in PEM"
        raise KeyFileError(f"{path} cannot be used: {why}") from error


def _make(path: Path, passphrase: str | None) -> None:
    """Write a new Ed25519 key to ``path``. Never replaces a file."""
    key = Ed25519PrivateKey.generate()
    encryption: KeySerializationEncryption = (
        NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase.encode())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    unfinished = path.with_name(f".{path.name}.new")
    try:
        unfinished.unlink(missing_ok=True)  # of a run that was killed; nobody knows that key
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(unfinished)
        unfinished.unlink()
        files.flush_folder(path.parent)
    except FileExistsError as error:
        raise KeyFileError(f"{path} exists; keys are never overwritten") from error
    except OSError as error:
        raise KeyFileError(f"cannot write {path}: {error.strerror}") from error


# Any key -----------------------------------------------------------------------------------------


def _hsm(rest: str, secrets: SecretsHandler) -> Key:
    parts = urlsplit(rest)
    label = dict(parse_qsl(parts.query)).get("label")
    return HSMSigner.import_(int(parts.path) if parts.path else None, label, secrets)[1]


def _vault(rest: str) -> Key:
    """Return the newest version of a key: Vault tells the public half of no other."""
    uri, key = VaultSigner.import_(rest.partition("/")[0])
    if uri != f"{VaultSigner.SCHEME}:{rest}":
        raise KeyFileError(f"the newest version of that key is {uri}", hint="name this one")
    return key


_IMPORTS: Mapping[str, Callable[[str, SecretsHandler], Key]] = {
    HSMSigner.SCHEME: _hsm,
    AWSSigner.SCHEME: lambda rest, _: AWSSigner.import_(rest)[1],
    GCPSigner.SCHEME: lambda rest, _: GCPSigner.import_(rest)[1],
    VaultSigner.SCHEME: lambda rest, _: _vault(rest),
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

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
"""What a key may be called; the name becomes that of a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A key of a ring: a name for people, where it is, its public half as in TUF."""

    name: Annotated[str, Meta(pattern=rf"\A{NAME}\Z")]
    key_id: document.Sha256
    uri: Annotated[str, Meta(max_length=1000)]
    public: dict[str, Any]

    @property
    def key(self) -> Key:
        """The public half. Raises KeyFileError."""
        try:
            return Key.from_dict(self.key_id, copy.deepcopy(self.public))
        except (KeyError, TypeError, ValueError) as error:
            raise KeyFileError(f"the key ring says no key for {self.name}: {error!r}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ring:
    format: Format = 1
    keys: tuple[Entry, ...] = ()


def named_folders() -> list[Path]:
    """Return the folders of rings that the environment names."""
    return [Path(part) for part in os.environ.get(KEYS, "").split(":") if part]


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

    def name(self, key_id: str) -> str:
        """Return what people call a key: its name, or the beginning of its id."""
        return self._entries[key_id][1].name if key_id in self._entries else key_id[:12]

    def find(self, name: str) -> Entry:
        """Return the key with this name, key id, or beginning of a key id. Raises KeyFileError."""
        found = [it for it in self if it.name == name or is_beginning(it.key_id, name)]
        if len(found) != 1:
            known = ", ".join(sorted(it.name for it in self)) or "none"
            raise KeyFileError(f"{len(found)} keys are called {name}", hint=f"known: {known}")
        return found[0]

    def named(self, name: str) -> Key | None:
        """Return the key that is called ``name``, if there is one."""
        return next((it.key for it in self if it.name == name), None)

    def at(self, uri: str) -> Key | None:
        """Return the key at ``uri``, if it is in a ring."""
        return next((it.key for it in self if it.uri == _absolute(uri)), None)

    def add(
        self, name: str, uri: str, public: Path | None = None, *, into: Path | None = None
    ) -> Key:
        """Remember the key at ``uri``, under ``name``. Returns its public half."""
        uri = _absolute(uri)
        if self.named(name) and self.at(uri) != self.named(name):
            raise KeyFileError(f"another key is called {name} already")
        return self._remember(name, uri, public_key(uri, public, self._secrets), self._place(into))

    def generate(
        self, name: str, secret: SecretsHandler | None = None, *, into: Path | None = None
    ) -> Key:
        """Make a key in a file. One of this name that is there is taken.

        ``secret`` returns the passphrase that protects it.
        """
        if key := self.named(name):
            return key
        if not re.fullmatch(NAME, name):
            raise KeyFileError(f"{name!a} is no name for a key", hint="letters, digits, . _ -")
        folder, secrets = self._place(into), self._secrets
        path = folder / f"{name}.pem"
        if not path.exists():  # or else it was made by a run that ended before it wrote the ring
            passphrase = secret(f"new passphrase of {name}") if secret else None
            _make(path, passphrase)
            secrets = secrets if passphrase is None else lambda _: passphrase
        key = public_key(f"{FileSigner.SCHEME}:{path}", None, secrets)
        return self._remember(name, f"{FileSigner.SCHEME}:{name}.pem", key, folder)

    def can_sign(self, key_id: str) -> bool:
        """Return whether a key is at hand. Raises KeyFileError when it is there and of no use."""
        return self._signer(key_id) is not None

    def sign(self, metadata: Metadata[Any], key_ids: Iterable[str]) -> None:
        """Add a signature of each of the keys that is at hand. Raises KeyFileError."""
        for key_id in key_ids:
            signer = self._signer(key_id)
            if signer is None:
                continue
            try:
                metadata.sign(signer, append=True)
            except UnsignedMetadataError as error:
                why = error.__cause__ or error
                raise KeyFileError(f"key {self.name(key_id)} cannot sign: {why}") from error

    def _signer(self, key_id: str) -> Signer | None:
        if key_id not in self._entries or key_id in self._signers:
            return self._signers.get(key_id)
        folder, entry = self._entries[key_id]
        uri = entry.uri
        if uri.startswith(f"{FileSigner.SCHEME}:"):
            named = Path(uri.removeprefix(f"{FileSigner.SCHEME}:"))
            places = [folder / named, *(it / named.name for it in self.folders)]
            found = next((it for it in places if it.exists()), None)
            if found is None:
                return None
            uri = f"{FileSigner.SCHEME}:{found}"
        try:
            made = Signer.from_priv_key_uri(uri, entry.key, self._secrets)
        except HostError:
            raise
        except Exception as error:
            raise KeyFileError(f"key {entry.name} ({uri}) cannot sign: {error}") from error
        self._signers[key_id] = made
        return made

    def _place(self, into: Path | None) -> Path:
        """Return the folder for a new key, which is made."""
        if not (into or self.folders):
            raise KeyFileError("no key ring is named", hint="--keys FOLDER")
        folder = into or self.folders[0]
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise KeyFileError(f"cannot make {folder}: {error.strerror}") from error
        return folder

    def _remember(self, name: str, uri: str, key: Key, folder: Path) -> Key:
        if key.keyid in self._entries:
            return self._entries[key.keyid][1].key
        entry = Entry(name=name, key_id=key.keyid, uri=uri, public=key.to_dict())
        others = [it for it in _read(folder).keys if it.key_id != key.keyid]
        ring = document.encode(_Ring(keys=(*others, entry)))
        _decoded(ring, uri)  # a ring that cannot be read again would lock all of its keys away
        try:
            files.replace(folder / RING, ring)
        except OSError as error:
            raise KeyFileError(f"cannot write {folder / RING}: {error.strerror}") from error
        self._entries[key.keyid] = (folder, entry)
        return key


def _absolute(uri: str) -> str:
    """Return ``uri``, that of a file so that it means the same wherever it is used."""
    prefix = f"{FileSigner.SCHEME}:"
    return (
        prefix + str(Path(uri.removeprefix(prefix)).absolute()) if uri.startswith(prefix) else uri
    )


def is_beginning(key_id: str, text: str) -> bool:
    """Whether ``text`` is enough of a key id to mean it."""
    return len(text) >= _ENOUGH and key_id.startswith(text)


def _read(folder: Path) -> _Ring:
    path = folder / RING
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return _Ring()
    except OSError as error:
        raise KeyFileError(f"cannot read {path}: {error.strerror}") from error
    return _decoded(data, str(path), hint="restore it from a copy")


def _decoded(data: bytes, what: str, *, hint: str | None = None) -> _Ring:
    try:
        return document.decode(data, _Ring, what)
    except DocumentError as error:
        raise KeyFileError(str(error), hint=hint) from error
