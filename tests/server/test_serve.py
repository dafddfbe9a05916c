"""update-server as a process: from nothing to serving, and to a clean end."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import sqlite3
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Any

import pytest
import requests
import sqlalchemy as sql
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.server.process import NOON, PATIENCE, Server, host_named, report, serving
from update_agent.agent.reports import sender
from update_agent.core import document
from update_agent.core.report import Batch, Ended
from update_agent.core.settings import NetworkSettings, Reports, Settings
from update_agent.core.version import Version
from update_agent.server import figures, tables
from update_agent.server.intake import store
from update_agent.server.main import _began as began
from update_agent.server.main import main
from update_agent.server.site import LONG_AGO
from update_agent.server.tables import DatabaseError
from update_agent.server.tokens import Tokens

HASH = "c" * 64


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    payloads = folder / "www/payloads/os/1.0.0"
    payloads.mkdir(parents=True)
    (payloads / f"{HASH}.blob").write_bytes(bytes(range(256)) * 1000)
    metadata = folder / "www/metadata"
    metadata.mkdir()
    (metadata / "timestamp.json").write_text("{}")
    (metadata / "1.root.json").write_text("{}")
    (folder / "www/.staged").mkdir()
    (folder / "www/.staged/root.json").write_text("secret")
    (folder / "secret").write_text("secret")
    with serving(folder) as started:
        yield started


# From nothing ------------------------------------------------------------------------------------


def test_one_command_from_nothing_takes_reports_and_ends_when_it_is_told(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert set(server.tokens) == {"operators", "hosts"}
        assert server.post(report()) == {"format": 1, "taken": 1, "refused": []}
        assert server.ask("GET", "/readyz").text == "ok\n"
        assert server.end() == 0

    with serving(tmp_path, tokens=server.tokens) as again:
        assert again.post(report(sequence=2))["taken"] == 1
    with sqlite3.connect(tmp_path / "state/server.sqlite") as database:
        assert database.execute("SELECT count(*), max(sequence) FROM hosts").fetchone() == (1, 2)
        assert database.execute("SELECT count(*) FROM events").fetchone() == (2,)
        kept = " ".join(map(str, database.execute("SELECT * FROM tokens").fetchall()))
    assert server.tokens["hosts"] not in kept


def test_where_it_cannot_begin_it_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ["--state", str(tmp_path / "state")]

    assert main(["serve", "--repository", str(tmp_path / "www"), *state]) == 4
    assert "is no folder\n(update-publish init" in capsys.readouterr().err
    (tmp_path / "www").mkdir()
    repository = ["--repository", str(tmp_path / "www")]
    assert main(["serve", *repository, *state, "--cert", "c.pem"]) == 4
    assert "--cert and --key belong together" in capsys.readouterr().err
    assert main(["serve", *repository, *state, "--client-ca", "ca.pem"]) == 4
    assert "--client-ca wants --cert and --key" in capsys.readouterr().err
    assert main(["serve", *repository, "--database", "mysql://x/y"]) == 4
    assert "sqlite:///FILE or postgresql://" in capsys.readouterr().err
    assert main(["serve", *repository, *state, "--host", "192.0.2.1"]) == 4
    assert "cannot listen at 192.0.2.1 port 8080" in capsys.readouterr().err


def test_a_token_is_made_shown_listed_and_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ["--state", str(tmp_path / "state")]

    assert main(["token", "add", "rack 7", "--role", "fleet", *state]) == 0
    made = capsys.readouterr().out.strip()
    assert made.startswith("ua_")
    assert main(["token", "add", "rack 7", "--role", "fleet", *state]) == 4
    assert "there is a token rack 7 already" in capsys.readouterr().err
    assert main(["token", "revoke", "rack 8", *state]) == 4
    assert "there is no valid token rack 8\n(known: rack 7)" in capsys.readouterr().err
    assert main(["token", "revoke", "rack 7", *state]) == 0
    assert main(["token", "list", *state]) == 0
    out = capsys.readouterr().out
    assert "rack 7  revoked" in out
    assert made not in out


def told(capsys: pytest.CaptureFixture[str], *words: str) -> Any:  # noqa: ANN401  what JSON holds
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_programs_are_told_of_tokens_and_of_a_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, copy = ["--state", str(tmp_path / "state")], str(tmp_path / "copy.sqlite")

    assert told(capsys, "token", "list", *state) == {"tokens": []}
    made = told(capsys, "token", "add", "rack 7", "--role", "fleet", *state)
    assert made.pop("token").startswith("ua_")
    assert made == {"name": "rack 7", "role": "fleet"}
    told(capsys, "token", "add", "wall", "--role", "viewer", *state)
    assert told(capsys, "token", "revoke", "rack 7", *state) == {"revoked": "rack 7"}

    first, second = told(capsys, "token", "list", *state)["tokens"]
    assert (first["name"], first["role"]) == ("rack 7", "fleet")
    assert first["created"] <= first["revoked"]
    assert second == {
        "name": "wall", "role": "viewer", "created": second["created"], "revoked": None
    }  # fmt: skip
    assert told(capsys, "backup", copy, *state) == {
        "copy": copy, "of": str(tmp_path / "state/server.sqlite")
    }  # fmt: skip


# TLS ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signed:
    """A certificate and its key, in files."""

    cert: Path
    key: Path
    name: x509.Name
    private: ec.EllipticCurvePrivateKey


def signed(folder: Path, name: str, by: Signed | None = None) -> Signed:
    """Make a certificate, signed by itself or by another."""
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject).issuer_name(by.name if by else subject)
        .public_key(private.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .sign(by.private if by else private, hashes.SHA256())
    )  # fmt: skip
    it = Signed(folder / f"{name}.pem", folder / f"{name}.key", subject, private)
    it.cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    it.key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return it


def test_it_speaks_tls_with_a_certificate(tmp_path: Path) -> None:
    own = signed(tmp_path, "own")

    with serving(tmp_path, "--cert", str(own.cert), "--key", str(own.key)) as server:
        port = int(server.url.rpartition(":")[2])
        assert server.url.startswith("https://")
        assert ssl.get_server_certificate(("127.0.0.1", port)) == own.cert.read_text()


@pytest.mark.case(99)
def test_a_host_with_a_certificate_of_the_fleets_needs_no_token(tmp_path: Path) -> None:
    own, fleet = signed(tmp_path, "own"), signed(tmp_path, "fleet")
    host, stranger = signed(tmp_path, "web-1", by=fleet), signed(tmp_path, "stranger")
    words = ("--cert", own.cert, "--key", own.key, "--client-ca", fleet.cert)
    batch = Batch(reports=(report(),))

    with serving(tmp_path, *map(str, words)) as server:
        settings = Settings(
            network=NetworkSettings(ca=str(own.cert)),
            reports=Reports(url=server.url, certificate=str(host.cert), key=str(host.key)),
        )
        assert sender(settings)(batch).taken == 1

        ask = partial(requests.post, f"{server.url}/v1/reports", document.encode(batch),
                      verify=str(own.cert), timeout=PATIENCE)  # fmt: skip
        assert ask().status_code == 401
        assert ask(headers={"Authorization": f"Bearer {server.tokens['hosts']}"}).ok
        with pytest.raises(requests.ConnectionError):
            ask(cert=(str(stranger.cert), str(stranger.key)))
        operators = requests.get(
            f"{server.url}/v1/hosts", verify=str(own.cert), timeout=PATIENCE,
            cert=(str(host.cert), str(host.key)),
        )  # fmt: skip
        assert operators.status_code == 401


# Restarts ----------------------------------------------------------------------------------------


def test_who_comes_while_it_is_restarted_is_answered_by_the_next(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool:
        with serving(tmp_path, listener=listener) as server:
            assert server.post(report(1))["taken"] == 1
            assert server.end() == 0
        answer = pool.submit(
            requests.post, f"{server.url}/v1/reports",
            document.encode(Batch(reports=(report(2),))), timeout=PATIENCE,
            headers={"Authorization": f"Bearer {server.tokens['hosts']}"},
        )  # fmt: skip
        with serving(tmp_path, listener=listener, tokens=server.tokens) as again:
            assert answer.result().json()["taken"] == 1
            assert again.api("/v1/hosts")["total"] == 2


# Files -------------------------------------------------------------------------------------------


def test_what_never_changes_is_kept_for_ever_and_the_timestamp_shortly(server: Server) -> None:
    blob = server.ask("GET", f"/payloads/os/1.0.0/{HASH}.blob")
    stamp = server.ask("GET", "/metadata/timestamp.json")

    assert blob.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert len(blob.content) == 256_000
    assert stamp.headers["cache-control"].startswith("public, max-age=30,")


def test_a_range_is_answered_with_that_range(server: Server) -> None:
    path = f"/payloads/os/1.0.0/{HASH}.blob"

    part = server.ask("GET", path, headers={"Range": "bytes=256-259"})
    past = server.ask("GET", path, headers={"Range": "bytes=256000-"})

    assert (part.status_code, part.content) == (206, b"\x00\x01\x02\x03")
    assert part.headers["content-range"] == "bytes 256-259/256000"
    assert past.status_code == 416


@pytest.mark.parametrize("path", [f"payloads/os/1.0.0/{HASH}.blob", "metadata/timestamp.json"])
def test_what_a_caller_has_is_not_sent_again(server: Server, path: str) -> None:
    tag = server.ask("HEAD", f"/{path}").headers["etag"]

    again = server.ask("GET", f"/{path}", headers={"If-None-Match": f'"other", W/{tag}'})
    other = server.ask("GET", f"/{path}", headers={"If-None-Match": '"other"'})

    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == tag
    assert other.status_code == 200


@pytest.mark.case(98)
@pytest.mark.parametrize(
    "path",
    [
        "/metadata/../../secret",
        "/metadata/..%2f..%2fsecret",
        "/metadata/%2e%2e/%2e%2e/secret",
        "/payloads/os/../../../secret",
        "/payloads/os/..%2f1.0.0/x.blob",
        "/metadata//etc/passwd",
        "/targets/channels/../../../secret",
        "/payloads/os/1.0.0",
        "/payloads/",
        "/metadata/1.root.json%00",
        "/metadata/1.root.json%0a",
        "/.staged/root.json",
        "/metadata/..%2f.staged%2froot.json",
        "/.lock",
    ],
)
def test_nothing_but_the_repository_is_served(server: Server, path: str) -> None:
    raw = requests.Request("GET", server.url + "/x").prepare()
    raw.url = server.url + path  # as it is written

    answer = server.session.send(raw, timeout=PATIENCE)

    assert answer.status_code == 404
    assert "secret" not in answer.text


# Reports -----------------------------------------------------------------------------------------


def rows(server_state: Path, question: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(server_state / "server.sqlite") as database:
        return database.execute(question).fetchall()


def test_a_report_that_comes_twice_or_late_changes_nothing(tmp_path: Path) -> None:
    new = report(sequence=3, version=Version("1.1.0"), state="idle")

    with serving(tmp_path) as server:
        server.post(report(sequence=2, state="rebooting"), new)
        server.post(new)
        server.post(report(sequence=1, state="installing"))

    state = tmp_path / "state"
    assert rows(state, "SELECT version, state, sequence FROM hosts") == [("1.1.0", "idle", 3)]
    assert rows(state, "SELECT sequence FROM events ORDER BY sequence") == [(1,), (2,), (3,)]


def test_a_host_that_was_put_back_to_a_snapshot_is_heard_at_once(tmp_path: Path) -> None:
    later = NOON + timedelta(minutes=1)
    with serving(tmp_path) as server:
        server.post(report(sequence=90, version=Version("1.1.0")))
        server.post(report(sequence=40, time=later))

    assert rows(tmp_path / "state", "SELECT version, sequence FROM hosts") == [("1.0.0", 40)]


def test_a_sign_of_life_moves_what_is_seen_and_tells_no_new_story(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.post(report(sequence=2))
        server.post(report(sequence=2, name="renamed"))

    assert rows(tmp_path / "state", "SELECT name FROM hosts") == [("renamed",)]
    assert rows(tmp_path / "state", "SELECT count(*) FROM events") == [(1,)]


def test_a_host_that_lost_its_disk_begins_another_queue_and_is_heard(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.post(report(sequence=90))
        server.post(report(sequence=1, queue="e" * 32, version=Version("1.1.0")))

    assert rows(tmp_path / "state", "SELECT version, sequence FROM hosts") == [("1.1.0", 1)]


# Keeping -----------------------------------------------------------------------------------------


def test_a_copy_made_while_it_serves_is_whole_and_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, state = tmp_path / "copy.sqlite", ["--state", str(tmp_path / "state")]
    with serving(tmp_path) as server:
        server.post(report(1))
        assert main(["backup", str(copy), *state]) == 0
        server.post(report(2))
    assert main(["backup", str(copy), *state]) == 4
    assert "is there already" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "state").mkdir()
    copy.rename(tmp_path / "state/server.sqlite")

    with serving(tmp_path, tokens=server.tokens) as again:
        assert again.api("/v1/hosts")["total"] == 1
        assert again.post(report(2))["taken"] == 1


def test_a_copy_is_restored_whatever_the_last_server_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, state = tmp_path / "copy.sqlite", ["--state", str(tmp_path / "state")]
    with serving(tmp_path) as server:
        server.post(report(1))
        assert main(["backup", str(copy), *state]) == 0
        server.post(*(report(it) for it in range(2, 60)))

        assert main(["restore", str(copy), *state]) == 4
        assert "server.sqlite is in use\n(stop the server" in capsys.readouterr().err
        server.post(report(60))
    assert (tmp_path / "state/server.sqlite-wal").exists()  # it was killed

    assert told(capsys, "restore", str(copy), *state)["from"] == str(copy)

    with serving(tmp_path, tokens=server.tokens) as again:
        assert again.api("/v1/hosts")["total"] == 1
        assert again.post(report(2))["taken"] == 1
    assert rows(tmp_path / "state", "PRAGMA integrity_check") == [("ok",)]


def test_who_opens_a_database_that_is_being_replaced_waits_for_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, state, came = tmp_path / "copy.sqlite", tmp_path / "state", threading.Event()
    words = ["--state", str(state)]
    main(["token", "add", "rack 7", "--role", "fleet", *words])
    main(["backup", str(copy), *words])
    main(["token", "add", "rack 8", "--role", "fleet", *words])
    lock, copied = fcntl.flock, shutil.copyfileobj

    def names() -> list[str]:
        with contextlib.closing(tables.opened(f"sqlite:///{state}/server.sqlite")) as database:
            return [it.name for it in Tokens(database).listed()]

    def locks(folder: int, how: int) -> None:
        came.set()
        lock(folder, how)

    with ThreadPoolExecutor() as pool:

        def copies(source: IO[bytes], target: IO[bytes]) -> None:
            monkeypatch.setattr(fcntl, "flock", locks)
            opened.append(pool.submit(names))
            assert came.wait(PATIENCE)
            copied(source, target)
            assert not opened[0].done()

        opened: list[Future[list[str]]] = []
        monkeypatch.setattr(shutil, "copyfileobj", copies)
        assert main(["restore", str(copy), *words]) == 0

        assert opened[0].result(PATIENCE) == ["rack 7"]
    assert rows(state, "PRAGMA integrity_check") == [("ok",)]


def test_a_copy_takes_the_place_of_a_database_that_is_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, state = tmp_path / "copy.sqlite", tmp_path / "state"
    words = ["--state", str(state)]
    main(["token", "add", "rack 7", "--role", "fleet", *words])
    main(["backup", str(copy), *words])
    (state / "server.sqlite").write_bytes(b"\xff" * 5000)
    (state / "server.sqlite-wal").write_bytes(b"\xff" * 5000)

    assert main(["restore", str(copy), *words]) == 0

    assert not (state / "server.sqlite-wal").exists()
    capsys.readouterr()
    assert told(capsys, "token", "list", *words)["tokens"][0]["name"] == "rack 7"


def test_whoever_restores_a_copy_leaves_it_to_the_server(tmp_path: Path) -> None:
    copy, state = tmp_path / "copy.sqlite", tmp_path / "state"
    words = ["--state", str(state)]
    main(["token", "add", "rack 7", "--role", "fleet", *words])
    main(["backup", str(copy), *words])
    (state / "server.sqlite").unlink()
    os.chown(state, 1, 2)

    assert main(["restore", str(copy), *words]) == 0

    made = (state / "server.sqlite").stat()
    assert (made.st_uid, made.st_gid) == (1, 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(None, "unable to open database file", id="missing"),
        pytest.param(b"", "no such table: schema", id="empty"),
        pytest.param(b"hello" * 1000, "file is not a database", id="text"),
    ],
)
def test_what_is_no_copy_is_not_restored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes | None, message: str
) -> None:
    copy, words = tmp_path / "copy.sqlite", ["--state", str(tmp_path / "state")]
    main(["token", "add", "rack 7", "--role", "fleet", *words])
    if data is not None:
        copy.write_bytes(data)
    capsys.readouterr()

    assert main(["restore", str(copy), *words]) == 4

    assert f"copy.sqlite is no copy of the database: {message}" in capsys.readouterr().err
    assert len(told(capsys, "token", "list", *words)["tokens"]) == 1


def test_what_is_months_old_is_forgotten_and_who_is_heard_is_not(tmp_path: Path) -> None:
    database = tables.opened(f"sqlite:///{tmp_path / 'x.sqlite'}")
    with database.begin() as connection:
        store(database, connection, [report(1, 1), report(2, 1)], NOON)
        store(database, connection, [report(1, 2)], NOON + timedelta(days=90))
        before = int((NOON + timedelta(days=1)).timestamp())

        assert tables.forget(connection, before, limit=1) == 2
        assert tables.forget(connection, before, limit=9) == 1
        assert tables.forget(connection, before, limit=9) == 0
        assert len(figures.timeline(connection, host_named(1))) == 1
        assert [it.name for it in figures.page(connection, figures.Wanted(), before).hosts] == [
            "web-1"
        ]
    database.close()


OLD_TABLES = """
CREATE TABLE schema (version INTEGER NOT NULL PRIMARY KEY);
INSERT INTO schema VALUES (1);
CREATE TABLE rollouts (channel TEXT NOT NULL PRIMARY KEY, budget TEXT NOT NULL, version TEXT,
                       counted_from BIGINT NOT NULL, halted BOOLEAN NOT NULL);
INSERT INTO rollouts VALUES ('stable', '{"format":1,"sample":7}', '1.1.0', 5, 1);
"""


def test_a_database_of_the_first_kind_is_brought_up_once(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as before:
        before.executescript(OLD_TABLES)

    for _ in range(2):
        database = tables.opened(f"sqlite:///{path}")
        with database.read() as connection:
            row = connection.execute(sql.select(tables.rollouts)).one()
            assert connection.scalar(sql.select(tables.schema.c.version)) == tables.SCHEMA
        database.close()
        assert tuple(row) == ("stable", '{"format":1,"sample":7}', "1.1.0", 5, 0, 0, 0, 0)


def test_a_database_of_a_newer_kind_is_left_alone(tmp_path: Path) -> None:
    tables.opened(f"sqlite:///{tmp_path / 'x.sqlite'}").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "x.sqlite")) as newer:
        newer.execute("UPDATE schema SET version = 99")
        newer.commit()

    with pytest.raises(DatabaseError, match="of the kind 99"):
        tables.opened(f"sqlite:///{tmp_path / 'x.sqlite'}")


@pytest.mark.parametrize(("gap", "listened"), [(60, True), (3600, False)])
def test_who_begins_soon_after_another_goes_on_listening(
    gap: int, tmp_path: Path, *, listened: bool
) -> None:
    database = tables.opened(f"sqlite:///{tmp_path / 'x.sqlite'}")
    later = NOON + timedelta(seconds=gap)
    with database.begin() as connection:
        assert began(database, NOON) == NOON  # nobody ever listened
        store(database, connection, [report()], NOON)
        figures.sample(connection, database.insert(tables.samples), int(NOON.timestamp()))

    assert began(database, later) == (LONG_AGO if listened else later)
    database.close()


def _fell_back(number: int) -> Ended:
    return Ended(
        attempt=f"{number:032x}", running=Version("1.0.0"), version=Version("1.1.0"), began=NOON,
        ended=NOON, outcome="fell-back", why="not healthy", log="", fetched=1, saved=2,
    )  # fmt: skip


def test_an_old_attempt_that_its_host_tells_of_again_does_not_come_as_new(tmp_path: Path) -> None:
    first, second = (_fell_back(it) for it in (1, 2))
    database = tables.opened(f"sqlite:///{tmp_path / 'x.sqlite'}")
    with database.begin() as connection:
        store(database, connection, [report(1, 1, ended=first), report(2, 1, ended=first)], NOON)
        store(database, connection, [report(1, 2, ended=second)], NOON + timedelta(hours=1))
        later = NOON + timedelta(days=91)
        tables.forget(connection, int((later - timedelta(days=90)).timestamp()), limit=9)

        store(database, connection, [report(2, 3, ended=first)], later)

        assert [it.attempt for it in figures.attempts_of(connection, host_named(1))] == [
            second.attempt
        ]
        since = int((NOON + timedelta(days=1)).timestamp())
        assert figures.failures(connection, "stable", since) == []
    database.close()


def test_prometheus_learns_how_hosts_stand(server: Server) -> None:
    server.post(report(1), report(2, state="trial"))

    text = server.ask("GET", "/metrics").text

    assert 'update_server_hosts{channel="stable",state="trial"} 1.0' in text
    assert 'update_server_up{of="database"} 1.0' in text
    assert 'update_server_up{of="repository"} 0.0' in text
    assert 'update_server_reports_total{result="taken"}' in text
