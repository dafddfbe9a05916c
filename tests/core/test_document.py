"""Documents from outside: read as what they say, or refused; nothing else comes out."""

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from tests.lies import made_channel, made_release
from update_agent.core import channel, document, release
from update_agent.core.document import MAX_DEPTH, MAX_SIZE, DocumentError, Name, Sha256, Text, Time
from update_agent.core.version import Version

LEAVES = (
    st.none() | st.booleans() | st.text(max_size=8)
    | st.integers(-(2**70), 2**70) | st.floats()
)  # fmt: skip
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)

NAMES = st.from_regex(r"\A[a-z0-9][a-z0-9_-]{0,20}\Z")
LINES = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=500)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    count: Annotated[int, Meta(ge=1)] = 1
    name: Name = "a"
    sha256: Sha256 = "ab" * 32
    text: Text = ""
    time: Time = datetime(2026, 1, 1, tzinfo=UTC)
    version: Version | None = None
    more: tuple[int, ...] = ()


def read(text: str | bytes) -> Sample:
    data = text if isinstance(text, bytes) else text.encode()
    return document.decode(data, Sample, "sample")


@pytest.mark.case(19)
@pytest.mark.parametrize(
    ("text", "match"),
    [
        pytest.param("", "sample is no plain JSON: Expecting value", id="empty"),
        pytest.param("{", "sample is no plain JSON", id="cut"),
        pytest.param("{} {}", "sample is no plain JSON: Extra data", id="two"),
        pytest.param("[]", "sample: Expected `object`, got `array`", id="list"),
        pytest.param("null", "sample: Expected `object`, got `null`", id="null"),
        pytest.param(b"\xff", "sample is no plain JSON: 'utf-8' codec", id="no-utf8"),
        pytest.param(b"\xef\xbb\xbf{}", "sample is no plain JSON: Unexpected UTF-8 BOM", id="bom"),
        pytest.param("{'a': 1}", "sample is no plain JSON", id="quotes"),
        pytest.param('{"count": NaN}', "number NaN is no integer", id="nan"),
        pytest.param('{"count": -Infinity}', "number -Infinity is no integer", id="infinity"),
        pytest.param('{"count": 1.0}', "number 1.0 is no integer", id="float"),
        pytest.param('{"count": 1e2}', "number 1e2 is no integer", id="exponent"),
        pytest.param('{"count": true}', "Expected `int`, got `bool`", id="bool"),
        pytest.param('{"count": "1"}', "Expected `int`, got `str`", id="text"),
        pytest.param('{"count": 0}', "Expected `int` >= 1", id="zero"),
        pytest.param('{"more": [1, false]}', r"got `bool` - at `\$.more\[1\]`", id="bool-inside"),
        pytest.param('{"x": 9223372036854775808}', "needs more than 64 bits", id="2**63"),
        pytest.param('{"x": -9223372036854775809}', "needs more than 64 bits", id="-2**63-1"),
        pytest.param(
            '{"x": %s}' % ("9" * 5000), r"9{30}\.\.\. needs more than 64", id="5000-digits"
        ),
        pytest.param('{"count": 1, "count": 2}', "key 'count' stands twice", id="twice"),
        pytest.param('{"x": {"y": [{"z": 1, "z": 1}]}}', "key 'z' stands twice", id="twice-inside"),
        pytest.param(r'{"a": 1, "\u0061": 1}', "key 'a' stands twice", id="twice-escaped"),
        pytest.param(r'{"x": "\ud800"}', "half of a character", id="half"),
        pytest.param(r'{"\udfff": 1}', "half of a character", id="half-key"),
        pytest.param(r'{"text": "\u001b[2J"}', "matching regex", id="terminal"),
        pytest.param(r'{"text": "a\nb"}', "matching regex", id="two-lines"),
        pytest.param('{"text": "%s"}' % ("a" * 501), "length <= 500", id="long"),
        pytest.param('{"name": "../x"}', "matching regex", id="path"),
        pytest.param(r'{"name": "a\n"}', "matching regex", id="newline-name"),
        pytest.param('{"sha256": "%s"}' % ("AB" * 32), "matching regex", id="upper-hash"),
        pytest.param('{"time": "2026-01-01T00:00:00"}', "timezone", id="no-zone"),
        pytest.param('{"time": 5}', "Expected `datetime`", id="epoch"),
        pytest.param('{"version": 1}', "expected Version", id="version-number"),
        pytest.param('{"version": "1.2"}', "'1.2' is no version", id="version-short"),
        pytest.param("[" * 100_000, "nested deeper than 16 levels", id="bottomless"),
    ],
)
def test_what_is_odd_is_refused(text: str | bytes, match: str) -> None:
    with pytest.raises(DocumentError, match=match):
        read(text)


@pytest.mark.case(19)
def test_only_so_many_levels_and_bytes_are_read() -> None:
    assert document.parse(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, "it") is not None
    with pytest.raises(DocumentError, match="it is nested deeper than 16 levels"):
        document.parse(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "it")
    with pytest.raises(DocumentError, match="it is nested deeper than 16 levels"):
        document.parse(b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH, "it")

    assert document.parse(b"1" + b" " * (MAX_SIZE - 1), "it") == 1
    with pytest.raises(DocumentError, match="it has 1000001 bytes, wanted at most 1000000"):
        document.parse(b"1" + b" " * MAX_SIZE, "it")


def test_whole_characters_may_be_escaped() -> None:
    assert read(r'{"text": "\ud83d\ude00 \u00e9"}').text == "\U0001f600 \u00e9"


def test_a_key_that_stands_twice_among_many_costs_no_more_than_the_many() -> None:
    pairs = ",".join(f'"{n}":1' for n in range(80_000))
    began = time.process_time()
    with pytest.raises(DocumentError, match="key '79999' stands twice"):
        document.parse(f'{{{pairs},"79999":1}}'.encode(), "it")

    assert time.process_time() - began < 2  # comparing each with each takes minutes


def test_what_newer_publishers_add_is_ignored_but_not_another_format() -> None:
    plain = json.loads(document.encode(made_channel()))

    assert channel.decode(json.dumps({**plain, "new": [{}]}).encode(), "stable") == made_channel()
    with pytest.raises(DocumentError, match=r"Invalid enum value 2 - at `\$.format`"):
        channel.decode(json.dumps({**plain, "format": 2}).encode(), "stable")


@pytest.mark.case(20)
@pytest.mark.parametrize(
    "text",
    [
        "", " ", "1", "1.10", "1.9", "v1.2.0", "01.2.0", "1.2.0 ", "1.2.0\n", "..", "../1.2.0",
        "1.2.0/..", "1.2.0-", "1.2.0-..", "1.2.0-a..b", "1.2.0-01", "1.2.0+build", "1.2.-1",
        "\u0661.\u0662.\u0663", "1.2.\u00b2", "1.2.0-\u00e9", "1" * 10_000, "1.2." + "9" * 10_000,
        "1.2.0-" + "a" * 10_000, "1e3.0.0", "0x1.0.0", "1_0.0.0", "NaN", "1.2.0\0",
    ],
)  # fmt: skip
def test_a_text_that_is_no_version_is_refused_wherever_it_stands(text: str) -> None:
    with pytest.raises(DocumentError, match=r"(is no version|has \d+ characters|build metadata)"):
        read(json.dumps({"version": text}))


@pytest.mark.case(20)
def test_versions_are_numbers_and_not_text() -> None:
    texts = ["1.9.0", "1.10.0-rc.2", "1.10.0-rc.10", "1.10.0", "1.10.1", "10.0.0"]
    versions = [read(json.dumps({"version": it})).version for it in texts]

    assert sorted(versions, key=lambda it: it or Version("0.0.0")) == versions


def test_what_cannot_be_written_is_the_callers_mistake() -> None:
    with pytest.raises(TypeError):
        document.encode(object())


@given(name=NAMES, text=LINES, count=st.integers(1, 2**53), more=st.lists(st.integers(-9, 9)))
def test_what_is_written_is_read(name: str, text: str, count: int, more: list[int]) -> None:
    made = Sample(name=name, text=text, count=count, more=tuple(more), version=Version("1.2.3"))

    assert read(document.encode(made)) == made
    assert document.encode(read(document.encode(made))) == document.encode(made)


@given(st.binary(max_size=200))
def test_of_any_bytes_comes_a_value_or_a_document_error(data: bytes) -> None:
    for kind in (Sample, channel.Channel, release.Release):
        _only_document_errors(data, kind)


@given(ANYTHING)
def test_of_any_json_comes_a_value_or_a_document_error(value: object) -> None:
    for kind in (Sample, channel.Channel, release.Release):
        _only_document_errors(json.dumps(value).encode(), kind)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:  # noqa: ANN401
    found: list[tuple[Any, ...]] = [path]
    for key, it in value.items() if isinstance(value, dict) else enumerate(value):
        found += _places(it, (*path, key)) if isinstance(it, dict | list) else [(*path, key)]
    return found


CHANNEL = json.loads(document.encode(made_channel()))
RELEASE = json.loads(document.encode(made_release()))


@given(st.data(), ANYTHING)
def test_of_a_document_with_anything_anywhere_comes_a_value_or_a_document_error(
    data: st.DataObject, value: object
) -> None:
    for kind, good in ((channel.Channel, CHANNEL), (release.Release, RELEASE)):
        changed = json.loads(json.dumps(good))
        *way, last = data.draw(st.sampled_from(_places(good)[1:]))
        at = changed
        for step in way:
            at = at[step]
        at[last] = value
        _only_document_errors(json.dumps(changed).encode(), kind)


def _only_document_errors(data: bytes, kind: type) -> None:
    try:
        found: object = document.decode(data, kind, "it")
    except DocumentError:
        return
    assert document.decode(document.encode(found), kind, "it") == found


def test_a_text_for_people_becomes_one_line() -> None:
    assert document.line("a\nb\x1b[2J" + "c" * 600) == "a b [2J" + "c" * 493
