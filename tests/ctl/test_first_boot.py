"""``update-agent-firstboot`` on a folder that plays the host."""

import grp
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.disks import tool
from update_agent.ctl import first_boot
from update_agent.ctl.first_boot import main
from update_agent.errors import HostError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("credentials", "config", "root/etc/ssh"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path / "root"


def run(root: Path) -> int:
    return main(
        [
            "--credentials", str(root.parent / "credentials"),
            "--config", str(root.parent / "config"),
            "--root", str(root),
        ]
    )  # fmt: skip


def give(root: Path, name: str, value: str) -> None:
    (root.parent / name).write_text(value)


def test_credentials_become_files_and_a_second_boot_writes_nothing(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give(root, "credentials/update-agent.hostname", "web-1")
    give(root, "credentials/somebody.else", "not ours")

    assert run(root) == 0
    assert capsys.readouterr().out == "/etc/hostname written\n"
    assert (root / "etc/hostname").read_text() == "web-1\n"
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}

    assert run(root) == 0
    assert capsys.readouterr().out == ""
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_the_file_on_state_has_the_last_word(root: Path) -> None:
    give(root, "credentials/update-agent.channel", "stable")
    give(root, "config/channel", "beta\n")

    assert run(root) == 0
    provided = root / "etc/update-agent/50-provided.toml"
    assert provided.read_text() == '[update]\nchannel = "beta"\n'


def test_a_wrong_setting_is_said_and_the_others_are_applied(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    give(root, "config/hostname", "Not A Name")
    give(root, "config/channel", "beta")

    assert run(root) == 4
    assert "setting hostname is 'Not A Name'" in capsys.readouterr().err
    assert (root / "etc/update-agent/50-provided.toml").is_file()
    assert not (root / "etc/hostname").exists()


def test_a_host_key_is_made_once_and_again_when_a_power_cut_left_a_piece(root: Path) -> None:
    key = root / "etc/ssh/ssh_host_ed25519_key"

    assert run(root) == 0
    made = key.read_bytes()
    assert run(root) == 0
    assert key.read_bytes() == made

    key.write_bytes(made[:100])
    assert run(root) == 0
    assert key.read_bytes() not in (made, made[:100])
    assert tool("ssh-keygen", "-y", "-P", "", "-f", key).startswith("ssh-ed25519 ")


def test_a_step_that_fails_keeps_out_no_other(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Path, prefix: str) -> dict[str, bytes]:
        raise HostError(f"cannot read {prefix or 'the disk'}")

    give(root, "config/hostname", "web-1")
    (root / "etc/ssh").rmdir()
    (root / "etc/ssh").touch()
    assert run(root) == 4
    assert capsys.readouterr().out == "/etc/hostname written\n"

    (root / "etc/ssh").unlink()
    (root / "etc/ssh").mkdir()
    monkeypatch.setattr(first_boot, "_read", broken)
    assert run(root) == 4
    assert capsys.readouterr().err == "update-agent-firstboot: cannot read update-agent.\n"
    assert (root / "etc/ssh/ssh_host_ed25519_key").exists()


def test_without_anything_given_only_the_key_is_made(tmp_path: Path) -> None:
    (tmp_path / "root/etc/ssh").mkdir(parents=True)

    assert run(tmp_path / "root") == 0
    assert sorted(it.name for it in (tmp_path / "root/etc").iterdir()) == ["ssh"]


PEM = "-----BEGIN {0}-----\nMIIB\n-----END {0}-----\n"


def test_each_who_uses_a_secret_has_it_in_a_file_that_nobody_else_reads(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    games, daemon = grp.getgrnam("games").gr_gid, grp.getgrnam("daemon").gr_gid
    ids = {"etcd": games}
    give(root, "config/report-token", "ua_secret")
    monkeypatch.setattr(grp, "getgrnam", lambda name: SimpleNamespace(gr_gid=ids[name]))
    for name, label in (("cert", "CERTIFICATE"), ("key", "PRIVATE KEY"), ("ca", "CERTIFICATE")):
        give(root, f"credentials/update-agent.etcd-{name}", PEM.format(label))

    assert run(root) == 4
    said = capsys.readouterr()
    assert "etcd-key.pem: there is no group update-agent" in said.err
    assert "/etc/etcd/key.pem written" in said.out
    ids["update-agent"] = daemon
    assert run(root) == 0

    for path, group in (
        ("etc/etcd/key.pem", "etcd"), ("etc/update-agent/etcd-key.pem", "update-agent"),
        ("etc/update-agent/report-token", "update-agent"),
    ):  # fmt: skip
        found = (root / path).stat()
        assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o640, 0, ids[group])
    for name in ("ca", "cert"):
        assert (root / f"etc/etcd/{name}.pem").stat().st_mode & 0o7777 == 0o644
    assert list(root.rglob(".*")) == []
