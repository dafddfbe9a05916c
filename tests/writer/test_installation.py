"""Installing through the writer's socket, with the client that the daemon uses."""

import errno
import itertools
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.disks import flags
from tests.hosts import (
    A_AT,
    B_AT,
    ENOUGH,
    LAYOUT,
    SLOT_SIZE,
    V1,
    V2,
    Gifts,
    Watching,
    World,
    wait_until,
)
from tests.images import BLOCK, MARKER, flip_bit, noise
from update_agent.core.payload import Operation
from update_agent.core.release import IdentityError, PayloadReference
from update_agent.core.slot import RETIRED, SlotStateError
from update_agent.core.trust import Evidence, ExpiredError, Proven, RollbackError, UntrustedError
from update_agent.core.version import Version
from update_agent.core.wire import (
    Arm,
    BusyError,
    MissingError,
    RefusedError,
    State,
    UnverifiedError,
)
from update_agent.errors import HostError, ReleaseError
from update_agent.host import files, slot
from update_agent.host.device import Device, Section, open_device
from update_agent.host.install import ROUNDS
from update_agent.host.wire import GoneError
from update_agent.host.writer import Writer
from update_agent.publish import releases
from update_agent.publish.keys import Keyring
from update_agent.publish.repository import Repository
from update_agent.publish.verbs import Bars
from update_agent.writer.memory import Memory
from update_agent.writer.slots import HostSlots

V3 = Version("2.0.0")


def released(world: World) -> bytes:
    return world.fleet.releases.v2.content


def arm(world: World) -> None:
    with Writer(world.address) as writer:
        writer.arm()


def roll_back(world: World) -> State:
    with Writer(world.address) as writer:
        return writer.rollback()


# What goes well ----------------------------------------------------------------------------------


def test_a_delta_is_installed_and_armed(world: World) -> None:
    gifts, watching = world.fleet.payloads(), Watching()
    before = world.slot_a()
    with world.serving():
        done = world.install(gifts, watching=watching)
        with Writer(world.address) as writer:
            installed = writer.state()
            armed = writer.arm()

    assert world.slot_b().startswith(released(world))
    assert [it.source is None for it in gifts.indexes] == [False]
    assert 270_000 < gifts.bytes_given == done.fetched == watching.plans[0].fetch < 350_000
    assert done.written == len(released(world))
    assert done.saved > 2_000_000
    assert (installed.a.state, installed.b.state, installed.next) == ("successful", "retired", "A")
    assert installed.verified is not None
    assert (installed.verified.version, installed.verified.slot) == (V2, "B")
    assert installed.verified.root_hash == installed.other.root_hash
    assert (armed.next, armed.b.priority, armed.b.tries) == ("B", 2, 3)
    assert world.slot_a() == before
    world.want_whole_boot()


def test_a_host_without_the_deltas_source_takes_the_full_payload(world: World) -> None:
    world.put(A_AT, world.fleet.releases.v1.content[:-BLOCK])
    world.put(A_AT + 600, b"x")  # its slot header
    gifts = world.fleet.payloads()
    with world.serving():
        world.install(gifts)

    assert [it.source for it in gifts.indexes] == [None]
    assert world.slot_b().startswith(released(world))


def test_a_booted_slot_that_rots_makes_the_delta_give_way_to_the_full_payload(
    world: World,
) -> None:
    release = world.fleet.release()
    delta = next(it for it in release.payloads if it.source)
    index = world.fleet.releases.delta_index
    copied = next(it for it in index if it.operation == Operation.COPY)
    flip_bit(world.disk, A_AT + copied.source_offset + 5)
    gifts = world.fleet.payloads()
    with world.serving():
        world.install(gifts)

    assert [it.source is None for it in gifts.indexes] == [False, True]
    assert gifts.indexes[0] == delta
    assert world.slot_b().startswith(released(world))


class Poor(Gifts):
    """Gives the full payload well, and the delta in one of the ways in which it may fail."""

    how = ""

    def index(self, payload: PayloadReference) -> bytes:
        data = super().index(payload)
        if payload.source and self.how == "no-index":
            raise MissingError("the server answers 404")
        return data

    def blob(self, payload: PayloadReference) -> Gifts:
        super().blob(payload)
        if payload.source and self.how == "another-blob":
            self.data = bytes(len(self.data))
        return self

    def give(self, span: object, deliver: object) -> None:
        if self.indexes[-1].source and len(self.given) == {"no-blob": 0, "half": 1}.get(self.how):
            raise MissingError("the server answers 416")
        super().give(span, deliver)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["no-index", "no-blob", "half", "another-blob"])
def test_a_delta_that_cannot_be_had_gives_way_to_the_full_payload(
    how: str, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    whole = world.fleet.payloads()
    gifts = Poor(whole.www, whole.release, whole.spoil)
    gifts.how = how
    with world.serving():
        done = world.install(gifts)
        arm(world)

    assert [it.source is None for it in gifts.indexes] == [False, True]
    assert done.payload == gifts.indexes[-1].index_sha256
    assert "[attempt-1] the delta payload cannot be used: " in caplog.text
    assert world.slot_b().startswith(released(world))


class Mistaken(Gifts):
    """Has, for a delta, the index that was signed by mistake, and no blob for it."""

    signed = b""

    def index(self, payload: PayloadReference) -> bytes:
        return self.signed if payload.source else super().index(payload)

    def blob(self, payload: PayloadReference) -> Gifts:
        return self if payload.source else super().blob(payload)


@pytest.mark.parametrize("what", ["noise", "another-image"])
def test_a_delta_whose_signed_index_is_none_gives_way_to_the_full_payload(
    what: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made the release signed what cannot be read, or is another release's."""
    release, old = world.fleet.release(), world.fleet.release(V1)
    whole = world.fleet.payloads()
    bad = noise(300, "index")
    if what == "another-image":
        bad = (whole.www / old.index_path(old.full)).read_bytes()
    delta = next(it for it in release.payloads if it.source)
    delta = replace(delta, index_size=len(bad), index_sha256=sha256(bad).hexdigest())
    release = replace(release, payloads=(delta, release.full))
    proven = Proven(release=release, channel=None, root_version=1, releases_version=1)
    monkeypatch.setattr(Memory, "proven", lambda *_, **__: proven)
    gifts = Mistaken(whole.www, release, whole.spoil)
    gifts.signed = bad
    with world.serving(), Writer(world.address) as writer:
        done = writer.install(
            release, world.fleet.evidence(), gifts, attempt="a", watcher=Watching()
        )

    assert done.payload == release.full.index_sha256
    assert world.slot_b().startswith(released(world))


def test_a_release_without_any_payload_on_the_servers_ends_the_attempt(world: World) -> None:
    def index(payload: PayloadReference) -> bytes:
        raise MissingError(f"{payload.index_size} bytes are not there")

    gifts = world.fleet.payloads()
    gifts.index = index  # type: ignore[method-assign]
    full = world.fleet.release().full.index_size
    with (
        world.serving(),
        pytest.raises(HostError, match=rf"^the payload cannot be had: {full} bytes are not there$"),
    ):
        world.install(gifts)


@pytest.mark.parametrize("threads", [1, 4])
def test_ranges_are_taken_in_any_order_and_from_many_threads(threads: int, world: World) -> None:
    gifts = world.fleet.payloads()
    gifts.shuffled, gifts.threads = True, threads
    with world.serving():
        world.install(gifts)

    assert world.slot_b().startswith(released(world))


def test_what_stands_in_the_slot_is_kept_and_verified_again(world: World) -> None:
    with world.serving():
        world.install()
        arm(world)
        gifts = world.fleet.payloads()
        done = world.install(gifts, attempt="attempt-2")
        state = world.look()

    assert (done.written, gifts.given) == (0, [])
    assert state.b.state == "retired"  # to be armed again by who asked for it
    assert state.verified is not None
    assert state.verified.attempt == "attempt-2"


def test_progress_is_told_a_few_times_a_second_and_ends_in_a_report(world: World) -> None:
    watching = Watching()
    with world.serving():
        done = world.install(watching=watching)

    assert {it.step for it in watching.shown} <= {"look", "write", "read back"}
    assert all(it.done <= it.size for it in watching.shown)
    assert len(watching.shown) < 5 + sum(done.milliseconds.values()) / 250
    assert set(done.milliseconds) == {"look", "write", "read back", "finish"}


def test_the_whole_life_of_two_updates_alternates_the_slots(world: World) -> None:
    with world.serving():
        world.install()
        arm(world)
    world.put_flags(flags(1, 0, ok=True), flags(2, 2))  # the selector started B
    world.host = replace(world.host, booted=3, version=V2)
    with world.serving():
        with Writer(world.address) as writer:
            trial = writer.state()
            confirmed = writer.confirm()
            back = writer.rollback()
            forth = writer.disarm()
        with pytest.raises(RefusedError, match=r"^1\.0\.0 is below the version that runs"):
            world.install(version=V1)

    assert (trial.booted.slot, trial.booted.state, trial.next) == ("B", "on trial", "B")
    assert (confirmed.b.successful, confirmed.next) == (True, "B")
    assert (back.next, forth.next) == ("A", "B")
    assert world.slot_a().startswith(world.fleet.releases.v1.content)


def test_a_rollback_during_the_trial_ends_it(world: World) -> None:
    with world.serving():
        world.install()
    world.put_flags(flags(1, 0, ok=True), flags(2, 2))
    world.host = replace(world.host, booted=3, version=V2)
    with world.serving(), Writer(world.address) as writer:
        state = writer.rollback()

    assert (state.next, state.b.state) == ("A", "retired")


def test_an_arm_is_undone_and_done_again(world: World) -> None:
    with world.serving():
        world.install()
        with Writer(world.address) as writer:
            assert writer.arm().next == "B"
            assert writer.arm().next == "B"
            assert writer.disarm().next == "A"
            assert writer.disarm().next == "A"
            assert writer.arm().next == "B"


@contextmanager
def verifying(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Stop who first reads a slot; yield what tells of it, and what lets him go on."""
    begun, go_on = threading.Event(), threading.Event()
    real = Section.read_into

    def slow(device: Section, buffer: memoryview, offset: int) -> int:
        if not begun.is_set():
            begun.set()
            assert go_on.wait(ENOUGH)
        return real(device, buffer, offset)

    with monkeypatch.context() as patched:
        patched.setattr(Section, "read_into", slow)
        try:
            yield begun, go_on
        finally:
            go_on.set()


def test_who_disarms_while_another_arms_has_the_last_word(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disarm() -> None:
        with Writer(world.address) as writer:
            writer.disarm()

    with world.serving():
        world.install()
        with verifying(monkeypatch) as (begun, go_on):
            arming = threading.Thread(target=arm, args=(world,))
            arming.start()
            assert begun.wait(ENOUGH)
            disarming = threading.Thread(target=disarm)
            disarming.start()
            disarming.join(0.2)
            waits = disarming.is_alive()
            go_on.set()
            arming.join()
            disarming.join()
        assert world.look().next == "A"
    assert waits


def test_nothing_is_armed_for_who_left_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with world.serving() as server:
        world.install()
        with verifying(monkeypatch) as (begun, go_on):
            caller = world.raw()
            caller.send(Arm())
            assert begun.wait(ENOUGH)
            caller.close()
            go_on.set()
            wait_until(lambda: not server.callers)
        state = world.look()

    assert (state.next, state.b.state) == ("A", "retired")
    assert "arm: the caller left before slot B was armed (arm it again)" in caplog.text


# Wrong bytes, and callers who leave ---------------------------------------------------------------


def garble(data: bytearray) -> None:
    data[len(data) // 2] ^= 1


@pytest.mark.case(34)
def test_wrong_bytes_are_asked_for_again_and_their_giver_is_distrusted(world: World) -> None:
    def spoil(data: bytearray, _offset: int, tries: int) -> None:
        if tries == 1:
            garble(data)

    gifts = world.fleet.payloads(spoil)
    with world.serving():
        world.install(gifts)

    assert {it.blob_offset for it in gifts.distrusted} == set(gifts.asked)
    assert set(gifts.asked.values()) == {2}
    assert world.slot_b().startswith(released(world))


@pytest.mark.case(34)
def test_bytes_that_stay_wrong_are_never_written(world: World) -> None:
    def spoil(data: bytearray, _offset: int, _tries: int) -> None:
        garble(data)

    with world.serving():
        with pytest.raises(ReleaseError, match=rf"have a wrong hash after {ROUNDS} tries"):
            world.install(world.fleet.payloads(spoil))
        with pytest.raises(UnverifiedError, match=r"^slot B is not verified, so it cannot be arme"):
            arm(world)
        state = world.look()

    assert (state.b.unfinished, state.b.root_hash, state.b.state) == (True, None, "retired")
    want_nothing_unsigned(world)


def want_nothing_unsigned(world: World) -> None:
    """Hold each block of slot B against what it held before and what was signed."""
    content, signed = world.slot_b(), released(world)
    for at in range(0, SLOT_SIZE, BLOCK):
        block = content[at : at + BLOCK]
        assert block in (bytes(BLOCK), signed[at : at + BLOCK]) or block.startswith(MARKER)


class Leaving(Gifts):
    """Gives a few ranges and then no more."""

    after = 1

    def give(self, span: object, deliver: object) -> None:
        if len(self.given) == self.after:
            raise KeyboardInterrupt
        super().give(span, deliver)  # type: ignore[arg-type]


def test_a_caller_who_leaves_can_come_back_and_what_was_written_is_kept(world: World) -> None:
    world.put(A_AT + 600, b"x")  # no delta: more to give
    some = world.fleet.payloads()
    leaving = Leaving(some.www, some.release, some.spoil)
    leaving.after = 2
    with world.serving() as server:
        with pytest.raises(KeyboardInterrupt):
            world.install(leaving)
        wait_until(lambda: not server.callers)
        left = world.look()
        gifts = world.fleet.payloads()
        world.install(gifts)

    assert left.b.unfinished
    assert left.verified is None
    assert gifts.bytes_given < sum(it.stored_size for it in gifts.indexes)
    assert world.slot_b().startswith(released(world))


def test_an_installation_is_cancelled_from_another_thread(world: World) -> None:
    asked = threading.Event()

    def spoil(_data: bytearray, _offset: int, _tries: int) -> None:
        asked.set()
        canceller.join()

    with world.serving():
        writer = Writer(world.address)

        def cancel() -> None:
            assert asked.wait(ENOUGH)
            writer.cancel()

        canceller = threading.Thread(target=cancel)
        canceller.start()
        with pytest.raises(GoneError):
            writer.install(
                world.fleet.release(), world.fleet.evidence(), world.fleet.payloads(spoil),
                attempt="cancelled", watcher=Watching(),
            )  # fmt: skip
        world.install()

    assert world.slot_b().startswith(released(world))


def test_who_comes_second_is_told_that_the_writer_is_busy(world: World) -> None:
    waiting, go_on = threading.Event(), threading.Event()

    def spoil(_data: bytearray, _offset: int, _tries: int) -> None:
        if gifts.given:
            waiting.set()
            assert go_on.wait(ENOUGH)

    gifts = world.fleet.payloads(spoil)
    first = threading.Thread(target=world.install, args=(gifts,))
    with world.serving():
        first.start()
        assert waiting.wait(ENOUGH)
        for ask in (world.install, lambda: arm(world), lambda: roll_back(world)):
            with pytest.raises(BusyError, match=r"^the writer is at another installation") as busy:
                ask()
            assert busy.value.hint == "wait until it is done, or cancel it"
        wait_until(lambda: world.look().b.unfinished)
        with Writer(world.address) as writer:
            assert writer.confirm().next == "A"
        go_on.set()
        first.join()

    assert world.slot_b().startswith(released(world))


# What must not be installed -----------------------------------------------------------------------


def want_refused(
    world: World,
    kind: type[Exception],
    match: str,
    evidence: Evidence | None = None,
    *,
    version: Version = V2,
    channel: str | None = None,
) -> None:
    """Ask for an installation that is refused before the first flag or byte changes."""
    before = world.disk.read_bytes()
    with world.serving(), pytest.raises(kind, match=match):
        Writer(world.address).install(
            world.fleet.release(version) if version in (V1, V2) else world.fleet.release(),
            evidence or world.fleet.evidence(version, channel),
            world.fleet.payloads(),
            attempt="refused",
            channel=channel,
            watcher=Watching(),
        )
    assert world.disk.read_bytes() == before


@pytest.mark.case(15)
@pytest.mark.parametrize(
    ("host", "match"),
    [
        ({"product": "nas"}, r"^a release of os is asked for, this host's product is nas$"),
        ({"architecture": "riscv64"}, r"^release os 1\.1\.0 is for \w+, this host is riscv64$"),
    ],
    ids=["product", "architecture"],
)
def test_what_is_signed_for_other_hosts_is_refused(
    host: dict[str, str], match: str, world: World
) -> None:
    world.host = replace(world.host, **host)  # type: ignore[arg-type]

    want_refused(world, IdentityError, match)


def test_a_downgrade_is_refused(world: World) -> None:
    world.host = replace(world.host, version=V3)

    want_refused(world, RefusedError, r"^1\.1\.0 is below the version that runs, 2\.0\.0, and no")
    want_refused(world, RefusedError, r"^1\.1\.0 is below the version that runs", channel="stable")


def test_a_downgrade_that_the_signed_channel_allows_is_installed(
    world: World, tmp_path: Path
) -> None:
    world.fleet = world.fleet.copy(tmp_path / "fleet")
    world.fleet.publish("channel", "promote", "stable", "1.1.0", "--downgrade-from", "2.0.0")
    world.host = replace(world.host, version=V3)

    want_refused(world, RefusedError, r"^1\.1\.0 is below the version that runs")
    with world.serving():
        world.install(channel="stable")
    assert world.slot_b().startswith(released(world))


def test_a_release_in_quarantine_is_refused(world: World, tmp_path: Path) -> None:
    world.fleet = world.fleet.copy(tmp_path / "fleet")
    world.fleet.publish("channel", "quarantine", "stable", "1.1.0", "--reason", "bad")

    want_refused(
        world, RefusedError, r"^1\.1\.0 is quarantined in channel stable$", channel="stable"
    )


def test_what_can_only_be_installed_over_a_newer_version_is_refused(
    world: World, tmp_path: Path
) -> None:
    world.host = replace(world.host, version=Version("0.1.0"))
    world.fleet = world.fleet.copy(tmp_path / "fleet")
    image = world.fleet.releases.v2.image
    world.fleet.publish(
        "release", "withdraw", "--product", "os", "--version", "1.1.0", "--reason", "x"
    )
    world.fleet.publish(
        "release", "add", str(image), "--product", "os", "--version", "1.2.0",
        "--minimum-version", "1.0.0",
    )  # fmt: skip
    version = Version("1.2.0")
    with world.serving(), pytest.raises(RefusedError, match=r"can be installed from 1\.0\.0 or l"):
        world.install(version=version)


@pytest.mark.case(6)
def test_what_has_expired_is_refused(world: World) -> None:
    world.now = datetime.now(UTC) + timedelta(days=400)

    want_refused(world, ExpiredError, r"^releases \d+ expired at")


@pytest.mark.case(13)
def test_a_clock_that_steps_back_does_not_take_the_writers_along(world: World) -> None:
    world.now = late = datetime.now(UTC) + timedelta(days=300)
    with world.serving():
        world.install()
    world.now = datetime(1970, 1, 1, tzinfo=UTC)
    with world.serving():
        again = world.install(attempt="attempt-2")

    assert again.verified.attempt == "attempt-2"
    assert again.verified.time >= late


@pytest.mark.case(13)
def test_a_clock_that_is_far_ahead_is_not_remembered(world: World) -> None:
    now, world.now = world.now, datetime(2099, 1, 1, tzinfo=UTC)
    with world.serving(), pytest.raises(ExpiredError):
        world.install()
    world.now = now
    with world.serving():
        assert world.install().verified.time < now + timedelta(days=1)


@pytest.mark.case(13)
@pytest.mark.parametrize(("ahead", "believed"), [(20, True), (200, False)])
def test_a_release_made_by_a_clock_far_ahead_ends_no_later_update(
    ahead: int,
    believed: bool,  # noqa: FBT001  a case
    world: World,
    tmp_path: Path,
) -> None:
    world.fleet = fleet = world.fleet.copy(tmp_path / "fleet")
    made = world.now + timedelta(days=ahead)
    releases.add(
        Repository(fleet.folder / "www", Keyring([fleet.folder / "keys"]), made),
        fleet.releases.v2.image, product="os", version=(version := Version("1.2.0")),
        architecture="x86_64", progress=Bars(quiet=True),
    )  # fmt: skip

    with world.serving():
        time = world.install(version=version).verified.time
        fleet.publish("refresh")
        world.install(version=version, channel="stable", attempt="attempt-2")

    assert (time >= made.replace(microsecond=0)) is believed
    assert believed or time < world.now + timedelta(days=1)


@pytest.mark.case(2)
@pytest.mark.case(4)
def test_older_metadata_than_was_trusted_before_is_refused(world: World, tmp_path: Path) -> None:
    old = world.fleet.evidence()
    world.fleet = world.fleet.copy(tmp_path / "fleet")
    world.fleet.publish(
        "release", "withdraw", "--product", "os", "--version", "1.0.0", "--reason", "old"
    )
    with world.serving():
        world.install()

    want_refused(world, RollbackError, r"^releases \d+ is offered, version \d+ was", old)


@pytest.mark.case(8)
@pytest.mark.case(9)
def test_who_knows_a_newer_root_believes_no_older_one(world: World, tmp_path: Path) -> None:
    old = world.fleet.evidence()
    world.fleet = world.fleet.copy(tmp_path / "fleet")
    world.fleet.publish("keys", "rotate", "releases", "new")
    world.fleet.publish("keys", "rotate", "root-1", "newer")
    new = world.fleet.evidence()
    assert len(new.roots) >= 1
    with world.serving():
        world.install()

    want_refused(world, ReleaseError, r"^(root|targets) \d+ is offered", old)


PIECES = ("targets", "releases", "release", "channels", "channel")


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("how", ["flipped", "empty", "another's", "cut", "unsigned"])
def test_no_link_of_the_chain_may_be_changed(name: str, how: str, world: World) -> None:
    whole = world.fleet.evidence(channel="stable")
    data: bytes = getattr(whole, name)
    signature = re.search(rb'"sig": ?"([0-9a-f]+)"', data)
    changed = {
        "flipped": data.replace(b"1", b"7", 1),
        "empty": b"",
        "another's": whole.targets if name != "targets" else whole.releases,
        "cut": data[:-1],
        "unsigned": data.replace(signature[1], b"00" * 64) if signature else b"{}",
    }[how]
    assert changed != data
    kept: dict[str, Any] = {name: changed}

    want_refused(
        world,
        ReleaseError,
        ".",
        replace(whole, **kept),
        channel="stable",
    )


def test_a_root_that_follows_nothing_is_refused(world: World) -> None:
    whole = world.fleet.evidence()
    again = replace(whole, roots=[world.fleet.root.read_bytes()])

    want_refused(world, UntrustedError, "^root 1 is offered, wanted root 2$", again)


def with_a_fallback(world: World) -> None:
    """Let slot B hold another release that was confirmed once."""
    world.put(B_AT, world.fleet.releases.v2.content[:-BLOCK] + noise(BLOCK, "older"))
    world.put_flags(flags(2, 0, ok=True), flags(1, 0, ok=True))


def with_index(world: World, data: bytes | None) -> Gifts:
    """Return payloads whose indexes are ``data``, or cannot be fetched."""

    def index(payload: PayloadReference) -> bytes:
        if data is None:
            raise HostError(f"the server has no index {payload.index_sha256}: it answers 404")
        return data

    gifts = world.fleet.payloads()
    gifts.index = index  # type: ignore[method-assign]
    return gifts


class WithoutBlob(Gifts):
    """Has the indexes, and none of the bytes that they speak of."""

    def give(self, span: object, deliver: object) -> None:  # noqa: ARG002
        raise MissingError("the server answers 404")


@pytest.mark.parametrize("how", ["missing", "another's", "without-blob"])
def test_a_payload_that_is_not_there_yet_does_not_cost_the_fallback(how: str, world: World) -> None:
    """Signed and published is the release; its payload is on its way to the server."""
    with_a_fallback(world)
    gifts = with_index(world, None if how == "missing" else world.fleet.root.read_bytes())
    if how == "without-blob":
        gifts = WithoutBlob(gifts.www, gifts.release, gifts.spoil)
    before = world.disk.read_bytes()
    with world.serving() as server:
        with pytest.raises((HostError, UntrustedError)):
            world.install(gifts)
        wait_until(lambda: not server.callers)
        assert world.disk.read_bytes() == before
        assert roll_back(world).next == "B"


def test_what_was_armed_does_not_boot_while_another_is_fetched_and_can_be_armed_again(
    world: World,
) -> None:
    gifts = with_index(world, None)
    with world.serving() as server:
        world.install()
        arm(world)
        with pytest.raises(HostError, match="404"):
            world.install(gifts, attempt="attempt-2")
        wait_until(lambda: not server.callers)
        state = world.look()

        arm(world)
        again = world.look()

    assert state.next == "A"
    assert state.verified is not None
    assert state.verified.attempt == "attempt-1"
    assert again.next == "B"


@pytest.mark.case(14)
def test_evidence_of_one_release_with_the_index_of_another_is_refused(world: World) -> None:
    gifts = world.fleet.payloads()
    other = world.fleet.release(V1)
    wrong = (gifts.www / other.index_path(other.full)).read_bytes()
    gifts.index = lambda payload: wrong  # type: ignore[method-assign]  # noqa: ARG005
    with world.serving(), pytest.raises((UntrustedError, HostError)):
        world.install(gifts)

    assert world.slots().b.flags == RETIRED
    want_nothing_unsigned(world)


@pytest.mark.case(14)
def test_the_blob_of_another_release_is_refused(world: World) -> None:
    gifts = world.fleet.payloads()
    whole = gifts.blob

    def blob(payload: object) -> Gifts:
        whole(payload)  # type: ignore[arg-type]
        gifts.data = bytes(len(gifts.data))
        return gifts

    gifts.blob = blob  # type: ignore[method-assign]
    with world.serving(), pytest.raises(ReleaseError, match="have a wrong hash after"):
        world.install(gifts)

    want_nothing_unsigned(world)


# Which slot, and in what state ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (flags(1, 2), flags(0, 0)),
        (flags(2, 2), flags(1, 0, ok=True)),
        (flags(0, 0, ok=True), flags(1, 0, ok=True)),
    ],
    ids=["on-trial", "on-trial-with-a-fallback", "of-priority-0"],
)
def test_an_unconfirmed_booted_slot_lets_nothing_be_written(a: int, b: int, world: World) -> None:
    world.put_flags(a, b)

    want_refused(world, SlotStateError, r"^slot A is .*, wanted a successful slot: slot B is its")


def test_a_host_that_runs_from_no_slot_writes_nothing(world: World) -> None:
    world.host = replace(world.host, booted=1)

    want_refused(world, HostError, r"^this host runs from partition 1 of .*, which is none of its")
    with world.serving(), Writer(world.address) as writer:
        assert not writer.state().a.booted
        with pytest.raises(HostError, match="which is none of its slots"):
            writer.confirm()


@pytest.mark.case(36)
def test_an_image_that_is_larger_than_the_slot_is_refused(world: World) -> None:
    small = replace(LAYOUT[2], last=LAYOUT[2].first + 2047)
    world.put_table((*LAYOUT[:2], small))

    want_refused(world, HostError, r"^the image has \d+ bytes, slot B only 1048576$")


def test_an_unwritten_slot_cannot_be_armed(world: World) -> None:
    with world.serving(), pytest.raises(UnverifiedError, match=r"^slot B is not verified, so it"):
        arm(world)


@pytest.mark.parametrize("where", ["header", "superblock", "tree", "kernel", "another-image"])
def test_a_slot_that_is_not_any_more_what_was_verified_cannot_be_armed(
    where: str, world: World
) -> None:
    with world.serving():
        world.install()
        verity, kernel = _parts(world)
        at = {"header": 530, "superblock": verity + 64, "tree": verity + 2 * BLOCK + 9,
              "kernel": kernel + BLOCK + 5000, "another-image": 0}[where]  # fmt: skip
        if where == "another-image":
            world.put(B_AT, world.fleet.releases.v1.content)
        else:
            flip_bit(world.disk, B_AT + at)
        with pytest.raises(UnverifiedError, match=r"^slot B does not hold 1\.1\.0 any more as it"):
            arm(world)

    assert world.slots().b.flags == RETIRED


def _parts(world: World) -> tuple[int, int]:
    with open_device(world.fleet.releases.v2.image) as device:
        parts = slot.layout(device)
    return parts.verity_offset, parts.kernel_offset


def test_the_record_of_one_slot_does_not_arm_the_other(world: World) -> None:
    with world.serving():
        world.install()
    world.put_flags(flags(0, 0), flags(1, 0, ok=True))
    world.host = replace(world.host, booted=3, version=V2)

    with world.serving(), pytest.raises(UnverifiedError, match=r"^slot A is not verified"):
        arm(world)


@pytest.mark.parametrize("garbage", [b"", b"{}", b"\0" * 300, noise(200, "record")])
def test_a_record_that_cannot_be_read_is_none(garbage: bytes, world: World) -> None:
    with world.serving():
        world.install()
        (world.state / "verified.json").write_bytes(garbage)
        with pytest.raises(UnverifiedError):
            arm(world)


def test_the_record_is_gone_before_the_slot_is_written_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    real = Section.write

    def write(device: Section, buffer: memoryview, offset: int) -> None:
        seen.append((world.state / "verified.json").exists())
        real(device, buffer, offset)

    with world.serving():
        world.install()
        world.put(B_AT + 2 * BLOCK, bytes(SLOT_SIZE - 2 * BLOCK))
        monkeypatch.setattr(Section, "write", write)
        world.install()

    assert seen
    assert not any(seen)


def test_rolling_back_to_a_slot_that_was_never_confirmed_is_refused(world: World) -> None:
    with world.serving(), Writer(world.address) as writer:
        with pytest.raises(SlotStateError, match=r"^cannot roll back to slot B: it is retired"):
            writer.rollback()
        with pytest.raises(GoneError):
            writer.state()  # an error ends the conversation


# Disks that fail, and what is said of it ---------------------------------------------------------


@pytest.mark.case(38)
@pytest.mark.case(39)
@pytest.mark.parametrize("call", ["write", "flush"])
@pytest.mark.parametrize("number", range(0, 12, 2))
def test_a_disk_that_fails_once_ends_the_installation_and_the_next_one_goes_on(
    call: str, number: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(Device, call)
    left = itertools.count(number, -1)

    def failing(*words: object) -> None:
        if next(left) == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(*words)

    with world.serving():
        with monkeypatch.context() as patched:
            patched.setattr(Device, call, failing)
            with suppress(HostError):
                world.install()
        world.want_whole_boot()
        if next(left) < 0:
            assert world.look().verified is None
        world.install()
        arm(world)

    world.want_whole_boot()
    assert world.slot_b().startswith(released(world))


@pytest.mark.case(38)
def test_a_full_state_folder_leaves_the_slot_unarmed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with world.serving():
        with monkeypatch.context() as patched:
            patched.setattr(files, "replace", full)
            with pytest.raises(HostError, match=r"^cannot write .*journal: No space left"):
                world.install()
        (world.state / "journal").write_bytes(b"")
        with monkeypatch.context() as patched:
            patched.setattr(Memory, "proven", _trusting(world))
            patched.setattr(files, "replace", full)
            with pytest.raises(HostError, match=r"^cannot write .*verified.json: No space left"):
                world.install()
        with pytest.raises(UnverifiedError):
            arm(world)


def _trusting(world: World) -> Callable[..., Proven]:
    proven = Proven(release=world.fleet.release(), channel=None, root_version=1, releases_version=1)
    return lambda *_, **__: proven


@pytest.mark.case(16)
@pytest.mark.parametrize("content", [None, b"", b"  ", b"{}", b"\0" * 100])
def test_without_a_trusted_root_nothing_is_installed_and_all_else_goes_on(
    content: bytes | None, world: World
) -> None:
    root = world.folder / "root.json"
    if content is not None:
        root.write_bytes(content)
    with world.program("--root", str(root)):
        with pytest.raises((UntrustedError, HostError), match=re.escape(str(root))) as caught:
            world.install()
        assert caught.value.hint
        assert "from a source that you trust" in caught.value.hint
        assert world.look().next == "A"


@pytest.mark.case(12)
def test_a_damaged_journal_lets_nothing_be_trusted(world: World) -> None:
    with world.serving():
        world.install()
    (world.state / "journal").write_bytes(b"\0" * 50)

    with world.serving():
        with pytest.raises(HostError, match=r"is damaged$"):
            world.install(attempt="attempt-2")
        with Writer(world.address) as writer:
            assert writer.state().next == "A"
            assert writer.arm().next == "B"  # what was verified stands in a record of its own
            assert writer.disarm().next == "A"


@pytest.mark.case(12)
def test_a_damaged_journal_keeps_nobody_from_confirming_or_going_back(world: World) -> None:
    world.put(B_AT, world.fleet.releases.v2.content)
    world.put_flags(flags(1, 0, ok=True), flags(2, 2))  # B on trial
    world.host = replace(world.host, booted=3, version=V2)
    world.state.mkdir()
    (world.state / "journal").write_bytes(b"\0" * 50)

    with world.serving(), Writer(world.address) as writer:
        assert writer.confirm().b.successful
        assert writer.rollback().next == "A"
        assert writer.disarm().next == "B"


def test_every_line_about_an_attempt_names_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with world.serving():
        world.install(attempt="good-1")
        arm(world)
    world.host = replace(world.host, version=V3)
    with world.serving(), pytest.raises(RefusedError):
        world.install(attempt="bad-1")

    said = [it.getMessage() for it in caplog.records if it.name.startswith("update_agent.writer")]
    assert said == [
        "[good-1] install os 1.1.0",
        "[good-1] 1.1.0 is proven by root 1 and releases 3",
        "[good-1] slot B is retired",
        "[good-1] slot B holds 1.1.0, verified",
        "arm: slot B boots next, on trial with 3 tries left: its priority 2 is above 1",
        "[bad-1] install os 1.1.0",
        (
            "[bad-1] install: 1.1.0 is below the version that runs, 2.0.0, and no signed channel"
            " allows this downgrade (update-publish channel promote --downgrade-from makes one that"
            " does)"
        ),
    ]


def test_a_bug_is_told_and_logged_and_the_writer_lives_on(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(_: HostSlots) -> NoReturn:
        raise ZeroDivisionError

    with world.serving():
        with monkeypatch.context() as patched:
            patched.setattr(HostSlots, "state", bug)
            with pytest.raises(HostError, match=r"^the writer failed in a way that nobody expect"):
                world.look()
        assert world.look().next == "A"

    assert "ZeroDivisionError" in caplog.text
