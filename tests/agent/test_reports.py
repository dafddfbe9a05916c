"""What a daemon tells the update server, when, and what it does while nobody listens."""

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.agent.fakes import (
    IMMEDIATE,
    OFFER,
    START,
    Case,
    Fakes,
    V,
    check,
    nothing,
    play,
    waiting,
)
from tests.server.process import PATIENCE, Server, serving
from update_agent.agent.reports import Reporter, Reporting, described, sender
from update_agent.core import lifecycle
from update_agent.core.reason import Reason
from update_agent.core.record import Past
from update_agent.core.report import Batch, Receipt, Refused, Report, host_id
from update_agent.core.settings import Reports, Settings
from update_agent.errors import HostError
from update_agent.host.http import StatusError, UnreachableError
from update_agent.host.outbox import Outbox

HOUR = timedelta(hours=1)
SOON = timedelta(milliseconds=1)


@dataclass
class Listener:
    """A server that answers as it is told, and wakes whoever waits for its reports."""

    answers: list[HostError | Receipt] = field(default_factory=list)
    heard: list[Report] = field(default_factory=list)
    posts: int = 0
    enough: Callable[[], None] = lambda: None
    limit: int = 1

    def __call__(self, batch: Batch) -> Receipt:
        self.posts += 1
        answer = self.answers.pop(0) if self.answers else Receipt(taken=len(batch.reports))
        if self.posts >= self.limit:
            self.enough()
        if isinstance(answer, HostError):
            raise answer
        self.heard += batch.reports
        return answer


def listen(listener: Listener, folder: Path, *, posts: int, tell: list[Case]) -> None:
    """Report how some daemons stand, one after the other, until there were so many posts."""

    async def run() -> None:
        loop, enough = asyncio.get_running_loop(), asyncio.Event()
        listener.limit = listener.posts + posts

        def wake() -> None:
            loop.call_soon_threadsafe(enough.set)

        listener.enough = wake
        reporter = Reporter(reporting(listener, folder))
        for each in tell:
            reporter.tell(each.daemon)
        task = asyncio.create_task(reporter.run())
        async with asyncio.timeout(20):
            await enough.wait()
            reporter.stop()
            await task

    asyncio.run(run())


def reporting(listener: Callable[[Batch], Receipt], folder: Path) -> Reporting:
    return Reporting(
        outbox=Outbox(folder / "reports"), post=listener, name="web-1", interval=SOON,
        now=lambda: START, chance=lambda: 0.5, backoff=lambda _: SOON,
    )  # fmt: skip


@pytest.fixture
def idle() -> Case:
    return play(nothing, Fakes(answers=[waiting(Reason.UP_TO_DATE)]))


@pytest.fixture
def updated() -> Case:
    """A host that came to a new release, and confirmed it."""
    fakes = Fakes(answers=[OFFER])
    play(check, fakes)
    assert fakes.kept
    assert fakes.kept.attempt
    fakes.booted = lifecycle.Boot(boot_id="b2", root_hash="1" * 64, successful=True)
    return play(nothing, fakes)


def test_a_report_says_what_the_host_is_does_and_how_it_went(updated: Case) -> None:
    found = described(updated.daemon, "web-1\n", START)

    assert (found.host, found.name) == (host_id("h"), "web-1 ")
    assert (found.product, found.version, found.channel) == ("os", V("1.0.0"), "stable")
    assert (found.slot, found.state) == ("A", "idle")
    assert found.ended
    assert (found.ended.outcome, found.ended.version) == ("confirmed", V("1.1.0"))
    assert (found.ended.fetched, found.ended.saved) == (10, 90)


def test_why_a_host_waits_is_told_in_its_words() -> None:
    until = START + HOUR
    case = play(check, Fakes(answers=[waiting(Reason.WAVE, until)]))

    wait = described(case.daemon, "web-1", START).wait

    assert wait
    assert (wait.reason, wait.sentence, wait.until) == ("wave", "because wave", until)


def test_a_change_is_told_and_after_it_signs_of_life_that_repeat_its_number(
    idle: Case, updated: Case, tmp_path: Path
) -> None:
    listener = Listener()

    listen(listener, tmp_path, posts=3, tell=[idle, updated, updated])

    assert [it.sequence for it in listener.heard[:4]] == [1, 2, 2, 2]
    assert [it.state for it in listener.heard[:2]] == ["idle", "idle"]


def test_while_nobody_answers_changes_wait_and_are_told_in_their_order(
    idle: Case, updated: Case, tmp_path: Path
) -> None:
    away = UnreachableError("no route")

    deaf = Listener([away, away, away])
    listen(deaf, tmp_path, posts=3, tell=[idle])
    assert deaf.heard == []

    listener = Listener([away])
    listen(listener, tmp_path, posts=2, tell=[updated])
    assert [it.sequence for it in listener.heard[:2]] == [1, 2]


def test_what_the_server_cannot_understand_does_not_keep_the_rest_from_it(
    idle: Case, updated: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strange = StatusError("it answers 400 Bad Request", status=400)
    listener = Listener([strange, strange])

    listen(listener, tmp_path, posts=4, tell=[idle, updated])

    assert [it.sequence for it in listener.heard[:1]] == [2]
    assert "a report is lost: it answers 400 Bad Request" in caplog.text


def test_a_refused_report_of_a_batch_is_lost_with_its_reason(
    idle: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused = Receipt(taken=0, refused=(Refused(index=0, why="report 0: no such state"),))

    listen(Listener([refused]), tmp_path, posts=2, tell=[idle])

    assert "a report is lost: report 0: no such state" in caplog.text


@pytest.mark.parametrize("status", [302, 401, 403, 404, 405, 407, 410, 429, 500, 503])
def test_what_may_be_put_right_is_tried_again(idle: Case, tmp_path: Path, status: int) -> None:
    listener = Listener([StatusError("it answers so", status=status)])

    listen(listener, tmp_path, posts=2, tell=[idle])

    assert [it.sequence for it in listener.heard[:1]] == [1]


def test_a_disk_that_is_full_stops_nobody(
    idle: Case, updated: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "reports").write_text("in the way")
    listener = Listener()

    async def run() -> None:
        reporter = Reporter(reporting(listener, tmp_path))
        reporter.tell(idle.daemon)
        reporter.tell(updated.daemon)
        reporter.stop()
        await reporter.run()

    asyncio.run(run())

    assert "cannot use" in caplog.text or "cannot keep a report" in caplog.text


def test_pauses_grow_with_failures_and_differ_between_hosts() -> None:
    world = Reporting(
        outbox=Outbox(Path("/nowhere")), post=Listener(), name="web-1",
        interval=timedelta(minutes=10), now=lambda: START, chance=lambda: 0.5,
    )  # fmt: skip

    def pauses(chance: float) -> list[float]:
        reporter = Reporter(replace(world, chance=lambda: chance))
        found = []
        for failures in range(8):
            reporter._failures = failures
            found.append(reporter._pause().total_seconds() / 60)
        return found

    assert pauses(0.5) == [10, 1, 2, 4, 8, 16, 30, 30]
    assert pauses(0)[0] == pytest.approx(10 * 2 / 3)
    assert pauses(1)[0] == pytest.approx(10 * 4 / 3)


def test_a_failure_is_told_with_the_journal_once(
    idle: Case, updated: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def journal(past: Past) -> str:
        asked.append(past.attempt.id)
        return "nginx[1]: bind failed"

    def unreadable(_: Past) -> str:
        raise HostError("journalctl is not installed")

    def told(excerpt: Callable[[Past], str], *cases: Case, since: timedelta) -> list[Report]:
        outbox = Outbox(tmp_path / f"reports{len(asked)}{since.days}")
        world = replace(
            reporting(Listener(), tmp_path), outbox=outbox, excerpt=excerpt,
            now=lambda: START + since,
        )  # fmt: skip

        async def run() -> None:
            reporter = Reporter(world)
            for case in cases:
                reporter.tell(case.daemon)
            reporter.stop()
            await reporter.run()

        asyncio.run(run())
        return outbox.waiting(10)

    first = told(journal, updated, idle, updated, since=timedelta())
    assert [it.ended.log if it.ended else None for it in first] == [
        "nginx[1]: bind failed", None, ""
    ]  # fmt: skip
    assert len(asked) == 1
    assert [it.ended.log for it in told(journal, updated, since=-HOUR * 48) if it.ended] == [
        "nginx[1]: bind failed"
    ]
    assert [it.ended.log for it in told(journal, updated, since=HOUR * 72) if it.ended] == [""]
    assert [it.ended.log for it in told(unreadable, updated, since=-HOUR * 24) if it.ended] == [""]
    assert "cannot read the journal of the attempt that failed: journalctl is" in caplog.text


# Against a real server ---------------------------------------------------------------------------


def with_server(url: str, token: Path) -> Settings:
    return replace(IMMEDIATE, reports=Reports(url=url, token_file=str(token)))


def test_what_changed_while_the_server_was_away_arrives_once_it_is_back(
    idle: Case, updated: Case, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    with serving(tmp_path) as server:
        token.write_text(server.tokens["hosts"] + "\n")
        settings = with_server(server.url, token)
        port = server.url.rpartition(":")[2]
        server.end()

    real = sender(settings)

    async def run() -> None:
        loop, tried, arrived = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

        def post(batch: Batch) -> Receipt:
            try:
                receipt = real(batch)
            except UnreachableError:
                loop.call_soon_threadsafe(tried.set)
                raise
            loop.call_soon_threadsafe(arrived.set)
            return receipt

        reporter = Reporter(reporting(post, tmp_path))
        reporter.tell(idle.daemon)
        reporter.tell(updated.daemon)
        task = asyncio.create_task(reporter.run())
        async with asyncio.timeout(PATIENCE):
            await tried.wait()
            with serving(tmp_path, "--port", port):
                await arrived.wait()
                reporter.stop()
                await task

    asyncio.run(run())
    with sqlite3.connect(tmp_path / "state/server.sqlite") as database:
        events = database.execute("SELECT host, sequence FROM events ORDER BY sequence").fetchall()
    assert events == [(host_id("h"), 1), (host_id("h"), 2)]


def test_a_server_that_is_killed_under_load_loses_no_report(
    idle: Case, updated: Case, tmp_path: Path
) -> None:
    hosts, changes, token = 8, 20, tmp_path / "token"
    known: set[tuple[str, int]] = set()

    async def run(server: Server) -> None:
        loop, begun, done = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        real = sender(with_server(server.url, token))

        def acknowledged(batch: Batch) -> None:
            known.update((it.queue, it.sequence) for it in batch.reports)
            begun.set()
            if len(known) == hosts * changes:
                done.set()

        def post(batch: Batch) -> Receipt:
            receipt = real(batch)
            loop.call_soon_threadsafe(acknowledged, batch)
            return receipt

        def tell() -> None:
            for number in range(changes // 2):
                for each in reporters:
                    each.tell((idle, updated)[number % 2].daemon)

        reporters = [Reporter(reporting(post, tmp_path / str(it))) for it in range(hosts)]
        tasks = [asyncio.create_task(it.run()) for it in reporters]
        tell()
        await begun.wait()
        server.popen.kill()
        server.popen.wait(PATIENCE)
        tell()
        port = server.url.rpartition(":")[2]
        async with asyncio.timeout(60):
            with serving(tmp_path, "--port", port, "--report-rate", "0"):
                await done.wait()
                for each in reporters:
                    each.stop()
                await asyncio.gather(*tasks)

    with serving(tmp_path, "--report-rate", "0") as server:
        token.write_text(server.tokens["hosts"])
        asyncio.run(run(server))
    with sqlite3.connect(tmp_path / "state/server.sqlite") as database:
        kept = database.execute("SELECT queue, sequence FROM events").fetchall()
    assert len(known) == hosts * changes
    assert set(kept) == known


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "cannot read the report token .*No such file", id="none"),
        pytest.param(b"", "holds no token", id="empty"),
        pytest.param(b"a\nb", "holds no token", id="two-lines"),
        pytest.param(b"\xff\xfe", "it is no text", id="binary"),
    ],
)
def test_without_a_token_it_says_where_to_get_one(
    idle: Case, tmp_path: Path, content: bytes | None, message: str
) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_bytes(content)
    send = sender(with_server("http://127.0.0.1:1", token))

    with pytest.raises(HostError, match=message) as caught:
        send(Batch(reports=(described(idle.daemon, "web-1", START),)))

    assert caught.value.hint
    assert "update-server token add NAME --role fleet" in caught.value.hint
