"""What the daemon makes of an installation: of its progress, and of servers that send nonsense."""

import threading
from collections.abc import Iterator

import pytest

from tests.hosts import V1, Fleet, Watching, World, fleet, releases, world
from tests.web import Altered, Web
from update_agent.agent.ports import Installed, Progress
from update_agent.agent.slots import WriterSlots, _Payloads, _untried, _Watcher
from update_agent.core import slot, wire
from update_agent.core.record import Attempt
from update_agent.core.settings import Settings, Update
from update_agent.core.slot import BootFlags, Slot, SlotName, Slots
from update_agent.errors import HostError
from update_agent.host.http import Limits, Network, StatusError
from update_agent.host.offer import Offer
from update_agent.host.writer import Writer

__all__ = ["fleet", "releases", "world"]


@pytest.mark.parametrize(
    ("step", "writers", "networks", "wanted"),
    [
        pytest.param("write", None, False, None, id="nothing"),
        pytest.param("write", "the host's work", False, "the host's work", id="the-writers-limit"),
        pytest.param("write", None, True, "network.rate", id="the-networks"),
        pytest.param("write", "limits.ceiling", True, "limits.ceiling", id="both"),
        pytest.param("read back", None, True, None, id="nothing-is-fetched-any-more"),
    ],
)
def test_which_limit_holds_an_installation_back_is_shown(
    step: str, writers: str | None, wanted: str | None, *, networks: bool
) -> None:
    shown: list[Progress] = []
    network = Network(Limits(rate=1000))
    if networks:
        over = threading.Event()
        over.set()
        network.throttle(10_000, over)
    watcher = _Watcher(shown.append, threading.Event(), network)

    watcher.show(wire.Progress(step=step, done=1, size=2, throttled_by=writers))

    assert [it.throttled_by for it in shown] == [wanted]


# Which slot was tried ----------------------------------------------------------------------------


def shown(name: SlotName, flags: BootFlags, *, booted: bool) -> wire.SlotState:
    return wire.SlotState(
        slot=name, partition=2, size=4096, booted=booted, priority=flags.priority,
        tries=flags.tries, successful=flags.successful, state="", unfinished=False,
    )  # fmt: skip


def untried(slots: Slots) -> bool:
    a, b = (shown(it.name, it.flags, booted=it.name is SlotName.A) for it in slots)
    return _untried(b, a)


def test_flags_tell_that_a_slot_was_armed_until_somebody_disarms_it() -> None:
    """What each verb and each boot makes of the flags, from the first byte to the last boot."""
    installed = Slots(
        a=Slot(name=SlotName.A, number=2, flags=BootFlags(priority=1, successful=True)),
        b=Slot(name=SlotName.B, number=3),
    )
    armed = slot.arm(installed, SlotName.B)
    started = armed
    assert untried(installed)
    assert not untried(armed)  # though never started: it would be next, so it was skipped
    assert untried(slot.rollback(armed, SlotName.A))  # disarmed
    for _ in range(3):
        _, started = slot.boot(started)
        assert not untried(started)
    assert untried(slot.rollback(started, SlotName.A))  # by its deadline: the record knows better
    confirmed = slot.confirm(slot.arm(installed, SlotName.B), SlotName.B)
    assert not untried(confirmed)


# Servers -----------------------------------------------------------------------------------------


@pytest.fixture
def web(fleet: Fleet) -> Iterator[Web]:
    www = fleet.folder / "www"
    files = {
        f"/{path.relative_to(www)}": path.read_bytes() for path in www.rglob("*") if path.is_file()
    }
    with Web(files) as server:
        yield server


def installed(world: World, web: Web) -> Installed:
    """Install as the daemon does when it was offered the new release before."""
    update = Update(repository=(web.url(""),), root=str(world.fleet.root))
    slots = WriterSlots(
        Settings(update=update), lambda: world.now, world.folder / "trust", world.address
    )
    release = world.fleet.release()
    attempt = Attempt(
        id="1" * 32, running=V1, version=release.version, root_hash=release.root_hash,
        began=world.now,
    )  # fmt: skip
    offer = Offer(release=release, wait=None, place=None, time=world.now)
    with world.serving():
        return slots.install(offer, attempt, lambda _: None, threading.Event())


def named(web: Web, end: str) -> list[str]:
    found = [path for path in web.files if path.endswith(end)]
    assert found
    return found


def test_an_installation_takes_what_servers_send(world: World, web: Web) -> None:
    assert installed(world, web).fetched > 0


def of_the_delta(world: World, end: str) -> str:
    """Return the path of the delta's index or blob."""
    release = world.fleet.release()
    delta = next(it for it in release.payloads if it.source)
    return "/" + (release.index_path(delta) if end == "index" else release.blob_path(delta))


def garbled(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


@pytest.mark.parametrize("how", ["no-index", "wrong-index", "longer-index", "wrong-blob"])
def test_a_delta_that_servers_do_not_have_gives_way_to_the_full_payload(
    how: str, world: World, web: Web
) -> None:
    path = of_the_delta(world, how.partition("-")[2])
    data = web.files.pop(path)
    if how != "no-index":
        web.files[path] = data + b"x" if how == "longer-index" else garbled(data)

    assert installed(world, web).fetched > 0
    assert world.slot_b().startswith(world.fleet.releases.v2.content)


@pytest.mark.parametrize("there", [False, True], ids=["missing", "cut"])
def test_a_deltas_blob_that_servers_do_not_have_gives_way_to_the_full_payload(
    *, there: bool, world: World, web: Web
) -> None:
    path = of_the_delta(world, "blob")
    data = web.files.pop(path)
    if there:
        web.files[path] = data[:1000]
    release = world.fleet.release()
    payloads = _Payloads(release, Settings(update=Update(repository=(web.url(""),))))
    payloads.network = Network(Limits(pause=0.0))
    with world.serving(), Writer(world.address) as writer:
        done = writer.install(
            release, world.fleet.evidence(), payloads, attempt="a", watcher=Watching()
        )

    assert done.payload == release.full.index_sha256
    assert world.slot_b().startswith(world.fleet.releases.v2.content)


def test_a_server_in_trouble_is_no_reason_to_fetch_the_full_payload(world: World, web: Web) -> None:
    """What does not answer now may answer soon; the delta is a fraction of the other."""
    release = world.fleet.release()
    web.always = Altered(status=503)
    payloads = _Payloads(release, Settings(update=Update(repository=(web.url(""),))))
    with world.serving(), pytest.raises(StatusError, match="answers 503"):
        Writer(world.address).install(
            release, world.fleet.evidence(), payloads, attempt="a", watcher=Watching()
        )

    assert {it.path for it in web.requests} == {of_the_delta(world, "index")}


def test_one_server_that_lacks_the_delta_hides_no_other_one_that_has_it(
    world: World, web: Web
) -> None:
    release = world.fleet.release()
    with Web({}) as empty:
        urls = (empty.url(""), web.url(""))
        payloads = _Payloads(release, Settings(update=Update(repository=urls)))
        payloads.network = Network(Limits(pause=0.0))
        with world.serving(), Writer(world.address) as writer:
            done = writer.install(
                release, world.fleet.evidence(), payloads, attempt="a", watcher=Watching()
            )

    assert done.payload == next(it for it in release.payloads if it.source).index_sha256


@pytest.mark.case(34)
@pytest.mark.parametrize(
    "end", ["timestamp.json", "snapshot.json", ".release.json", ".index", ".blob"]
)
def test_what_was_garbled_on_its_way_is_no_fault_of_the_release(
    end: str, world: World, web: Web
) -> None:
    for path in named(web, end):
        web.files[path] = garbled(web.files[path])

    with pytest.raises(HostError):  # and not ReleaseError, for which a host avoids a release
        installed(world, web)
