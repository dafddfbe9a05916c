"""What a repository publishes, what it keeps waiting, and what hosts see when keys change."""

import json
import multiprocessing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import SSlibKey
from tuf.api.exceptions import RepositoryError as TufError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from tests.publisher import Stock, Team, View, seen_by_tuf, seen_by_us
from update_agent.core import trust
from update_agent.core.trust import UntrustedError
from update_agent.errors import UpdateAgentError
from update_agent.publish.keys import Keyring
from update_agent.publish.repository import Repository


def look(team: Team, state: Path) -> View:
    """Return what both clients see, with what they remember in ``state``."""
    (state / "tuf").mkdir(parents=True, exist_ok=True)
    by_tuf, by_us = seen_by_tuf(team, state / "tuf"), seen_by_us(team, state / "us")
    assert by_tuf == by_us
    return by_us


def waiting(team: Team) -> list[str]:
    return [it["role"] for it in team.run("status", "--json").json["waiting"]]


def stick(team: Team, *names: str) -> Path:
    """Move keys to a folder of their own; the ring still tells of them."""
    folder = team.folder / f"stick-{'-'.join(names)}"
    folder.mkdir()
    for name in names:
        (team.offline / f"{name}.pem").rename(folder / f"{name}.pem")
    return folder


# Others judge -------------------------------------------------------------------------------------


def test_tufs_metadata_api_alone_finds_everything_signed_and_hashed(team: Team) -> None:
    metadata = team.www / "metadata"
    root = Metadata[Root].from_file(str(metadata / "1.root.json")).signed

    def read(name: str, role: str, by: Root | Targets) -> bytes:
        data = (metadata / name).read_bytes()
        found = Metadata.from_bytes(data)
        by.verify_delegate(role, found.signed_bytes, found.signatures)
        assert found.signed.expires > datetime.now(UTC)
        return data

    timestamp = Metadata[Timestamp].from_bytes(read("timestamp.json", "timestamp", root)).signed
    data = read(f"{timestamp.snapshot_meta.version}.snapshot.json", "snapshot", root)
    timestamp.snapshot_meta.verify_length_and_hashes(data)
    snapshot = Metadata[Snapshot].from_bytes(data).signed
    assert set(snapshot.meta) == {"targets.json", "releases.json", "channels.json"}
    by: Root | Targets = root
    files = 0
    for name in ("targets", "releases", "channels"):
        meta = snapshot.meta[f"{name}.json"]
        data = read(f"{meta.version}.{name}.json", name, by)
        meta.verify_length_and_hashes(data)
        signed = Metadata[Targets].from_bytes(data).signed
        by = signed if name == "targets" else by
        for path, info in signed.targets.items():
            folder, _, file = path.rpartition("/")
            place = team.www / "targets" / folder / f"{info.hashes['sha256']}.{file}"
            info.verify_length_and_hashes(place.read_bytes())
            files += 1
    assert files == 3
    assert root.roles["root"].threshold == 2
    assert root.consistent_snapshot


# Signatures that are gathered ---------------------------------------------------------------------


def test_three_people_with_a_stick_each_sign_one_after_the_other(
    team: Team, tmp_path: Path
) -> None:
    before = look(team, tmp_path)
    sticks = [stick(team, f"root-{number}") for number in (1, 2, 3)]

    said = team.do("keys", "add", "root-4", "--role", "root")

    assert "root 2 waits for 2 more of 2 signatures, by: root-1, root-2, root-3" in said
    assert look(team, tmp_path) == before
    said = team.do("sign", keys=[team.offline, sticks[0]])
    assert "root 2 waits for 1 more of 2 signatures, by: root-2, root-3" in said
    assert team.do("sign", keys=[team.offline, sticks[0]]) == said  # the same key counts once
    assert look(team, tmp_path) == before
    assert "published root 2" in team.do("sign", keys=[team.offline, sticks[2]])
    assert look(team, tmp_path).root == 2
    assert waiting(team) == []


def test_a_release_made_without_the_online_key_waits_for_who_has_it(
    team: Team, stock: Stock, tmp_path: Path
) -> None:
    words = team.release(stock.images[2], "1.2.0", "--from", "none")
    before = look(team, tmp_path)

    said = team.run(*words, keys=[team.offline])

    assert said.code == 0
    assert "nothing new was published" in said.out
    assert "snapshot 6 waits for 1 more of 1 signatures, by:" in said.out
    assert look(team, tmp_path) == before
    early = team.run("channel", "promote", "stable", "1.2.0", keys=[team.offline])
    assert early.code == 4
    assert "release os 1.2.0 waits for signatures" in early.err
    assert "published releases 4, snapshot 6, timestamp 6" in team.do("sign", keys=[team.online])
    assert look(team, tmp_path).payloads == (*before.payloads, ("1.2.0", 1))


def test_a_release_made_without_the_releases_key_waits_and_holds_up_nobody(
    team: Team, stock: Stock, tmp_path: Path
) -> None:
    key = stick(team, "releases")
    said = team.do(*team.release(stock.images[2], "1.2.0", "--from", "none"))
    assert "releases 4 waits for 1 more of 1 signatures, by: releases" in said

    team.do("channel", "pause", "stable", "--reason", "smoke")
    team.do("refresh")

    seen = look(team, tmp_path)
    assert seen.channel == ("1.0.0", True, 3)
    assert "1.2.0" not in dict(seen.payloads)
    team.do("sign", keys=[key, team.offline, team.online])
    assert "1.2.0" in dict(look(team, tmp_path).payloads)


def test_a_pause_is_published_while_new_keys_wait_for_their_ceremony(
    team: Team, tmp_path: Path
) -> None:
    """The new online key is on another machine; all else of the rotation is signed."""
    new = team.folder / "new"
    key = Keyring([new]).generate("online-2")
    assert isinstance(key, SSlibKey)
    (new / "online-2.pub").write_bytes(public_pem(key))
    words = ("--uri", f"file:{new}/online-2.pem", "--public-key", new / "online-2.pub")
    (new / "online-2.pem").rename(team.folder / "elsewhere.pem")

    said = team.do("keys", "rotate", "online", "online-2", *words)

    assert "channels 4 waits for 1 more of 1 signatures, by: online-2" in said
    team.do("channel", "pause", "stable", "--reason", "smoke")
    assert look(team, tmp_path).channel == ("1.0.0", True, 3)
    (team.folder / "elsewhere.pem").rename(new / "online-2.pem")
    team.do("sign")
    assert look(team, tmp_path).root == 2
    assert look(team, tmp_path).channel == ("1.0.0", True, 3)
    assert waiting(team) == []


def public_pem(key: SSlibKey) -> bytes:
    raw = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.keyval["public"]))
    return raw.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_a_channel_that_is_changed_without_its_key_is_an_error_that_says_what_it_waits_for(
    team: Team, tmp_path: Path
) -> None:
    before = look(team, tmp_path)

    said = team.run("channel", "pause", "stable", "--reason", "smoke", keys=[team.offline])

    assert said.code == 4
    assert "channels 4 waits for 1 more of 1 signatures" in said.out
    assert look(team, tmp_path) == before
    team.do("sign", keys=[team.online])
    assert look(team, tmp_path).channel == ("1.0.0", True, 3)


# Rotation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", ["online", "root-1", "targets", "releases"])
@pytest.mark.parametrize("state", ["old-host", "new-host"])
def test_a_host_notices_nothing_when_a_key_is_replaced(
    old: str, state: str, team: Team, tmp_path: Path
) -> None:
    before = look(team, tmp_path)
    team.do("keys", "rotate", old, f"{old}-new")
    team.do("keys", "rotate", old, f"{old}-new")  # once more changes nothing

    host = tmp_path if state == "old-host" else tmp_path / "new"
    seen = look(team, host)

    assert (seen.channel, seen.payloads) == (before.channel, before.payloads)
    assert seen.root == (2 if old in ("online", "root-1", "targets") else 1)
    team.do("channel", "pause", "stable", "--reason", "signed by the new key")
    assert look(team, host).channel == ("1.0.0", True, 3)
    assert old not in [it["name"] for it in team.run("keys", "list", "--json").json]


def test_ten_rotations_lead_an_old_host_to_the_end(team: Team, tmp_path: Path) -> None:
    look(team, tmp_path)
    for number in range(1, 11):
        team.do("keys", "rotate", f"root-{number}", f"root-{number + 3}")

    assert look(team, tmp_path).root == 11


@pytest.mark.parametrize("lost", ["online", "targets", "releases"])
def test_a_key_that_is_lost_or_stolen_is_replaced_without_it(
    lost: str, team: Team, tmp_path: Path
) -> None:
    before = look(team, tmp_path)
    ring = team.online if lost == "online" else team.offline
    (ring / f"{lost}.pem").unlink()

    team.do("keys", "rotate", lost, f"{lost}-new", keys=[team.offline, team.online])

    for host in (tmp_path, tmp_path / "new"):
        seen = look(team, host)
        assert (seen.channel, seen.payloads) == (before.channel, before.payloads)
    team.do("channel", "pause", "stable", "--reason", "by the new key")
    assert look(team, tmp_path).channel == ("1.0.0", True, 3)
    assert team.run("verify", "--json").json["problems"] == []


def test_what_a_stolen_timestamp_key_said_is_forgotten_with_it(team: Team, tmp_path: Path) -> None:
    """Somebody counted up to where nobody else can follow."""
    honest = team.copy(team.folder.parent / "honest")
    thief = Repository(team.www, Keyring([team.online]))
    timestamp = thief.newest(Timestamp, "timestamp")
    timestamp.version = 2**53 - 1
    forged = Metadata(timestamp)
    thief.keyring.sign(forged, trust.key_ids(thief.root(), "timestamp"))
    (team.www / "metadata" / "timestamp.json").write_bytes(forged.to_bytes())
    look(team, tmp_path)
    with pytest.raises((TufError, UpdateAgentError)):
        look(honest, tmp_path)

    honest.do("keys", "rotate", "online", "online-2")

    assert look(honest, tmp_path).root == 2


def test_the_threshold_can_go_up_and_down(team: Team, tmp_path: Path) -> None:
    look(team, tmp_path)
    team.do("keys", "add", "root-1", "--role", "root", "--threshold", "3")
    assert look(team, tmp_path).root == 2
    one = stick(team, "root-3")
    assert "waits for 1 more of 3" in team.do("keys", "add", "root-4", "--role", "root")
    assert "published root 3" in team.do("sign", keys=[team.offline, one])
    team.do("keys", "add", "root-1", "--role", "root", "--threshold", "1",
            keys=[team.offline, one])  # fmt: skip
    assert look(team, tmp_path).root == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("keys", "revoke", "releases"), "releases wants 1 signatures, and has 0 keys"),
        (("keys", "add", "root-1", "--role", "root", "--threshold", "4"),
         "root wants 4 signatures, and has 3 keys"),
        (("keys", "add", "root-1", "--role", "root", "--threshold", "0"),
         "root wants 0 signatures, and has 3 keys"),
        (("keys", "revoke", "nobody"), "0 keys are called nobody"),
        (("keys", "rotate", "root-1", "root-1"), "root-1 is root-1, not another key"),
    ],
)  # fmt: skip
def test_a_role_always_has_enough_keys(words: tuple[str, ...], message: str, team: Team) -> None:
    said = team.run(*words)

    assert said.code == 4
    assert message in said.err
    assert waiting(team) == []


# Time ---------------------------------------------------------------------------------------------


def at(team: Team, **ahead: int) -> Repository:
    ring = Keyring([team.offline, team.online])
    return Repository(team.www, ring, datetime.now(UTC) + timedelta(**ahead))


def test_refresh_signs_a_timestamp_and_what_is_past_half_of_its_time(team: Team) -> None:
    assert at(team).commit(refresh=True).published == ("timestamp 6",)
    assert at(team, days=14).commit(refresh=True).published == ("timestamp 7",)
    assert at(team, days=16).commit(refresh=True).published == ("snapshot 6", "timestamp 8")
    assert at(team, days=46).commit(refresh=True).published == (
        "channels 4", "snapshot 7", "timestamp 9",
    )  # fmt: skip


def test_refresh_without_the_online_key_says_so(team: Team) -> None:
    said = team.run("refresh", keys=[team.offline])

    assert said.code == 4
    assert "timestamp 6 waits for 1 more of 1 signatures" in said.out


def test_offline_roles_are_renewed_in_a_ceremony_and_once_a_day_at_most(team: Team) -> None:
    for role in ("root", "targets", "releases"):
        at(team, days=300).renew(role)
    later = at(team, days=300)
    later.sign()
    assert [it.split()[0] for it in later.commit().published][:3] == [
        "targets",
        "releases",
        "snapshot",
    ]
    left = {name: later.newest(Root, "root").expires - later.now for name in ("root",)}
    assert left["root"] == timedelta(days=730)
    at(team, days=300).renew("root")
    assert at(team, days=300).staged("root") is None


# Several at once ----------------------------------------------------------------------------------


def _promote(folder: Path, number: int) -> None:
    Team(folder).do("channel", "create", f"channel-{number}", "--product", "os")
    Team(folder).do(
        "channel", "quarantine", "stable", f"0.{number}.0", "--anyway", "--reason", "all at once"
    )


def _add(folder: Path, image: Path, version: str, source: str) -> None:
    Team(folder).do(*Team(folder).release(image, version, "--from", source))


def _finish(processes: list[multiprocessing.Process]) -> None:
    for it in processes:
        it.start()
    for it in processes:
        it.join()
        assert it.exitcode == 0


@pytest.mark.case(95)
def test_eight_operators_at_once_leave_all_their_edits(team: Team, tmp_path: Path) -> None:
    _finish([
        multiprocessing.Process(target=_promote, args=(team.folder, number)) for number in range(8)
    ])  # fmt: skip

    shown = team.run("channel", "show", "stable", "--json").json
    assert len(team.run("channel", "list", "--json").json) == 9
    assert sorted(shown["quarantined"]) == [f"0.{number}.0" for number in range(8)]
    assert look(team, tmp_path).channel == ("1.0.0", False, 10)
    assert team.run("verify", "--json").json["problems"] == []


@pytest.mark.case(95)
def test_the_same_promotion_twice_is_one(team: Team) -> None:
    words = (
        "channel",
        "promote",
        "stable",
        "1.1.0",
        "--wave",
        "5%:1h",
        "--deadline",
        "3d",
        "--json",
    )

    first, second = team.run(*words).json, team.run(*words).json

    assert (first["changed"], second["changed"]) == (True, False)
    assert second["published"] == []
    assert second["rollout"] == first["rollout"]


@pytest.mark.case(95)
def test_two_release_teams_add_to_one_release_at_once(
    team: Team, stock: Stock, tmp_path: Path
) -> None:
    _finish([
        multiprocessing.Process(target=_add, args=(team.folder, stock.images[2], "1.2.0", source))
        for source in ("1.0.0", "1.1.0")
    ])  # fmt: skip

    assert dict(look(team, tmp_path).payloads)["1.2.0"] == 3
    assert team.run("verify", "--json").json["problems"] == []


# Lies that are signed -----------------------------------------------------------------------------


def stolen(team: Team, role: str, path: str) -> Repository:
    """Return a repository whose ``role`` is about to speak about ``path``."""
    thief = Repository(team.www, Keyring([team.offline, team.online]))
    targets = thief.targets(role)
    targets.targets[path] = TargetFile.from_data(path, b"x", ["sha256"])
    thief.stage(role, targets)
    return thief


@pytest.fixture
def paths() -> list[tuple[str, str]]:
    return [
        ("channels", "channels/../../../../etc/passwd"),
        ("channels", "releases/os/1.0.0/release.json"),
        ("releases", "channels/stable.json"),
        ("releases", "releases/../../../x/release.json"),
    ]


@pytest.mark.case(98)
def test_nobody_publishes_names_that_are_not_his_to_say(
    team: Team, paths: list[tuple[str, str]], tmp_path: Path
) -> None:
    for role, path in paths:
        liar = team.copy(tmp_path / path.replace("/", "-").replace(".", "-"))
        with pytest.raises(UntrustedError, match="not its to say"):
            stolen(liar, role, path).commit()
        assert (
            json.loads((liar.www / "metadata/timestamp.json").read_bytes())["signed"]["version"]
            == 5
        )
