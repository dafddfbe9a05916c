"""The power goes while a slot is written: whatever reached the medium, the next run ends right.

What is kept is kept because it hashes right, not because anybody remembers having written it. So
every beginning of what was written is tried, everything but one write (the disk said it was done
and lost it, even over a flush), writes that were torn, and random selections of them; from an empty
slot, from one with the old release, and for each kind of payload.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from tests.images import MARKER, Medium, Releases, install, medium, source_of
from update_agent.core.chunking import BLOCK
from update_agent.host.device import open_device
from update_agent.host.install import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What stood in the slot, what was written to it, and how to go on."""

    releases: Releases
    folder: Path
    before: bytes
    delta: bool
    writes: list[tuple[int, bytes]]

    def after(self, *writes: tuple[int, bytes]) -> bytes:
        """Return the medium with these writes on it."""
        content = bytearray(self.before)
        for offset, data in writes:
            content[offset : offset + len(data)] = data
        return bytes(content)

    def go_on(self, content: bytes) -> Medium:
        """Install again on what the power cut left, and hold the result."""
        path = self.folder / "slot"
        path.write_bytes(content)
        device = run(path, self.releases, delta=self.delta)
        assert path.read_bytes()[: len(self.releases.v2.content)] == self.releases.v2.content
        return device


def run(path: Path, releases: Releases, *, delta: bool) -> Medium:
    sources: list[Source] = [source_of(releases.v2.full)]
    with ExitStack() as stack:
        booted = stack.enter_context(open_device(releases.v1.image)) if delta else None
        if delta:
            sources.insert(0, source_of(releases.delta))
        device = stack.enter_context(medium(path))
        install(device, *sources, booted=booted)
        return device


@pytest.fixture(params=["empty-full", "old-full", "empty-delta", "old-delta"])
def story(request: pytest.FixtureRequest, releases: Releases, tmp_path: Path) -> Story:
    before, kind = str(request.param).split("-")
    size = len(releases.v2.content)
    content = bytes(size) if before == "empty" else releases.v1.content.ljust(size, b"\0")
    path = tmp_path / "slot"
    path.write_bytes(content)
    writes = run(path, releases, delta=kind == "delta").writes
    assert len(writes) > 5
    return Story(
        releases=releases, folder=tmp_path, before=content, delta=kind == "delta", writes=writes
    )


@pytest.mark.case(47)
@pytest.mark.case(48)
@pytest.mark.case(50)
def test_after_any_beginning_of_the_writes_the_next_run_ends_right(story: Story) -> None:
    for count in range(len(story.writes) + 1):
        content = story.after(*story.writes[:count])
        if 0 < count < len(story.writes):
            assert content.startswith(MARKER)  # it neither boots nor mounts
        device = story.go_on(content)

        if count == len(story.writes):
            assert device.writes == []  # nothing was lost, so nothing is written


@pytest.mark.case(50)
def test_when_the_disk_lost_any_one_write_the_next_run_ends_right(story: Story) -> None:
    for lost in range(len(story.writes)):
        content = story.after(*story.writes[:lost], *story.writes[lost + 1 :])
        whole = content[: len(story.releases.v2.content)] == story.releases.v2.content

        device = story.go_on(content)

        assert whole is (device.writes == [])


@pytest.mark.case(47)
@pytest.mark.case(50)
def test_after_any_torn_write_the_next_run_ends_right(story: Story) -> None:
    for number, (offset, data) in enumerate(story.writes):
        sound = story.writes[:number]
        half = len(data) // 2 // 512 * 512
        for torn in ((offset, data[:half]), (offset + half, data[half:])):
            story.go_on(story.after(*sound, torn))


@pytest.mark.case(47)
@pytest.mark.case(50)
def test_after_any_selection_of_the_writes_the_next_run_ends_right(story: Story) -> None:
    chance = Random(50)  # noqa: S311  must repeat, need not be secret
    for _ in range(15):
        some = [it for it in story.writes if chance.random() < 0.5]
        chance.shuffle(some)
        story.go_on(story.after(*some))


@pytest.mark.case(47)
@pytest.mark.case(48)
def test_cut_again_and_again_it_comes_nearer_to_its_end(story: Story) -> None:
    """Each run gets two writes further than the marker, and none is done twice for nothing."""
    content = story.before
    missing = list[int]()
    for _ in range(len(story.writes) + 2):
        device = story.go_on(content)
        missing.append(len(device.writes))
        if not device.writes:
            break
        kept = Story(
            releases=story.releases, folder=story.folder, before=content, delta=story.delta,
            writes=[],
        )  # fmt: skip
        content = kept.after(*device.writes[:3])

    assert missing[-1] == 0
    assert missing == sorted(missing, reverse=True)


def blocks(content: bytes) -> Iterator[bytes]:
    for at in range(0, len(content), BLOCK):
        yield content[at : at + BLOCK]


@pytest.mark.case(50)
def test_garbage_under_a_marker_is_overwritten(story: Story) -> None:
    """A drive that shuffled blocks about: right content at wrong places is not right."""
    chance = Random(51)  # noqa: S311  must repeat, need not be secret
    shuffled = list(blocks(story.releases.v2.content))
    chance.shuffle(shuffled)

    story.go_on(MARKER + b"".join(shuffled)[len(MARKER) :])
