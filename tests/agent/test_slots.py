"""What the daemon makes of an installation: of its progress, and of servers that send nonsense."""

import threading
from collections.abc import Iterator

import pytest

from tests.hosts import V1, Fleet, World, fleet, releases, world
from tests.web import Web
from update_agent.agent.ports import Installed, Progress
from update_agent.agent.slots import WriterSlots, _untried, _Watcher
from update_agent.core import slot, wire
from update_agent.core.record import Attempt
from update_agent.core.settings import Settings, Update
from update_agent.core.slot import BootFlags, Slot, SlotName, Slots
from update_agent.errors import HostError
from update_agent.host.http import Limits, Network
from update_agent.host.offer import Offer

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


@pytest.mark.case(34)
@pytest.mark.parametrize(
    "end", ["timestamp.json", "snapshot.json", ".release.json", ".index", ".blob"]
)
def test_what_was_garbled_on_its_way_is_no_fault_of_the_release(
    end: str, world: World, web: Web
) -> None:
    for path in named(web, end):
        data = web.files[path]
        web.files[path] = bytes([data[0] ^ 1]) + data[1:]

    with pytest.raises(HostError):  # and not ReleaseError, for which a host avoids a release
        installed(world, web)
