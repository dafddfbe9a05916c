"""``update-agent-slots``: every verb, its dry run, its JSON and its refusals, on image files."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.disks import ESP, ROOT_A, ROOT_B, STATE, flags, healthy, tool
from update_agent.core.gpt import Copy
from update_agent.ctl import recovery
from update_agent.host.disk import open_disk, read_tables

OK, GONE, ARMED = flags(1, 0, ok=True), flags(0, 0), flags(2, 3)


def image_with(tmp_path: Path, a: int, b: int) -> Path:
    entries = (ESP, replace(ROOT_A, attributes=a), replace(ROOT_B, attributes=b), STATE)
    return healthy(512, entries).save(tmp_path / "disk.img")


def words(image: Path) -> tuple[int, int]:
    with open_disk(image) as disk:
        tables = read_tables(disk)
    assert tables.sound
    a, b = tables.authoritative.partitions[1:3]
    return a.attributes, b.attributes


def run(image: Path, *command: str) -> int:
    return recovery.main([*command, "--disk", str(image)])


EVERY_VERB = pytest.mark.parametrize(
    ("command", "before", "after"),
    [
        pytest.param(("retire", "B"), (OK, flags(2, 0)), (OK, GONE), id="retire"),
        pytest.param(("arm", "B"), (OK, GONE), (OK, ARMED), id="arm"),
        pytest.param(
            ("confirm", "B"), (OK, flags(2, 2)), (OK, flags(2, 0, ok=True)), id="confirm"
        ),
        pytest.param(("rollback", "A"), (OK, flags(2, 2)), (OK, GONE), id="rollback-of-a-trial"),
        pytest.param(
            ("rollback", "A"), (OK, flags(2, 0, ok=True)), (flags(2, 0, ok=True), OK),
            id="rollback",
        ),
    ],
)  # fmt: skip


@EVERY_VERB
def test_a_verb_changes_the_flags_and_prints_them(
    command: tuple[str, str],
    before: tuple[int, int],
    after: tuple[int, int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image = image_with(tmp_path, *before)

    assert run(image, *command) == 0
    shown = capsys.readouterr()
    assert words(image) == after
    assert shown.out.startswith("  slot  partition  priority  tries  successful  state\n  A     2 ")
    assert " boots next" in shown.out.splitlines()[-1]
    assert shown.err == ""


@EVERY_VERB
def test_a_dry_run_prints_the_same_and_writes_nothing(
    command: tuple[str, str],
    before: tuple[int, int],
    after: tuple[int, int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image = image_with(tmp_path, *before)
    bytes_before = image.read_bytes()

    assert run(image, *command, "--dry-run") == 0
    promised = capsys.readouterr().out
    assert image.read_bytes() == bytes_before
    assert run(image, *command) == 0
    assert capsys.readouterr().out == promised
    assert words(image) == after


@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=["done", "dry-run"])
def test_json_has_both_slots_and_what_boots_next(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = image_with(tmp_path, OK, GONE)

    assert run(image, "arm", "B", "--json", *options) == 0
    assert json.loads(capsys.readouterr().out) == {
        "slots": [
            {
                "slot": "A", "partition": 2, "priority": 1, "tries": 0, "successful": True,
                "state": "successful",
            },
            {
                "slot": "B", "partition": 3, "priority": 2, "tries": 3, "successful": False,
                "state": "on trial",
            },
        ],
        "why": "slot B boots next, on trial with 3 tries left: its priority 2 is above 1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("command", "flags_found", "message"),
    [
        pytest.param(
            ("retire", "A"), (OK, GONE),
            "update-agent-slots: slot B is retired (priority 0, tries 0, not successful), wanted a"
            " successful slot: slot A is its only fallback\n"
            "(confirm slot B once the system in it is known to work)\n",
            id="retire",
        ),
        pytest.param(
            ("arm", "B"), (OK, OK),
            "update-agent-slots: slot B cannot be armed: it has priority 1, tries 0, successful,"
            " wanted a retired slot\n(retire slot B, write it again and verify it)\n",
            id="arm",
        ),
        pytest.param(
            ("rollback", "B"), (OK, GONE),
            "update-agent-slots: cannot roll back to slot B: it is retired (priority 0, tries 0,"
            " not successful), wanted a successful slot\n"
            "(only a slot that was confirmed, and not overwritten since, can be rolled back to)\n",
            id="rollback",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--json"]], ids=["", "dry-run", "json"])
def test_a_refusal_ends_with_4_a_way_out_and_no_write(
    command: tuple[str, str],
    flags_found: tuple[int, int],
    message: str,
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image = image_with(tmp_path, *flags_found)
    before = image.read_bytes()

    assert run(image, *command, *options) == 4
    assert capsys.readouterr() == ("", message)
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["arm", "--disk", "x"],
        ["arm", "C", "--disk", "x"],
        ["arm", "ROOT-A", "--disk", "x"],
        ["arm", "a", "--disk", "x"],
        ["arm", "B"],
        ["repair"],
        ["destroy", "B", "--disk", "x"],
        ["repair", "B", "--disk", "x"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        recovery.main(argv)

    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: update-agent-slots ")


@pytest.mark.case(53)
@pytest.mark.case(70)
def test_a_verb_repairs_a_damaged_copy_on_the_way(tmp_path: Path) -> None:
    disk = healthy()
    disk.patch(Copy.PRIMARY, MyLBA=9)
    image = disk.save(tmp_path / "disk.img")

    assert run(image, "arm", "B") == 0
    assert words(image) == (OK, ARMED)


def _damage_primary(image: Path) -> None:
    _overwrite(image, 1)


def _damage_backup(image: Path) -> None:
    _overwrite(image, 2047)


def _grow(image: Path) -> None:
    with image.open("r+b") as file:
        file.truncate(4096 * 512)


def _overwrite(image: Path, lba: int) -> None:
    with image.open("r+b") as file:
        file.seek(lba * 512)
        file.write(bytes(512))


@pytest.mark.parametrize("harm", [_damage_primary, _damage_backup, _grow])
def test_repair_says_what_it_did(
    harm: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = image_with(tmp_path, OK, ARMED)
    harm(image)

    assert run(image, "repair") == 0
    assert capsys.readouterr().out == f"{image}: both copies of the partition table are good now\n"
    assert words(image) == (OK, ARMED)
    assert run(image, "repair") == 0
    assert capsys.readouterr().out == (
        f"{image}: both copies of the partition table are good; nothing was written\n"
    )


def test_programs_are_told_how_the_disk_stands_after_a_repair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = image_with(tmp_path, OK, ARMED)
    _damage_backup(image)

    assert run(image, "repair", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["disk"], found["tables"]["sound"]) == (str(image), True)
    assert [it["state"] for it in found["slots"]] == ["successful", "on trial"]


@pytest.mark.case(57)
@pytest.mark.parametrize("command", [("repair",), ("arm", "B"), ("confirm", "A")], ids=" ".join)
def test_two_bad_copies_are_refused_without_a_write(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = image_with(tmp_path, OK, GONE)
    _damage_primary(image)
    _damage_backup(image)
    before = image.read_bytes()

    assert run(image, *command) == 4
    assert "both copies of the partition table are unusable" in capsys.readouterr().err
    assert image.read_bytes() == before


@pytest.mark.case(57)
def test_two_bad_copies_are_mended_by_a_table_that_was_saved(tmp_path: Path) -> None:
    image = image_with(tmp_path, OK, ARMED)
    tool("sgdisk", f"--backup={tmp_path / 'table'}", image)
    _damage_primary(image)
    _damage_backup(image)

    tool("sgdisk", f"--load-backup={tmp_path / 'table'}", image)

    assert words(image) == (OK, ARMED)


@pytest.mark.case(57)
def test_two_bad_copies_are_mended_by_making_the_partitions_again(tmp_path: Path) -> None:
    image = image_with(tmp_path, OK, ARMED)
    _damage_primary(image)
    _damage_backup(image)

    for it in (ESP, ROOT_A, ROOT_B, STATE):
        tool(
            "sgdisk",
            "--set-alignment=1",
            f"--new={it.number}:{it.first}:{it.last}",
            f"--typecode={it.number}:{it.type}",
            f"--change-name={it.number}:{it.label}",
            image,
        )
    assert words(image) == (GONE, GONE)

    assert run(image, "confirm", "A") == 0
    assert words(image) == (OK, GONE)


@pytest.mark.case(61)
@pytest.mark.case(62)
@pytest.mark.parametrize("command", [("repair",), ("arm", "B"), ("confirm", "A")], ids=" ".join)
@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param({"SizeOfPartitionEntry": 256}, "SizeOfPartitionEntry is 256", id="malformed"),
        pytest.param({"Signature": b"CHROMEOS"}, "signature is b'CHROMEOS'", id="foreign"),
    ],
)
def test_a_primary_that_breaks_a_rule_is_never_overwritten_by_a_good_backup(
    command: tuple[str, ...],
    values: dict[str, int | bytes],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = healthy()
    disk.patch(Copy.PRIMARY, **values)
    image = disk.save(tmp_path / "disk.img")
    before = image.read_bytes()

    assert run(image, *command) == 4
    assert said in capsys.readouterr().err
    assert image.read_bytes() == before
