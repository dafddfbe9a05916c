"""The slots, as the writer shows and fills them: ``ports.Slots`` on the writer's socket.

The daemon fetches, the writer verifies and writes. What proves a release is fetched anew for each
installation, in one visit to the repository; from then on only ranges of a payload travel.

Only the writer refuses a release, and by what was signed. Bytes without the right hash may have
been garbled on their way: they are asked for another time, and no release is avoided for them.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from update_agent.agent.ports import Installed, Progress, SlotView
from update_agent.agent.repository import network_of, visit
from update_agent.core import trust, wire
from update_agent.core.lifecycle import Boot
from update_agent.core.payload import GarbledError
from update_agent.core.record import Attempt
from update_agent.core.release import PayloadReference, Release
from update_agent.core.settings import Settings
from update_agent.core.slot import TRIES
from update_agent.core.trust import Evidence
from update_agent.core.wire import MissingError, Range
from update_agent.errors import HostError, ReleaseError
from update_agent.host import identity, writer
from update_agent.host.download import Download, NoMirrorError
from update_agent.host.http import Network, WrongBytesError, get, lacking
from update_agent.host.offer import Offer
from update_agent.host.writer import Writer

_LOOK = 0.2
"""Seconds after which somebody who cancels is noticed."""
_SMOOTH = 5.0
"""Seconds over which a rate is measured."""


class WriterSlots:
    """The slots behind the writer's socket at ``path``."""

    def __init__(
        self,
        settings: Settings,
        now: Callable[[], datetime],
        state: Path,
        path: Path = writer.PATH,
    ) -> None:
        self._settings = settings
        self._now = now
        self._state = state
        self._path = path

    def boot(self) -> Boot:
        """Return from which slot the host runs. Raises HostError."""
        with Writer(self._path) as slots:
            state = slots.state()
        booted = state.booted
        if booted.unknown:  # to run from another release than one knows of has consequences
            raise HostError(f"what slot {booted.slot} holds is not known: {booted.unknown}")
        return Boot(
            boot_id=identity.boot_id(),
            root_hash=booted.root_hash or "",
            successful=booted.successful,
            untried=all(_untried(it, booted) for it in (state.a, state.b) if not it.booted),
        )

    def look(self) -> tuple[SlotView, ...]:
        """Return both slots as they stand. Raises HostError."""
        with Writer(self._path) as slots:
            state = slots.state()
        return tuple(_view(it, state) for it in (state.a, state.b))

    def install(
        self,
        offer: Offer,
        attempt: Attempt,
        progress: Callable[[Progress], None],
        cancelled: threading.Event,
    ) -> Installed:
        """Put the offered release into the other slot.

        Raises ReleaseError when the writer refuses it, HostError.
        """
        if offer.release is None:
            raise ValueError("nothing is offered")
        release, evidence = self._proof(offer.release)
        payloads = _Payloads(release, self._settings)
        with (
            _no_fault_of_the_release(GarbledError),
            Writer(self._path) as slots,
            _hung_up(slots, cancelled),
        ):
            done = slots.install(
                release,
                evidence,
                payloads,
                attempt=attempt.id,
                channel=self._settings.update.channel,
                watcher=_Watcher(progress, cancelled, payloads.network),
            )
        return Installed(fetched=done.fetched, saved=done.saved)

    def arm(self) -> None:
        """Let the other slot boot next, on trial. Raises HostError."""
        with Writer(self._path) as slots:
            slots.arm()

    def disarm(self) -> None:
        """Let the booted slot boot next. Raises HostError."""
        with Writer(self._path) as slots:
            slots.disarm()

    def rollback(self) -> None:
        """Let the other slot boot next, which was confirmed once. Raises HostError."""
        with Writer(self._path) as slots:
            slots.rollback()

    def _proof(self, wanted: Release) -> tuple[Release, Evidence]:
        """Return the release and what proves it, as they are now. Raises HostError."""
        with (
            _no_fault_of_the_release(),
            visit(self._settings, self._state, self._now()) as repository,
        ):
            repository.channel(self._settings.update.channel)
            release = repository.release(wanted.product, wanted.version)
            if release is None or release.root_hash != wanted.root_hash:
                raise ReleaseError(
                    f"{wanted.product} {wanted.version} was changed or withdrawn meanwhile",
                    hint="the next check says what is offered now",
                )
            return release, repository.evidence()


@contextmanager
def _no_fault_of_the_release(kind: type[ReleaseError] = ReleaseError) -> Iterator[None]:
    """Turn what comes of bytes that servers sent into an error that another try may mend."""
    try:
        yield
    except kind as error:
        raise HostError(str(error), hint=error.hint) from error


@contextmanager
def _hung_up(slots: Writer, cancelled: threading.Event) -> Iterator[None]:
    """Cut the conversation short when it is cancelled, whatever it waits for."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if cancelled.wait(_LOOK):
                slots.cancel()
                return

    watcher = threading.Thread(target=watch, name="cancel", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


class _Payloads:
    """The payloads of a release, from the servers that the settings name."""

    def __init__(self, release: Release, settings: Settings) -> None:
        self._release = release
        self._urls = [url.rstrip("/") for url in settings.update.repository]
        self.network: Network = network_of(settings, whole=True)

    def index(self, payload: PayloadReference) -> bytes:
        """Return the index, from the first server that gives the right one.

        Raises MissingError, HostError.
        """
        errors: list[HostError] = []
        for url in self._urls:
            whole = f"{url}/{self._release.index_path(payload)}"
            try:
                data = get(self.network, whole, max_size=payload.index_size)
                trust.index(data, payload)
            except HostError as error:
                errors.append(error)
            except ReleaseError as error:
                errors.append(WrongBytesError(f"{whole}: {error}"))
            else:
                return data
        raise _missing(errors) or errors[0]

    def blob(self, payload: PayloadReference) -> writer.Ranges:
        """Return the blob."""
        urls = [f"{url}/{self._release.blob_path(payload)}" for url in self._urls]
        return _Blob(Download(self.network, urls, blob_size=payload.blob_size))


class _Blob:
    """A blob, as ``writer.Ranges``."""

    def __init__(self, download: Download) -> None:
        self._download = download

    def fetch(self, spans: Sequence[Range], deliver: Callable[[Range, bytearray], None]) -> None:
        """Call ``deliver`` for each range. Raises MissingError, HostError."""
        try:
            self._download.fetch(spans, deliver)
        except NoMirrorError as error:
            if missing := _missing(error.errors):
                raise missing from error
            raise

    def distrust(self, spans: Sequence[Range]) -> None:
        """See ``Download``."""
        self._download.distrust(spans)


def _missing(errors: Sequence[HostError]) -> MissingError | None:
    """Return that a payload is missing, if one server says so and no other one gave it.

    Those that cannot be reached may have it; to wait for them is worth no delta.
    """
    said = [str(it) for it in errors if lacking(it)]
    return MissingError("; ".join(said)) if said else None


class _Watcher:
    """Shows an installation's progress with its rate, and ends it when it is cancelled."""

    def __init__(
        self, show: Callable[[Progress], None], cancelled: threading.Event, network: Network
    ) -> None:
        self._show = show
        self._cancelled = cancelled
        self._network = network
        self._step = ""
        self._began = (0.0, 0)

    def planned(self, plan: wire.Planned) -> None:
        """Show that something was planned."""
        self.show(wire.Progress(step="plan", done=plan.write, size=plan.write))

    def show(self, progress: wire.Progress) -> None:
        """Show how far it is. Raises HostError when it is cancelled."""
        if self._cancelled.is_set():
            raise HostError("the installation was cancelled")
        now = time.monotonic()
        since, done = self._began
        if progress.step != self._step or now - since > 2 * _SMOOTH:
            self._step, self._began = progress.step, (now, progress.done)
            since, done = self._began
        elapsed = now - since
        rate = (progress.done - done) / elapsed if elapsed > 1 else 0.0
        fetching = progress.step == "write"
        limit = "network.rate" if fetching and self._network.throttled else None
        self._show(
            Progress(
                step=progress.step,
                done=progress.done,
                size=progress.size,
                rate=rate,
                throttled_by=progress.throttled_by or limit,
            )
        )


def _untried(other: wire.SlotState, booted: wire.SlotState) -> bool:
    """Return whether ``other`` is as an installation leaves it, or as whoever disarmed it."""
    if other.successful or other.priority > booted.priority:
        return False
    return other.priority == 0 or other.tries == TRIES


def _view(slot: wire.SlotState, state: wire.State) -> SlotView:
    return SlotView(
        name=str(slot.slot),
        state=slot.state,
        priority=slot.priority,
        tries=slot.tries,
        successful=slot.successful,
        booted=slot.booted,
        next=state.next == slot.slot,
    )
