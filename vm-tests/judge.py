"""What must hold of a host's disk, and of a group of hosts after all that went wrong.

A disk is read as the power left it, and its slots are held against the images that were signed,
byte by byte. A complaint is a sentence; none is what is wanted.
"""

import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from witness import NEVER, Away, Seen, most_at_once

from tests.disks import tool
from update_agent.core import slot as flags
from update_agent.core.document import line
from update_agent.core.gpt import Table, Tables
from update_agent.core.slot import Slot
from update_agent.host.disk import open_disk, read_tables

_PIECE = 1 << 20

Images = Mapping[str, Path]
"""What was signed, by version."""

# A disk -------------------------------------------------------------------------------------------


@contextmanager
def raw(layer: Path, folder: Path) -> Iterator[Path]:
    """Yield the disk that a machine without power left behind, as a file."""
    disk = folder / "cut.raw"
    convert = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(layer)]
    try:
        subprocess.run([*convert, str(disk)], check=True)
        yield disk
    finally:
        disk.unlink(missing_ok=True)


def tables_of(disk: Path) -> Tables:
    with open_disk(disk) as opened:
        return read_tables(opened)


def candidates(disk: Path, table: Table, images: Images) -> list[tuple[Slot, str | None]]:
    """Return the slots that may boot, the next one first, with the signed release in each."""
    places = {it.label: it.first_lba * 512 for it in table.partitions}
    slots = [it for it in flags.attempts(flags.from_table(table)) if it.flags.candidate]
    return [(it, _release_at(disk, places[it.name.label], images)) for it in slots]


def judged(layer: Path, images: Images, folder: Path) -> tuple[Slot, str]:
    """Return the slot that boots next and its release; hold that all that may boot is whole."""
    with raw(layer, folder) as disk:
        found = candidates(disk, tables_of(disk).authoritative, images)
    assert found
    assert None not in {version for _, version in found}, f"not signed, and may boot: {found}"
    slot, version = found[0]
    return slot, str(version)


def _release_at(disk: Path, begin: int, images: Images) -> str | None:
    """Return which signed release the slot that begins at this byte holds, every byte of it."""
    return next((it for it, image in images.items() if _same(image, disk, begin)), None)


def _same(image: Path, disk: Path, begin: int) -> bool:
    with image.open("rb") as wanted, disk.open("rb") as found:
        found.seek(begin)
        while piece := wanted.read(_PIECE):
            if found.read(len(piece)) != piece:
                return False
    return True


# What is wrong with it ----------------------------------------------------------------------------


def content_complaints(disk: Path, wanted: str, images: Images) -> Iterator[str]:
    """Tell which slot that may boot holds no signed release, and whether another boots next."""
    found = candidates(disk, tables_of(disk).authoritative, images)
    for slot, version in found:
        if version is None:
            yield f"slot {slot.name} may boot, and holds no whole signed release"
    if not found or found[0][1] not in (wanted, None):
        yield f"{found[0][1] if found else 'nothing'} boots next, wanted {wanted}"


def flag_complaints(disk: Path) -> Iterator[str]:
    """Tell what is odd about the table and its flags, after updates that all came to an end."""
    tables = tables_of(disk)
    if not tables.sound:
        yield f"the copies of the partition table are not sound: {tables}"
    slots = flags.from_table(tables.authoritative)
    booted = flags.choose(slots)
    if booted is None or not booted.flags.successful:
        yield f"no confirmed slot boots next: {slots}"
        return
    other = slots[booted.name.other]
    if not (other.flags == flags.RETIRED or other.flags.successful):
        yield f"slot {other.name} is neither retired nor a fallback: {other.flags}"
    for it in slots:
        said = [int(_cgpt(disk, it.number, option)) for option in ("-P", "-T", "-S")]
        if said != [it.flags.priority, it.flags.tries, int(it.flags.successful)]:
            yield f"cgpt says of slot {it.name} {said}, and we say {it.flags}"


def _cgpt(disk: Path, number: int, option: str) -> str:
    return tool("cgpt", "show", "-i", str(number), option, disk).strip()


# What hosts and the server say --------------------------------------------------------------------

Story = Mapping[str, tuple[str, ...]]
"""Attempts by their id: from, to, outcome and why."""


def told_by_host(history: Iterable[Mapping[str, Any]]) -> Story:
    """Return the attempts of ``update-agentctl history --json``."""
    return {
        it["attempt"]: (it["from"], it["to"], it["outcome"], line(it["why"] or ""))
        for it in history
    }


def told_by_server(attempts: Iterable[Mapping[str, Any]]) -> Story:
    """Return the attempts of ``/v1/hosts/HOST``."""
    return {
        it["attempt"]: (it["running"], it["version"], it["outcome"], it["why"]) for it in attempts
    }


def story_complaints(host: Story, server: Story) -> Iterator[str]:
    """Tell where the two tell another story."""
    for attempt in sorted(host.keys() | server.keys()):
        ours, theirs = host.get(attempt, ()), server.get(attempt, ())
        if ours != theirs:
            said = f"the host says {ours or 'nothing'}, the server {theirs or 'nothing'}"
            yield f"of attempt {attempt} {said}"


def refused_complaints(stories: Iterable[Story]) -> Iterator[str]:
    """Tell where a release was refused: all are signed, and being garbled is no fault of theirs."""
    for story in stories:
        for attempt, (_, version, outcome, why) in story.items():
            if outcome == "refused":
                yield f"{version} was refused in attempt {attempt}: {why}"


def bad_complaints(stories: Iterable[Story], seen: Iterable[Seen], bad: set[str]) -> Iterator[str]:
    """Tell where a bad release was confirmed, by what hosts say and by what was seen of them."""
    for story in stories:
        for attempt, (_, version, outcome, _) in story.items():
            if version in bad and outcome == "confirmed":
                yield f"the bad {version} was confirmed in attempt {attempt}"
    for it in seen:
        if it.what == "confirmed" and it.version in bad:
            yield f"{it.host} confirmed the bad {it.version}"


# What was seen ------------------------------------------------------------------------------------


def away_complaints(aways: Iterable[Away], slots: int) -> Iterator[str]:
    """Tell whether more hosts were away at once than there are reboot slots, or one still is."""
    known = list(aways)
    most = most_at_once(known)
    if len(most) > slots:
        yield f"{len(most)} were away at once: {most}"
    for it in known:
        if it.ended == NEVER:
            yield f"{it.host} never came back: {it}"


def reset_complaints(seen: Iterable[Seen], bad: set[str]) -> Iterator[str]:
    """Tell which host reset or panicked, though nothing was wrong with its release."""
    for it in seen:
        if it.what in ("reset", "panic") and it.version not in bad:
            yield f"{it.host}: a {it.what} that nobody asked for, running {it.version}"
