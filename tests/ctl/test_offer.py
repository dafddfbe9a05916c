"""``update-agentctl offer``, asked of a real repository by a real web server."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.images import Releases, releases
from tests.web import Web
from update_agent.ctl.main import main
from update_agent.publish.main import main as publish_main

__all__ = ["releases"]

Ask = Callable[..., int]

NOBODY = 65534


@pytest.fixture(scope="module")
def published(releases: Releases, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a repository of two releases, and its keys; made once, copied by who edits."""
    folder = tmp_path_factory.mktemp("published")

    publish(folder, "init")
    for image, version in ((releases.v1.image, "1.0.0"), (releases.v2.image, "1.1.0")):
        publish(folder, "release", "add", str(image), "--product", "os", "--version", version)
    publish(folder, "channel", "create", "stable", "--product", "os")
    publish(folder, "channel", "promote", "stable", "1.1.0")
    return folder


def publish(folder: Path, *words: str) -> None:
    where = ["--repository", str(folder / "www")]
    if words[:2] != ("release", "list"):
        where += ["--keys", str(folder / "keys")]
    assert publish_main([*words, *where, "--json"]) == 0


@pytest.fixture
def fleet(published: Path, tmp_path: Path) -> Path:
    """The same, to be edited."""
    return Path(shutil.copytree(published, tmp_path / "published"))


@pytest.fixture
def web(fleet: Path) -> Iterator[Web]:
    with Web({}) as server:
        serve(server, fleet)
        yield server


def serve(web: Web, fleet: Path) -> None:
    """Serve the repository as it is now."""
    www = fleet / "www"
    web.files = {
        f"/{path.relative_to(www)}": path.read_bytes() for path in www.rglob("*") if path.is_file()
    }


@pytest.fixture
def ask(web: Web, fleet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    def asked(*words: str, version: str = "1.0.0", machine: str = "host") -> int:
        capsys.readouterr()
        return main([
            "offer", "--repository", web.url(""),
            "--root", str(fleet / "www/metadata/1.root.json"), "--state", str(tmp_path / "state"),
            "--product", "os", "--version", version, "--machine-id", machine,
            "--architecture", "x86_64", *words,
        ])  # fmt: skip

    return asked


def test_a_host_sees_what_it_would_install_and_how_much_that_is(
    ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask() == 0

    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("os 1.1.0 for this host, which has 1.0.0: channel stable offers it")
    assert said[1].split()[:5] == ["delta", "from", "1.0.0", "0.3", "MB"]
    assert said[2].split()[:4] == ["full", "payload", "3.3", "MB"]


def test_json_says_the_same_and_where_the_payloads_are(
    ask: Ask, web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask("--json") == 0

    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert said["offer"]["version"] == "1.1.0"
    assert said["reason"] is None
    assert [it["from"] for it in said["offer"]["payloads"]] == ["1.0.0", None]
    assert all(f"/{it['path']}" in web.files for it in said["offer"]["payloads"])


def test_no_offer_is_an_answer_with_its_reason(
    ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(version="1.1.0") == 0

    assert capsys.readouterr().out == (
        "no update for os 1.1.0 in channel stable (up-to-date): 1.1.0 is what channel stable"
        " offers\nwhat would end it: a newer release\n"
    )


def test_a_later_wave_is_told_with_its_time_and_force_passes_it(
    ask: Ask, web: Web, fleet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(fleet, "channel", "rollout", "stable", "--wave", "0.0001%:1h", "--wave", "100%:1d")
    serve(web, fleet)

    assert ask("--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["reason"]["code"] == "wave"
    assert said["reason"]["until"] > said["time"]
    assert ask("--force", "--json") == 0
    assert json.loads(capsys.readouterr().out)["offer"]["version"] == "1.1.0"


@pytest.mark.case(96)
def test_a_release_that_is_withdrawn_while_it_rolls_out_is_offered_to_nobody_else(
    ask: Ask, web: Web, fleet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask() == 0
    publish(
        fleet, "release", "withdraw", "--product", "os", "--version", "1.1.0", "--reason", "bad"
    )
    serve(web, fleet)

    assert ask("--json") == 0

    said = json.loads(capsys.readouterr().out)
    assert said["offer"] is None
    assert said["reason"]["code"] == "withdrawn"


def test_asking_again_fetches_less_than_two_kilobytes(
    ask: Ask, capsys: pytest.CaptureFixture[str], figure: Callable[[str], None]
) -> None:
    ask()
    ask("--json")

    fetched = json.loads(capsys.readouterr().out)["fetched_bytes"]

    assert 0 < fetched < 2000
    figure(f"asking a repository that has nothing new: {fetched} bytes besides headers")


def test_a_second_server_answers_when_the_first_does_not(
    ask: Ask, web: Web, fleet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()

    done = main([
        "offer", "--repository", "http://127.0.0.1:9", "--repository", web.url(""),
        "--root", str(fleet / "www/metadata/1.root.json"), "--state", str(tmp_path / "other"),
        "--product", "os", "--version", "1.0.0", "--machine-id", "host",
        "--architecture", "x86_64",
    ])  # fmt: skip

    assert done == 0
    assert "os 1.1.0 for this host" in capsys.readouterr().out
    del ask


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (["--channel", "beta"], 4, "the repository has no channel beta", "--channel"),
        (["--product", "nas"], 3, "channel stable is for product os, this host's is nas",
         "choose a channel of this host's product"),
        (["--architecture", "riscv64"], 3, "is for x86_64, this host is riscv64",
         "choose a channel for this host's architecture"),
        (["--root", "/nowhere/root.json"], 4, "cannot read the trusted root /nowhere/root.json",
         "from a source that you trust"),
        (["--state", "/proc/nowhere"], 4, "cannot use /proc/nowhere", "name another folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_says_why_and_what_to_do(
    ask: Ask,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    message: str,
    hint: str,
) -> None:
    assert ask(*words) == code

    said = capsys.readouterr().err
    assert message in said
    assert hint in said


def test_a_version_that_is_none_is_wrong_usage(
    ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        ask(version="newest")

    assert "'newest' is no version" in capsys.readouterr().err


def test_a_host_without_an_image_of_ours_says_what_to_name(
    web: Web, fleet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = main([
        "offer", "--repository", web.url(""), "--machine-id", "host",
        "--root", str(fleet / "www/metadata/1.root.json"), "--state", str(tmp_path / "state"),
    ])  # fmt: skip

    assert done == 4
    assert "say what to ask for, with --product and --version" in capsys.readouterr().err


def test_what_root_asks_leaves_nothing_that_the_daemon_cannot_write(ask: Ask, fleet: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy(fleet / "www/metadata/1.root.json", folder / "root.json")
        (folder / "root.json").chmod(0o644)
        (folder / "daemon").mkdir()
        os.chown(folder / "daemon", NOBODY, NOBODY)

        assert (
            ask("--root", str(folder / "root.json"), "--state", str(folder / "daemon/trust")) == 0
        )

        made = list((folder / "daemon/trust").rglob("*"))
        assert {it.name for it in made} >= {"lock", "journal", "timestamp.json"}
        assert {(it.stat().st_uid, it.stat().st_gid) for it in made} == {(NOBODY, NOBODY)}
    assert (os.geteuid(), os.getegid()) == (0, 0)
