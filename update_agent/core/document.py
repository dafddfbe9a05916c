"""JSON that comes from outside: checked once, at this door, and a value of ours from there on.

What is refused before anything looks at the content: too many bytes, too deep, a key twice, NaN,
numbers that are no integers or need more than 64 bits, halves of characters (lone surrogates, which
nobody can write or print again). Then the shape: every field of the type that the dataclass states,
no bool for an integer, every ``__post_init__`` content. Fields that are not known are ignored, so
that a newer publisher may add some; one that older agents must not ignore comes with a new
``format`` number.

All of it takes time and memory in proportion to the bytes: nothing here was signed by anyone yet.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from itertools import chain
from typing import Annotated, Literal, NoReturn, TypeVar

import msgspec

from update_agent.core.version import Version
from update_agent.errors import ReleaseError

MAX_DEPTH = 16
MAX_SIZE = 1_000_000
"""Bytes of the largest document when nothing smaller is said."""

T = TypeVar("T")
_CONTAINERS = (dict, list)

Format = Literal[1]
"""Which set of rules a document follows."""
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Id = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
"""32 hexadecimal digits, as a machine id has them: of a host, an attempt, a wish."""
NAME = r"[a-z0-9][a-z0-9_-]{0,62}"
Name = Annotated[str, msgspec.Meta(pattern=rf"\A{NAME}\Z")]
"""Of a product, channel or architecture: safe as a part of a path, a URL, a key, a label."""
MAX_TEXT = 500
Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT, pattern=r"\A[^\x00-\x1f\x7f-\x9f]*\Z")]
"""For people: one line, and nothing that steers their terminal."""
Time = Annotated[datetime, msgspec.Meta(tz=True)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class ForeignError(ReleaseError):
    """Something from outside is wrong; the message may quote it, and steers no terminal."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__("".join(it if it.isprintable() else "?" for it in message), hint=hint)


class DocumentError(ForeignError):
    """A document is not what it should be: says which one, where in it, found and wanted."""


def parse(data: bytes, what: str, *, max_size: int = MAX_SIZE) -> object:
    """Return what the JSON in ``data`` says, if it says it plainly. Raises DocumentError."""
    if len(data) > max_size:
        raise DocumentError(f"{what} has {len(data)} bytes, wanted at most {max_size}")
    try:
        value: object = json.loads(
            data.decode(),
            object_pairs_hook=_object,
            parse_float=_no_integer,
            parse_constant=_no_integer,
            parse_int=_integer,
        )
    except RecursionError as error:
        raise _too_deep(what) from error
    except ValueError as error:
        raise DocumentError(f"{what} is no plain JSON: {_short(str(error))}") from error
    _check_depth(value, what)
    if rb"\u" in data:
        _check_characters(value, what)
    return value


def decode(data: bytes, kind: type[T], what: str, *, max_size: int = MAX_SIZE) -> T:
    """Return the ``kind`` that the JSON in ``data`` describes. Raises DocumentError."""
    return shaped(parse(data, what, max_size=max_size), kind, what)


def shaped(value: object, kind: type[T], what: str) -> T:
    """Return the ``kind`` that a parsed ``value`` describes. Raises DocumentError."""
    try:
        return msgspec.convert(value, kind, dec_hook=_read)
    except msgspec.ValidationError as error:
        raise DocumentError(f"{what}: {_short(str(error))}") from error


def encode(value: object) -> bytes:
    """Return ``value``, a dataclass, as JSON: the same bytes for the same value, fit to be read.

    What is not fit to be written is the caller's mistake: TypeError, ValueError.
    """
    plain = msgspec.to_builtins(value, enc_hook=_written)
    return json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def line(text: str) -> str:
    """Return ``text`` as a ``Text``: one line, and no more of it than one may have."""
    return "".join(it if it.isprintable() else " " for it in text[:MAX_TEXT])


def _object(pairs: list[tuple[str, object]]) -> Mapping[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!a} stands twice in one object")
        found[key] = value
    return found


def _integer(text: str) -> int:
    if len(text) > len(str(2**63)) or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"number {_short(text, 30)} needs more than 64 bits")
    return int(text)


def _no_integer(text: str) -> NoReturn:
    raise ValueError(f"number {_short(text, 30)} is no integer")


def _check_depth(value: object, what: str) -> None:
    """Walk down a level at a time, so that depth costs no stack."""
    level = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(MAX_DEPTH - 1):
        inside = chain.from_iterable(it.values() if isinstance(it, dict) else it for it in level)
        level = [it for it in inside if isinstance(it, _CONTAINERS)]
    if any(level):
        raise _too_deep(what)


def _check_characters(value: object, what: str) -> None:
    """Refuse what only an escape can say: half of a character."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DocumentError(f"{what} has half of a character: {error.reason}") from error


def _too_deep(what: str) -> DocumentError:
    return DocumentError(f"{what} is nested deeper than {MAX_DEPTH} levels")


def _read(kind: type, value: object) -> object:
    """Make what msgspec doesn't know. Errors of this become part of its own."""
    if kind is not Version or not isinstance(value, str):
        raise TypeError(f"expected {kind.__name__}")
    try:
        return Version(value)
    except ReleaseError as error:
        raise ValueError(str(error)) from error


def _written(value: object) -> object:
    if isinstance(value, Version):
        return value.text
    raise TypeError(f"cannot write {value!r}")


def _short(text: str, length: int = 200) -> str:
    return text if len(text) <= length else text[:length] + "..."
