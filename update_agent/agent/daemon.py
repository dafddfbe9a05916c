"""The daemon: one event after the other, each leading to the next state and what is done for it.

``happened`` is the only place that changes the record, keeps it, logs a transition and tells
anybody. Whatever takes long (the repository, the writer, a reboot) runs in a thread and comes back
as an event, so that the daemon always answers. What it decides is in ``core/lifecycle.py``; time,
chance and the world are arguments.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from update_agent.agent.ports import (
    NotPermittedError,
    Progress,
    Reboots,
    Releases,
    Slots,
    SlotView,
    Store,
)
from update_agent.agent.questions import Questions
from update_agent.core import document, lifecycle, record
from update_agent.core.lifecycle import Effect, Event, State
from update_agent.core.reason import Reason, Wait
from update_agent.core.record import OUTCOMES, Attempt, Outcome, Record
from update_agent.core.release import Host
from update_agent.core.settings import Settings, Strategy
from update_agent.core.trust import ExpiredError
from update_agent.core.version import Version
from update_agent.core.wire import UnverifiedError
from update_agent.errors import HostError, ReleaseError, UpdateAgentError
from update_agent.host import reboot
from update_agent.host.bus import NotNowError
from update_agent.host.offer import Offer

logger = logging.getLogger(__name__)

_ASK_AGAIN = timedelta(minutes=1)
"""After which what could not be done is tried again, when nobody said a time."""

_NO_REBOOT = timedelta(minutes=15)
"""After which a reboot that was begun, and did not come, is taken for refused."""

_LONGEST = 4 / 3
"""Of an interval, until the next check at most: a third more, so that hosts spread."""

_OFF = Wait(
    reason=Reason.PERSON,
    sentence="the release is installed and boots next",
    ends="whoever reboots this host",
)

_GONE = Wait(
    reason=Reason.INHIBITED,
    sentence="the reboot was begun, and did not come",
    ends="the next try",
)

_AT_REST = (State.IDLE, State.WAITING, State.FAILED, State.TRIAL)
"""States in which no update is on its way: what somebody wished for the last one is over, and the
other slot holds a release that ran here, if any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a person asked for, for the update that is under way and for no later one."""

    asked: bool = False
    """Whatever this host's own pause says."""
    forced: bool = False
    """Past waves."""
    hurry: bool = False
    """Past the reboot window."""
    without_lock: bool = False
    """Past the cluster."""
    reboot: bool = False
    """Now, whoever reboots this host otherwise."""


_NO_WISH = Wish()


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """All that the daemon touches."""

    releases: Releases
    slots: Slots
    reboots: Reboots
    store: Store
    now: Callable[[], datetime]
    chance: Callable[[], float]
    """From 0 to 1."""
    new_id: Callable[[], str]
    tell: Callable[["Daemon"], None]
    """Called after every change of what the daemon shows."""
    later: Callable[[float, Callable[[], None]], "Timer"]
    """Call something after so many seconds, from the event loop."""


class Timer(Protocol):
    """Something that will be done later."""

    def cancel(self) -> None:
        """Do it never."""
        ...


class Daemon:
    """One host's updates. Used from its event loop alone."""

    def __init__(self, host: Host, settings: Settings, world: World) -> None:
        self.host = host
        self.settings = settings
        self.record = record.fresh(world.now())
        self.progress: Progress | None = None
        self.next_check: datetime | None = None
        self.slots: tuple[SlotView, ...] | None = None
        """Both slots as the writer saw them last, or None when it did not tell."""
        self._world = world
        self._offer: Offer | None = None
        self._wish = _NO_WISH
        self._cancelled = threading.Event()
        """Set when nobody wants the installation that is under way."""
        self._stopping = False
        self._timer: Timer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._questions = Questions()
        self._listening = False
        """Somebody may call, and say that it is worth asking again."""
        self._turn = asyncio.Lock()
        """Held by one event at a time."""
        self._work = asyncio.Lock()
        """Held by the effects of one step at a time, in the order of the steps."""
        self._keeping = asyncio.Lock()
        """Held by one change of the record at a time."""
        self._boot: lifecycle.Boot | None = None
        """None until the writer told; nothing begins before that."""
        self._no_reboot: datetime | None = None
        """When a reboot that was begun is taken for refused."""
        self._refused = 0
        """How many reboots of this update were refused after they had been permitted."""
        self._unverified = 0
        """How often the other slot was not any more what had been verified."""
        self._still_armed: tuple[Wait, datetime] | None = None
        """Why the other slot could not be disarmed, and since when."""
        self._rolling_back = False
        """This host goes down for a rollback, as soon as it may: nothing else begins."""

    async def start(self) -> None:
        """Find out what happened meanwhile, and go on from there."""
        self.record = await asyncio.to_thread(self._world.store.load, self._world.now())
        if self.settings.update.repository:
            self.next_check = self._first_check()
        await self._awake()

    async def _awake(self) -> None:
        """Ask from which slot this host runs; without an answer, show why, and ask again."""
        try:
            boot = await asyncio.to_thread(self._world.slots.boot)
        except UpdateAgentError as error:
            logger.error("cannot see from which slot this host runs: %s", error)  # noqa: TRY400
            self.record = self.record.moved(self.record.state, self._world.now(), _blind(error))
            self._world.tell(self)
            self._timer = self._world.later(
                _ASK_AGAIN.total_seconds(), lambda: self._spawn(self._awake())
            )
            return
        await self._look()
        async with self._turn:
            self._boot = boot
            await self._step(lifecycle.awakened(self.record.goal, boot))

    async def stop(self) -> None:
        """End all work; what is under way goes on with the next start."""
        self._stopping = True
        self._cancelled.set()
        if self._timer:
            self._timer.cancel()
        self._questions.give_up()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def offer(self) -> Offer | None:
        """What the repository answered last, since this daemon runs."""
        return self._offer

    @property
    def wait(self) -> Wait | None:
        """Why nothing happens now; or what is worse, that an update may boot which nobody wants."""
        return self._still_armed[0] if self._still_armed else self.record.wait

    @property
    def wait_since(self) -> datetime | None:
        """When that began to be the reason."""
        return self._still_armed[1] if self._still_armed else self.record.wait_since

    # What people ask for -------------------------------------------------------------------------

    async def check(self) -> None:
        """Ask the repository now; what is under way is it. Raises NotNowError."""
        try:
            await self._asked_for(Event.CHECK, "check")
        except NotNowError:
            if self.record.state is not State.CHECKING:
                raise

    async def install(self, *, force: bool = False, without_lock: bool = False) -> None:
        """Install what is offered, whatever this host's own pause says.

        With ``force`` past waves and the reboot window; ``without_lock`` asks the cluster nothing.
        Where a person reboots the host, this does not. Raises NotNowError.
        """
        if force and lifecycle.takes(self.record.state, Event.PERMITTED):  # what is left to do
            self._want(Event.PERMITTED, "install")
            if self.settings.reboot.strategy is not Strategy.OFF:
                await self.reboot(without_lock=without_lock)
            return
        wish = Wish(asked=True, forced=force, hurry=force, without_lock=without_lock)
        await self._asked_for(Event.CHECK, "install", wish)

    async def cancel(self) -> None:
        """Stop an installation, or forget what is staged. Raises NotNowError."""
        async with self._turn:
            self._want(Event.DROPPED, "cancel")
            if self.record.state is State.INSTALLING:
                self._cancelled.set()
            else:
                await self._step(Event.DROPPED, why="cancelled")

    async def pause(self, why: str) -> None:
        """Begin nothing by itself until resumed; what is under way goes on."""
        self._want_awake("pause")
        paused = document.line(why) or "no reason given"
        await self._keep(lambda it: replace(it, paused=paused))

    async def resume(self) -> None:
        """Undo ``pause``."""
        self._want_awake("resume")
        await self._keep(lambda it: replace(it, paused=None))
        if self.record.wait and self.record.wait.reason is Reason.PAUSED_HERE:
            await self._may_happen(Event.CHECK)  # for this host is not paused any more
        self._schedule()

    async def reboot(self, *, without_lock: bool = False) -> None:
        """Boot what is staged, now, whatever the window says. Raises NotNowError.

        Where hosts reboot in turn, as soon as it is this one's, but not ``without_lock``. What
        nobody wants any more is dropped instead.
        """
        async with self._turn:
            self._want(Event.PERMITTED, "reboot into the new release")
            self._wish = replace(self._wish, reboot=True, hurry=True, without_lock=without_lock)
        await self._perform([Effect.ASK_TO_REBOOT])

    async def rollback(self, *, without_lock: bool = False) -> None:
        """Boot the release in the other slot again, now, and avoid the one that runs.

        Raises NotNowError, HostError when there is none, or when the reboot is held back: then all
        is as it was. Who asked may go away meanwhile: it goes on.
        """
        task = asyncio.get_running_loop().create_task(self._roll_back(without_lock=without_lock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda it: it.cancelled() or it.exception())  # told who waits
        await asyncio.shield(task)

    async def _roll_back(self, *, without_lock: bool) -> None:
        await self._begin_to_roll_back()
        async with self._work:  # what was begun before is over
            logger.warning("rolling back from %s, as asked", self.host.version)
            try:
                await self._want_way_back()
                if self._in_turn and not without_lock:
                    await self._turn_to_roll_back()
                await asyncio.to_thread(
                    self._world.reboots.reboot, None, without_lock=without_lock,
                    ready=self._from_thread(self._turn_back),
                )  # fmt: skip
            except UpdateAgentError:
                await self._stay()
                raise
            await self._look()
            self._no_reboot = self._world.now() + _NO_REBOOT
            self._schedule()

    async def _begin_to_roll_back(self) -> None:
        """Let nothing else begin. Raises NotNowError."""
        async with self._turn:
            self._want_awake("roll back")
            self._want_up("roll back")
            if self.record.state not in _AT_REST:
                asked = self.record.state is State.CHECKING
                raise NotNowError(
                    f"cannot roll back while {self.record.state}",
                    hint="in a moment" if asked
                    else "the other slot is in use: 'update-agentctl cancel' first",
                )  # fmt: skip
            self._rolling_back, self._no_reboot = True, None
            self._schedule()

    async def _want_way_back(self) -> None:
        """Drain no host for nothing. Raises HostError when the other slot was never confirmed."""
        for it in await asyncio.to_thread(self._world.slots.look):
            if not (it.booted or it.successful):
                raise HostError(
                    f"cannot roll back to slot {it.name}: it is {it.state}",
                    hint="only a slot that was confirmed, and not overwritten since, is a way back",
                )

    async def _turn_to_roll_back(self) -> None:
        """Hold a reboot slot. Raises NotPermittedError."""
        wait = await self._questions.ask(
            self._world.reboots.ask, self._world.now(), None,
            hurry=True, without_lock=False, keep=self._on_trial,
        )  # fmt: skip
        if wait:
            raise NotPermittedError(wait)

    async def _turn_back(self) -> None:
        """Let the other slot boot next: the reboot is certain. Should it not come, that is undone.

        But not if it was never confirmed: then it has lost its slot, and the trial is over.
        """
        if self._stopping:
            raise HostError("update-agentd ends", hint="roll back once it runs again")
        booted = await asyncio.to_thread(self._world.slots.boot)
        owes = booted.successful
        await self._keep(lambda it: replace(it.avoiding(self.host.version), disarm=owes))
        await asyncio.to_thread(self._world.slots.rollback)

    async def _stay(self) -> None:
        """Undo a rollback whose reboot does not come; a trial keeps its reboot slot."""
        self._rolling_back = False
        try:
            if self.record.disarm:
                await self._disarm()
                await self._look()
            if not self._on_trial:
                await self._give_back()
        finally:
            self._schedule()

    async def _not_rolled_back(self) -> None:
        async with self._work:
            if self._rolling_back:
                logger.error("the reboot into the other slot was begun, and did not come")
                await self._stay()

    def _from_thread(self, work: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
        """Return what does ``work`` in the event loop, for a thread that waits for it."""
        loop = asyncio.get_running_loop()
        return lambda: asyncio.run_coroutine_threadsafe(work(), loop).result()

    async def confirmed(self) -> None:
        """Look whether the running release is confirmed, as somebody says. Raises HostError."""
        boot = await asyncio.to_thread(self._world.slots.boot)
        async with self._turn:
            on_trial = self._boot is not None and self._on_trial
            if on_trial and boot.successful and not self._rolling_back:
                self._boot = boot
                await self._step(Event.CONFIRMED)

    @property
    def _owes_disarm(self) -> bool:
        """What nobody wants any more may be the next to boot."""
        return self.record.disarm and not self._rolling_back

    @property
    def _on_trial(self) -> bool:
        return self.record.state is State.TRIAL

    @property
    def _in_turn(self) -> bool:
        """Hosts of a group reboot one after the other."""
        return self.settings.reboot.strategy is Strategy.LOCK

    def _want_awake(self, what: str) -> None:
        if self._boot is None:
            raise NotNowError(
                f"cannot {what} before it is known from which slot this host runs",
                hint=self.record.wait.sentence if self.record.wait else "in a moment",
            )

    def _want_up(self, what: str) -> None:
        if self._rolling_back:
            raise NotNowError(
                f"cannot {what} while this host goes down to roll back",
                hint="once it is up again; 'journalctl -u update-agentd' says how far it is",
            )

    def _want(self, event: Event, what: str) -> None:
        self._want_awake(what)
        self._want_up(what)
        if not lifecycle.takes(self.record.state, event):
            raise NotNowError(f"cannot {what} while {self.record.state}")

    # Events --------------------------------------------------------------------------------------

    async def happened(self, event: Event, *, wait: Wait | None = None, why: str = "") -> None:
        """Take one step."""
        async with self._turn:
            await self._step(event, wait=wait, why=why)

    async def _may_happen(self, event: Event, *, wait: Wait | None = None, why: str = "") -> None:
        """Take one step, unless something else happened first."""
        async with self._turn:
            begins = event is Event.CHECK and self._rolling_back
            if lifecycle.takes(self.record.state, event) and not begins:
                await self._step(event, wait=wait, why=why)

    async def _asked_for(self, event: Event, what: str, wish: Wish = _NO_WISH) -> None:
        """Take one step that somebody wishes. Raises NotNowError."""
        async with self._turn:
            self._want(event, what)
            await self._step(event, wish=wish)

    async def _step(
        self, event: Event, *, wait: Wait | None = None, why: str = "", wish: Wish | None = None
    ) -> None:
        """Take one step: the only place that logs a transition, keeps it, or tells anyone."""
        step = lifecycle.step(self.record.state, event)
        logger.info(
            "%s: %s -> %s%s", event, self.record.state, step.state,
            f": {wait.sentence if wait else why}" if wait or why else "",
        )  # fmt: skip
        if Effect.WARN in step.effects:
            await self._warn()  # before the failure itself is kept: nothing comes between
        await self._keep(lambda it: self._moved(it, step, event, wait, why))
        self._wish = wish or self._left_of_wish(event, step.state)
        self._refused = (
            self._refused + 1
            if event is Event.NOT_REBOOTED
            else (0 if step.state in _AT_REST else self._refused)
        )
        self._no_reboot = None
        if Effect.INSTALL in step.effects:
            self._cancelled = threading.Event()
            if self._stopping:
                self._cancelled.set()
        self._spawn(self._perform(step.effects))
        self._schedule()

    def _left_of_wish(self, event: Event, state: State) -> Wish:
        """Return what of the wish is left: of a reboot that was tried, to be in a hurry in turn."""
        wish = self._wish
        if state in _AT_REST:
            return _NO_WISH
        if event is not Event.NOT_REBOOTED:
            return wish
        in_turn = self._in_turn and not wish.without_lock
        return replace(wish, reboot=False) if in_turn else _NO_WISH

    def _moved(
        self, found: Record, step: lifecycle.Step, event: Event, wait: Wait | None, why: str
    ) -> Record:
        """Return the record with what a step writes into it."""
        moved = found.moved(step.state, self._world.now(), wait)
        moved = replace(moved, disarm=_to_disarm(found, step, event))
        for effect in step.effects:
            moved = self._noted(effect, moved, event, why)
        return moved

    def _noted(self, effect: Effect, found: Record, event: Event, why: str) -> Record:
        """Return the record with what an effect writes into it."""
        now, offer = self._world.now(), self._offer
        match effect:
            case Effect.BEGIN if offer and offer.release:
                if found.attempt and found.attempt.root_hash == offer.release.root_hash:
                    return found  # a restart came between
                ended = found.ended(Outcome.DROPPED, now, f"{offer.release.version} came instead")
                return ended.began(
                    Attempt(
                        id=self._world.new_id(),
                        running=self.host.version,
                        version=offer.release.version,
                        root_hash=offer.release.root_hash,
                        began=now,
                    )
                )
            case Effect.ARM if self._boot and found.attempt:  # written before it is done
                return found.arming(self._boot.boot_id, armed=found.attempt.armed)
            case Effect.AVOID if found.attempt:
                return found.avoiding(found.attempt.version)
            case Effect.END:
                return found.ended(OUTCOMES[event], now, why)
            case _:
                return found

    async def _keep(self, edit: Callable[[Record], Record]) -> None:
        """Change the record, one change after the other; durable on return."""
        async with self._keeping:
            found = edit(self.record)
            if found != self.record:
                await asyncio.to_thread(self._world.store.save, found)
                self.record = found
        self._world.tell(self)

    # Effects -------------------------------------------------------------------------------------

    async def _perform(self, effects: Sequence[Effect]) -> None:
        async with self._work:
            try:
                if self._owes_disarm and Effect.DISARM not in effects:
                    await self._disarm()  # which could not be done before
                for effect in effects:
                    if perform := self._performers.get(effect):
                        await perform(self)
            except UpdateAgentError as error:
                if not lifecycle.takes(self.record.state, Event.NOT_REBOOTED):
                    raise  # the record cannot be kept: who begins anew goes on from what is
                await self._may_happen(Event.NOT_REBOOTED, wait=_held_back(error))
                if isinstance(error, UnverifiedError):
                    await self._install_again(str(error))
            if _SHOWN.intersection(effects):
                await self._look()
                self._world.tell(self)

    async def _install_again(self, why: str) -> None:
        """Drop what is not as it was verified, and mend it; less and less often."""
        self._unverified += 1
        await self._may_happen(Event.DROPPED, why=why)
        pause = record.backoff(self._unverified, self.settings.update.interval)
        self.next_check = self._world.now() + pause
        self._schedule()

    async def _look(self) -> None:
        """Ask how the slots stand; nothing depends on it but what is shown."""
        self.slots = None
        with _survived("cannot see the slots"):
            self.slots = tuple(await asyncio.to_thread(self._world.slots.look))

    async def _ask(self) -> None:
        wish = self._wish
        self.next_check = None  # the interval begins with this check
        host = replace(self.host, failed=frozenset(self.record.failed), forced=wish.forced)
        try:
            offer = await self._questions.ask(self._world.releases.ask, host)
        except UpdateAgentError as error:
            await self._keep(_failed_once_more)
            await self.happened(Event.HELD, wait=_unanswered(error))
            return
        self._offer = offer
        await self._answered()
        wait = offer.wait or (None if wish.asked else self._held_here())
        if offer.release and not wait:
            with _survived("cannot ask the cluster whether it is good"):
                wait = await self._known_bad(offer.release.version)
        if wait and wait.reason is Reason.UP_TO_DATE:
            await self.happened(Event.NOTHING, wait=wait)
        elif wait:
            await self.happened(Event.HELD, wait=wait)
        else:
            await self.happened(Event.OFFERED)

    async def _answered(self) -> None:
        """Note that the repository answers."""
        now = self._world.now()
        await self._keep(lambda it: replace(it, checked=now, failures=0))

    def _held_here(self) -> Wait | None:
        """Return why this host's people want nothing to be installed."""
        if self.record.paused:
            return Wait(
                reason=Reason.PAUSED_HERE,
                sentence=f"updates are paused on this host: {self.record.paused}",
                ends="update-agentctl resume",
            )
        if not self.settings.update.automatic:
            return Wait(
                reason=Reason.BY_HAND,
                sentence="this host installs nothing by itself (update.automatic)",
                ends="update-agentctl install",
            )
        return None

    async def _install(self) -> None:
        offer, attempt = self._offer, self.record.attempt
        if offer is None or attempt is None:
            raise RuntimeError("an installation needs an offer and an attempt")
        cancelled = self._cancelled
        loop = asyncio.get_running_loop()

        def show(progress: Progress) -> None:
            loop.call_soon_threadsafe(self._show, progress)

        try:
            done = await asyncio.to_thread(
                self._world.slots.install, offer, attempt, show, cancelled
            )
        except ReleaseError as error:
            await self.happened(Event.REFUSED, why=str(error))
        except HostError as error:
            if cancelled.is_set():
                if not self._stopping:
                    await self.happened(Event.DROPPED, why="cancelled")
                return
            await self._keep(_failed_once_more)
            wait = Wait(
                reason=Reason.INSTALLATION,
                sentence=f"the installation of {attempt.version} stopped: {error}",
                ends=error.hint or "the next try, which keeps what is right",
            )
            await self.happened(Event.INTERRUPTED, wait=wait, why=str(error))
        else:
            counted = replace(attempt, fetched=done.fetched, saved=done.saved)
            await self._keep(lambda it: it.began(counted))
            async with self._turn:
                if cancelled.is_set() and not self._stopping:
                    await self._step(Event.DROPPED, why="cancelled")
                else:
                    await self._step(Event.VERIFIED)
        finally:
            self._show(None)

    async def _ask_to_reboot(self) -> None:
        if not lifecycle.takes(self.record.state, Event.PERMITTED):
            return  # cancelled; or it reboots already: asking again could give the permission back
        wish, attempt = self._wish, self.record.attempt
        if self.settings.reboot.strategy is Strategy.OFF and not wish.reboot:
            await self._leave(attempt)
            return
        wait = bad = None
        try:
            wait = await self._questions.ask(
                self._world.reboots.ask, self._world.now(), attempt,
                hurry=wish.hurry, without_lock=wish.without_lock,
            )  # fmt: skip
            bad = await self._known_bad(attempt.version) if attempt else None
        except UpdateAgentError as error:
            wait = wait or _held_back(error)
        unwanted = bad.sentence if bad else None if wait else await self._unwanted(attempt)
        if unwanted:
            await self._drop(unwanted)
        elif wait:
            once = wish.reboot and (wish.without_lock or not self._in_turn)
            if once and self._wish is wish:
                self._wish = _NO_WISH  # it was tried
            await self._may_happen(Event.HELD_BACK, wait=wait)
            if self._in_turn and not self._listening:
                self._spawn(self._listen())
        else:
            await self._may_happen(Event.PERMITTED)

    async def _leave(self, attempt: Attempt | None) -> None:
        """Leave the reboot to a person, as long as what is staged is still wanted."""
        left = self.record.wait == _OFF
        if self.record.state is State.WAITING_TO_REBOOT and (
            unwanted := await self._unwanted(attempt, patient=True)
        ):
            await self._drop(unwanted)
        elif left:
            self._schedule()
        else:
            await self._may_happen(Event.LEFT, wait=_OFF)

    async def _drop(self, why: str) -> None:
        """Boot what is staged never, and look what there is instead."""
        await self._may_happen(Event.DROPPED, why=why)
        await self._may_happen(Event.CHECK)

    async def _listen(self) -> None:
        """Ask again as soon as somebody calls; if nobody does, the timer asks."""
        self._listening, called = True, False
        try:
            with _survived("cannot hear whether this host is called"):
                called = await self._questions.ask(
                    self._world.reboots.called, _ASK_AGAIN.total_seconds()
                )
        finally:
            self._listening = False
        if called and self.record.state is State.WAITING_TO_REBOOT:
            await self._perform([Effect.ASK_TO_REBOOT])

    async def _known_bad(self, version: Version) -> Wait | None:
        """Return why the cluster takes ``version`` no more."""
        if self._wish.without_lock:
            return None
        return await self._questions.ask(self._world.reboots.known_bad, version)

    async def _unwanted(self, attempt: Attempt | None, *, patient: bool = False) -> str | None:
        """Return why what is staged should not be booted any more, as far as the server says.

        ``patient``: something newer counts only once this host would install it.
        """
        if attempt is None:
            return None
        try:
            offer = await self._questions.ask(
                self._world.releases.ask, replace(self.host, forced=True)
            )
        except UpdateAgentError as error:
            logger.warning("cannot ask whether %s is still wanted: %s", attempt.version, error)
            return None
        await self._answered()
        if offer.wait and offer.wait.reason is not Reason.PAUSED:
            return offer.wait.sentence
        if offer.release is None or offer.release.root_hash == attempt.root_hash:
            return None
        if patient and not await self._would_install():
            return None
        return f"{offer.release.version} is offered instead"

    async def _would_install(self) -> bool:
        """Return whether this host would now install what the repository has."""
        if self._held_here():
            return False
        host = replace(self.host, failed=frozenset(self.record.failed))
        try:
            offer = await self._questions.ask(self._world.releases.ask, host)
        except UpdateAgentError as error:
            logger.warning("cannot ask what there is for this host: %s", error)
            return False
        return offer.release is not None and offer.wait is None

    async def _arm(self) -> None:
        await asyncio.to_thread(self._world.slots.arm)
        self._unverified = 0
        boot_id = self._boot.boot_id if self._boot else None
        await self._keep(lambda it: it.arming(boot_id, armed=True))

    async def _reboot(self) -> None:
        await asyncio.to_thread(
            self._world.reboots.reboot, self.record.attempt,
            without_lock=self._wish.without_lock, ready=reboot.go,
        )  # fmt: skip
        self._no_reboot = self._world.now() + _NO_REBOOT
        self._schedule()

    async def _disarm(self) -> None:
        before = self.record.attempt
        try:
            if before:  # should the power go now, the slot's flags tell
                await self._keep(lambda it: it.arming(before.armed_in, armed=False))
            try:
                await asyncio.to_thread(self._world.slots.disarm)
            except UpdateAgentError:
                if before:
                    await self._keep(lambda it: it.arming(before.armed_in, armed=before.armed))
                raise
            await self._keep(lambda it: it.disarmed(self.host.version))
        except UpdateAgentError as error:
            logger.warning("cannot disarm the other slot: %s", error)
            since = self._still_armed[1] if self._still_armed else self._world.now()
            self._still_armed = _may_boot(error), since
        else:
            self._still_armed = None
        self._world.tell(self)
        self._schedule()

    async def _give_back(self) -> None:
        with _survived("cannot give the permission to reboot back"):
            await asyncio.to_thread(self._world.reboots.give_back)

    async def _warn(self) -> None:
        attempt = self.record.attempt
        if attempt:
            with _survived(f"cannot let others know that {attempt.version} rolled back here"):
                await asyncio.to_thread(self._world.reboots.rolled_back, attempt.version)

    _performers: Mapping[Effect, Callable[["Daemon"], Awaitable[None]]] = {
        Effect.ASK: _ask,
        Effect.INSTALL: _install,
        Effect.ASK_TO_REBOOT: _ask_to_reboot,
        Effect.ARM: _arm,
        Effect.DISARM: _disarm,
        Effect.REBOOT: _reboot,
        Effect.GIVE_BACK: _give_back,
    }
    """The others only write into the record."""

    def _show(self, progress: Progress | None) -> None:
        self.progress = progress
        self._world.tell(self)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a defect of the daemon", "exception": error}
            )

    # Time ----------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Set the one timer to when something is to be done without anybody asking."""
        if self._timer:
            self._timer.cancel()
        if self._boot is None:
            return
        now, shown = self._world.now(), self.next_check
        due = self._due(now)
        if self.next_check != shown:
            self._world.tell(self)
        if due is None:
            return
        seconds = max(0.0, (due - now).total_seconds())
        self._timer = self._world.later(seconds, self._time_is_up)

    def _due(self, now: datetime) -> datetime | None:
        due = self._next_step(now)
        if self._owes_disarm and self.record.state in (*_AT_REST, State.WAITING_TO_REBOOT):
            return min(due or now + _ASK_AGAIN, now + _ASK_AGAIN)
        return due

    def _next_step(self, now: datetime) -> datetime | None:
        if self._rolling_back or self.record.state is State.REBOOTING:
            return self._no_reboot
        state, wait = self.record.state, self.record.wait
        left = (
            state is State.WAITING_TO_REBOOT and wait is not None and wait.reason is Reason.PERSON
        )
        if state is State.WAITING_TO_REBOOT and not left:
            until = wait.until if wait else None  # far away, the clock may be set meanwhile
            if wait and wait.reason is Reason.LOCK_GAP:
                until = None  # its place in the queue is to be kept, and an offer may come
            longest = now + self.settings.update.interval
            refused = self._refused if wait and wait.reason is Reason.INHIBITED else 0
            again = now + record.backoff(refused, self.settings.update.interval)
            return min(max(now, until), longest) if until else again
        if state is State.TRIAL:
            return now + _ASK_AGAIN
        if not (left or lifecycle.takes(state, Event.CHECK)) or not self.settings.update.repository:
            return None
        latest = now + self.settings.update.interval * _LONGEST  # unless the clock went back
        if self.next_check is None or not now < self.next_check <= latest:
            self.next_check = now + self._interval()
        if wait and wait.until and now < wait.until < self.next_check:
            return wait.until
        return self.next_check

    def _first_check(self) -> datetime:
        """Return when to ask first: soon, or an interval after this host asked last.

        Within a ninth of the interval: hosts that got their power back together are spread over it.
        """
        now = self._world.now()
        soon: datetime = now + self.settings.update.interval / 9 * self._world.chance()
        last = self.record.checked
        return max(soon, min(last, now) + self._interval()) if last else soon

    def _interval(self) -> timedelta:
        """Return the time to the next check: a third more or less, so that hosts spread."""
        interval: timedelta = self.settings.update.interval
        if self.record.failures:
            interval = record.backoff(self.record.failures - 1, interval)
        return interval * (2 / 3 + self._world.chance() * 2 / 3)

    def _time_is_up(self) -> None:
        if self._rolling_back:
            self._spawn(self._not_rolled_back())
            return
        asks = self.next_check is not None and self.next_check <= self._world.now()
        if self._owes_disarm and self.record.state in _AT_REST and not asks:
            self._spawn(self._perform([Effect.DISARM]))
            return
        self.next_check = None
        if self.record.state is State.WAITING_TO_REBOOT:
            self._spawn(self._perform([Effect.ASK_TO_REBOOT]))
        elif self.record.state is State.TRIAL:
            self._spawn(self._look_whether_confirmed())
        elif self.record.state is State.REBOOTING:
            self._spawn(self._may_happen(Event.NOT_REBOOTED, wait=_GONE))
        else:
            self._spawn(self._may_happen(Event.CHECK))

    async def _look_whether_confirmed(self) -> None:
        with _survived("cannot see whether the running release is confirmed"):
            await self.confirmed()
        self._schedule()


_OTHER_SLOT = frozenset({Event.ON_TRIAL, Event.CONFIRMED, Event.FELL_BACK})
"""What is found after the armed slot was booted: what was to be disarmed is over."""

_SHOWN = frozenset({Effect.INSTALL, Effect.ARM, Effect.DISARM, Effect.END})
"""After which the slots stand otherwise than before."""


def _to_disarm(found: Record, step: lifecycle.Step, event: Event) -> bool:
    """Return whether the other slot is to be disarmed after a step, and is not yet."""
    another_boot = event in _OTHER_SLOT and found.state is not State.TRIAL
    if another_boot or Effect.ARM in step.effects:
        return False
    return found.disarm or Effect.DISARM in step.effects


def _failed_once_more(found: Record) -> Record:
    return replace(found, failures=min(found.failures + 1, 10_000))


def _blind(error: UpdateAgentError) -> Wait:
    return Wait(
        reason=Reason.SLOTS,
        sentence=f"it is not known from which slot this host runs: {error}",
        ends=error.hint or "the next try, in a minute",
    )


def _may_boot(error: UpdateAgentError) -> Wait:
    return Wait(
        reason=Reason.SLOTS,
        sentence=f"the other slot may boot next, though nobody wants it any more: {error}",
        ends=error.hint or "the next try to disarm it, in a minute",
    )


def _unanswered(error: UpdateAgentError) -> Wait:
    reason = (
        Reason.EXPIRED if isinstance(error, ExpiredError)
        else Reason.UNTRUSTED if isinstance(error, ReleaseError)
        else Reason.UNREACHABLE
    )  # fmt: skip
    return Wait(reason=reason, sentence=str(error), ends=error.hint or "the next check")


def _held_back(error: UpdateAgentError) -> Wait:
    if isinstance(error, NotPermittedError):
        return error.wait
    return Wait(reason=Reason.INHIBITED, sentence=str(error), ends=error.hint or "the next try")


@contextmanager
def _survived(what: str) -> Iterator[None]:
    """Go on after a failure that nothing else depends on."""
    try:
        yield
    except UpdateAgentError as error:
        logger.warning("%s: %s", what, error)
