"""The repository as its publishers see it: ceremonies, rotations, two at once, verifying.

Hosts are played by python-tuf's own client, with what it learned before.
"""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tuf.api.exceptions import RepositoryError as RefusedError
from tuf.api.metadata import Metadata

from tests.images import Releases, releases
from tests.publish.published import copied, learn, publish, publish_first
from update_agent.publish import changes, verbs
from update_agent.publish.keys import Keyring
from update_agent.publish.main import main
from update_agent.publish.repository import Repository
from update_agent.publish.verify import Findings, verify

__all__ = ["releases"]

STABLE = "channels/stable.json"


@pytest.fixture(scope="module")
def made(releases: Releases, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_first(tmp_path_factory.mktemp("made"), releases.v1.image)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A repository and its keys, to be changed."""
    return copied(made, tmp_path / "copy")


def look(folder: Path) -> Findings:
    return verify(Repository(folder / "www", Keyring([])))


def said(capsys: pytest.CaptureFixture[str]) -> Any:  # noqa: ANN401  whatever was printed
    return json.loads(capsys.readouterr().out)


# From nothing ------------------------------------------------------------------------------------


def test_init_makes_everything_and_says_what_to_keep_offline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--keys", str(tmp_path / "off"), "--online-keys", str(tmp_path / "on")]
    assert main(["init", "--repository", str(tmp_path / "www"), *words]) == 0

    text = capsys.readouterr().out
    assert "1.root.json is what hosts trust" in text
    assert "Keep offline, each key of root with somebody else, and a copy of every key" in text
    assert {it.name for it in (tmp_path / "on").iterdir()} == {"keyring.json", "online.pem"}
    assert learn(tmp_path / "www", tmp_path / "cache", STABLE) is None
    assert look(tmp_path).problems == []


def test_init_again_changes_nothing(folder: Path) -> None:
    before = {it: it.read_bytes() for it in folder.rglob("*") if it.is_file()}

    assert publish(folder, "init") == 0

    assert {it: it.read_bytes() for it in folder.rglob("*") if it.is_file()} == before


def test_thresholds_and_days_are_as_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(tmp_path, "init", "--threshold", "root=3", "--expires", "timestamp=2") == 0
    capsys.readouterr()

    assert publish(tmp_path, "status", "--json") == 0

    roles = {it["role"]: it for it in said(capsys)["roles"]}
    assert (roles["root"]["threshold"], len(roles["root"]["keys"])) == (3, 3)
    assert roles["timestamp"]["days_left"] == 2.0


def test_a_threshold_above_the_number_of_keys_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(tmp_path, "init", "--threshold", "targets=2") == 4

    assert "targets wants 2 signatures, and has 1 keys" in capsys.readouterr().err


def test_a_folder_without_repository_says_how_to_make_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(tmp_path, "refresh") == 4

    err = capsys.readouterr().err
    assert "is no repository" in err
    assert "update-publish init makes one" in err


def test_a_repository_that_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "www").write_text("no folder")

    assert publish(tmp_path, "status") == 4

    assert f"cannot read {tmp_path}/www/" in capsys.readouterr().err


# Ceremonies --------------------------------------------------------------------------------------


def test_a_root_gathers_its_signatures_one_stick_after_the_other(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sticks = [tmp_path / "ann", tmp_path / "bob"]
    for stick, name in zip(sticks, ("root-1", "root-2"), strict=True):
        _only(folder / "keys", stick, name)
    online = _only(folder / "keys", tmp_path / "online", "online")
    www = ["--repository", str(folder / "www"), "--json"]
    capsys.readouterr()

    assert main(["keys", "add", "root-4", "--role", "root", "--keys", str(sticks[0]),
                 "--keys", str(online), *www]) == 0  # fmt: skip
    first = said(capsys)
    assert [(it["role"], it["signed"], it["threshold"]) for it in first["waiting"]] == [
        ("root", 1, 2)
    ]
    assert learn(folder / "www", tmp_path / "host", STABLE)
    assert not (folder / "www/metadata/2.root.json").exists()

    assert main(["sign", "--keys", str(sticks[1]), *www]) == 0

    found = said(capsys)
    assert (found["published"], found["waiting"]) == (["root 2"], [])
    assert len(found["changes"]) == 1
    assert re.fullmatch("root 2 lets the key [0-9a-f]{12} sign root", found["changes"][0])
    assert learn(folder / "www", tmp_path / "host", STABLE)
    assert look(folder).problems == []


def test_a_release_is_signed_offline_and_published_by_who_has_the_online_key(
    folder: Path, releases: Releases, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    team = _only(folder / "keys", tmp_path / "team", "releases")
    online = _only(folder / "keys", tmp_path / "online", "online")
    www = ["--repository", str(folder / "www")]
    old = learn(folder / "www", tmp_path / "host", "releases/os/1.1.0/release.json")
    capsys.readouterr()

    words = ["release", "add", str(releases.v2.image), "--product", "os", "--version", "1.1.0"]
    assert main([*words, "--from", "none", "--keys", str(team), *www]) == 0

    said = capsys.readouterr().out
    assert "nothing new was published" in said
    assert "snapshot 5 waits for 1 more of 1 signatures" in said
    assert learn(folder / "www", tmp_path / "host", "releases/os/1.1.0/release.json") is old is None

    assert main(["sign", "--keys", str(online), *www]) == 0

    assert "published releases 3, snapshot 5, timestamp 5" in capsys.readouterr().out
    assert learn(folder / "www", tmp_path / "host", "releases/os/1.1.0/release.json")
    assert look(folder).problems == []


def _forge(path: Path) -> None:
    """List a release that nobody made, in metadata that somebody signed."""
    found = json.loads(path.read_text())
    _lists_more(found["signed"])
    path.write_text(json.dumps(found))


def _lists_more(signed: dict[str, Any]) -> None:
    listed = signed["targets"]
    listed["releases/os/6.6.6/release.json"] = listed["releases/os/1.0.0/release.json"]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["refresh"], id="refresh"),
        pytest.param(["release", "withdraw", "--product", "os", "--version", "1.0.0", "--reason",
                      "bad"], id="withdraw"),
        pytest.param(["channel", "pause", "stable", "--reason", "drill"], id="pause"),
        pytest.param(["sign"], id="sign"),
    ],
)  # fmt: skip
def test_nobody_signs_on_top_of_what_was_not_signed(
    folder: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    _forge(folder / "www/metadata/2.releases.json")
    before = {it: it.read_bytes() for it in (folder / "www").rglob("*.json")}

    assert publish(folder, *words) == 3

    assert "releases 2 has 0 good signatures" in capsys.readouterr().err
    assert {it: it.read_bytes() for it in (folder / "www").rglob("*.json")} == before


def test_a_repository_that_begins_with_another_root_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = tmp_path / "1.root.json"
    shutil.copy(folder / "www/metadata/1.root.json", known)
    assert publish(folder, "refresh", "--root", str(known)) == 0
    shutil.rmtree(folder / "www")
    assert publish(folder, "init") == 0

    assert publish(folder, "refresh", "--root", str(known)) == 3

    assert "is not the root that was named with --root" in capsys.readouterr().err
    assert publish(folder, "refresh", "--root", str(tmp_path / "none")) == 4
    verify = ["verify", "--repository", str(folder / "www"), "--root", str(known)]
    assert main(verify) == 3


def test_without_the_first_root_nothing_is_signed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = tmp_path / "1.root.json"
    shutil.move(folder / "www/metadata/1.root.json", known)
    which = ["--product", "os", "--version", "1.0.0", "--reason", "bad"]

    assert publish(folder, "release", "withdraw", *which) == 3
    assert publish(folder, "release", "withdraw", *which, "--root", str(known)) == 3

    assert "has no root" in capsys.readouterr().err
    assert not (folder / "www/.staged").exists() or not any((folder / "www/.staged").iterdir())


def _plant(folder: Path, role: str, version: int, change: Callable[[dict[str, Any]], None]) -> Path:
    """Stage a role as who has no key does: changed, and signed by nobody."""
    published = max((folder / "www/metadata").glob(f"*.{role}.json"))
    found = json.loads(published.read_text())
    found["signed"]["version"] = version
    change(found["signed"])
    staged = folder / f"www/.staged/{role}.json"
    staged.parent.mkdir(exist_ok=True)
    staged.write_text(json.dumps({**found, "signatures": []}))
    return staged


def _plant_release(folder: Path, version: int) -> Path:
    """Stage releases with one more, as an edit of what is published, which anybody can write."""
    published = Metadata.from_bytes((folder / "www/metadata/2.releases.json").read_bytes())

    def change(signed: dict[str, Any]) -> None:
        _lists_more(signed)
        signed["x-follows"] = changes.digest(published.signed)

    return _plant(folder, "releases", version, change)


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("verb", ["withdraw", "refresh", "pause"])
def test_no_verb_but_sign_signs_what_a_stranger_staged(
    verb: str, version: int, folder: Path, tmp_path: Path
) -> None:
    words = {
        "withdraw": ["release", "withdraw", "--product", "os", "--version", "1.0.0",
                     "--reason", "bad"],
        "refresh": ["refresh"],
        "pause": ["channel", "pause", "stable", "--reason", "drill"],
    }[verb]  # fmt: skip
    staged = _plant_release(folder, version)

    assert publish(folder, *words) == (4 if verb == "withdraw" else 0)

    assert json.loads(staged.read_text())["signatures"] == []
    assert learn(folder / "www", tmp_path / "host", "releases/os/6.6.6/release.json") is None
    assert publish(folder, "refresh") == 0
    assert learn(folder / "www", tmp_path / "host", "releases/os/6.6.6/release.json") is None
    assert look(folder).problems == []


def test_a_no_leaves_a_stranger_s_edit_and_a_renewal_unsigned(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plant_release(folder, 1)
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    later = datetime.now(UTC) + timedelta(days=100)
    opened = verbs.opened
    monkeypatch.setattr(verbs, "opened", lambda *a, **more: at(later, opened(*a, **more)))

    assert publish(folder, "sign", "--renew", "targets") == 4

    for staged in (folder / "www/.staged").iterdir():
        assert json.loads(staged.read_text())["signatures"] == []


def test_another_key_under_an_old_name_is_shown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ring = json.loads((folder / "keys/keyring.json").read_text())
    (key_id,) = (it["key_id"] for it in ring["keys"] if it["name"] == "targets")

    def change(signed: dict[str, Any]) -> None:
        signed["keys"][key_id]["keyval"]["public"] = "00" * 32

    _plant(folder, "root", 2, change)

    assert publish(folder, "status") == 0
    assert "root 2 changes what the key targets is" in capsys.readouterr().out


def test_what_somebody_else_staged_is_shown_before_it_is_signed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    staged = folder / "www/.staged/releases.json"
    staged.parent.mkdir(exist_ok=True)
    shutil.copy(folder / "www/metadata/2.releases.json", staged)
    found = json.loads(staged.read_text())
    found["signed"]["version"] = 3
    staged.write_text(json.dumps({**found, "signatures": []}))
    _forge(staged)
    targets = folder / "www/targets/releases/os"
    shutil.copytree(targets / "1.0.0", targets / "6.6.6")
    shown = "releases 3 adds releases/os/6.6.6/release.json"

    assert publish(folder, "sign") == 0

    heard = capsys.readouterr()
    assert shown in heard.err
    assert shown in heard.out


class Terminal(io.StringIO):
    """Somebody sits there, and has typed."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_who_says_no_signs_nothing(
    answer: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    team = _only(folder / "keys", tmp_path / "team", "releases")
    which = ["--product", "os", "--version", "1.0.0", "--reason", "bad"]
    www = ["--repository", str(folder / "www"), "--keys", str(team)]
    assert main(["release", "withdraw", *which, *www]) == 4
    before = {it: it.read_bytes() for it in (folder / "www").rglob("*.json")}
    monkeypatch.setattr(sys, "stdin", Terminal(answer))

    code = publish(folder, "sign")

    heard = capsys.readouterr().err
    assert (code, "nothing was signed" in heard) == (4, True)
    assert "releases 3 removes releases/os/1.0.0/release.json" in heard
    assert {it: it.read_bytes() for it in (folder / "www").rglob("*.json")} == before
    assert publish(folder, "sign", "--yes") == 0
    assert learn(folder / "www", tmp_path / "host", "releases/os/1.0.0/release.json") is None


def test_an_edit_that_would_undo_another_is_put_aside(
    folder: Path, releases: Releases, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    team = _only(folder / "keys", tmp_path / "team", "releases")
    words = ["release", "add", str(releases.v2.image), "--product", "os", "--version", "1.1.0"]
    www = ["--repository", str(folder / "www")]
    assert main([*words, "--keys", str(team), *www]) == 0
    staged = folder / "www/.staged/releases.json"
    edit = staged.read_bytes()
    staged.unlink()  # carried away, to another key
    which = ["--product", "os", "--version", "1.0.0", "--reason", "bad", "--json"]
    assert publish(folder, "release", "withdraw", *which) == 0
    staged.write_bytes(edit)  # and back
    capsys.readouterr()

    assert publish(folder, "sign") == 0

    heard = capsys.readouterr()
    assert "the staged releases 3 was made before releases 3 was published" in heard.err
    assert "repeat the edit" in heard.err
    assert not staged.exists()
    assert (folder / "www/.staged/releases.3.outdated").read_bytes() == edit
    assert learn(folder / "www", tmp_path / "host", "releases/os/1.0.0/release.json") is None
    assert look(folder).problems == []


def _only(source: Path, target: Path, name: str) -> Path:
    """Make a ring with one key of another."""
    ring = json.loads((source / "keyring.json").read_text())
    ring["keys"] = [it for it in ring["keys"] if it["name"] == name]
    target.mkdir()
    (target / "keyring.json").write_text(json.dumps(ring))
    shutil.copy(source / f"{name}.pem", target)
    return target


# Rotation and theft ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["online", "releases", "targets", "root-1"])
def test_hosts_notice_nothing_of_a_key_that_is_rotated(
    folder: Path, tmp_path: Path, name: str
) -> None:
    before = learn(folder / "www", tmp_path / "host", STABLE)

    assert publish(folder, "keys", "rotate", name, f"{name}-new", "--json") == 0

    assert learn(folder / "www", tmp_path / "host", STABLE) == before
    assert learn(folder / "www", tmp_path / "new host", STABLE) == before
    assert look(folder).problems == []
    (folder / f"keys/{name}.pem").unlink()
    ring = json.loads((folder / "keys/keyring.json").read_text())
    ring["keys"] = [it for it in ring["keys"] if it["name"] != name]
    (folder / "keys/keyring.json").write_text(json.dumps(ring))
    assert publish(folder, "channel", "pause", "stable", "--reason", "drill", "--json") == 0
    assert publish(folder, "refresh", "--json") == 0
    assert learn(folder / "www", tmp_path / "host", STABLE) != before


def test_rotating_twice_is_rotating_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert publish(folder, "keys", "rotate", "online", "online-new", "--json") == 0
    capsys.readouterr()

    assert publish(folder, "keys", "rotate", "online", "online-new", "--json") == 0

    assert said(capsys)["published"] == []


def test_what_a_stolen_key_signs_is_refused_after_it_was_revoked(
    folder: Path, tmp_path: Path
) -> None:
    thief = copied(folder, tmp_path / "thief")
    learn(folder / "www", tmp_path / "host", STABLE)
    assert publish(folder, "keys", "rotate", "online", "online-new", "--json") == 0
    learn(folder / "www", tmp_path / "host", STABLE)

    assert publish(thief, "channel", "pause", "stable", "--reason", "evil", "--json") == 0
    shutil.copy(folder / "www/metadata/2.root.json", thief / "www/metadata")  # or he is older

    with pytest.raises(RefusedError, match="timestamp was signed by 0/1 keys"):
        learn(thief / "www", tmp_path / "host", STABLE)


def test_the_last_key_of_a_role_is_not_revoked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(folder, "keys", "revoke", "targets") == 4

    assert "targets wants 1 signatures, and has 0 keys" in capsys.readouterr().err
    assert look(folder).problems == []


def test_a_lost_key_can_be_replaced_by_those_above_it(folder: Path, tmp_path: Path) -> None:
    learn(folder / "www", tmp_path / "host", STABLE)
    (folder / "keys/online.pem").unlink()
    ring = json.loads((folder / "keys/keyring.json").read_text())
    lost = next(it["key_id"] for it in ring["keys"] if it["name"] == "online")
    ring["keys"] = [it for it in ring["keys"] if it["name"] != "online"]
    (folder / "keys/keyring.json").write_text(json.dumps(ring))

    assert publish(folder, "keys", "rotate", lost[:12], "online-new", "--json") == 0

    assert learn(folder / "www", tmp_path / "host", STABLE)
    assert look(folder).problems == []


# Two at once -------------------------------------------------------------------------------------


@pytest.mark.case(95)
def test_many_publishers_at_once_leave_every_edit_and_a_whole_repository(folder: Path) -> None:
    words = ["--repository", str(folder / "www"), "--keys", str(folder / "keys"), "--json"]
    jobs = [["channel", "create", f"beta-{number}", "--product", "os"] for number in range(6)]
    quarantine = ["channel", "quarantine", "stable", "--anyway", "--reason", "x"]
    jobs += [[*quarantine, f"9.0.{it}"] for it in range(6)]
    program = "import sys; from update_agent.publish.main import main; sys.exit(main())"
    running = [
        subprocess.Popen([sys.executable, "-c", program, *job, *words], stdout=subprocess.DEVNULL)
        for job in jobs
    ]

    assert [it.wait(120) for it in running] == [0] * len(jobs)

    listed = json.loads(
        subprocess.run(
            [sys.executable, "-c", program, "channel", "list", *words[:2], "--json"],
            check=True, capture_output=True,
        ).stdout
    )  # fmt: skip
    assert len(listed) == 7
    stable = next(it for it in listed if it["channel"] == "stable")
    assert stable["quarantined"] == [f"9.0.{it}" for it in range(6)]
    assert look(folder).problems == []


@pytest.mark.case(95)
def test_a_channel_promoted_twice_is_promoted_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["channel", "promote", "stable", "1.0.0", "--wave", "1%:1h", "--wave", "100%:1d"]
    assert publish(folder, *words, "--json") == 0
    first = said(capsys)

    assert publish(folder, *words, "--json") == 0

    second = said(capsys)
    assert (first["changed"], second["changed"]) == (True, False)
    assert second["rollout"] == first["rollout"]
    assert second["published"] == []


# Words that are refused --------------------------------------------------------------------------


@pytest.mark.case(98)
@pytest.mark.case(100)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["channel", "create", "../stable", "--product", "os"], "'../stable' is no name"),
        (["channel", "create", "x", "--product", "o/s"], "'o/s' is no name"),
        (["channel", "promote", "stable", "../1.0.0"], "'../1.0.0' is no version"),
        (["channel", "promote", "stable", "1.0.0", "--wave", "0%:1h"], "0 % is no share of hosts"),
        (["channel", "promote", "stable", "1.0.0", "--wave", "101%:1h"], "101 % is no share"),
        (["channel", "promote", "stable", "1.0.0", "--wave", "10"], "'10' is no wave"),
        (["channel", "promote", "stable", "1.0.0", "--deadline", "soon"], "'soon' is no time"),
        (["channel", "promote", "stable", "1.0.0", "--deadline", "2026-12-01"], "is no time"),
        (["channel", "promote", "stable", "1.0.0", "--deadline", "9999-01-01T00:00Z"], "is no"),
        (["channel", "promote", "stable", "1.0.0", "--deadline", "0001-01-01T00:00+14:00"], "no"),
        (["release", "show", "--product", "..", "--version", "1.0.0"], "'..' is no name"),
        (
            ["release", "add", "x", "--product", "os", "--version", "1.0.0", "--from", "x" * 300],
            "has 300 characters, wanted 64",
        ),
        (["init", "--key", "release=file:x"], "is no ROLE=URI; roles are root, targets"),
        (["init", "--expires", "timestamp=0"], "is no ROLE=NUMBER"),
    ],
)
def test_a_word_that_could_do_harm_is_wrong_usage(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        publish(folder, *words)

    assert message in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["channel", "promote", "stable", "2.0.0"], "there is no release os 2.0.0"),
        (["channel", "promote", "beta", "1.0.0"], "there is no channel beta"),
        (["channel", "floors", "stable", "0.9.0"], "there is no release os 0.9.0"),
        (["channel", "promote", "stable", "1.0.0", "--wave", "50%", "--wave", "10%"],
         "a wave up to 10 % follows one up to 50 %"),
        (["release", "withdraw", "--product", "os", "--version", "3.0.0", "--reason", "x"],
         "there is no release os 3.0.0"),
        (["channel", "create", "stable", "--product", "nas"],
         "channel stable exists, for product os"),
        (["keys", "rotate", "nobody", "x"], "0 keys are called nobody"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_and_changes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    timestamp = (folder / "www/metadata/timestamp.json").read_bytes()

    assert publish(folder, *words) == 4

    assert message in capsys.readouterr().err
    assert (folder / "www/metadata/timestamp.json").read_bytes() == timestamp


def test_a_typo_quarantines_nothing_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(folder, "channel", "quarantine", "stable", "1.0.9", "--reason", "bad") == 4
    assert "there is no release os 1.0.9" in capsys.readouterr().err
    which = ["--product", "os", "--version", "1.0.0", "--reason", "bad", "--json"]
    assert publish(folder, "release", "withdraw", *which) == 0
    assert publish(folder, "channel", "quarantine", "stable", "1.0.0", "--reason", "bad") == 0


def test_a_deadline_that_is_over_opens_no_rollout_to_everyone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["channel", "promote", "stable", "1.0.0", "--wave", "1%:1h", "--wave", "100%:1d"]
    before = (folder / "www/metadata/timestamp.json").read_bytes()

    assert publish(folder, *words, "--deadline", "2025-12-04T08:00Z") == 4

    assert "the deadline 2025-12-04 08:00 is over, and all hosts" in capsys.readouterr().err
    assert (folder / "www/metadata/timestamp.json").read_bytes() == before


def test_a_deadline_can_be_given_up(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waves = ["--wave", "1%:1h", "--wave", "100%:1d", "--json"]
    promote = ["channel", "promote", "stable", "1.0.0", *waves]
    assert publish(folder, *promote, "--deadline", "3d") == 0
    assert publish(folder, "channel", "rollout", "stable", *waves) == 0
    kept = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert kept["rollout"]["deadline"] is not None

    assert publish(folder, "channel", "rollout", "stable", *waves, "--deadline", "none") == 0

    assert said(capsys)["rollout"]["deadline"] is None


# Releases ----------------------------------------------------------------------------------------


def test_a_version_is_published_once(
    folder: Path, releases: Releases, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["release", "add", str(releases.v2.image), "--product", "os", "--version", "1.0.0"]

    assert publish(folder, *words) == 4

    assert "os 1.0.0 is published, for x86_64 with the root hash" in capsys.readouterr().err


def test_a_withdrawn_version_does_not_come_back(
    folder: Path, releases: Releases, capsys: pytest.CaptureFixture[str]
) -> None:
    which = ["--product", "os", "--version", "1.0.0"]
    assert publish(folder, "release", "withdraw", *which, "--reason", "bad", "--json") == 0
    assert publish(folder, "release", "withdraw", *which, "--reason", "bad", "--json") == 0

    assert publish(folder, "release", "add", str(releases.v1.image), *which) == 4

    assert "os 1.0.0 was withdrawn" in capsys.readouterr().err
    assert main(["release", "list", "--repository", str(folder / "www"), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert listed["releases"] == []
    assert [it["reason"] for it in listed["withdrawn"]] == ["bad"]


def test_deltas_are_added_later_and_from_images_in_the_repository(
    folder: Path, releases: Releases, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["release", "add", str(releases.v2.image), "--product", "os", "--version", "1.1.0"]
    assert publish(folder, *words, "--from", "none", "--json") == 0
    capsys.readouterr()

    assert publish(folder, *words, "--json") == 0

    found = said(capsys)
    assert found["new_payloads"] == 1
    sources = [it["source"] and it["source"]["version"] for it in found["payloads"]]
    assert sources == [None, "1.0.0"]
    assert look(folder).problems == []


# verify ------------------------------------------------------------------------------------------


def _one(folder: Path, pattern: str) -> Path:
    return max((folder / "www").glob(pattern))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        pytest.param(lambda it: _flip(_one(it, "payloads/os/*/*.blob")),
                     "does not have its hash", id="blob"),
        pytest.param(lambda it: _flip(_one(it, "payloads/os/*/*.index")), "wanted", id="index"),
        pytest.param(lambda it: _one(it, "payloads/os/*/*.blob").unlink(),
                     "has 0 bytes, wanted", id="no-blob"),
        pytest.param(lambda it: _one(it, "payloads/os/*/*.index").unlink(),
                     "No such file", id="no-index"),
        pytest.param(lambda it: _flip(_one(it, "targets/releases/os/*/*.json")),
                     "is not what was signed", id="release"),
        pytest.param(lambda it: _one(it, "targets/releases/os/*/*.json").unlink(),
                     "is missing", id="no-release"),
        pytest.param(lambda it: _flip(_one(it, "metadata/*.snapshot.json")),
                     "snapshot", id="snapshot"),
        pytest.param(lambda it: _flip(_one(it, "metadata/*.root.json")), "root", id="root"),
        pytest.param(lambda it: (it / "www/payloads/os/junk").write_text("x"),
                     "payloads/os/junk is in nobody's list", id="junk"),
        pytest.param(lambda it: (it / "www/metadata/7.joke.json").write_text("{}"),
                     "metadata/7.joke.json is in nobody's list", id="junk-metadata"),
    ],
)  # fmt: skip
def test_verify_finds_what_is_wrong(
    folder: Path, spoil: Callable[[Path], None], problem: str
) -> None:
    assert look(folder).problems == []

    spoil(folder)

    assert any(problem in it for it in look(folder).problems), look(folder).problems


def test_verify_tells_what_expires_and_what_has_expired(folder: Path) -> None:
    later = Repository(folder / "www", Keyring([]), datetime.now(UTC) + timedelta(days=6))
    too_late = Repository(folder / "www", Keyring([]), datetime.now(UTC) + timedelta(days=8))

    assert verify(later, ahead=timedelta(days=2)).problems == []
    assert any("timestamp" in it for it in verify(later, ahead=timedelta(days=2)).warnings)
    assert any("timestamp 4 expired" in it for it in verify(too_late).problems)


def test_the_program_exits_with_3_when_something_is_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["verify", "--repository", str(folder / "www")]
    assert main(words) == 0
    assert "no problems" in capsys.readouterr().out
    _flip(_one(folder, "payloads/os/*/*.blob"))

    assert main([*words, "--quick"]) == 0
    assert main(words) == 3
    assert main([*words, "--json"]) == 3
    assert "does not have its hash" in capsys.readouterr().out


# refresh and simulate ----------------------------------------------------------------------------


def test_refresh_signs_a_new_timestamp_and_what_is_past_half_of_its_time(folder: Path) -> None:
    later = Repository(
        folder / "www", Keyring([folder / "keys"]), datetime.now(UTC) + timedelta(days=20)
    )

    with later.locked():
        first = later.commit(refresh=True)
    much_later = Repository(
        folder / "www", Keyring([folder / "keys"]), datetime.now(UTC) + timedelta(days=60)
    )
    with much_later.locked():
        second = much_later.commit(refresh=True)

    assert first.published == ("snapshot 5", "timestamp 5")
    assert second.published == ("channels 4", "snapshot 6", "timestamp 6")


@pytest.mark.case(97)
@pytest.mark.parametrize(
    ("days", "code", "said"),
    [
        (300, 0, None),
        (340, 0, "warning: releases expires in 24 days: update-publish sign --renew releases"),
        (366, 4, "warning: releases has expired: update-publish sign --renew releases, with its"),
    ],
)
def test_refresh_fails_while_a_role_that_others_sign_has_expired(
    days: int,
    code: int,
    said: str | None,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    later = datetime.now(UTC) + timedelta(days=days)
    opened = verbs.opened
    monkeypatch.setattr(verbs, "opened", lambda options: at(later, opened(options)))

    assert publish(folder, "refresh") == code

    heard = capsys.readouterr().err
    assert said in heard if said else not heard


def at(now: datetime, repository: Repository) -> Repository:
    repository.now = now.replace(microsecond=0)
    return repository


def test_simulate_tells_who_gets_it_when_and_other_waves_change_no_place(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("".join(f"{number:032x} web{number}\n" for number in range(50)) + "# x\n\n")
    show = ["channel", "simulate", "stable", "--hosts", str(hosts), "--json",
            "--repository", str(folder / "www")]  # fmt: skip
    places = []
    for waves in (["1%:1h", "100%:1d"], ["10%:1h", "50%:2h", "100%:2d"]):
        words = [it for wave in waves for it in ("--wave", wave)]
        assert publish(folder, "channel", "promote", "stable", "1.0.0", *words, "--json") == 0
        capsys.readouterr()
        assert main(show) == 0
        rows = said(capsys)
        assert len(rows) == 50
        assert [it["place"] for it in rows] == sorted(it["place"] for it in rows)
        times = [it["when"] for it in rows if not it["open"]]
        assert times == sorted(times)
        places.append({it["host"]: it["place"] for it in rows})

    assert places[0] == places[1]
