"""What a disk's partition table and boot flags say, for people and as JSON.

Looks and never writes. Knows how a disk is shown; what the flags mean is in ``core/slot.py``.
"""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from update_agent import cli
from update_agent.core import slot
from update_agent.core.gpt import Geometry, Mbr, Table, TableError, Tables
from update_agent.core.slot import SlotName, Slots
from update_agent.ctl.main import PROGRAM
from update_agent.errors import HostError
from update_agent.host import disk as disks
from update_agent.host import udev

_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A disk as it stands: its tables, and its slots or the reason why they are not known."""

    disk: Path
    tables: Tables
    slots: Slots | HostError
    booted: SlotName | None


def add_options(verb: ArgumentParser) -> None:
    """Add what ``show`` needs to know."""
    add_disk_options(verb, required=False)
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=show)


def add_disk_options(verb: ArgumentParser, *, required: bool) -> None:
    """Add the options that name a disk."""
    verb.add_argument(
        "--disk", type=Path, metavar="FILE-OR-DEVICE", required=required,
        help="a whole disk or an image of one"
        + ("" if required else " (default: the disk this host was booted from)"),
    )  # fmt: skip
    verb.add_argument(
        "--sector-size", type=int, choices=(512, 4096), metavar="512|4096",
        help="sector size of an image file (default: found by its partition table)",
    )  # fmt: skip


def show(options: Namespace) -> int:
    """Print the slots of a disk. Return an error's exit code when they can't be used."""
    view = look(options.disk, options.sector_size)
    print(json.dumps(as_json(view), indent=2) if options.json else as_text(view))
    if isinstance(view.slots, HostError):
        return cli.complain(PROGRAM, view.slots)
    return 0


def look(path: Path | None, sector_size: int | None = None) -> View:
    """Return how the disk at ``path`` stands; None means the disk of the booted slot."""
    booted = booted_on(path)
    path = path or _known(booted).disk
    with disks.open_disk(path, sector_size=sector_size) as disk:
        tables = disks.read_tables(disk)
    try:
        slots: Slots | HostError = slot.from_table(tables.authoritative)
    except HostError as error:
        slots = error
    name = None
    if isinstance(slots, Slots) and isinstance(booted, udev.BootedPartition):
        name = next((it.name for it in slots if it.number == booted.number), None)
    return View(disk=path, tables=tables, slots=slots, booted=name)


def booted_on(path: Path | None) -> udev.BootedPartition | HostError:
    """Return the booted partition if it lies on ``path``, or on any disk for None, or why not."""
    try:
        booted = udev.booted_partition()
    except HostError as error:
        return error
    if path is None or (path.exists() and path.samefile(booted.disk)):
        return booted
    return HostError(f"{path} is not the disk this host was booted from")


def _known(booted: udev.BootedPartition | HostError) -> udev.BootedPartition:
    if isinstance(booted, HostError):
        raise booted
    return booted


# For programs ------------------------------------------------------------------------------------


def as_json(view: View) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    known = isinstance(view.slots, Slots)
    chosen = slot.choose(view.slots) if isinstance(view.slots, Slots) else None
    return {
        "disk": str(view.disk),
        "sector_size": view.tables.geometry.sector_size,
        "sectors": view.tables.geometry.sectors,
        "tables": {
            "sound": view.tables.sound,
            "primary": _copy_as_json(view.tables.primary),
            "backup": _copy_as_json(view.tables.backup),
            "backup_at_end": view.tables.backup_at_end,
            "mbr": str(view.tables.mbr),
        },
        "slots": slots_as_json(view.slots) if isinstance(view.slots, Slots) else None,
        "booted": view.booted,
        "next": chosen.name if chosen else None,
        "why": slot.explain(view.slots) if isinstance(view.slots, Slots) else None,
        "error": None if known else str(view.slots),
    }


def slots_as_json(slots: Slots) -> list[dict[str, Any]]:
    """Return the flags of both slots."""
    return [
        {
            "slot": it.name,
            "partition": it.number,
            "priority": it.flags.priority,
            "tries": it.flags.tries,
            "successful": it.flags.successful,
            "state": it.state,
        }
        for it in slots
    ]


def _copy_as_json(copy: Table | TableError) -> dict[str, Any]:
    if isinstance(copy, Table):
        return {"state": "good", "lba": copy.header.lba, "entries_lba": copy.header.entries_lba}
    return {
        "state": str(copy.damage),
        "field": copy.field,
        "found": copy.found,
        "wanted": copy.wanted,
    }


# For people --------------------------------------------------------------------------------------


def as_text(view: View) -> str:
    """Return what is printed for people."""
    geometry = view.tables.geometry
    lines = [
        f"{view.disk}: {_size(geometry)}, {geometry.sector_size}-byte sectors",
        f"  primary table  {_copy_as_text(view.tables.primary)}",
        f"  backup table   {_copy_as_text(view.tables.backup)}{_differs(view.tables)}",
        f"  MBR            {_MBR[view.tables.mbr]}",
    ]
    if isinstance(view.slots, Slots):
        lines += ["", *slot_lines(view.slots, view.booted), "", slot.explain(view.slots)]
    return "\n".join(lines)


_MBR = {
    Mbr.PROTECTIVE: "protective",
    Mbr.HYBRID: "hybrid: other systems may see other partitions",
    Mbr.MISSING: "missing: firmware may not see this table; 'gdisk' writes a new one",
}


def slot_lines(slots: Slots, booted: SlotName | None) -> list[str]:
    """Return a small table of the slots, the booted one marked."""
    lines = ["  slot  partition  priority  tries  successful  state"]
    lines += [
        f"  {it.name}{'*' if it.name is booted else ' '}    {it.number:<9}  "
        f"{it.flags.priority:<8}  {it.flags.tries:<5}  "
        f"{'yes' if it.flags.successful else 'no':<10}  {it.state}"
        for it in slots
    ]
    return lines if booted is None else [*lines, "  (* booted now)"]


def _size(geometry: Geometry) -> str:
    size = geometry.sectors * geometry.sector_size
    return f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / 2**20:.1f} MiB"


def _copy_as_text(copy: Table | TableError) -> str:
    if isinstance(copy, Table):
        return f"good, header at LBA {copy.header.lba}, entries at {copy.header.entries_lba}"
    return f"{copy.damage}: {copy.field} is {copy.found}, wanted {copy.wanted}"


def _differs(tables: Tables) -> str:
    if not (isinstance(tables.primary, Table) and isinstance(tables.backup, Table)):
        return ""
    if not tables.primary.says_the_same_as(tables.backup):
        return "; differs from the primary, which counts"
    return "" if tables.backup_at_end else "; not at the end of the disk, which has grown"
