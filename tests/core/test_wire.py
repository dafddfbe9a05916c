"""Messages and frames: everything comes back as it was said, and nothing else comes in."""

import json
import struct
from dataclasses import fields, replace
from datetime import UTC, datetime

import pytest

from update_agent.core import wire
from update_agent.core.slot import SlotName
from update_agent.core.version import Version
from update_agent.core.wire import (
    ANSWERS,
    GIFTS,
    REQUESTS,
    Arm,
    AskState,
    Distrust,
    Failed,
    Install,
    Installed,
    Lengths,
    Message,
    Missing,
    Piece,
    Planned,
    Progress,
    SlotState,
    State,
    Stored,
    Verified,
    Want,
    WantIndex,
    WireError,
)

HASH = "0123456789abcdef" * 4
VERIFIED = Verified(
    slot=SlotName.B, product="os", version=Version("1.1.0"), root_hash=HASH, image_size=4096,
    attempt="a-1", time=datetime(2026, 11, 24, tzinfo=UTC),
)  # fmt: skip
SLOT = SlotState(
    slot=SlotName.A, partition=2, size=8192, booted=True, priority=1, tries=0, successful=True,
    state="successful", unfinished=False, root_hash=HASH, image_size=4096,
)  # fmt: skip

SAID: list[Message] = [
    AskState(), Arm(), wire.Disarm(), wire.Confirm(), wire.Rollback(), wire.GiveIndex(),
    Install(product="os", version=Version("1.1.0-rc.1"), channel="stable", roots=3, attempt="a-1"),
    Piece(name="targets"),
    Stored(offset=2**40, length=2**20),
    Missing(why="no server has it"),
    State(a=SLOT, b=SLOT, next=SlotName.A, why="because", verified=VERIFIED),
    State(a=SLOT, b=SLOT, next=None, why="because"),
    State(a=SLOT, b=replace(SLOT, size=None, unknown="no node"), next=None, why="because"),
    WantIndex(sha256=HASH),
    Planned(fetch=1, write=2, copy=3, keep=4, saved=5),
    Want(ranges=((0, 1), (2, 3)), more=True),
    Distrust(ranges=()),
    Progress(step="read back", done=1, size=2, throttled_by="the host's work"),
    Installed(verified=VERIFIED, payload=HASH, fetched=1, saved=2, written=3,
              milliseconds={"look": 7}, peak_memory=9),
    Failed(family="release", kind="UntrustedError", message="no", hint=None),
]  # fmt: skip
EVERYTHING = {**REQUESTS, **GIFTS, **ANSWERS}


@pytest.mark.parametrize("message", SAID, ids=lambda it: type(it).__name__)
def test_what_is_said_is_what_is_understood(message: Message) -> None:
    frame = wire.encode(message, 77)

    lengths = wire.decode_header(frame[: wire.HEADER_SIZE])
    kinds = next(it for it in (REQUESTS, GIFTS, ANSWERS) if type(message) in it.values())
    assert lengths == Lengths(json=len(frame) - wire.HEADER_SIZE, data=77)
    assert wire.decode(frame[wire.HEADER_SIZE :], kinds) == message


def test_every_kind_was_tried_and_has_one_name() -> None:
    kinds = [*REQUESTS.values(), *GIFTS.values(), *ANSWERS.values()]

    assert {type(it) for it in SAID} == set(kinds)
    assert len(kinds) == len(set(kinds))


def test_no_message_to_the_writer_names_a_slot_or_a_place_on_the_disk() -> None:
    """A caller has no way to even say which slot is to be written, armed or confirmed."""
    said = {field.name for kind in (*REQUESTS.values(), *GIFTS.values()) for field in fields(kind)}

    assert said == {
        "product", "version", "channel", "roots", "attempt",  # install
        "name",  # of a piece of evidence
        "offset", "length",  # in the blob
        "why",  # a payload is missing
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "is no plain JSON"),
        (b"\xff\xfe", "is no plain JSON"),
        (b"[]", "its kind as the only key"),
        (b"{}", "its kind as the only key"),
        (b'{"arm": {}, "state": {}}', "its kind as the only key"),
        (b'{"arm": 1}', "its kind as the only key"),
        (b'{"arm": {"slot": "A"}}', r"arm has a field 'slot', which is not known"),
        (b'{"arm": {}, "arm": {}}', "key 'arm' stands twice"),
        (b'{"format": {}}', r"of the kind 'format', wanted state, install, arm"),
        (b'{"stored": {"offset": 0, "length": 1}}', "of the kind 'stored', wanted state"),
        (b'{"installed": {}}', "of the kind 'installed', wanted state"),
        (b'{"\\u2028\\u0000": {}}', r"of the kind '\\u2028\\x00', wanted"),
        (b'{"install": {}}', "missing required field"),
        (b"[" * 30_000, "nested deeper"),
        (b'{"arm": ' + b'{"a":' * 20 + b"1" + b"}" * 21, "nested deeper"),
        (b'{"arm": {"x": NaN}}', "NaN is no integer"),
        (b'{"arm": {}}'.ljust(wire.MAX_JSON + 1), "wanted at most 65536"),
    ],
)
def test_what_is_no_request_is_refused(text: bytes, match: str) -> None:
    with pytest.raises(WireError, match=match):
        wire.decode(text, REQUESTS)


GOOD = {"product": "os", "version": "1.1.0", "channel": None, "roots": 0, "attempt": "a"}


@pytest.mark.case(19)
@pytest.mark.case(20)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("product", ".."), ("product", "os/../x"), ("product", "O"), ("product", 1),
        ("version", "1"), ("version", "1.0.0/.."), ("version", "1.0.0+1"), ("version", 1),
        ("version", "1.0.0" * 2000), ("version", "\u0661.0.0"),
        ("channel", ""), ("channel", "a b"), ("channel", True),
        ("roots", -1), ("roots", 257), ("roots", True), ("roots", "1"), ("roots", 2**63),
        ("attempt", ""), ("attempt", "a\n<0>b"), ("attempt", "a" * 65), ("attempt", None),
    ],
)  # fmt: skip
def test_a_field_that_is_out_of_bounds_is_refused(field: str, value: object) -> None:
    wire.decode(json.dumps({"install": GOOD}).encode(), REQUESTS)

    with pytest.raises(WireError, match=r"^(install|message)"):
        wire.decode(json.dumps({"install": {**GOOD, field: value}}).encode(), REQUESTS)


@pytest.mark.parametrize(
    ("offset", "length"), [(-1, 1), (0, 0), (0, 2**20 + 1), (2**40 + 1, 1), (True, 1), (0, -1)]
)
def test_a_range_that_no_blob_has_is_refused(offset: int, length: int) -> None:
    text = json.dumps({"stored": {"offset": offset, "length": length}}).encode()

    with pytest.raises(WireError, match=r"^stored"):
        wire.decode(text, GIFTS)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (b"GET / HTTP/1", "a frame begins with b'GET ', wanted"),
        (struct.pack("<4sII", b"UAW\2", 2, 0), "must come from one release"),
        (struct.pack("<4sII", b"UAW\1", 0, 0), "a message has 0 bytes, wanted 1 to 65536"),
        (struct.pack("<4sII", b"UAW\1", 65537, 0), "has 65537 bytes, wanted 1 to"),
        (struct.pack("<4sII", b"UAW\1", 2**32 - 1, 0), "has 4294967295 bytes"),
    ],
)
def test_a_header_that_is_none_of_ours_is_refused(header: bytes, match: str) -> None:
    with pytest.raises(WireError) as refused:
        wire.decode_header(header)

    assert match in f"{refused.value} {refused.value.hint}"


def test_the_evidence_comes_in_the_order_in_which_it_is_verified() -> None:
    install = Install(product="os", version=Version("1.0.0"), roots=2, attempt="a")

    assert install.pieces == ["root", "root", "targets", "releases", "release"]
    assert Install(product="os", version=Version("1.0.0"), channel="x", attempt="a").pieces == [
        "targets", "releases", "release", "channels", "channel",
    ]  # fmt: skip


def test_no_piece_of_evidence_may_have_more_than_4_mib() -> None:
    names = {"root", "targets", "releases", "release", "channels", "channel"}

    assert {it: wire.max_piece(it) for it in names} == {
        "root": 512_000, "targets": 256_000, "releases": 4_194_304, "release": 65_536,
        "channels": 1_000_000, "channel": 65_536,
    }  # fmt: skip


def test_a_message_that_nobody_would_read_is_a_bug_of_whoever_says_it() -> None:
    with pytest.raises(ValueError, match="a message of"):
        wire.encode(Failed(family="host", kind="x", message="x" * wire.MAX_JSON))


def test_the_longest_want_fits_into_a_message() -> None:
    ranges = tuple((2**40 - 1 - at, 2**20) for at in range(wire.MAX_RANGES))

    frame = wire.encode(Want(ranges=ranges))

    assert len(frame) < wire.MAX_JSON
    assert wire.decode(frame[wire.HEADER_SIZE :], ANSWERS) == Want(ranges=ranges)
