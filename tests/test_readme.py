"""What the README says to type works, and shows what it says."""

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.disks import ESP, ROOT_A, ROOT_B, STATE, flags, healthy
from tests.images import Releases, releases
from tests.readme import PATH, README, WORKSTATION, Command, blocks, commands
from update_agent.core.reason import Reason
from update_agent.core.settings import Fragment, check, merge

__all__ = ["releases"]

PATIENCE = 60
"""Seconds for one command."""


@dataclass
class Desk:
    """A workstation: the folder that the README's reader is in, and the shell's variables."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def run(self, command: Command) -> str:
        """Run a command to its end; return what it printed."""
        done = subprocess.run(
            ["bash", "-c", command.text], cwd=self.folder, env=self.variables, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == 0, f"{command.text}\n{done.stdout}"
        return done.stdout

    @contextmanager
    def background(self, command: Command) -> Iterator[str]:
        """Run a command that serves; yield what it says until it has said all that is shown."""
        with subprocess.Popen(
            shlex.split(command.text), cwd=self.folder, env=self.variables,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        ) as process:  # fmt: skip
            assert process.stdout
            try:
                yield "".join(process.stdout.readline() for _ in command.shown)
            finally:
                process.terminate()


@pytest.fixture
def desk(releases: Releases, tmp_path: Path) -> Desk:
    shutil.copytree(releases.v2.image.with_suffix(".tree"), tmp_path / "root")
    shutil.copy(releases.v2.image.with_suffix(".kernel"), tmp_path / "linux.efi")
    shutil.copy(releases.v1.image, tmp_path / "v1.img")
    with (tmp_path / "slot.img").open("wb") as file:
        file.truncate(16 << 20)
    hosts = (f"{number:032x}\n" for number in range(3))
    (tmp_path / "machine-ids.txt").write_text("".join(hosts))
    write_disk(tmp_path / "disk.img")
    return Desk(tmp_path, {"PATH": PATH, "HOME": str(tmp_path)})


def write_disk(path: Path) -> None:
    """Write a disk with slot A successful and B on trial."""
    slots = (
        replace(ROOT_A, attributes=flags(1, 0, ok=True)),
        replace(ROOT_B, attributes=flags(2, 3)),
    )
    healthy(entries=(ESP, *slots, STATE), sectors=131_072).save(path)


def test_every_command_of_a_workstation_works_and_shows_what_it_says(desk: Desk) -> None:
    typed = [it for it in commands() if it.where == WORKSTATION and not it.as_root]
    assert len(typed) > 20

    go_on(typed, desk)


def go_on(typed: list[Command], desk: Desk) -> None:
    """Type one command after the other; one that serves goes on while the others run."""
    for place, command in enumerate(typed):
        if command.exports:
            desk.variables |= command.exports
        elif " serve " in command.text:
            with desk.background(command) as said:
                as_shown(command, said)
                go_on(typed[place + 1 :], desk)
            return
        else:
            as_shown(command, desk.run(command))


def as_shown(command: Command, said: str) -> None:
    assert command.pattern().search(said), f"{command.text}\nsaid\n{said}\nand not as is shown"


@pytest.mark.parametrize("block", blocks("toml"))
def test_every_setting_can_be_set(block: str) -> None:
    check(merge([Fragment(origin="README.md", content=tomllib.loads(block))]))


def test_every_reason_to_wait_is_explained() -> None:
    told = README.read_text()
    known = {it for it in Reason if it is not Reason.UP_TO_DATE}

    assert not {it for it in known if f"`{it}`" not in told}


@pytest.mark.parametrize(
    ("told", "path"),
    [
        (r"one static program, .* some (\d+) lines of C", "partition-layout/image/init.c"),
        (r"`tests/manuals.py` writes all of them, .* some (\d+) lines", "tests/manuals.py"),
    ],
)
def test_what_a_choice_costs_in_lines_is_about_that(told: str, path: str) -> None:
    paragraphs = (" ".join(it.split()) for it in README.read_text().split("\n\n"))
    (found,) = filter(None, (re.search(told, it) for it in paragraphs))
    there = len((README.parent / path).read_text().splitlines())

    assert abs(there - int(found[1])) < 50


def test_output_that_is_not_as_shown_is_noticed() -> None:
    shown = Command(WORKSTATION, "x", ("v2.img: 731.7 MB, root hash c2fa7443bb14",))

    as_shown(shown, "v2.img: 6.3 MB, root hash 0123456789ab\n")
    with pytest.raises(AssertionError, match="not as is shown"):
        as_shown(shown, "v2.img: 6.3 GB, root hash 0123456789ab\n")
