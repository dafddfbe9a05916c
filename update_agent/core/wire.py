r"""What is said on the writer's socket: the messages, and the bytes that carry them.

A frame is a header, a message as JSON, and the data that belongs to it:

    4s magic "UAW\1"   u32 bytes of JSON   u32 bytes of data
    {"KIND": {FIELD: VALUE, ...}}
    data

Whoever connects asks, and is answered with ``state`` or ``failed``. An installation is the writer's
conversation: the caller sends ``install`` and all ``evidence``, and from there on gives what is
asked for.

    caller                                       writer
    install, evidence ...
                                                 want-index
    index
                                                 planned, want ... (ranges of the blob)
    stored ... (in any order)
                                                 progress ..., distrust, want ... (what was wrong)
    stored ...
                                                 progress ..., installed

In place of an index or of ranges the caller may say ``missing``: no server has that payload. A
delta payload gives way to the full one then, for which the writer wants the index next.

The rule kept here: a frame has no length that its reader did not expect. A kind or a field that is
not known, or that is not for this side to say, ends the conversation.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Annotated, Any

from msgspec import Meta

from update_agent.core import channel, document, release
from update_agent.core.chunking import MAX_CHUNK
from update_agent.core.document import Name, Sha256, Size, Text, Time
from update_agent.core.slot import SlotName
from update_agent.core.trust import CHANNELS, MAX_ROTATIONS, MAX_SIZES, RELEASES
from update_agent.core.version import Version
from update_agent.errors import HostError, ReleaseError

MAX_JSON = 64 * 1024
"""Bytes of a message."""

MAX_PIECE = 4 * 2**20
"""Bytes of a piece of evidence, and of all roots together. The repository allows more for what
names all releases; 28,000 of them fit into this, and a process of bounded memory reads them."""

MAX_RANGES = 1000
"""Ranges in one ``want``."""

MAX_RANGE = MAX_CHUNK
"""Bytes of a range: no stored chunk is larger than what it becomes."""

_HEADER = Struct("<4sII")
_MAGIC = b"UAW\1"
HEADER_SIZE = _HEADER.size

AttemptId = Annotated[str, Meta(pattern=r"\A[0-9A-Za-z-]{1,64}\Z")]
Sentence = Annotated[str, Meta(max_length=4000)]
_TOLD = 2000
"""Characters of a sentence that are told, so that several go into one frame."""
_Number = Annotated[int, Meta(ge=0, le=2**53)]


def sentence(text: str) -> str:
    """Return as much of ``text`` as is told."""
    return text[:_TOLD]


class WireError(HostError):
    """Somebody did not keep to the rules of the conversation."""


class BusyError(HostError):
    """The writer is at something else."""


class UnverifiedError(HostError):
    """The other slot is not one that may be armed."""


class MissingError(HostError):
    """A payload cannot be had: the servers answer, and have it not at all or another one.

    That a server cannot be reached, or breaks off, is no such word.
    """


class RefusedError(ReleaseError):
    """A release is proven, and still not one that may come onto this host."""


# To the writer -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AskState:
    """Tell how the slots stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Install:
    """Put a release into the other slot; ``evidence`` follows, ``pieces`` says which."""

    product: Name
    version: Version
    channel: Name | None = None
    """The channel that the evidence proves as well, if it does."""
    roots: Annotated[int, Meta(ge=0, le=MAX_ROTATIONS)] = 0
    """How many follow the trusted root."""
    attempt: AttemptId

    @property
    def pieces(self) -> list[str]:
        """The names of all pieces of evidence, in the order in which they are sent."""
        one = [*["root"] * self.roots, "targets", RELEASES, "release"]
        return [*one, CHANNELS, "channel"] if self.channel else one


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece of evidence, as data."""

    name: Annotated[str, Meta(max_length=20)]


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveIndex:
    """The index that was asked for, as data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A range of the blob, as data."""

    offset: Size
    length: Annotated[int, Meta(ge=1, le=MAX_RANGE)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """The payload cannot be had, whose index or ranges were asked for: see ``MissingError``."""

    why: Sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """Let the other slot boot next, on trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disarm:
    """Let the booted slot boot next: ends an arm, or a rollback, before the reboot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm:
    """Let the booted slot boot without a try from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """Let the other slot boot next, which was confirmed once; ends a trial of the booted one."""


# From the writer ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What the writer wrote, verified to its last byte, and remembers."""

    slot: SlotName
    product: Name
    version: Version
    root_hash: Sha256
    image_size: Size
    attempt: AttemptId
    time: Time


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotState:
    """A slot: its flags, and what it holds."""

    slot: SlotName
    partition: _Number
    size: _Number | None
    """None where its partition cannot be opened."""
    booted: bool
    priority: Annotated[int, Meta(ge=0, le=15)]
    tries: Annotated[int, Meta(ge=0, le=15)]
    successful: bool
    state: Text
    """What the flags mean."""
    unfinished: bool
    """An installation was cut short."""
    root_hash: Sha256 | None = None
    """Of the image that it holds; None where that is none."""
    image_size: Size | None = None
    unknown: Sentence | None = None
    """Why nobody can tell what it holds; its flags stand in the table, and are as said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How the slots stand."""

    a: SlotState
    b: SlotState
    next: SlotName | None
    """Which boots next."""
    why: Sentence
    verified: Verified | None = None
    """What stands in the other slot, ready to be armed or armed already."""

    @property
    def booted(self) -> SlotState:
        """The slot that the host runs from. Raises HostError when that is none."""
        for it in (self.a, self.b):
            if it.booted:
                return it
        raise HostError("this host was booted from none of its slots")

    @property
    def other(self) -> SlotState:
        """The slot that is not booted."""
        return self.b if self.booted is self.a else self.a


@dataclass(frozen=True, slots=True, kw_only=True)
class WantIndex:
    """Give the index with this hash; the release says where it is."""

    sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What is going to be done. Bytes."""

    fetch: _Number
    write: _Number
    copy: _Number
    keep: _Number
    saved: _Number
    """Of what a host that has nothing would fetch, what this one does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A range of the blob that is wanted as one piece."""

    blob_offset: Size
    blob_length: Annotated[int, Meta(ge=1, le=MAX_RANGE)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ranges:
    """Ranges of the blob, (offset, length); ``more`` are being named."""

    ranges: Annotated[tuple[tuple[Size, Size], ...], Meta(max_length=MAX_RANGES)]
    more: bool = False

    def each(self) -> list[Range]:
        """Return the ranges."""
        return [Range(blob_offset=offset, blob_length=length) for offset, length in self.ranges]


@dataclass(frozen=True, slots=True, kw_only=True)
class Want(_Ranges):
    """Give these ranges, in any order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distrust(_Ranges):
    """These ranges came with wrong bytes: take them from elsewhere when they are wanted again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """``done`` of ``size`` bytes of a step are done; a step whose size is not known has 0."""

    step: Text
    done: _Number
    size: _Number
    throttled_by: Text | None = None
    """What limit of the host's keeps it from being faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """The other slot holds the release, verified. Bytes, milliseconds."""

    verified: Verified
    payload: Sha256
    """By the hash of its index."""
    fetched: _Number
    saved: _Number
    written: _Number
    milliseconds: Mapping[str, _Number]
    """By step."""
    peak_memory: _Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """What was asked for was not done."""

    family: Annotated[str, Meta(pattern=r"\A(release|host)\Z")]
    kind: Text
    """The name of the error's class."""
    message: Sentence
    hint: Sentence | None = None


Message = (
    AskState | Install | Piece | GiveIndex | Stored | Missing | Arm | Disarm | Confirm | Rollback
    | State | WantIndex | Planned | Want | Distrust | Progress | Installed | Failed
)  # fmt: skip

Kinds = Mapping[str, type[Message]]

REQUESTS: Kinds = {
    "state": AskState,
    "install": Install,
    "arm": Arm,
    "disarm": Disarm,
    "confirm": Confirm,
    "rollback": Rollback,
}
"""What begins a conversation."""

GIFTS: Kinds = {"evidence": Piece, "index": GiveIndex, "stored": Stored, "missing": Missing}
"""What the caller of an installation gives."""

ANSWERS: Kinds = {
    "state": State,
    "want-index": WantIndex,
    "planned": Planned,
    "want": Want,
    "distrust": Distrust,
    "progress": Progress,
    "installed": Installed,
    "failed": Failed,
}
"""What the writer says."""

_NAMES = {kind: name for kinds in (REQUESTS, GIFTS, ANSWERS) for name, kind in kinds.items()}

_PIECES = {"release": release.MAX_SIZE, "channel": channel.MAX_SIZE} | {
    name: min(size, MAX_PIECE) for name, size in MAX_SIZES.items()
}


def max_piece(name: str) -> int:
    """Return how many bytes a piece of evidence may have."""
    return _PIECES[name]


# Frames ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """What a header says of the rest of its frame."""

    json: int
    data: int


def encode(message: Message, data_length: int = 0) -> bytes:
    """Return a frame without its data. Raises ValueError for a message that nobody would read."""
    text = b'{"%s": %s}' % (_NAMES[type(message)].encode(), document.encode(message))
    if len(text) > MAX_JSON:
        raise ValueError(f"a message of {len(text)} bytes")
    return _HEADER.pack(_MAGIC, len(text), data_length) + text


def decode_header(data: bytes) -> Lengths:
    """Return the lengths in a frame's header. Raises WireError."""
    magic, text, behind = _HEADER.unpack(data)
    if magic != _MAGIC:
        raise WireError(
            f"a frame begins with {magic!r}, wanted {_MAGIC!r}",
            hint="update-agentd and update-agent-writer must come from one release",
        )
    if not 0 < text <= MAX_JSON:
        raise WireError(f"a message has {text} bytes, wanted 1 to {MAX_JSON}")
    return Lengths(json=text, data=behind)


def decode(text: bytes, kinds: Kinds) -> Message:
    """Return the message in ``text``, if it is one of ``kinds``. Raises WireError."""
    try:
        value = document.parse(text, "message", max_size=MAX_JSON)
        name, fields = _opened(value)
        if name not in kinds:
            raise WireError(f"a message is of the kind {name[:40]!a}, wanted {', '.join(kinds)}")
        kind = kinds[name]
        unknown = fields.keys() - {field.name for field in dataclasses.fields(kind)}
        if unknown:
            raise WireError(f"{name} has a field {min(unknown)[:40]!a}, which is not known")
        return document.shaped(fields, kind, name)
    except document.DocumentError as error:
        raise WireError(str(error)) from error


def _opened(value: object) -> tuple[str, dict[str, Any]]:
    if isinstance(value, dict) and len(value) == 1:
        (name, fields), *_ = value.items()
        if isinstance(fields, dict):
            return name, fields
    raise WireError("a message is an object with its kind as the only key")
