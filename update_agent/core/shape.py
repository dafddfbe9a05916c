"""The shape of TUF's metadata, held before a library reads it.

python-tuf reads with the freedom of Python: ``true`` is a version, a hash may be a path, a role of
any name may be named by anyone. Here stands what this project's repositories use of the format; the
rest is refused, from whoever it comes, for the keys that sign it may be stolen.
"""

from typing import Annotated, Any

import msgspec

from update_agent.core import document
from update_agent.core.document import Sha256, Size

MAX_VERSION = 2**53
"""Of metadata. Whoever counts to the end of 64 bits does so to lock everyone else out."""

_Version = Annotated[int, msgspec.Meta(ge=1, le=MAX_VERSION)]
_Threshold = Annotated[int, msgspec.Meta(ge=1, le=1000)]
_KeyIds = Annotated[tuple[str, ...], msgspec.Meta(max_length=1000)]


class _Hashes(msgspec.Struct):
    sha256: Sha256


class _MetaFile(msgspec.Struct):
    version: _Version
    length: Size
    hashes: _Hashes


class _TargetFile(msgspec.Struct):
    length: Size
    hashes: _Hashes


class _Key(msgspec.Struct):
    keytype: str
    scheme: str
    keyval: dict[str, Any]


class _Role(msgspec.Struct):
    keyids: _KeyIds
    threshold: _Threshold


class _DelegatedRole(_Role):
    name: str
    paths: tuple[str, ...]
    terminating: bool


class _Delegations(msgspec.Struct):
    keys: dict[str, _Key]
    roles: tuple[_DelegatedRole, ...]


class _Signed(msgspec.Struct, tag_field="_type"):
    version: _Version
    expires: str


class _Root(_Signed, tag="root"):
    keys: dict[str, _Key]
    roles: dict[str, _Role]
    consistent_snapshot: bool


class _Timestamp(_Signed, tag="timestamp"):
    meta: dict[str, _MetaFile]


class _Snapshot(_Signed, tag="snapshot"):
    meta: dict[str, _MetaFile]


class _Targets(_Signed, tag="targets"):
    targets: dict[str, _TargetFile]
    delegations: _Delegations | None = None


class _Signature(msgspec.Struct):
    keyid: str
    sig: str


class _Envelope(msgspec.Struct):
    signatures: Annotated[tuple[_Signature, ...], msgspec.Meta(max_length=1000)]
    signed: _Root | _Timestamp | _Snapshot | _Targets


def check(data: bytes, what: str, *, max_size: int) -> None:
    """Refuse metadata that has another shape than ours. Raises DocumentError."""
    document.decode(data, _Envelope, what, max_size=max_size)
