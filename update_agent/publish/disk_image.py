"""``update-agent-image disk``: a disk that boots, as an image file or on a device.

The layout is in ``partition-layout/layout.toml``. Slot A is filled and successful, slot B empty,
STATE a new file system that grows to the end of the disk at the first boot. An image is held whole
before anything is overwritten; what is written is read back past every cache and judged as a slot,
and slot A gets its priority last: a disk whose making was interrupted does not boot half of a
release.
"""

import json
import os
import stat
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from update_agent.core.chunking import BLOCK
from update_agent.core.gpt import Partition
from update_agent.core.slot import BootFlags, SlotName
from update_agent.core.slot_image import ImageError
from update_agent.errors import HostError
from update_agent.host import disk as disks
from update_agent.host import slot
from update_agent.host.device import Device, Section, aligned, open_device
from update_agent.publish import whole
from update_agent.publish.cache import CACHE, alone
from update_agent.publish.debian import EPOCH
from update_agent.publish.progress import Tell, teller
from update_agent.publish.recipe import data, read_toml
from update_agent.run import run as run_program

_MIB = 2**20
_PIECE = 4 * _MIB

DEFAULT_SIZE = 6 * 1024
DEFAULT_SLOT = 1024
"""MiB of an image file, and of a slot in it."""

SELECTOR = "EFI/BOOT/BOOTX64.EFI"
"""Where firmware looks on a disk it was told nothing about (UEFI 2.10, section 3.5)."""

CONFIRMED = BootFlags(priority=1, successful=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    """The first ``size`` bytes of a file, for one partition; a slot image has its root hash."""

    file: Path
    size: int
    root_hash: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """What a disk is to hold."""

    selector: Path
    slots: Mapping[SlotName, Path]
    flags: Mapping[SlotName, BootFlags]
    slot_mib: int = DEFAULT_SLOT


def make_file(disk: Disk, output: Path, *, size_mib: int, tell: Tell) -> None:
    """Make the image file ``output``, sparse, whole or not at all. Raises HostError."""
    part = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        try:
            with part.open("xb") as file:
                file.truncate(size_mib * _MIB)
            _write(disk, part, tell, skip_zeros=True)
            part.rename(output)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise HostError(f"cannot make {output}: {error.strerror}") from error


def make_device(disk: Disk, device: Path, *, tell: Tell) -> None:
    """Overwrite a whole device, which nobody may be using. Raises HostError."""
    with open_device(device, writable=True, exclusive=True):
        pass  # refuses one that is mounted, mapped or otherwise taken
    try:
        _write(disk, device, tell, skip_zeros=False)
    except OSError as error:
        raise HostError(f"cannot make {device}: {error.strerror}") from error


def _write(disk: Disk, path: Path, tell: Tell, *, skip_zeros: bool) -> None:
    images = {name.label: _image(disk, name) for name in disk.slots}
    tell(f"partitioning {path}")
    run_program(
        ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "--wipe=always", path],
        text=_table(disk.slot_mib),
    )
    with disks.open_disk(path) as opened:
        table = disks.read_tables(opened).authoritative
        sector = disks.read_tables(opened).geometry.sector_size
    places = {it.label: (it.first_lba * sector, _bytes(it, sector)) for it in table.partitions}
    with tempfile.TemporaryDirectory(prefix="update-agent-disk-") as scratch:
        esp = _esp(disk.selector, Path(scratch), places["ESP"][1] // 1024)
        contents = {"ESP": _Content(file=esp, size=esp.stat().st_size), **images}
        with open_device(path, writable=True) as device:
            for name in SlotName:
                if name not in disk.slots:
                    _clear(device, places[name.label][0])
            for label, content in contents.items():
                _copy(content, device, places[label][0], label, skip_zeros=skip_zeros)
            tell("making STATE")
            _make_state(path, *places["STATE"])
            device.flush()
            for label, content in contents.items():
                _verify(content, device, places[label][0], label)
            for label, image in images.items():
                _judge(image, Section(device, *places[label]))
    tell("setting boot flags")
    with disks.open_disk(path, writable=True) as opened:
        disks.change_slots(opened, lambda slots: slots.with_flags(dict(disk.flags)))


def _image(disk: Disk, name: SlotName) -> _Content:
    """Return the image for a slot, held whole: nothing was overwritten yet."""
    file = disk.slots[name]
    with open_device(file) as device:
        size, root_hash = slot.layout(device).image_size, slot.root_hash(device)
        if size > disk.slot_mib * _MIB:
            raise HostError(
                f"{file} has {size / _MIB:.0f} MiB, slot {name} has {disk.slot_mib}",
                hint="make larger slots with --slot-size",
            )
        with _bar(f"check {name.label}", size) as advance:
            whole.check(device, advance)
    return _Content(file=file, size=size, root_hash=root_hash)


def _judge(image: _Content, place: Section) -> None:
    """Hold what was written as a host does, before anything may boot it."""
    first = place.read(0, BLOCK)
    try:
        slot.judge(place, first, image_size=image.size, root_hash=image.root_hash)
    except ImageError as error:
        raise HostError(
            f"{image.file} was changed while it was written to {place.path}: {error}",
            hint="make the disk again: this one does not boot",
        ) from error


def _table(slot_mib: int) -> str:
    """Return the partition table as sfdisk(8) reads it."""
    lines = ["label: gpt"]
    for partition in read_toml(data("partition-layout") / "layout.toml")["partition"]:
        label = partition["label"]
        size = slot_mib if label.startswith("ROOT-") else partition.get("size_mib")
        fields = [f"type={partition['type']}", f'name="{label}"']
        if "first_mib" in partition:
            fields.append(f"start={partition['first_mib']}MiB")
        if size:
            fields.append(f"size={size}MiB")
        lines.append(", ".join(fields))
    return "\n".join(lines) + "\n"


def _bytes(partition: Partition, sector: int) -> int:
    return (partition.last_lba - partition.first_lba + 1) * sector


def _esp(selector: Path, scratch: Path, size_kib: int) -> Path:
    """Return an EFI system partition with the selector, the same bytes every time."""
    if not selector.is_file():
        raise HostError(
            f"there is no selector {selector}", hint="make it: make -C partition-layout/selector"
        )
    esp = scratch / "esp"
    environment = {"SOURCE_DATE_EPOCH": EPOCH}
    run_program([
        "mkfs.vfat",
        "-C",
        "-F", "32",
        "-n", "ESP",
        "-i", "55504147",
        "--invariant",
        esp, str(size_kib),
    ], environment=environment)  # fmt: skip
    for folder in ("EFI", "EFI/BOOT"):
        run_program(["mmd", "-i", esp, f"::{folder}"], environment=environment)
    run_program(["mcopy", "-i", esp, selector, f"::{SELECTOR}"], environment=environment)
    return esp


def _make_state(path: Path, offset: int, size: int) -> None:
    run_program([
        "mkfs.ext4",
        "-q", "-F",
        "-L", "STATE",
        "-E", f"offset={offset},nodiscard",
        path, f"{size // 1024}k",
    ])  # fmt: skip


def _clear(device: Device, offset: int) -> None:
    """Make what a slot held before unrecognizable."""
    device.write(aligned(_MIB), offset)


def _pieces(content: _Content) -> Iterator[tuple[int, memoryview]]:
    """Yield the content piece by piece with its offsets, the last one filled up to a sector."""
    buffer = aligned(_PIECE)
    with content.file.open("rb") as file:
        offset = 0
        while got := file.readinto(buffer[: content.size - offset]):
            filled = -(-got // BLOCK) * BLOCK
            buffer[got:filled] = bytes(filled - got)
            yield offset, buffer[:filled]
            offset += got
    if offset < content.size:
        raise HostError(f"{content.file} ended at byte {offset}, wanted {content.size}")


def _copy(content: _Content, device: Device, at: int, label: str, *, skip_zeros: bool) -> None:
    with _bar(f"write {label}", content.size) as advance:
        for offset, piece in _pieces(content):
            if not (skip_zeros and not any(piece)):
                device.write(piece, at + offset)
            advance(len(piece))


def _verify(content: _Content, device: Device, at: int, label: str) -> None:
    found = aligned(_PIECE)
    with _bar(f"verify {label}", content.size) as advance:
        for offset, piece in _pieces(content):
            device.read_into(found[: len(piece)], at + offset)
            if found[: len(piece)] != piece:
                raise HostError(
                    f"{device.path} does not hold what was written to it ({label})",
                    hint="replace the disk",
                )
            advance(len(piece))


@contextmanager
def _bar(step: str, size: int) -> Iterator[Callable[[int], object]]:
    """Show a bar for a step of ``size`` bytes, and yield what moves it on."""
    with tqdm(desc=step, total=size, unit="B", unit_scale=True, disable=None) as bar:
        yield bar.update


# The verb ----------------------------------------------------------------------------------------


def add_options(verb: ArgumentParser) -> None:
    """Declare the options of ``disk``."""
    verb.add_argument("--image", type=Path, required=True, metavar="IMAGE",
                      help="the slot image for slot A")  # fmt: skip
    verb.add_argument("--output", type=Path, required=True, metavar="FILE-OR-DEVICE",
                      help="an image file to make, or a device to overwrite")  # fmt: skip
    verb.add_argument("--size", type=int, default=DEFAULT_SIZE, metavar="MIB",
                      help="size of an image file (default: %(default)s)")  # fmt: skip
    verb.add_argument("--slot-size", type=int, default=DEFAULT_SLOT, metavar="MIB",
                      help="size of each slot: room for later releases "
                      "(default: %(default)s)")  # fmt: skip
    verb.add_argument("--selector", type=Path, metavar="FILE",
                      help="gptprio.efi (default: made from "
                      "partition-layout/selector)")  # fmt: skip
    verb.add_argument("--yes", action="store_true", help="overwrite a device without asking")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Make a disk that boots."""
    tell = teller()
    selector = options.selector or built_selector(tell)
    disk = Disk(
        selector=selector,
        slots={SlotName.A: options.image},
        flags={SlotName.A: CONFIRMED, SlotName.B: BootFlags()},
        slot_mib=options.slot_size,
    )
    if options.output.exists() and stat.S_ISBLK(options.output.stat().st_mode):
        _ask(options.output, yes=options.yes)
        make_device(disk, options.output, tell=tell)
    elif Path("/dev") in options.output.absolute().parents:
        raise HostError(f"there is no device {options.output}")
    else:
        make_file(disk, options.output, size_mib=options.size, tell=tell)
    if options.json:
        print(json.dumps({"disk": str(options.output), "slots": {"A": str(options.image)}}))
    else:
        print(f"{options.output}: boots {options.image} from slot A")
    return 0


def _ask(device: Path, *, yes: bool) -> None:
    """Let whoever runs us type the device's name, unless he said --yes.

    The question goes to standard error: output may be somebody's file. Ctrl-D is a no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise HostError(f"{device} would be overwritten", hint="say --yes if it should be")
    question = f"everything on {device} will be lost; type its name to go on: "
    print(question, end="", file=sys.stderr, flush=True)
    try:
        answer = input()
    except EOFError:
        print(file=sys.stderr)
        answer = ""
    if answer != str(device):
        raise HostError(f"{device} was left alone")


def built_selector(tell: Tell, cache: Path = CACHE) -> Path:
    """Return gptprio.efi, made in ``cache`` if it is not up to date. Raises HostError."""
    out = cache / "selector"
    with alone(cache, tell):
        run_program(["make", "-C", data("partition-layout") / "selector", f"OUT={out}"])
    return out / "gptprio.efi"
