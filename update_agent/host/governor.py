"""The governor at work: an installation's reads and writes of slots, as fast as the host bears.

While an installation is under way a thread looks every quarter of a second how long the host's work
waited, and ``core/governor.py`` says how fast to go on. That is enforced twice:

* every read and write passes here in small pieces, one at a time, each when its turn has come.
  This is what keeps others from noticing: io.max alone lets through in one burst what a tenth of a
  second may move, and whoever syncs behind that waits for all of it;
* io.max of our slice is the wall around it, a quarter above, for whatever does not pass here.

When the installation ends, however it ends, io.max goes back to what the settings say. A writer
that is killed cannot do that: ``rest`` does it when the next one starts.

Where the kernel does not tell how long others wait, the rate is the ceiling of the settings, or if
they have none the floor, and stays. Where io.max cannot be set, pieces alone must do.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from update_agent.core.bucket import Bucket
from update_agent.core.governor import Bounds, Pace
from update_agent.core.settings import Limits
from update_agent.errors import HostError
from update_agent.host import cgroup
from update_agent.host.device import Device, Front

TICK = 0.25
"""Seconds between two looks."""

_WALL = 1.25
"""How much above the pace io.max is, so that it does not get in its way."""

logger = logging.getLogger(__name__)


class Governor:
    """Paces devices on ``disk``. Use it in ``governed``."""

    def __init__(
        self,
        disk: Path,
        limits: Limits,
        *,
        root: Path = cgroup.ROOT,
        now: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._limits = limits
        self._now, self._pause = now, pause
        self._wall = _Wall(disk, root)
        self._waits = _waits(root, limits)
        self._pace = Pace.begin(_bounds(limits, blind=self._waits is None))
        self._since = now()
        self._moved = 0
        self._bucket = Bucket(
            rate=self._pace.rate, burst=self._pace.piece, level=0, since=self._since
        )
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._wall.put(self._pace.rate * _WALL)

    @property
    def rate(self) -> float:
        """Bytes a second, now."""
        return self._pace.rate

    @property
    def throttled_by(self) -> str | None:
        """What holds the installation back, for people; None when it is no limit of ours."""
        found = self._pace.throttled_by
        static = self._waits is None and self._limits.ceiling is None
        return "limits.floor" if found and static else found

    def paced(self, device: Device) -> Device:
        """Return ``device``, read and written at this pace."""
        return _Paced(device, self)

    @contextmanager
    def turn(self, wanted: int) -> Iterator[int]:
        """Wait until it is one's turn; yield how many of the ``wanted`` bytes may be moved."""
        with self._turn:
            size = min(wanted, self._pace.piece)
            with self._lock:
                self._bucket, seconds = self._bucket.take(size, self._now())
            if seconds:
                self._pause(seconds)
            yield size
            with self._lock:
                self._moved += size

    def tick(self) -> None:
        """Look how the host does, and go on faster or slower."""
        now = self._now()
        seconds = now - self._since
        if seconds <= 0:
            return
        share = min(1.0, self._waited() / seconds)
        with self._lock:
            self._pace = self._pace.step(share, moved=self._moved / seconds, seconds=seconds)
            self._since, self._moved = now, 0
            self._bucket = replace(self._bucket, rate=self._pace.rate, burst=self._pace.piece)
        self._wall.put(self._pace.rate * _WALL)

    def run(self, over: threading.Event) -> None:
        """Tick until it is ``over``."""
        while not over.wait(TICK):
            self.tick()

    def rest(self) -> None:
        """Leave io.max as the settings say."""
        self._wall.put(self._limits.ceiling)

    def _waited(self) -> float:
        """Return for how many seconds others waited since the last look."""
        try:
            return self._waits.since_last() if self._waits else 0.0
        except HostError as error:
            _tell_blind(error, self._limits)
            self._waits = None
            self._pace = Pace.begin(_bounds(self._limits, blind=True))
            return 0.0


@contextmanager
def governed(disk: Path, limits: Limits, root: Path = cgroup.ROOT) -> Iterator[Governor]:
    """Yield a governor that looks after the host until the end."""
    governor, over = Governor(disk, limits, root=root), threading.Event()
    thread = threading.Thread(target=governor.run, args=(over,), name="governor", daemon=True)
    thread.start()
    try:
        yield governor
    finally:
        over.set()
        thread.join()
        governor.rest()


def rest(disk: Path, limits: Limits, root: Path = cgroup.ROOT) -> None:
    """Set io.max to what the settings say, whatever a writer that was killed left."""
    _Wall(disk, root).put(limits.ceiling)


class _Paced(Front):
    """A device that is read and written in pieces, each in its turn."""

    def __init__(self, device: Device, governor: Governor) -> None:
        super().__init__(device)
        self._governor = governor

    def read_into(self, buffer: memoryview, offset: int) -> int:
        done = 0
        while done < len(buffer):
            with self._governor.turn(len(buffer) - done) as size:
                got = self._inner.read_into(buffer[done : done + size], offset + done)
            done += got
            if got < size:
                break
        return done

    def write(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            with self._governor.turn(len(buffer) - done) as size:
                self._inner.write(buffer[done : done + size], offset + done)
            done += size


class _Wall:
    """io.max of our slice on one disk; given up where it cannot be set, and for image files."""

    def __init__(self, disk: Path, root: Path) -> None:
        self._root = root
        self._device = cgroup.number(disk)
        self._stands: float | None = math.nan

    def put(self, rate: float | None) -> None:
        if self._device is None or rate == self._stands:
            return
        try:
            cgroup.limit(self._device, rate, self._root)
        except HostError as error:
            logger.warning("the disk is shared without io.max: %s", error)
            self._device = None
        self._stands = rate


def _waits(root: Path, limits: Limits) -> cgroup.Waits | None:
    try:
        return cgroup.Waits(root)
    except HostError as error:
        _tell_blind(error, limits)
        return None


def _tell_blind(error: HostError, limits: Limits) -> None:
    logger.warning(
        "nobody tells how long this host's work waits, so an update moves %.1f MB/s whatever"
        " happens: %s%s",
        _bounds(limits, blind=True).floor / 1e6, error, f" ({error.hint})" if error.hint else "",
    )  # fmt: skip


def _bounds(limits: Limits, *, blind: bool) -> Bounds:
    ceiling = limits.ceiling or math.inf
    floor = min(limits.floor, ceiling)
    if blind:
        ceiling = floor = limits.ceiling or limits.floor
    return Bounds(floor=floor, ceiling=ceiling, pressure=limits.pressure / 100)
