"""The API of a real server: what operators see and do, and what everybody else may not."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.publisher import Team, seen_by_us
from tests.server.process import NOON, PATIENCE, Server, host_named, report, serving
from tests.server.town import NEW, OLD
from update_agent.core import document
from update_agent.core.report import MAX_REPORTS, Batch, Ended, Waits, Works
from update_agent.server import tables
from update_agent.server.api import openapi
from update_agent.server.guard import COOKIE
from update_agent.server.main import main
from update_agent.server.tokens import Role, Tokens

UNTIL = NOON.replace(hour=14, minute=5)
WAVE = Waits(reason="wave", sentence="wave 3 opens at 14:05", until=UNTIL)
EVIL = "<script>alert(1)</script>' OR 1=1; DROP TABLE hosts; --"


@pytest.fixture
def server(team: Team) -> Iterator[Server]:
    with serving(team.folder) as started:
        yield started


def names(page: Any) -> list[str]:  # noqa: ANN401  what JSON holds
    return [it["name"] for it in page["hosts"]]


# Steering ----------------------------------------------------------------------------------------


def test_a_release_is_promoted_held_and_halted_and_hosts_see_it(
    server: Server, team: Team, tmp_path: Path
) -> None:
    promoted = server.act(
        "/v1/channels/stable/promote", version="1.1.0", waves="1%:1h 100%:4h@+3h", reason="fix"
    ).json()
    assert promoted["channel"]["version"] == "1.1.0"
    assert [it["share"] for it in promoted["channel"]["rollout"]["waves"]] == [10_000, 1_000_000]
    assert promoted["channel"]["changes"][-1]["author"] == "first operator"
    assert seen_by_us(team, tmp_path / "host").channel == ("1.1.0", False, 3)

    paused = server.act("/v1/channels/stable/pause", reason="lunch").json()
    assert paused["channel"]["rollout"]["paused"]["reason"] == "lunch"
    resumed = server.act("/v1/channels/stable/resume", reason="back").json()
    assert resumed["channel"]["rollout"]["paused"] is None
    waved = server.act("/v1/channels/stable/waves", waves="100%", reason="hurry").json()
    assert len(waved["channel"]["rollout"]["waves"]) == 1
    halted = server.act("/v1/channels/stable/halt", reason="rack 7 is gone").json()
    assert halted["channel"]["quarantined"] == ["1.1.0"]
    assert seen_by_us(team, tmp_path / "host").channel == ("1.1.0", True, 7)
    assert [(it["author"], it["action"], it["reason"]) for it in server.api("/v1/audit")] == [
        ("first operator", "halt", "rack 7 is gone"),
        ("first operator", "replan", "hurry"),
        ("first operator", "resume", "back"),
        ("first operator", "pause", "lunch"),
        ("first operator", "promote", "fix"),
    ]


def test_who_halts_what_they_looked_at_halts_nothing_else(server: Server) -> None:
    server.act("/v1/channels/stable/promote", version="1.1.0", reason="fix")

    late = server.act("/v1/channels/stable/halt", version="1.0.0", reason="it fails")

    assert late.status_code == 409
    assert late.json() == {
        "error": "channel stable offers 1.1.0, and 1.0.0 was to be halted",
        "hint": "look again, and halt what it offers now",
    }
    assert server.api("/v1/channels/stable")["channel"]["quarantined"] == []
    halted = server.act("/v1/channels/stable/halt", version="1.1.0", reason="it fails")
    assert halted.json()["channel"]["quarantined"] == ["1.1.0"]


def test_a_budget_is_kept_with_its_reason(server: Server) -> None:
    answer = server.act(
        "/v1/channels/stable/budget", budget={"failures": 50_000, "sample": 20}, reason="a lab"
    )

    assert answer.json()["budget"]["failures"] == 50_000
    assert server.api("/v1/channels/stable")["budget"]["sample"] == 20
    assert server.api("/v1/audit")[0]["action"] == "budget"


@pytest.mark.parametrize(
    ("verb", "words", "status", "message"),
    [
        ("promote", {"version": "1.1.0", "reason": ""}, 400, "reason"),
        ("promote", {"version": "1.1.0"}, 400, "missing required field `reason`"),
        ("promote", {"version": "1.1", "reason": "x"}, 400, "version"),
        ("promote", {"version": "9.9.9", "reason": "x"}, 409, "there is no release os 9.9.9"),
        ("promote", {"version": "1.1.0", "waves": "101%", "reason": "x"}, 409, "101 %"),
        ("waves", {"waves": "10% 5%", "reason": "x"}, 409, "a wave up to 5 % follows"),
        ("pause", {"reason": "a\nb"}, 400, "reason"),
        ("budget", {"budget": {"failures": 1_000_001}, "reason": "x"}, 400, "failures"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_reason(
    server: Server, verb: str, words: dict[str, object], status: int, message: str
) -> None:
    answer = server.act(f"/v1/channels/stable/{verb}", **words)

    assert answer.status_code == status
    assert message in answer.json()["error"]
    assert server.api("/v1/channels/stable")["channel"]["version"] == "1.0.0"


def test_what_failed_is_in_the_audit_too(server: Server) -> None:
    server.act("/v1/channels/stable/promote", version="9.9.9", reason="a typo")

    deed = server.api("/v1/audit")[0]
    assert (deed["reason"], deed["result"]) == ("a typo", "there is no release os 9.9.9")


@pytest.mark.case(98)
@pytest.mark.parametrize("name", ["..%2f..%2fetc", "nothing", "stable%00", "%2e%2e"])
def test_a_channel_that_is_none_is_not_found(server: Server, name: str) -> None:
    answer = server.act(f"/v1/channels/{name}/pause", reason="x")

    assert answer.status_code == 404
    assert server.ask("GET", f"/v1/channels/{name}", by="operators").status_code == 404


# Looking -----------------------------------------------------------------------------------------


def test_hosts_are_found_by_what_they_are_and_come_in_pages(server: Server) -> None:
    server.post(*(report(it, version=OLD) for it in range(1, 6)))
    server.post(report(6, version=NEW, state="waiting", wait=WAVE), report(7, name="db_7%"))

    assert names(server.api("/v1/hosts?version=1.1.0")) == ["web-6"]
    assert names(server.api("/v1/hosts?state=waiting&reason=wave")) == ["web-6"]
    assert names(server.api("/v1/hosts?search=db")) == ["db_7%"]
    assert names(server.api(f"/v1/hosts?search={host_named(3)}")) == ["web-3"]
    assert names(server.api("/v1/hosts?search=_")) == ["db_7%"]
    assert names(server.api("/v1/hosts?search=%25")) == ["db_7%"]

    first = server.api("/v1/hosts?limit=4")
    rest = server.ask(
        "GET", "/v1/hosts", by="operators", params={"limit": 4, "after": first["next"]}
    ).json()
    assert names(first) == ["db_7%", "web-1", "web-2", "web-3"]
    assert names(rest) == ["web-4", "web-5", "web-6"]
    assert (first["total"], rest["total"], rest["next"]) == (7, 7, None)


def test_why_hosts_wait_is_counted_by_reason(server: Server) -> None:
    server.post(*(report(it, state="waiting", wait=WAVE, version=OLD) for it in range(1, 4)))
    server.post(report(4, version=NEW))

    standing = server.api("/v1/channels/stable/standing")

    assert server.ask("GET", "/v1/channels/none/standing", by="operators").status_code == 404

    assert standing["versions"] == [
        {"hosts": 3, "version": "1.0.0"}, {"hosts": 1, "version": "1.1.0"},
    ]  # fmt: skip
    assert standing["waiting"][0] == {
        "state": "waiting", "reason": "wave", "wave": None, "hosts": 3,
        "sentence": "wave 3 opens at 14:05", "until": int(UNTIL.timestamp()),
    }  # fmt: skip


def test_failures_are_counted_by_cause_and_a_host_tells_its_story(server: Server) -> None:
    past = Ended(
        attempt="d" * 32, running=OLD, version=NEW, began=NOON, ended=NOON, outcome="fell-back",
        why="nginx.service failed", log="line 1\nline 2",
    )  # fmt: skip
    server.post(report(1, 1, state="rebooting", target=NEW))
    server.post(report(1, 2, ended=past), report(2, 2, ended=past))

    failures = server.api("/v1/channels/stable/failures")
    story = server.api(f"/v1/hosts/{host_named(1)}")

    assert [(it["why"], it["hosts"]) for it in failures] == [("nginx.service failed", 2)]
    assert [it["state"] for it in story["events"]] == ["idle", "rebooting"]
    assert story["attempts"][0]["log"] == "line 1\nline 2"
    assert server.ask("GET", "/v1/hosts/nobody", by="operators").status_code == 404


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "limit=501", "color=red", f"search={'a' * 101}"]
)
def test_a_question_that_is_not_understood_is_refused(server: Server, query: str) -> None:
    assert server.ask("GET", f"/v1/hosts?{query}", by="operators").status_code == 400


@pytest.mark.parametrize("since", [-1, 10**30, "yesterday"])
def test_a_time_that_no_database_takes_is_refused(server: Server, since: object) -> None:
    asked = server.ask("GET", f"/v1/channels/stable/failures?since={since}", by="operators")

    assert asked.status_code == 400


# Who may -----------------------------------------------------------------------------------------


@pytest.mark.case(99)
def test_everybody_may_do_what_their_role_says_and_no_more(server: Server, team: Team) -> None:
    state = ["--state", str(team.folder / "state")]
    database = tables.opened(f"sqlite:///{team.folder / 'state/server.sqlite'}")
    viewer = Tokens(database).add("eve", Role.VIEWER, NOON)
    batch = document.encode(Batch(reports=(report(),)))
    asked = {
        "GET /v1/channels": {}, "GET /v1/hosts": {}, "GET /v1/audit": {},
        "POST /v1/channels/stable/pause": {"data": b'{"reason": "x"}'},
        "POST /v1/reports": {"data": batch},
    }  # fmt: skip
    wanted = {
        None: [401, 401, 401, 401, 401],
        "not-a-token": [401, 401, 401, 401, 401],
        "hosts": [403, 403, 403, 403, 200],
        viewer: [200, 200, 200, 403, 403],
        "operators": [200, 200, 200, 200, 403],
    }

    found = {
        by: [
            server.ask(*what.split(), by=by, **more).status_code  # type: ignore[arg-type]
            for what, more in asked.items()
        ]
        for by in wanted
    }

    assert found == wanted
    assert main(["token", "revoke", "eve", *state]) == 0
    with serving(team.folder, tokens=server.tokens) as again:
        assert again.ask("GET", "/v1/hosts", by=viewer).status_code == 401
    database.close()


@pytest.mark.case(99)
def test_what_hosts_say_is_kept_as_it_is_and_does_nothing(server: Server) -> None:
    evil = Waits(reason="wave", sentence=EVIL)
    server.post(report(1, name=EVIL, agent=EVIL[:60], wait=evil))

    assert names(server.api("/v1/hosts")) == [EVIL]
    found = server.ask("GET", "/v1/hosts", by="operators", params={"search": EVIL}).json()
    assert names(found) == [EVIL]
    after = {"after": "' OR 1=1; DROP TABLE hosts; --"}
    assert server.ask("GET", "/v1/hosts", by="operators", params=after).json()["total"] == 1


@pytest.mark.case(99)
@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"", 400, id="empty"),
        pytest.param(b"{" * 10_000, 400, id="deep"),
        pytest.param(b"\xff\xfe", 400, id="no-text"),
        pytest.param(b'{"reports": [' + b" " * 300_000 + b"]}", 413, id="large"),
    ],
)
def test_a_body_that_is_no_batch_is_refused(server: Server, data: bytes, status: int) -> None:
    answer = server.ask("POST", "/v1/reports", by="hosts", data=data)

    assert answer.status_code == status
    assert answer.json()["error"]
    assert server.post(report())["taken"] == 1


@pytest.mark.case(99)
def test_an_endless_body_is_cut_off(server: Server) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 65536

    answer = server.ask("POST", "/v1/reports", by="hosts", data=endless())

    assert answer.status_code == 413


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(
        ("127.0.0.1", int(server.url.rpartition(":")[2])), PATIENCE
    ) as sock:
        yield sock


@pytest.mark.case(99)
def test_who_is_slow_is_left_and_keeps_nobody_waiting(server: Server) -> None:
    with connected(server) as silent, connected(server) as slow, connected(server) as dawdling:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow:")
        token = server.tokens["hosts"]
        head = f"POST /v1/reports HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        dawdling.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert server.post(report())["taken"] == 1

        assert [ended(it) for it in (silent, slow)] == [True, True]
        said = dawdling.makefile("rb").read()
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b"the body took longer than 20 seconds" in said


def ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(100) == b""
    except ConnectionResetError:
        return True


@pytest.mark.case(99)
def test_headers_without_an_end_are_cut_off(server: Server) -> None:
    with connected(server) as sock, pytest.raises(ConnectionError):
        sock.sendall(b"GET / HTTP/1.1\r\n" + b"X-A: aaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 1_000_000)
    assert server.ask("GET", "/healthz").status_code == 200


def batch_of(count: int) -> Batch:
    return Batch(reports=tuple(report(it) for it in range(1, count + 1)))


@pytest.mark.case(99)
def test_who_comes_too_fast_is_told_when_to_come_again(tmp_path: Path) -> None:
    with serving(tmp_path, "--report-rate", "1") as server:
        first, second = (
            server.ask("POST", "/v1/reports", by="hosts", data=document.encode(batch))
            for batch in (batch_of(MAX_REPORTS), batch_of(10))
        )

    assert first.status_code == 200
    assert second.status_code == 429
    assert 1 <= int(second.headers["retry-after"]) <= 11
    assert second.json()["error"] == "more than 1 reports a second from one address"


# The description ---------------------------------------------------------------------------------


def test_the_description_is_whole(server: Server) -> None:
    described = server.ask("GET", "/v1/openapi.json").json()

    assert described == json.loads(json.dumps(openapi()))
    assert described["paths"]["/v1/channels/{channel}/promote"]["post"]["requestBody"]
    text = json.dumps(described)
    wanted = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert wanted <= set(described["components"]["schemas"])
    limit = next(
        it for it in described["paths"]["/v1/hosts"]["get"]["parameters"] if it["name"] == "limit"
    )
    assert limit["schema"] == {"type": "integer", "minimum": 1, "maximum": 500, "default": 50}


def test_the_description_tells_the_units_of_a_budget() -> None:
    budget = openapi()["components"]["schemas"]["Budget"]["properties"]

    assert {name: it.get("description") for name, it in budget.items() if name != "format"} == {
        "failures": "Of 1,000,000 hosts.", "sample": "Hosts.",
        "confirmed": "Of 1,000,000 hosts.", "silence": "Seconds.",
    }  # fmt: skip


def test_many_at_once_are_all_kept(server: Server) -> None:
    async def post(number: int) -> int:
        answer = await asyncio.to_thread(
            server.ask, "POST", "/v1/reports", by="hosts",
            data=document.encode(Batch(reports=(report(number),))),
        )  # fmt: skip
        return answer.status_code

    async def run() -> list[int]:
        return await asyncio.gather(*map(post, range(1, 65)))

    assert set(asyncio.run(run())) == {200}
    assert server.api("/v1/hosts")["total"] == 64


# Whatever hosts say ------------------------------------------------------------------------------

_WHOLE = report(
    1, attempt="d" * 32, target=NEW, group="rack-7", agent="0.1.0", wait=WAVE,
    progress=Works(step="writing", done=1, size=2),
    ended=Ended(attempt="d" * 32, running=OLD, version=NEW, began=NOON, ended=NOON,
                outcome="fell-back", why="x", log="y"),
)  # fmt: skip


def fields(value: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:  # noqa: ANN401
    """Yield the way to every text in a document."""
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from fields(inner, (*above, name))
        elif isinstance(inner, str):
            yield (*above, name)


@pytest.mark.case(99)
def test_no_field_of_a_report_reaches_sql_or_a_page_as_more_than_text(server: Server) -> None:
    whole = json.loads(document.encode(_WHOLE))
    ways = list(fields(whole))
    assert len(ways) > 20
    for number, way in enumerate(ways):
        sent = json.loads(json.dumps(whole | {"sequence": number + 1, "host": host_named(number)}))
        inner = sent
        for name in way[:-1]:
            inner = inner[name]
        inner[way[-1]] = EVIL[:64]
        answer = server.ask(
            "POST", "/v1/reports", by="hosts", data=json.dumps({"reports": [sent]})
        ).json()
        assert answer["taken"] + len(answer["refused"]) == 1, way

    cookies = {COOKIE: server.tokens["operators"]}
    hosts = server.api("/v1/hosts?limit=500")
    assert hosts["total"] == len(hosts["hosts"]) > 3
    paths = [f"/hosts/{it['host']}" for it in hosts["hosts"]]
    for path in ("/", "/channels/stable", "/hosts", "/audit", *paths):
        page = server.ask("GET", path, cookies=cookies)
        assert page.status_code == 200, path
        assert "<script" not in page.text, path
    assert "update_server_hosts" in server.ask("GET", "/metrics").text
