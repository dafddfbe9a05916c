"""A virtual machine that is firmware, the selector and two tiny kernels; nothing else is in it.

``lay_out`` makes a disk with the selector on its ESP and a kernel in each slot that says who it is.
``Machine`` switches it on and reads its console. Whatever is waited for is an event, with a limit.
"""

import functools
import os
import re
import selectors
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.disks import ESP, ROOT_A, ROOT_B, STATE, Entry, MemoryDisk, healthy, tool
from tests.host.recorded import Flush, Write
from tests.selector.native import HERE
from update_agent.core import slot
from update_agent.core.gpt import Geometry, Tables
from update_agent.core.slot import BootFlags, SlotName, Slots
from update_agent.core.slot_image import HEADER_OFFSET, Kernel, Layout
from update_agent.host.disk import open_disk, read_tables

SOURCE = HERE.parents[1] / "partition-layout/selector"
FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")

SECURE_FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
SECURE_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd")
"""Secure Boot is on, and trusts a key whose secret half comes with the package."""

_SNAKEOIL = Path("/usr/share/ovmf/PkKek-1-snakeoil")
_SNAKEOIL_PASSWORD = "snakeoil"  # noqa: S105  in the package's documentation

BLOCK = 4096
MIB = 2**20

LIMIT = 240.0
"""Seconds that a boot may take on a machine that is busy with other things."""

PROBE_LIMIT = 15.0
"""Seconds that the firmware may take to come up in KVM before it counts as hanging."""

SLOT_SIZE = 2 * MIB

_PLAN = b"UA-PLAN:s"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


# What is built -----------------------------------------------------------------------------------


@functools.cache
def selector(*defines: str) -> Path:
    """Return gptprio.efi, as it is installed or built with macros for tests."""
    name = "-".join(re.sub(r"\W", "", it) for it in defines) or "plain"
    out = HERE / "build" / name
    tool("make", "--silent", "-C", SOURCE, f"OUT={out}", f"DEFINES={' '.join(defines)}")
    return out / "gptprio.efi"


def selector_that_stops(before: int, folder: Path) -> Path:
    """Return a selector that stands still before the operation of that number on its disk."""
    built = selector("-DSTOP_FOR_TESTS").read_bytes()
    mark = b"STOP-AT:"
    at = built.index(mark) + len(mark)
    path = folder / f"stops-before-{before}.efi"
    path.write_bytes(built[:at] + bytes([before]) + built[at + 1 :])
    return path


@functools.cache
def _kernel() -> bytes:
    tool("make", "--silent", "-C", HERE, f"OUT={HERE / 'build'}", HERE / "build/kernel.efi")
    return (HERE / "build/kernel.efi").read_bytes()


def kernel(name: str, then: str = "s") -> bytes:
    """Return a kernel that says its name, then switches off (s), hangs (h), returns (r)."""
    plan = _PLAN[:-1] + then.encode() + name.encode()
    built = _kernel()
    at = built.index(_PLAN)
    assert len(plan) < 40
    return built[:at] + plan + built[at + len(plan) :]


def slot_image(content: bytes) -> bytes:
    """Return a slot image whose kernel is ``content`` and whose root is two blocks of nothing."""
    region = BLOCK + -(-len(content) // BLOCK) * BLOCK
    layout = Layout(
        fs_size=2 * BLOCK,
        verity_offset=2 * BLOCK,
        kernel_offset=3 * BLOCK,
        kernel_region_size=region,
        image_size=3 * BLOCK + region,
    )
    described = Kernel(size=len(content), digest=sha256(content).digest()).encode()
    head = bytes(HEADER_OFFSET) + layout.encode()
    return (head.ljust(3 * BLOCK, b"\0") + described + content).ljust(layout.image_size, b"\0")


@dataclass(frozen=True)
class BootDisk:
    """An image file of a disk that boots."""

    path: Path
    geometry: Geometry
    entries: Mapping[str, Entry]

    def tables(self) -> Tables:
        with open_disk(self.path, sector_size=self.geometry.sector_size) as disk:
            return read_tables(disk)

    def slots(self) -> Slots:
        return slot.from_table(self.tables().authoritative)

    def offset(self, label: str) -> int:
        """Return where a partition begins, in bytes."""
        return self.entries[label].first * self.geometry.sector_size

    def put(self, at: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(at)
            file.write(data)

    def flip(self, at: int) -> None:
        """Flip a bit of a byte."""
        with self.path.open("r+b") as file:
            file.seek(at)
            old = file.read(1)
            file.seek(at)
            file.write(bytes([old[0] ^ 1]))

    def put_slot(self, name: SlotName, image: bytes) -> None:
        self.put(self.offset(name.label), image)

    def copy(self, path: Path) -> "BootDisk":
        shutil.copy(self.path, path)
        return replace(self, path=path)

    def memory(self) -> MemoryDisk:
        """Return the disk's table areas, to be changed and stored again by ``rewrite``."""
        size = self.geometry.sector_size
        disk = MemoryDisk(self.geometry)
        ends = [(0, 128), (self.geometry.sectors - 64, 64)]
        with self.path.open("rb") as file:
            for first, count in ends:
                for lba in range(first, first + count):
                    file.seek(lba * size)
                    disk.sectors[lba] = file.read(size)
        return disk

    def rewrite(self, disk: MemoryDisk) -> None:
        for lba, sector in disk.sectors.items():
            self.put(lba * self.geometry.sector_size, sector)


def lay_out(
    path: Path,
    flags: tuple[BootFlags, BootFlags],
    kernels: tuple[bytes, bytes] | None = None,
    *,
    sector_size: int = 512,
    slot_size: int = SLOT_SIZE,
    program: Path | None = None,
) -> BootDisk:
    """Make a disk whose ESP holds the selector, and whose slots hold the kernels."""
    sizes = {"ESP": 4 * MIB, "ROOT-A": slot_size, "ROOT-B": slot_size, "STATE": MIB}
    entries: dict[str, Entry] = {}
    at = MIB
    for entry in (ESP, ROOT_A, ROOT_B, STATE):
        end = at + sizes[entry.label]
        entries[entry.label] = replace(entry, first=at // sector_size, last=end // sector_size - 1)
        at = end
    for label, it in zip(("ROOT-A", "ROOT-B"), flags, strict=True):
        entries[label] = replace(entries[label], attributes=it.merged_into(0))
    sectors = (at + MIB) // sector_size
    memory = healthy(sector_size, tuple(entries.values()), sectors=sectors)
    disk = BootDisk(memory.save(path), memory.geometry, entries)
    put_esp(disk, program or selector())
    images = kernels or (kernel("one"), kernel("two"))
    for name, content in zip(SlotName, images, strict=True):
        disk.put_slot(name, slot_image(content))
    return disk


def put_esp(disk: BootDisk, program: Path) -> None:
    """Make the ESP's file system with mtools, in the image itself."""
    esp = disk.entries["ESP"]
    size = disk.geometry.sector_size
    total = esp.last - esp.first + 1
    image = f"{disk.path}@@{disk.offset('ESP')}"
    tool("mformat", "-i", image, "-T", str(total), "-M", str(size), "-h", "2", "-s", "32", "::")
    tool("mmd", "-i", image, "::/EFI", "::/EFI/BOOT")
    tool("mcopy", "-i", image, program, "::/EFI/BOOT/BOOTX64.EFI")


def signed(program: Path | bytes, folder: Path) -> Path:
    """Return a program, signed with the key that the secure firmware trusts."""
    plain, path = folder / "unsigned.efi", folder / "signed.efi"
    plain.write_bytes(program.read_bytes() if isinstance(program, Path) else program)
    key = folder / "key.pem"
    tool(
        "openssl", "pkey", "-in", _SNAKEOIL.with_suffix(".key"), "-out", key,
        "-passin", f"pass:{_SNAKEOIL_PASSWORD}",
    )  # fmt: skip
    tool("sbsign", "--key", key, "--cert", _SNAKEOIL.with_suffix(".pem"), "--output", path, plain)
    return path


# The machine -------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Machine:
    """A machine that is switched on, with its console. A context: leaving it cuts the power."""

    disks: Sequence[BootDisk]
    read_only: bool = False
    reboots: bool = False
    """Whether a reset boots again; otherwise it ends the machine."""

    secure: bool = False
    """Whether Secure Boot is on."""

    controller: str = "virtio-blk-pci"
    """What the disks hang on."""

    log: Path | None = None
    """Where every write and flush that reaches the first disk is logged, for ``read_log``."""

    text: str = ""
    """What the console said so far."""

    arrived: dict[str, float] = field(default_factory=dict)
    """When each line of the console was first seen."""

    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        variables = self.disks[0].path.with_suffix(".vars")
        shutil.copy(SECURE_VARIABLES if self.secure else VARIABLES, variables)
        firmware = SECURE_FIRMWARE if self.secure else FIRMWARE
        command = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
            "-machine", "q35,smm=on" if self.secure else "q35",
            "-accel", accelerator(), "-cpu", "max", "-m", "256", "-serial", "stdio",
            "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={firmware}",
            "-drive", f"if=pflash,format=raw,unit=1,file={variables}",
        ]  # fmt: skip
        if self.secure:
            command += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
        if not self.reboots:
            command.append("-no-reboot")
        for number, disk in enumerate(self.disks):
            command += self._disk_options(number, disk)
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return self

    def _disk_options(self, number: int, disk: BootDisk) -> list[str]:
        size = disk.geometry.sector_size
        read_only = "on" if self.read_only else "off"
        device = f"disk{number}"
        logged: list[str] = []
        if self.log is not None and number == 0:
            self.log.write_bytes(b"")
            device = "logged"
            logged = [
                "-blockdev", f"driver=file,node-name=log,filename={self.log}",
                "-blockdev",
                f"driver=blklogwrites,node-name=logged,file=disk0,log=log,log-sector-size={size}",
            ]  # fmt: skip
        return [
            "-blockdev",
            f"driver=file,node-name=file{number},filename={disk.path},read-only={read_only}",
            "-blockdev",
            f"driver=raw,node-name=disk{number},file=file{number},read-only={read_only}",
            *logged,
            "-device",
            ",".join(
                (
                    f"{self.controller},drive={device},bootindex={number + 1}",
                    f"logical_block_size={size},physical_block_size={size}",
                )
            ),
        ]

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    @property
    def lines(self) -> list[str]:
        """What selector and kernels said in whole lines, without what the firmware said."""
        whole, _, _ = self.text.rpartition("\n")
        lines = (line.strip() for line in whole.splitlines())
        return [line for line in lines if line.startswith(("gptprio: ", "kernel "))]

    def wait_for(self, wanted: str) -> None:
        """Wait for a text on the console."""
        for _ in self._pieces():
            if wanted in self.text:
                return
        raise AssertionError(f"the machine ended without {wanted!r}:\n{self.text}")

    def wait_for_end(self) -> list[str]:
        """Wait until the machine is off; return its ``lines``."""
        for _ in self._pieces():
            pass
        return self.lines

    def _pieces(self) -> Iterator[None]:
        """Read the console, piece by piece, until the machine ends."""
        assert self._process is not None
        assert self._process.stdout is not None
        for piece in _read(self._process.stdout.fileno(), LIMIT):
            self.text = _ESCAPES.sub("", self.text + piece)
            for line in self.lines:
                self.arrived.setdefault(line, time.monotonic())
            yield
        if self._process.poll() is None and not self._ended():
            raise AssertionError(f"nothing more for {LIMIT:g} s:\n{self.text}")

    def _ended(self) -> bool:
        """Whether the process, whose console was closed, ends."""
        assert self._process is not None
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return False
        return True


_LOG_HEADER = struct.Struct("<3QI")
_LOG_ENTRY = struct.Struct("<4Q")
_LOG_MAGIC = 0x6A736677736872
_LOG_FLUSH, _LOG_DISCARD = 1, 4


def read_log(path: Path) -> Iterator[Write | Flush]:
    """Yield what reached the disk, in order (the format of Linux's dm-log-writes)."""
    log = path.read_bytes()
    magic, _version, count, size = _LOG_HEADER.unpack_from(log)
    assert magic == _LOG_MAGIC
    at = size
    for _ in range(count):
        lba, sectors, kind, _ = _LOG_ENTRY.unpack_from(log, at)
        at += size
        assert not kind & _LOG_DISCARD
        if kind & _LOG_FLUSH:
            yield Flush()
        if sectors:
            yield Write(lba=lba, data=log[at : at + sectors * size])
            at += sectors * size


_TCG = "tcg,thread=multi"


@functools.cache
def accelerator() -> str:
    """Return what runs firmware fastest here: KVM, where the firmware really comes up in it."""
    command = [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", "q35", "-accel", "kvm", "-cpu", "max", "-m", "256", "-serial", "stdio",
        "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE}",
        "-drive", f"if=pflash,format=raw,unit=1,snapshot=on,file={VARIABLES}",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout is not None
            found = any("BdsDxe" in piece for piece in _read(process.stdout.fileno(), PROBE_LIMIT))
        finally:
            process.kill()
    return "kvm" if found else _TCG


def _read(descriptor: int, limit: float) -> Iterator[str]:
    """Yield what arrives until the end, or until the limit has passed."""
    deadline = time.monotonic() + limit
    with selectors.DefaultSelector() as waiting:
        waiting.register(descriptor, selectors.EVENT_READ)
        while waiting.select(timeout=max(0.0, deadline - time.monotonic())):
            piece = os.read(descriptor, 65536)
            if not piece:
                return
            yield piece.decode(errors="replace")


def boot(*disks: BootDisk, read_only: bool = False) -> list[str]:
    """Switch on, wait until the machine is off; return what selector and kernels said."""
    with Machine(disks=disks, read_only=read_only) as machine:
        return machine.wait_for_end()
