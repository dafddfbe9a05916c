"""Whether there is an update for a host now, and if not, why."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from time import perf_counter

import pytest

from update_agent.core import document, release
from update_agent.core.channel import Change, Channel
from update_agent.core.document import DocumentError
from update_agent.core.reason import Reason, Wait
from update_agent.core.release import Host, IdentityError, PayloadReference, Release, Source
from update_agent.core.rollout import RING, Wave, place
from update_agent.core.version import Version

START = datetime(2026, 11, 23, 8, tzinfo=UTC)
CHANGE = Change(time=START, author="ann", what="promoted", reason="because")
V = Version
HOST = Host(product="os", architecture="x86_64", version=V("1.0.0"), machine_id="host-1")
PLACE = place("host-1", "os", V("1.2.0"))

EMPTY = Channel.created("stable", "os", CHANGE)
OFFERED = EMPTY.promote(V("1.2.0"), CHANGE)


def waiting(host: Host, channel: Channel, now: datetime = START) -> Wait:
    answer = release.wanted(host, channel, now)
    assert isinstance(answer, Wait)
    return answer


def full(digit: str = "a") -> PayloadReference:
    return PayloadReference(index_size=9, index_sha256=digit * 64, blob_size=7, stored_size=7)


def delta(version: str, digit: str) -> PayloadReference:
    return replace(full(digit), source=Source(version=V(version), root_hash="e" * 64))


RELEASE = Release(
    product="os", architecture="x86_64", version=V("1.2.0"), published=START, image_size=4096,
    root_hash="f" * 64, payloads=(full("a"), delta("1.0.0", "b"), delta("1.1.0", "c")),
)  # fmt: skip


# Which version -----------------------------------------------------------------------------------


def test_a_host_below_what_is_offered_gets_it() -> None:
    assert release.wanted(HOST, OFFERED, START) == V("1.2.0")


def test_a_host_with_what_is_offered_is_up_to_date() -> None:
    wait = waiting(replace(HOST, version=V("1.2.0")), OFFERED)

    assert wait.reason is Reason.UP_TO_DATE
    assert wait.sentence == "1.2.0 is what channel stable offers"


def test_a_channel_before_its_first_promotion_offers_nothing() -> None:
    assert waiting(HOST, EMPTY).sentence == "channel stable offers nothing yet"


@pytest.mark.case(15)
def test_a_channel_of_another_product_is_refused() -> None:
    with pytest.raises(IdentityError, match="channel stable is for product os, this host's is nas"):
        release.wanted(replace(HOST, product="nas"), OFFERED, START)


def test_a_newer_host_is_not_brought_down() -> None:
    wait = waiting(replace(HOST, version=V("1.3.0"), forced=True), OFFERED)

    assert wait.reason is Reason.DOWNGRADE
    assert wait.sentence == "channel stable offers 1.2.0, this host has the newer 1.3.0"


def test_a_downgrade_that_the_channel_allows_is_one_for_this_version_only() -> None:
    down = EMPTY.promote(V("1.3.0"), CHANGE).promote(
        V("1.2.0"), CHANGE, downgrade_from=[V("1.3.0")]
    )

    assert release.wanted(replace(HOST, version=V("1.3.0")), down, START) == V("1.2.0")
    assert waiting(replace(HOST, version=V("1.3.1")), down).reason is Reason.DOWNGRADE


@pytest.mark.parametrize(
    ("running", "wanted"),
    [("0.9.0", "1.0.0"), ("1.0.0", "1.1.0"), ("1.0.5", "1.1.0"), ("1.1.0", "1.2.0")],
)
def test_no_host_passes_by_a_floor(running: str, wanted: str) -> None:
    channel = OFFERED.set_floors([V("1.1.0"), V("1.0.0"), V("1.5.0")], CHANGE)

    assert release.wanted(replace(HOST, version=V(running)), channel, START) == V(wanted)


def test_a_quarantined_version_is_for_nobody() -> None:
    channel = OFFERED.quarantine(V("1.2.0"), CHANGE)

    assert waiting(replace(HOST, forced=True), channel).reason is Reason.QUARANTINED


@pytest.mark.case(68)
def test_what_failed_here_is_not_tried_again_until_forced_or_superseded() -> None:
    host = replace(HOST, failed=frozenset({V("1.2.0")}))

    assert waiting(host, OFFERED).reason is Reason.FAILED_HERE
    assert release.wanted(replace(host, forced=True), OFFERED, START) == V("1.2.0")
    assert release.wanted(host, OFFERED.promote(V("1.2.1"), CHANGE), START) == V("1.2.1")


def test_a_host_whose_wave_comes_later_is_told_when() -> None:
    wave = Wave(share=RING, length=10_000)
    channel = EMPTY.promote(V("1.2.0"), CHANGE, waves=(wave,))
    opens = START + timedelta(seconds=PLACE / 100)

    wait = waiting(HOST, channel)

    assert wait.reason is Reason.WAVE
    assert wait.until == opens
    assert wait.sentence == f"this host stands at {PLACE / 10_000:g} % in the rollout of 1.2.0"
    assert release.wanted(HOST, channel, opens + timedelta(milliseconds=1)) == V("1.2.0")
    assert release.wanted(replace(HOST, forced=True), channel, START) == V("1.2.0")


def test_a_host_beyond_the_last_wave_waits_for_a_further_one() -> None:
    channel = EMPTY.promote(V("1.2.0"), CHANGE, waves=(Wave(share=PLACE),))

    wait = waiting(HOST, channel)

    assert (wait.reason, wait.until, wait.ends) == (Reason.NO_WAVE, None, "a further wave")


def test_a_pause_holds_even_who_wants_it_now_and_says_who_paused_and_why() -> None:
    channel = EMPTY.promote(V("1.2.0"), CHANGE, waves=(Wave(share=RING, length=9),)).pause(CHANGE)

    for host in (HOST, replace(HOST, forced=True)):
        wait = waiting(host, channel, START + timedelta(days=1))
        assert wait.reason is Reason.PAUSED
        assert wait.sentence == "the rollout of 1.2.0 is paused by ann: because"


# Which release -----------------------------------------------------------------------------------


def test_a_release_for_this_host_is_not_held_back() -> None:
    assert release.held_back(HOST, RELEASE) is None


@pytest.mark.case(15)
def test_a_release_for_another_architecture_is_refused() -> None:
    with pytest.raises(IdentityError, match=r"os 1\.2\.0 is for aarch64, this host is x86_64"):
        release.held_back(HOST, replace(RELEASE, architecture="aarch64"))


def test_a_host_below_the_minimum_takes_another_release_first() -> None:
    wait = release.held_back(HOST, replace(RELEASE, minimum_version=V("1.1.0")))

    assert wait
    assert wait.reason is Reason.TOO_OLD
    assert wait.sentence == "1.2.0 can be installed from 1.1.0 or later, this host has 1.0.0"
    assert release.held_back(HOST, replace(RELEASE, minimum_version=V("1.0.0"))) is None


@pytest.mark.case(96)
def test_a_release_that_was_withdrawn_is_a_reason_to_wait() -> None:
    wait = release.withdrawn(OFFERED, V("1.2.0"))

    assert wait.reason is Reason.WITHDRAWN
    assert "which the repository does not have any more" in wait.sentence


def test_a_host_takes_the_delta_for_its_version_and_the_full_payload_if_that_fails() -> None:
    assert RELEASE.payloads_for(V("1.0.0")) == [delta("1.0.0", "b"), full("a")]
    assert RELEASE.payloads_for(V("0.9.0")) == [full("a")]


def test_payloads_are_found_by_what_they_are() -> None:
    assert RELEASE.index_path(full("a")) == f"payloads/os/1.2.0/{'a' * 64}.index"
    assert RELEASE.blob_path(full("a")) == f"payloads/os/1.2.0/{'a' * 64}.blob"


# The document ------------------------------------------------------------------------------------


def test_a_release_comes_back_as_it_was_written() -> None:
    assert release.decode(document.encode(RELEASE), "os", V("1.2.0")) == RELEASE


@pytest.mark.case(15)
@pytest.mark.parametrize(("product", "version"), [("nas", "1.2.0"), ("os", "1.2.1")])
def test_a_document_in_another_ones_place_is_refused(product: str, version: str) -> None:
    with pytest.raises(IdentityError, match=r"the document is that of os 1\.2\.0"):
        release.decode(document.encode(RELEASE), product, V(version))


@pytest.mark.case(98)
@pytest.mark.parametrize(
    ("found", "instead"),
    [
        ('"product": "os"', '"product": "../os"'),
        ('"architecture": "x86_64"', '"architecture": "x86/64"'),
        ('"version": "1.2.0"', '"version": "../1.2.0"'),
        ("a" * 64, "../" + "a" * 61),
        ("a" * 64, "a" * 64 + "\\n"),
        ("f" * 64, "F" * 64),
        ('"image_size": 4096', '"image_size": -1'),
        ('"image_size": 4096', '"image_size": true'),
        ('"image_size": 4096', '"image_size": 4096.0'),
        ('"format": 1', '"format": 2'),
        ('"published": "2026-11-23T08:00:00Z"', '"published": "2026-11-23T08:00:00"'),
        ('"index_size": 9', '"index_size": 67108865'),
    ],
)
def test_a_field_that_could_do_harm_is_refused(found: str, instead: str) -> None:
    written = document.encode(RELEASE).decode()
    assert found in written

    with pytest.raises(DocumentError, match=r"release os 1\.2\.0"):
        release.decode(written.replace(found, instead, 1).encode(), "os", V("1.2.0"))


@pytest.mark.parametrize("payloads", [(), (delta("1.0.0", "b"),), (full("a"), full("b"))])
def test_a_release_has_exactly_one_full_payload(payloads: tuple[PayloadReference, ...]) -> None:
    with pytest.raises(ValueError, match="wanted exactly one payload without source"):
        replace(RELEASE, payloads=payloads)


# Speed -------------------------------------------------------------------------------------------


def test_the_time_to_decide_for_one_host_is_told(figure: Callable[[str], None]) -> None:
    waves = (Wave(share=RING // 100, length=3600), Wave(share=RING, opens=3600, length=3600))
    channel = EMPTY.promote(V("1.2.0"), CHANGE, waves=waves)
    hosts = [replace(HOST, machine_id=f"{number:032x}") for number in range(20_000)]
    now = START + timedelta(hours=1, minutes=30)

    began = perf_counter()
    offered = sum(not isinstance(release.wanted(host, channel, now), Wait) for host in hosts)
    micros = (perf_counter() - began) / len(hosts) * 1e6

    assert offered == pytest.approx(len(hosts) * 0.505, abs=200)
    figure(f"deciding for one host whether there is an update: {micros:.1f} microseconds")
