"""One command that measures payloads: ours and everyone else's, in one run, on one disk.

    install  the whole image over loopback HTTP to a loop device, all programs taking turns
    update   v1 -> v2: the full payload with v1 as source, the delta payload, and no change at all,
             beside xdelta3, casync and zchunk
    publish  time and memory of making both payloads
    resume   our program killed at random moments: is the image right, and what was fetched twice
    memory   the peak of installing an image ten times as large

Before each installation the slot is filled with noise, written out and dropped from the page cache;
what is served stays in it. After each, the slot is read back and held against the image: a program
that installed something else counts as not run. Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.bench import figures, images, measure, ours, rivals
from tests.bench.figures import Against, Figure, Found, Unmeasured
from tests.bench.measure import BenchError, Measured, NotRun, Outcome

MEGA = 1_000_000
MEBI = 1 << 20
LARGE = 6 << 30
"""Size of the image that shows whether memory grows with the image."""
HEADROOM = 64 * MEBI
"""The loop device is this much larger than the image, as a real slot is."""
KILL_SEED = 20_240_601
"""Random moments, but the same in every run, as a share of the time a whole installation takes."""

TOOLS = ("curl", "zstd", "rauc", "swupdate", "xdelta3", "casync", "zchunk", "nginx-light", "nginx")

OURS = "update-agent"
LIKE = {
    "full payload, v1 booted": ("casync, seeded", "zchunk, from v1.zck"),
    "delta payload, v1 booted": ("xdelta3 -9 -S djw", "xdelta3 -9 -S lzma"),
}
"""What does the same as ours: works from any old image, or from a certain one."""

ABSENT = NotRun(reason="update-agent-image and update-publish are not installed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A payload of ours, and what making it cost."""

    payload: ours.Payload
    seconds: float
    peak: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One update of ours, measured, and what it said about itself."""

    measured: Measured
    said: ours.Applied


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """What became of being killed again and again."""

    kills: int
    images: int
    wrong: int
    payload: int
    refetched: int

    @property
    def percent(self) -> float:
        """Bytes fetched twice for each kill, in percent of the payload."""
        return 100 * self.refetched / self.kills / self.payload if self.kills else 0.0


@dataclass(slots=True, kw_only=True)
class Stage:
    """What every section needs: images, a server, a slot, and the payloads made so far."""

    cache: Path
    work: Path
    published: Path
    payloads: Path
    server: measure.Server
    slot: measure.Slot
    v1: images.Release
    v2: images.Release
    level: int
    made: dict[tuple[Path, Path | None], Published] = field(default_factory=dict)

    def job(self) -> rivals.Job:
        return rivals.Job(
            image=self.v2.image,
            published=self.published,
            server=self.server,
            slot=self.slot,
            work=self.work,
            level=self.level,
        )


def publish(stage: Stage, image: Path, *, source: Path | None = None) -> Published:
    """Make a payload, once in each run: it is the program of today that is measured."""
    if (image, source) not in stage.made:
        folder = stage.payloads / f"{image.stem}-from-{source.stem if source else 'nothing'}"
        folder.mkdir()
        level = stage.level if source is None else None  # a delta has a default of its own
        command = ours.publish_command(image, folder, level=level, source=source)
        ended = measure.run(command, stage.work)
        payload = ours.read_payload(ended.output)
        for file in folder.iterdir():
            measure.warm(file)
        stage.made[image, source] = Published(
            payload=payload, seconds=ended.seconds, peak=ended.peak
        )
    return stage.made[image, source]


def apply(
    stage: Stage, published: Published, slot: measure.Slot, source: Path | None = None
) -> Update:
    """Apply a payload to a slot as it is, and count what the server sent."""
    url = stage.server.url(published.payload.index)
    before = stage.server.sent()
    ended = measure.run(ours.apply_command(url, slot.device, source=source), stage.work)
    fetched = stage.server.sent() - before
    return Update(
        measured=Measured(seconds=ended.seconds, peak=ended.peak, fetched=fetched),
        said=ours.read_applied(ended.output),
    )


def apply_whole(
    stage: Stage,
    published: Published,
    slot: measure.Slot,
    image: Path,
    source: Path | None = None,
) -> Update:
    """Apply a payload and hold the slot against its image."""
    update = apply(stage, published, slot, source)
    if not holds(slot, image):
        raise BenchError("the slot does not hold the image afterwards")
    return update


def holds(slot: measure.Slot, image: Path) -> bool:
    return slot.sha256(image.stat().st_size) == measure.sha256(image)


# -- install -------------------------------------------------------------------------------------


def our_installer(stage: Stage) -> rivals.Rival:
    """Return our program as one more of those that install."""

    def made(job: rivals.Job) -> Path:
        return publish(stage, job.image).payload.index

    def install(job: rivals.Job) -> Measured:
        return apply(stage, publish(stage, job.image), job.slot).measured

    return rivals.Rival(
        name=OURS,
        command="update-agent-image apply --index URL --slot LOOP",
        needs=(str(ours.IMAGE), str(ours.PUBLISH)),
        publish=made,
        install=install,
    )


def measure_install(stage: Stage, runs: int) -> dict[str, list[Outcome]]:
    """Let everyone install in turn, ``runs`` rounds; what did not run once is not asked again."""
    contenders = [*rivals.INSTALLERS, our_installer(stage)]
    outcomes: dict[str, list[Outcome]] = {contender.name: [] for contender in contenders}
    for number in range(runs):
        for contender in contenders:
            so_far = outcomes[contender.name]
            if so_far and isinstance(so_far[-1], NotRun):
                continue
            note(f"install {number + 1}/{runs}: {contender.name}")
            so_far.append(rivals.attempt(contender, stage.job()))
    return outcomes


# -- update --------------------------------------------------------------------------------------


def measure_update(stage: Stage) -> dict[str, Update | NotRun]:
    """Update v1 to v2 in the ways a host may, the other slot holding noise or the image itself."""
    v1, v2 = stage.v1.image, stage.v2.image
    ways: dict[str, Callable[[], Update]] = {
        "full payload, v1 booted": partial(_update, stage, None, v1, None),
        "delta payload, v1 booted": partial(_update, stage, v1, v1, None),
        "no change, v2 booted": partial(_update, stage, None, v2, None),
        "no change, v2 in the other slot": partial(_update, stage, None, v1, v2),
    }
    updates: dict[str, Update | NotRun] = {}
    for name, way in ways.items():
        note(f"update: {name}")
        try:
            updates[name] = way() if ours.can_publish() else ABSENT
        except BenchError as error:
            updates[name] = NotRun(reason=str(error))
    return updates


def _update(stage: Stage, made_from: Path | None, source: Path, other: Path | None) -> Update:
    published = publish(stage, stage.v2.image, source=made_from)
    stage.slot.fill(other)
    measure.warm(source)
    return apply_whole(stage, published, stage.slot, stage.v2.image, source)


# -- publish -------------------------------------------------------------------------------------


def measure_publish(stage: Stage) -> dict[str, Published | NotRun]:
    """Make both payloads, unless a section before did."""
    made: dict[str, Published | NotRun] = {}
    for name, source in (("full payload", None), ("delta payload", stage.v1.image)):
        note(f"publish: {name}")
        try:
            made[name] = (
                publish(stage, stage.v2.image, source=source) if ours.can_publish() else ABSENT
            )
        except BenchError as error:
            made[name] = NotRun(reason=str(error))
    return made


# -- resume --------------------------------------------------------------------------------------


def measure_resume(stage: Stage, kills: int) -> Resumed | NotRun:
    """Kill our program at random moments until it was killed ``kills`` times.

    Each image begins in a slot of noise and is killed and started again until it is finished.
    What nginx sent for it beyond one undisturbed installation was fetched twice; that includes
    what stood in socket buffers when the program died.
    """
    if not ours.can_publish():
        return ABSENT
    published = publish(stage, stage.v2.image)
    stage.slot.fill()
    whole = apply(stage, published, stage.slot).measured
    moments = random.Random(KILL_SEED)  # noqa: S311  # the same moments in every run
    done = finished = wrong = refetched = 0
    while done < kills:
        stage.slot.fill()
        before = stage.server.sent()
        killed = _until_finished(stage, published, moments, whole.seconds, kills - done)
        refetched += stage.server.sent() - before - whole.fetched
        done, finished = done + killed, finished + 1
        wrong += not holds(stage.slot, stage.v2.image)
        note(f"resume: killed {done} times, {finished} images finished, {wrong} wrong")
    payload = published.payload.index_bytes + published.payload.blob_bytes
    return Resumed(kills=done, images=finished, wrong=wrong, payload=payload, refetched=refetched)


def _until_finished(
    stage: Stage, published: Published, moments: random.Random, whole: float, most: int
) -> int:
    """Start, kill, start again, until one start lives to its end; return how many did not."""
    command = ours.apply_command(stage.server.url(published.payload.index), stage.slot.device)
    for killed in range(most):
        with measure.running(command, stage.work) as process:
            if process.ended_within(moments.uniform(0, whole)):
                process.wait()
                return killed
            process.kill()
    measure.run(command, stage.work)
    return most


# -- memory --------------------------------------------------------------------------------------


def measure_memory(stage: Stage) -> dict[str, Published | Update | NotRun]:
    """Publish and install a synthetic image of 6 GiB."""
    if not ours.can_publish():
        return {"6 GiB image": ABSENT}
    note("memory: making the large image")
    image = images.synthetic_image(stage.cache, LARGE)
    note("memory: publishing and installing it")
    try:
        made = publish(stage, image)
        with measure.slot(stage.work, image.stat().st_size) as slot:
            applied = apply_whole(stage, made, slot, image)
    except BenchError as error:
        return {"6 GiB image": NotRun(reason=str(error))}
    return {"6 GiB image, publish": made, "6 GiB image, install": applied}


# -- words ---------------------------------------------------------------------------------------


def note(text: str) -> None:
    """Tell on stderr what takes its time; stdout is for the result."""
    print(f"... {text}", file=sys.stderr, flush=True)


def versions() -> str:
    """Return the rivals' versions, as Debian counts them."""
    shown = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Package} ${Version}\n", *TOOLS],
        check=False,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    return ", ".join(line for line in shown if not line.endswith(" "))


def install_figures(outcomes: dict[str, list[Outcome]]) -> Iterator[Found]:
    """Yield the time, the memory and the bytes of ours, against each of the others."""
    ran: dict[str, list[Measured]] = {}
    for name, runs in outcomes.items():
        yield from not_run({name: runs[-1]} if runs else {})
        if those := [it for it in runs if isinstance(it, Measured)]:
            ran[name] = those
    mine = ran.pop(OURS, None)
    if mine is None:
        return
    for what, unit, amount in (
        ("full installation", "s", seconds_of),
        ("full installation: peak memory", "MiB", mebibytes_of),
        ("full installation: fetched", "MB", megabytes_of),
    ):
        against = [
            Against(name=name, value=statistics.median(map(amount, runs)))
            for name, runs in ran.items()
        ]
        yield Figure.of(what, [amount(it) for it in mine], unit, *against)


def seconds_of(it: Measured) -> float:
    return it.seconds


def mebibytes_of(it: Measured) -> float:
    return it.peak / MEBI


def megabytes_of(it: Measured) -> float:
    return it.fetched / MEGA


def update_figures(
    updates: dict[str, Update | NotRun], deltas: dict[str, rivals.Delta | NotRun]
) -> Iterator[Found]:
    """Yield what each of our ways from v1 to v2 fetches and takes, against its like."""
    yield from not_run({**updates, **deltas})
    theirs = {
        name: Measured(seconds=it.apply_seconds, peak=it.apply_peak, fetched=it.fetched)
        for name, it in deltas.items()
        if isinstance(it, rivals.Delta)
    }
    for name, update in updates.items():
        if isinstance(update, NotRun):
            continue
        like = [it for it in LIKE.get(name, ()) if it in theirs]
        for what, unit, amount in (
            ("fetched", "MB", megabytes_of),
            ("time", "s", seconds_of),
            ("peak memory", "MiB", mebibytes_of),
        ):
            against = [Against(name=it, value=amount(theirs[it])) for it in like]
            yield Figure.of(f"{name}: {what}", [amount(update.measured)], unit, *against)


def not_run(outcomes: Mapping[str, object]) -> Iterator[Found]:
    for name, it in outcomes.items():
        if isinstance(it, NotRun):
            yield Unmeasured(name=name, reason=it.reason)


def publish_figures(
    made: dict[str, Published | NotRun], deltas: dict[str, rivals.Delta | NotRun]
) -> Iterator[Found]:
    """Yield what making payloads costs; of a delta against its like, where that was measured."""
    yield from not_run(made)
    like = {
        name: it
        for name, it in deltas.items()
        if name in LIKE["delta payload, v1 booted"] and isinstance(it, rivals.Delta)
    }
    for name, it in made.items():
        if isinstance(it, NotRun):
            continue
        others = like if name == "delta payload" else {}  # full ones: levels differ
        times = [Against(name=other, value=its.make_seconds) for other, its in others.items()]
        peaks = [Against(name=other, value=its.make_peak / MEBI) for other, its in others.items()]
        yield Figure.of(f"making the {name}: time", [it.seconds], "s", *times)
        yield Figure.of(f"making the {name}: peak memory", [it.peak / MEBI], "MiB", *peaks)
        size = it.payload.index_bytes + it.payload.blob_bytes
        yield Figure(name=f"size of the {name}", value=size / MEGA, unit="MB")


def resume_figures(resumed: Resumed | NotRun) -> Iterator[Found]:
    if isinstance(resumed, NotRun):
        yield Unmeasured(name="killed at random moments", reason=resumed.reason)
        return
    killed = f"killed at {resumed.kills} random moments"
    yield Figure(name=f"{killed}: fetched twice for each", value=resumed.percent, unit="%")
    yield Figure(name=f"{killed}: wrong images", value=resumed.wrong)
    if resumed.wrong:
        raise BenchError(f"{resumed.wrong} of {resumed.images} images are wrong")


def memory_figures(measured: dict[str, Published | Update | NotRun]) -> Iterator[Found]:
    for name, it in measured.items():
        if isinstance(it, NotRun):
            yield Unmeasured(name=name, reason=it.reason)
            continue
        peak = it.measured.peak if isinstance(it, Update) else it.peak
        yield Figure(name=f"{name}: peak memory", value=peak / MEBI, unit="MiB")


# -- the command ---------------------------------------------------------------------------------

SECTIONS = ("install", "update", "publish", "resume", "memory")


@contextmanager
def staged(cache: Path, level: int, size: int | None) -> Iterator[Stage]:
    """Build what is missing, then lend a server, a slot and a folder on the disk of the cache."""
    v1, v2 = images.small(cache, size) if size else images.build(cache)
    published = cache / "published"
    published.mkdir(exist_ok=True)
    drop_stale(published, v2.image)
    room = max(v1.image.stat().st_size, v2.image.stat().st_size) + HEADROOM
    with ExitStack() as stack:
        work = stack.enter_context(measure.scratch(cache))
        payloads = stack.enter_context(measure.scratch(published))
        slot = stack.enter_context(measure.slot(work, room))
        server = stack.enter_context(measure.serve(published, work))
        yield Stage(
            cache=cache,
            work=work,
            published=published,
            payloads=payloads,
            server=server,
            slot=slot,
            v1=v1,
            v2=v2,
            level=level,
        )


def drop_stale(published: Path, image: Path) -> None:
    """Remove what was published of an image that is not the one of today."""
    for path in published.iterdir():
        if path.is_file() and not path.name.startswith(f"{image.stem}."):
            path.unlink()


def image_figures(stage: Stage) -> Iterator[Found]:
    """Yield the sizes that put all other figures in proportion."""
    v1, v2 = stage.v1.image, stage.v2.image
    new = images.changed_bytes(v1, v2)
    yield Figure(name="image of v2", value=v2.stat().st_size / MEGA, unit="MB")
    yield Figure(name="of it in blocks that v1 does not have", value=new / MEGA, unit="MB")


def command() -> argparse.ArgumentParser:
    """Return what the benchmark can be told."""
    made = argparse.ArgumentParser(
        prog="python -m tests.bench.payload",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Needs root (loop devices) and, the first time, the Debian mirror of this machine.",
    )
    made.add_argument("--runs", type=int, default=5, help="rounds of installing (5)")
    made.add_argument("--kills", type=int, default=100, help="times to kill our program (100)")
    made.add_argument("--level", type=int, default=rivals.LEVEL, help="zstd level for everyone")
    made.add_argument("--size", type=int, help="MB of made-up images, in place of Debian's")
    made.add_argument("--cache", type=Path, default=images.DEFAULT_CACHE, help="what is kept")
    made.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections")
    return made


def measured(options: argparse.Namespace) -> Iterator[Found]:
    """Run the wanted sections, and yield the figures of each as it is done."""
    with staged(options.cache, options.level, options.size) as stage:
        note(versions())
        yield from image_figures(stage)
        if "install" in options.only:
            yield from install_figures(measure_install(stage, options.runs))
        deltas: dict[str, rivals.Delta | NotRun] = {}
        if "update" in options.only:
            updates = measure_update(stage)
            note("update: xdelta3, casync, zchunk")
            deltas = rivals.differences(stage.v1.image, stage.v2.image, stage.work, stage.server)
            yield from update_figures(updates, deltas)
        if "publish" in options.only:
            yield from publish_figures(measure_publish(stage), deltas)
        if "resume" in options.only:
            yield from resume_figures(measure_resume(stage, options.kills))
        if "memory" in options.only:
            yield from memory_figures(measure_memory(stage))


if __name__ == "__main__":
    sys.exit(figures.main(command(), measured))
