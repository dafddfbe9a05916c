"""How the selector is built, and that its judges would notice if it were wrong."""

import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.disks import tool
from tests.selector import native, rig
from tests.selector.native import BUILD, HERE

ROOT = HERE.parents[1]

UNDER_ASAN = (HERE / "test_twin.py", HERE / "test_image.py")

_TOO_MUCH = """
import ctypes
from tests.selector import native
sha256, libc = native.library().host_sha256, ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
sha256.argtypes = None
digest = ctypes.create_string_buffer(32)
size = ctypes.c_size_t
sha256(ctypes.c_void_p(libc.malloc(size(64))), size(65), size(65), digest)
"""


def test_the_same_source_gives_the_same_bytes_wherever_it_is_built(tmp_path: Path) -> None:
    built = []
    for name in ("here", "somewhere-else"):
        source = tmp_path / name / "selector"
        shutil.copytree(rig.SOURCE, source, ignore=shutil.ignore_patterns("build"))
        tool("make", "--silent", "-C", source, f"OUT={tmp_path / name / 'out'}")
        built.append((tmp_path / name / "out/gptprio.efi").read_bytes())

    assert built[0] == built[1] == rig.selector().read_bytes()
    at = struct.unpack_from("<I", built[0], 60)[0]
    assert struct.unpack_from("<I", built[0], at + 8) == (0,)  # TimeDateStamp


def test_it_is_a_small_program_for_uefi(figure: Callable[[str], None]) -> None:
    built = rig.selector().read_bytes()
    at = struct.unpack_from("<I", built, 60)[0]
    lines = sum(len(path.read_text().splitlines()) for path in rig.SOURCE.glob("*.[ch]"))

    assert built[:2] == b"MZ"
    assert built[at : at + 4] == b"PE\0\0"
    assert struct.unpack_from("<H", built, at + 24 + 68) == (10,)  # Subsystem: EFI application
    figure(f"selector: {lines:,} lines of C and headers, gptprio.efi has {len(built):,} bytes")
    assert len(built) < 32 * 1024


@pytest.mark.case(73)
def test_it_knows_no_file_system_no_variable_and_no_path_of_the_machine_that_built_it() -> None:
    sources = "".join(path.read_text() for path in rig.SOURCE.glob("*.[ch]"))
    built = rig.selector().read_bytes()

    assert not re.findall(r"GetVariable|SetVariable|SIMPLE_FILE|OpenVolume", sources)
    assert str(ROOT).encode() not in built
    assert b"STOP-AT" not in built


def _under_asan(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT, env=native.under_asan(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def test_address_sanitizer_finds_nothing_in_what_the_other_tests_do() -> None:
    done = _under_asan("-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, UNDER_ASAN))

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


def test_address_sanitizer_finds_nothing_on_random_disks() -> None:
    done = _under_asan("-m", "tests.fuzz.selector", "--count", "16000", "--seed", "7")

    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("16,000 disks, 0 mismatches between C and Python")


def test_address_sanitizer_would_find_a_byte_too_much() -> None:
    done = _under_asan("-c", _TOO_MUCH)

    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


def test_the_fuzzer_finds_no_broken_promise_in_a_few_seconds(
    tmp_path: Path, figure: Callable[[str], None]
) -> None:
    tool("make", "--silent", "-C", HERE, f"OUT={BUILD}", BUILD / "fuzz")
    limits = ("-max_total_time=15", "-seed=1", "-max_len=400", "-print_final_stats=1")
    command = [str(BUILD / "fuzz"), *limits, f"-artifact_prefix={tmp_path}/", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    assert done.returncode == 0, done.stderr[-3000:]
    units = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert units is not None
    figure(f"selector, fuzzer with ASan and UBSan: {int(units[1]):,} boots, 0 broken promises")
    assert int(units[1]) > 1000


FLAWS = {
    "the first array is always at home": (
        "gpt.c",
        "return primary->entries_lba >= HOME + sectors ? HOME : primary->entries_lba + sectors;",
        "return primary->entries_lba + 0 * sectors;",
    ),
    "an overlap of one sector is let through": (
        "gpt.c",
        "entry_first_lba(entry_of(table, above)) <= entry_last_lba(entry_of(table, below))",
        "entry_first_lba(entry_of(table, above)) < entry_last_lba(entry_of(table, below))",
    ),
    "the backup is written after the primary": (
        "gpt.c",
        (
            "refusal = put(gpt, disk, backup, backup);\n    if (!refusal)\n"
            "        refusal = put(gpt, disk, primary, NULL);"
        ),
        (
            "refusal = put(gpt, disk, primary, NULL);\n    if (!refusal)\n"
            "        refusal = put(gpt, disk, backup, backup);"
        ),
    ),
    "an MBR without a GPT does not matter": (
        "gpt.c",
        "return now->mbr == MISSING ? NO_MBR : NO_REFUSAL;",
        "return NO_REFUSAL;",
    ),
    "nothing is read back": (
        "gpt.c",
        "return memcmp(found, wanted, count * disk->sector_size) ? NOT_HELD : NO_REFUSAL;",
        "return found == wanted ? NOT_HELD : NO_REFUSAL;",
    ),
    "a tie goes to the name": (
        "slot.c",
        "return a->number < b->number;",
        "return a->name < b->name && a->number;",
    ),
    "a slot is loaded before its try is counted": (
        "boot.c",
        (
            "    if (slot_is_on_trial(slot) && !count_down(boot, slot))\n        return;\n"
            "    why = boot->load(boot, slot);\n"
        ),
        (
            "    why = boot->load(boot, slot);\n"
            "    if (slot_is_on_trial(slot) && !count_down(boot, slot))\n        return;\n"
        ),
    ),
    "a slot that does not load keeps its tries": (
        "boot.c",
        "    if (was_candidate)\n        give_up(boot, slot);",
        "    if (!was_candidate)\n        give_up(boot, slot);",
    ),
    "the disk is not flushed before it is read": (
        "slot.c",
        "if (!disk->flush(disk))",
        "if (!disk)",
    ),
}
"""What might be wrong with the selector, and must not go unnoticed."""

BY_NAME = "a tie goes to the name"
"""On the disks of the random tables slot A always comes first; the boot rule's own tests see it."""


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_in_the_selector_is_noticed(flaw: str, tmp_path: Path) -> None:
    name, right, wrong = FLAWS[flaw]
    copy = tmp_path / "repository"
    for folder in ("partition-layout/selector", "tests", "update_agent"):
        shutil.copytree(
            ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("build", "__pycache__")
        )
    source = copy / "partition-layout/selector" / name
    before = source.read_text()
    assert before.count(right) == 1
    source.write_text(before.replace(right, wrong))

    command = [sys.executable, "-m", "tests.fuzz.selector", "--count", "12000", "--seed", "1"]
    if flaw == BY_NAME:
        check = "from tests.core.test_slot import *; from tests.selector import native; import sys"
        ask = "sys.exit(native.first(two(flags(1, 1), flags(1, 1), b_first=True)) != 'B')"
        command = [sys.executable, "-c", f"{check}; {ask}"]
    done = subprocess.run(
        command, cwd=copy, capture_output=True, text=True, check=False, timeout=300
    )

    assert done.returncode == 1, f"unnoticed: {done.stdout}{done.stderr[-2000:]}"
    if flaw != BY_NAME:
        assert "MismatchError" in done.stderr
