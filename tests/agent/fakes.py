"""The daemon's world as fakes that do as they are told, and a stage to play stories on."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from update_agent.agent.daemon import Daemon, World
from update_agent.agent.ports import Installed, Progress, SlotView
from update_agent.core import record
from update_agent.core.lifecycle import Boot, State
from update_agent.core.reason import Reason, Wait
from update_agent.core.record import Attempt, Record
from update_agent.core.release import Host, PayloadReference, Release
from update_agent.core.settings import Duration, Reboot, Settings, Strategy, Update
from update_agent.core.version import Version
from update_agent.errors import HostError, UpdateAgentError
from update_agent.host.offer import Offer

V = Version
START = datetime(2026, 11, 23, 8, tzinfo=UTC)
HOST = Host(product="os", architecture="x86_64", version=V("1.0.0"), machine_id="h")
OLD, NEW = "0" * 64, "1" * 64
FULL = PayloadReference(index_size=1, index_sha256="a" * 64, blob_size=1, stored_size=1)
RELEASE = Release(
    product="os", architecture="x86_64", version=V("1.1.0"), published=START, image_size=4096,
    root_hash=NEW, payloads=(FULL,),
)  # fmt: skip
OFFER = Offer(release=RELEASE, wait=None, place=1, time=START)
RUNS_OLD = Boot(boot_id="b1", root_hash=OLD, successful=True)
FOLLOWS = Update(repository=("https://a.example",), interval=Duration(minutes=30))
IMMEDIATE = Settings(update=FOLLOWS, reboot=Reboot(strategy=Strategy.IMMEDIATE))
BY_PERSON = Settings(update=FOLLOWS)
A = SlotView(
    name="A", state="successful", priority=1, tries=0, successful=True, booted=True, next=True
)
B = SlotView(
    name="B", state="empty", priority=0, tries=0, successful=False, booted=False, next=False
)
B_CONFIRMED = replace(B, state="successful", priority=1, successful=True)
"""There is a release to roll back to."""


def waiting(reason: Reason, until: datetime | None = None) -> Offer:
    wait = Wait(reason=reason, sentence=f"because {reason}", ends="time", until=until)
    return Offer(release=None, wait=wait, place=1, time=START)


@dataclass
class Timer:
    seconds: float
    call: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Fakes:
    """A repository, a writer, a host and a disk, all of which do as they are told."""

    now: datetime = START
    answers: list[Offer | UpdateAgentError] = field(default_factory=list)
    booted: Boot = RUNS_OLD
    trouble: dict[str, UpdateAgentError] = field(default_factory=dict)
    permission: Wait | None = None
    kept: Record | None = None
    did: list[str] = field(default_factory=list)
    asked_for: list[Host] = field(default_factory=list)
    timers: list[Timer] = field(default_factory=list)
    told: list[tuple[State, Progress | None]] = field(default_factory=list)
    gate: threading.Event | None = None
    """An installation waits here, until cancelled."""
    installing: threading.Event = field(default_factory=threading.Event)
    draining: threading.Event = field(default_factory=threading.Event)
    drained: threading.Event | None = None
    """No host is drained before it is set."""
    hurried: bool = False
    lockless: bool = False
    bad: dict[Version, Wait] = field(default_factory=dict)
    answer_after: threading.Event | None = None
    """The repository does not answer before it is set."""
    was_asked: threading.Event = field(default_factory=threading.Event)
    calls: list[bool] = field(default_factory=list)
    """What comes of listening, in turn."""
    seen: tuple[SlotView, ...] = (A, B)
    saving: threading.Event | None = None
    """Nothing is written before it is set."""
    saves: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """How many saves began."""
    most_saves: int = 0
    """At one time."""
    _saves_now: int = 0

    def do(self, what: str) -> None:
        self.did.append(what)
        if what in self.trouble:
            raise self.trouble[what]

    # Releases
    def ask(
        self, *words: object, hurry: bool = False, without_lock: bool = False, keep: bool = False
    ) -> Offer | Wait | None:
        if isinstance(words[0], Host):
            self.asked_for.append(words[0])
            self.was_asked.set()
            if self.answer_after:
                self.answer_after.wait()
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if isinstance(answer, UpdateAgentError):
                raise answer
            return answer
        self.hurried, self.lockless = hurry, without_lock
        self.do("ask to reboot" + (", and keep" if keep else ""))
        past = {Reason.WINDOW: hurry, Reason.LOCK: without_lock}
        return None if self.permission and past.get(self.permission.reason) else self.permission

    # Slots
    def boot(self) -> Boot:
        if "boot" in self.trouble:
            raise self.trouble["boot"]
        return self.booted

    def install(
        self,
        offer: Offer,
        attempt: Attempt,
        progress: Callable[[Progress], None],
        cancelled: threading.Event,
    ) -> Installed:
        assert offer.release
        self.do(f"install {offer.release.version} for {attempt.id[:4]}")
        progress(Progress(step="write", done=1, size=2, rate=0.5))
        self.installing.set()
        while self.gate and not self.gate.wait(0.01):
            if cancelled.is_set():
                raise HostError("the connection was closed")
        self.do("installed")
        return Installed(fetched=10, saved=90)

    def arm(self) -> None:
        assert self.kept
        assert self.kept.attempt
        assert self.kept.attempt.armed_in == self.booted.boot_id, "armed before it was written down"
        self.do("arm")

    def disarm(self) -> None:
        self.do("disarm")

    def rollback(self) -> None:
        self.do("rollback")

    def look(self) -> tuple[SlotView, ...]:
        return self.seen

    # Reboots
    def give_back(self) -> None:
        self.do("give back")

    def called(self, seconds: float) -> bool:
        del seconds
        return self.calls.pop(0) if self.calls else False

    def known_bad(self, version: Version) -> Wait | None:
        if "known bad" in self.trouble:
            raise self.trouble["known bad"]
        return self.bad.get(version)

    def rolled_back(self, version: Version) -> None:
        self.do(f"tell of {version}")

    def reboot(
        self, attempt: Attempt | None, *, without_lock: bool, ready: Callable[[], None]
    ) -> None:
        del attempt
        self.draining.set()
        if self.drained:
            self.drained.wait()
        if "drain" in self.trouble:
            raise self.trouble["drain"]
        ready()
        self.do("reboot without lock" if without_lock else "reboot")

    # Store
    def load(self, now: datetime) -> Record:
        return self.kept or record.fresh(now)

    def save(self, found: Record) -> None:
        if "save" in self.trouble:
            raise self.trouble["save"]
        self._saves_now += 1
        self.most_saves = max(self.most_saves, self._saves_now)
        self.saves.release()
        if self.saving:
            self.saving.wait()
        self.kept = found
        self._saves_now -= 1

    @property
    def timer(self) -> Timer | None:
        """The one timer that is set."""
        running = [it for it in self.timers if not it.cancelled]
        assert len(running) <= 1
        return running[0] if running else None


@dataclass
class Case:
    fakes: Fakes
    daemon: Daemon

    @property
    def state(self) -> State:
        return self.daemon.record.state

    async def settle(self) -> None:
        """Let everything happen that happens by itself."""
        while self.daemon._tasks:
            await asyncio.gather(*self.daemon._tasks)

    async def pass_time(self) -> None:
        """Let the timer that is set run out."""
        timer = self.fakes.timer
        assert timer, "nothing would ever happen again"
        self.fakes.now += timedelta(seconds=timer.seconds)
        timer.cancelled = True
        timer.call()
        await self.settle()


def play(
    story: Callable[[Case], Awaitable[None]], fakes: Fakes, settings: Settings = IMMEDIATE
) -> Case:
    """Start a daemon, let ``story`` happen, and stop it."""
    ids = iter(f"{number:032x}" for number in range(16**31, 16**31 + 99))

    async def run() -> Case:
        world = World(
            releases=fakes, slots=fakes, reboots=fakes, store=fakes,  # type: ignore[arg-type]
            now=lambda: fakes.now, chance=lambda: 0.5, new_id=lambda: next(ids),
            tell=lambda it: fakes.told.append((it.record.state, it.progress)),
            later=later,
        )  # fmt: skip
        case = Case(fakes, Daemon(HOST, settings, world))
        errors: list[object] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: errors.append(context.get("exception"))
        )
        await case.daemon.start()
        await case.settle()
        await story(case)
        await case.settle()
        await case.daemon.stop()
        assert errors == []
        return case

    def later(seconds: float, call: Callable[[], None]) -> Timer:
        fakes.timers.append(Timer(seconds, call))
        return fakes.timers[-1]

    return asyncio.run(run())


async def nothing(_: Case) -> None:
    pass


async def check(case: Case) -> None:
    await case.daemon.check()
    await case.settle()
