"""Limits, through the writer's socket: whose they are, what they hold for, and what is said."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.hosts import A_AT, B_AT, SLOT_SIZE, Watching, World
from tests.images import BLOCK
from update_agent.core.settings import Bytes, Limits
from update_agent.errors import HostError
from update_agent.host import cgroup
from update_agent.host.device import Device
from update_agent.host.governor import Governor


@pytest.fixture
def unpaced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Keep what is read and written of slots without a turn: (what, where on the disk, bytes)."""
    found: list[tuple[str, int, int]] = []
    mine = threading.local()
    turn, read, write = Governor.turn, Device.read_into, Device.write

    @contextmanager
    def noted_turn(self: Governor, wanted: int) -> Iterator[int]:
        with turn(self, wanted) as size:
            mine.turn = size
            try:
                yield size
            finally:
                mine.turn = 0

    def note(what: str, buffer: memoryview, offset: int) -> None:
        in_a_slot = A_AT <= offset < A_AT + SLOT_SIZE or B_AT <= offset < B_AT + SLOT_SIZE
        if in_a_slot and len(buffer) > getattr(mine, "turn", 0):
            found.append((what, offset, len(buffer)))

    def noted_read(self: Device, buffer: memoryview, offset: int) -> int:
        note("read", buffer, offset)
        return read(self, buffer, offset)

    def noted_write(self: Device, buffer: memoryview, offset: int) -> None:
        note("write", buffer, offset)
        write(self, buffer, offset)

    monkeypatch.setattr(Governor, "turn", noted_turn)
    monkeypatch.setattr(Device, "read_into", noted_read)
    monkeypatch.setattr(Device, "write", noted_write)
    return found


@pytest.mark.parametrize("delta", [True, False], ids=["delta", "full"])
def test_no_byte_of_a_slot_is_read_or_written_but_in_its_turn(
    world: World, unpaced: list[tuple[str, int, int]], *, delta: bool
) -> None:
    """The look at both slots, copies, writes, the read-back, and the judgement of the image."""
    if not delta:
        world.put(A_AT + 600, b"x")  # the booted slot's header
    with world.serving():
        done = world.install()
        assert unpaced == []
        world.install(attempt="attempt-2")

    assert done.written > 2_000_000
    assert unpaced == []


def test_that_is_worth_something(world: World, unpaced: list[tuple[str, int, int]]) -> None:
    """Looking at slots is not part of an installation, and seen as such."""
    with world.serving():
        world.look()

    assert ("read", A_AT, BLOCK) in unpaced


@pytest.mark.parametrize(
    ("limits", "waited", "wanted"),
    [
        pytest.param({"ceiling": Bytes(8_000_000)}, 0.0, "limits.ceiling", id="the-ceiling"),
        pytest.param({"floor": Bytes(8_000_000)}, 1000.0, "the host's work", id="the-work"),
    ],
)
def test_what_holds_an_installation_back_is_said(
    limits: dict[str, Bytes],
    waited: float,
    wanted: str,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cgroup.Waits, "since_last", lambda _: waited)
    world.limits = Limits(**limits)
    watching = Watching()
    with world.serving():
        world.install(watching=watching)

    said = {it.throttled_by for it in watching.shown}
    assert wanted in said
    assert said <= {wanted, None}


def test_settings_that_cannot_be_read_hold_for_installations_and_for_nothing_else(
    world: World,
) -> None:
    with world.program() as process:
        assert world.look().next == "A"
        (world.folder / "settings" / "limits.toml").write_text('[limits]\nfloor = "much"\n')
        with pytest.raises(HostError, match=r"limits\.toml: limits\.floor: 'much' is no amount"):
            world.install()
        assert world.look().next == "A"
        process.kill()
