"""The selector's logic in C, called from Python: it reads and writes any ``Disk`` of the tests.

Built with UBSan when it is first needed. A process that was started with ``under_asan`` uses a
build with ASan as well.
"""

import ctypes
import functools
import os
import re
from collections.abc import Callable, Mapping
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from tests.disks import tool
from update_agent.core.gpt import Copy, Damage
from update_agent.core.slot import BootFlags, Slot, SlotName, Slots
from update_agent.host.disk import Disk

HERE = Path(__file__).parent
BUILD = HERE / "build"
_ASAN = "SELECTOR_UNDER_ASAN"

TRANSFER = CFUNCTYPE(c_int, c_uint64, c_uint64, c_void_p)
SETTLE = CFUNCTYPE(c_int)
ATTEMPT = CFUNCTYPE(c_int, c_int, c_int)
LISTENER = CFUNCTYPE(None, c_char_p)

DAMAGES = (None, Damage.DAMAGED, Damage.MALFORMED, Damage.FOREIGN)


class Refusal(IntEnum):
    """``enum refusal`` of gpt.h."""

    NO_REFUSAL = 0
    PRIMARY_REFUSED = 1
    BACKUP_REFUSED = 2
    BOTH_DAMAGED = 3
    NO_MBR = 4
    NO_ROOM = 5
    NO_SLOTS = 6
    NO_SUCH_TRIAL = 7
    DISK_FAILED = 8
    NOT_HELD = 9


class Fault(NamedTuple):
    """Why a copy is not used; ``partition`` is 0 when it is not about one."""

    damage: Damage
    field: str
    partition: int


class _Slot(ctypes.Structure):
    _fields_ = (
        ("number", c_uint64),
        ("first_lba", c_uint64),
        ("last_lba", c_uint64),
        ("word", c_uint64),
    )


def under_asan() -> Mapping[str, str]:
    """Return the environment for a Python in which the selector's logic is watched by ASan."""
    _make("libselector-asan.so")
    libraries = [tool("gcc", f"-print-file-name={name}").strip() for name in ("libasan.so",)]
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        _ASAN: "1",
    }


def _make(target: str) -> Path:
    tool("make", "--silent", "-C", HERE, f"OUT={BUILD}", BUILD / target)
    return BUILD / target


@functools.cache
def library() -> ctypes.CDLL:
    """Return the logic, built from the sources as they stand."""
    asan = _ASAN in os.environ
    lib = ctypes.CDLL(str(BUILD / "libselector-asan.so" if asan else _make("libselector.so")))
    disk, gpt = c_void_p, c_void_p
    signatures: dict[str, tuple[object, list[object]]] = {
        "host_disk": (disk, [c_uint32, c_uint64, TRANSFER, TRANSFER, SETTLE]),
        "host_gpt": (gpt, []),
        "host_free": (None, [c_void_p]),
        "host_look": (None, [gpt, disk]),
        "host_fault": (c_int, [gpt, c_int, POINTER(c_char_p), POINTER(c_uint32)]),
        "host_slots": (c_int, [gpt, POINTER(_Slot)]),
        "host_set_words": (c_int, [gpt, disk, POINTER(c_uint64)]),
        "host_count_down": (c_int, [gpt, disk, c_int]),
        "host_give_up": (c_int, [gpt, disk, c_int]),
        "host_boot": (None, [gpt, disk, ATTEMPT, LISTENER]),
        "host_first": (c_int, [POINTER(_Slot)]),
        "host_sha256": (None, [c_char_p, c_size_t, c_size_t, c_char_p]),
        "host_image": (c_char_p, [c_char_p, c_uint64, POINTER(c_uint64), POINTER(c_uint64)]),
        "host_kernel": (c_char_p, [c_char_p, c_uint64, POINTER(c_uint64), c_char_p]),
        "host_load_kernel": (
            c_char_p, [disk, c_uint64, c_uint64, c_char_p, c_uint64, POINTER(c_uint64)],
        ),
        "host_version": (c_int, [c_char_p, c_size_t, c_char_p]),
    }  # fmt: skip
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


@functools.cache
def _gpt() -> int:
    """Return the room to work in, the same for all: nothing may depend on what it holds."""
    return int(library().host_gpt())


class Selector:
    """The logic at work on a disk.

    Whatever the disk raises, but OSError, ends its life: from then on it fails all operations, and
    the call into C ends with that exception.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._fatal: BaseException | None = None
        self._callbacks = (TRANSFER(self._read), TRANSFER(self._write), SETTLE(self._flush))
        geometry = disk.geometry
        self._c = library().host_disk(geometry.sector_size, geometry.sectors, *self._callbacks)

    def __del__(self) -> None:
        library().host_free(self._c)

    # What C asks for

    def _read(self, lba: int, count: int, to: int) -> int:
        size = count * self._disk.geometry.sector_size

        def read() -> bool:
            data = self._disk.read(lba, count)
            ctypes.memmove(to, data, min(len(data), size))
            return len(data) == size

        return self._guarded(read)

    def _write(self, lba: int, count: int, source: int) -> int:
        data = ctypes.string_at(source, count * self._disk.geometry.sector_size)
        return self._guarded(lambda: self._disk.write(lba, data))

    def _flush(self) -> int:
        return self._guarded(self._disk.flush)

    def _guarded(self, operation: Callable[[], bool | None]) -> int:
        if self._fatal is not None:
            return 0
        try:
            return operation() is not False
        except OSError:
            return 0
        except BaseException as error:  # noqa: BLE001  C cannot pass it on; it is raised behind it
            self._fatal = error
            return 0

    def _checked(self, refusal: int) -> Refusal:
        if self._fatal is not None:
            raise self._fatal
        return Refusal(refusal)

    # What is asked of C

    def look(self) -> dict[Copy, Fault | None]:
        """Read both copies; return what is wrong with each."""
        lib = library()
        lib.host_look(_gpt(), self._c)
        self._checked(0)
        found: dict[Copy, Fault | None] = {}
        for copy in Copy:
            field, partition = c_char_p(), c_uint32()
            damage = DAMAGES[lib.host_fault(_gpt(), copy is Copy.BACKUP, field, partition)]
            found[copy] = (
                Fault(damage, (field.value or b"").decode(), partition.value) if damage else None
            )
        return found

    def slots(self) -> Slots | Refusal:
        """Return the slots of the table that counts, after ``look``."""
        found = (_Slot * 2)()
        refusal = Refusal(library().host_slots(_gpt(), found))
        if refusal:
            return refusal
        a, b = (
            Slot(name=name, number=slot.number, flags=BootFlags.from_word(slot.word))
            for name, slot in zip(SlotName, found, strict=True)
        )
        return Slots(a=a, b=b)

    def set_flags(self, a: BootFlags, b: BootFlags) -> Refusal:
        """Change both slots' flags."""
        words = (c_uint64 * 2)(a.merged_into(0), b.merged_into(0))
        return self._checked(library().host_set_words(_gpt(), self._c, words))

    def count_down(self, name: SlotName) -> Refusal:
        """Take a try from a slot."""
        return self._checked(library().host_count_down(_gpt(), self._c, ord(name)))

    def give_up(self, name: SlotName) -> Refusal:
        """Take all tries from a slot."""
        return self._checked(library().host_give_up(_gpt(), self._c, ord(name)))

    def boot(self, attempt: Callable[[bool, SlotName], bool]) -> list[str]:
        """Boot; return what the console says.

        ``attempt`` is called with False for loading a slot and True for starting it, and says
        whether that works. A started slot that runs is an exception that ``attempt`` raises.
        """
        said: list[str] = []

        def run(starting: int, name: int) -> int:
            return self._guarded(lambda: attempt(bool(starting), SlotName(chr(name))))

        listener = LISTENER(lambda line: said.append(line.decode()))
        library().host_boot(_gpt(), self._c, ATTEMPT(run), listener)
        self._checked(0)
        return said

    def load_kernel(self, first_lba: int, last_lba: int, room: int) -> bytes | str:
        """Return the verified kernel of a slot, or what is wrong with it."""
        to, size = ctypes.create_string_buffer(room + 4096), c_uint64()
        wrong = library().host_load_kernel(self._c, first_lba, last_lba, to, room, size)
        self._checked(0)
        return wrong.decode() if wrong else to.raw[: size.value]


def first(slots: Slots) -> SlotName:
    """Return the slot that is tried first."""
    pair = (_Slot * 2)(*(_Slot(number=it.number, word=it.flags.merged_into(0)) for it in slots))
    return SlotName(chr(library().host_first(pair)))


def sha256(data: bytes, step: int) -> bytes:
    """Return the digest of ``data``, fed in pieces of ``step`` bytes."""
    digest = ctypes.create_string_buffer(32)
    library().host_sha256(data, len(data), step, digest)
    return digest.raw


def parse_header(header: bytes, room: int) -> tuple[int, int] | str:
    """Return kernel offset and region size of a slot header, or what is wrong with it."""
    offset, region = c_uint64(), c_uint64()
    wrong = library().host_image(header, room, offset, region)
    return wrong.decode() if wrong else (offset.value, region.value)


def parse_kernel(block: bytes, region_size: int) -> tuple[int, bytes] | str:
    """Return size and digest of a kernel, or what is wrong with its first block."""
    size, digest = c_uint64(), ctypes.create_string_buffer(32)
    wrong = library().host_kernel(block, region_size, size, digest)
    return wrong.decode() if wrong else (size.value, digest.raw)


def version(image: bytes) -> str | None:
    """Return the version that a unified kernel image names."""
    found = ctypes.create_string_buffer(64)
    known = library().host_version(image, len(image), found)
    return found.value.decode() if known else None


def constants(header: str) -> dict[str, int]:
    """Return the enum that begins with NO_REFUSAL as a C header has it."""
    source = (HERE.parents[1] / "partition-layout/selector" / header).read_text()
    body = re.search(r"enum refusal \{(.*?)\};", source, re.DOTALL)
    assert body is not None
    names = re.findall(r"^\s+([A-Z_]+),", body[1], re.MULTILINE)
    return {name: number for number, name in enumerate(names)}
