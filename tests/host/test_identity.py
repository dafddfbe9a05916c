"""Who this host is, from files that may be anything."""

import os
from pathlib import Path

import pytest

from update_agent.errors import HostError
from update_agent.host import identity

ID = "0123456789abcdef0123456789abcdef"


def test_os_release_is_read_as_a_shell_would(tmp_path: Path) -> None:
    path = tmp_path / "os-release"
    path.write_text(
        "# a comment\n\nID=debian\nIMAGE_ID='web'\n  IMAGE_VERSION=\"1.2.0\"\n"
        'NAME="A \\"B\\""\n#X=1\nEMPTY=\nnonsense\n'
    )

    assert identity.os_release(path) == {
        "ID": "debian", "IMAGE_ID": "web", "IMAGE_VERSION": "1.2.0", "NAME": 'A "B"', "EMPTY": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "match"),
    [
        pytest.param(b'NAME="open\n', "cannot be read: No closing quotation", id="open-quote"),
        pytest.param(b"NAME=\xff\xfe\n", "cannot read .*: it is no text", id="no-text"),
    ],
)
def test_an_os_release_that_cannot_be_read_is_told(tmp_path: Path, data: bytes, match: str) -> None:
    path = tmp_path / "os-release"
    path.write_bytes(data)

    with pytest.raises(HostError, match=match):
        identity.os_release(path)


def test_what_a_host_runs_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        identity, "os_release", lambda: {"IMAGE_ID": "os", "IMAGE_VERSION": "1.2.0"}
    )

    assert identity.image() == ("os", "1.2.0")


@pytest.mark.parametrize(
    "known",
    [{}, {"IMAGE_ID": "os"}, {"IMAGE_VERSION": "1.2.0"}, {"IMAGE_ID": "", "IMAGE_VERSION": ""}],
)
def test_a_host_with_no_image_of_ours_is_told_so(
    known: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "os_release", lambda: known)

    with pytest.raises(HostError, match="this host has no image of ours"):
        identity.image()


def test_a_machine_id_is_read(tmp_path: Path) -> None:
    path = tmp_path / "machine-id"
    path.write_text(ID + "\n")

    assert identity.machine_id(path) == ID


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\n", b"uninitialized\n", ID[:-1].encode(), ID.encode() + b"0", ID.upper().encode(),
        ("\u0661" * 32).encode(), b"\xff" * 32, bytes(32), f"{ID}\n{ID}".encode(),
    ],
)  # fmt: skip
def test_what_is_no_machine_id_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "machine-id"
    path.write_bytes(data)

    with pytest.raises(HostError, match=r"(holds no machine id|it is no text)"):
        identity.machine_id(path)


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot read .*/nothing: No such file"):
        identity.os_release(tmp_path / "nothing")
    with pytest.raises(HostError, match=r"cannot read .*/nothing: No such file"):
        identity.machine_id(tmp_path / "nothing")


def test_the_architecture_is_named() -> None:
    assert identity.architecture()


@pytest.mark.case(13)
def test_no_clock_is_before_the_time_when_this_program_was_built(tmp_path: Path) -> None:
    built = tmp_path / "built"
    built.touch()
    os.utime(built, (4_000_000_000, 4_000_000_000))

    assert identity.clock(built).timestamp() == 4_000_000_000
    os.utime(built, (0, 0))
    assert identity.clock(built).year > 2000
