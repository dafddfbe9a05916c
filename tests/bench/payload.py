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
import json
import os
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from tests.bench import images, measure, ours, rivals
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
        name="update-agent",
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


def machine() -> dict[str, str]:
    """Say where this was measured."""
    shown = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Package} ${Version}\n", *TOOLS],
        check=False,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    versions = dict(line.split(" ", 1) for line in shown if not line.endswith(" "))
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return {
        "kernel": platform.release(),
        "processors": str(os.cpu_count()),
        "load": load,
        **versions,
    }


def install_table(outcomes: dict[str, list[Outcome]]) -> list[str]:
    """Lay out the seconds of each, and ours as a ratio of them: of medians, and median of pairs."""
    ran = {
        name: [run for run in runs if isinstance(run, Measured)] for name, runs in outcomes.items()
    }
    mine = [run.seconds for run in ran["update-agent"]]
    rows = [("", "min s", "median", "max", "ours/it", "pairwise", "peak MiB", "fetched MB")]
    for name, runs in ran.items():
        if not runs:
            continue
        seconds = [run.seconds for run in runs]
        pairs = [ours_ / theirs for ours_, theirs in zip(mine, seconds, strict=False)]
        rows.append(
            (
                name,
                f"{min(seconds):.2f}",
                f"{statistics.median(seconds):.2f}",
                f"{max(seconds):.2f}",
                f"{statistics.median(mine) / statistics.median(seconds):.2f}" if mine else "-",
                f"{statistics.median(pairs):.2f}" if pairs else "-",
                f"{max(run.peak for run in runs) / MEBI:.0f}",
                f"{statistics.median(run.fetched for run in runs) / MEGA:.1f}",
            )
        )
    return [*aligned(rows), *not_run(outcomes)]


def not_run(outcomes: dict[str, list[Outcome]]) -> Iterator[str]:
    for name, runs in outcomes.items():
        for run in runs:
            if isinstance(run, NotRun):
                yield f"{name}: not run: {run.reason}"


def update_table(
    updates: dict[str, Update | NotRun], deltas: dict[str, rivals.Delta | NotRun]
) -> list[str]:
    """Lay out what each way from v1 to v2 fetches, and what it costs to make and to apply."""
    rows = [("", "fetched MB", "make s", "apply s", "make MiB", "apply MiB")]
    lines = []
    for name, delta in deltas.items():
        match delta:
            case NotRun():
                lines.append(f"{name}: not run: {delta.reason}")
            case rivals.Delta():
                rows.append(
                    (
                        name,
                        f"{delta.fetched / MEGA:.2f}",
                        f"{delta.make_seconds:.1f}",
                        f"{delta.apply_seconds:.2f}",
                        f"{delta.make_peak / MEBI:.0f}",
                        f"{delta.apply_peak / MEBI:.0f}",
                    )
                )
    for name, update in updates.items():
        match update:
            case NotRun():
                lines.append(f"{name}: not run: {update.reason}")
            case Update(measured=it):
                rows.append(
                    (
                        f"ours: {name}",
                        f"{it.fetched / MEGA:.2f}",
                        "see publish",
                        f"{it.seconds:.2f}",
                        "",
                        f"{it.peak / MEBI:.0f}",
                    )
                )
    return [*aligned(rows), *lines]


def publish_lines(made: dict[str, Published | NotRun]) -> list[str]:
    return [f"{name}: {_describe(it)}" for name, it in made.items()]


def memory_lines(measured: dict[str, Published | Update | NotRun]) -> list[str]:
    return [f"{name}: {_describe(it)}" for name, it in measured.items()]


def _describe(it: Published | Update | NotRun) -> str:
    match it:
        case NotRun():
            return f"not run: {it.reason}"
        case Published(payload=payload):
            index, blob = payload.index_bytes / MEGA, payload.blob_bytes / MEGA
            size = f"index {index:.2f} MB, blob {blob:.2f} MB"
            return f"{it.seconds:.1f} s, peak {it.peak / MEBI:.0f} MiB, {size}"
        case Update(measured=run, said=said):
            told = f"{said.copied / MEGA:.1f} MB copied, {said.kept / MEGA:.1f} MB kept"
            fetched = f"{run.fetched / MEGA:.1f} MB fetched"
            return f"{run.seconds:.1f} s, peak {run.peak / MEBI:.0f} MiB, {fetched}, {told}"


def resume_line(resumed: Resumed | NotRun) -> str:
    if isinstance(resumed, NotRun):
        return f"not run: {resumed.reason}"
    return (
        f"killed {resumed.kills} times over {resumed.images} images, {resumed.wrong} wrong; "
        f"fetched twice: {resumed.percent:.2f} % of the payload for each kill"
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return ``rows`` as lines, the first column left, the others right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


# -- the command ---------------------------------------------------------------------------------

SECTIONS = ("install", "update", "publish", "resume", "memory")


@contextmanager
def staged(cache: Path, level: int) -> Iterator[Stage]:
    """Build what is missing, then lend a server, a slot and a folder on the disk of the cache."""
    v1, v2 = images.build(cache)
    published = cache / "published"
    published.mkdir(exist_ok=True)
    drop_stale(published, v2.image)
    size = max(v1.image.stat().st_size, v2.image.stat().st_size) + HEADROOM
    with ExitStack() as stack:
        work = stack.enter_context(measure.scratch(cache))
        payloads = stack.enter_context(measure.scratch(published))
        slot = stack.enter_context(measure.slot(work, size))
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


def measure_all(stage: Stage, arguments: argparse.Namespace) -> dict[str, object]:
    """Run the wanted sections, print each as it is done, and return everything measured."""
    results: dict[str, object] = {"machine": machine(), "images": describe_images(stage)}
    tell = partial(print, file=sys.stderr if arguments.json else sys.stdout, flush=True)
    tell(*(f"{key}: {value}" for key, value in machine().items()), sep="\n")
    tell(*(f"{key}: {value:,}" for key, value in describe_images(stage).items()), sep="\n")
    if "install" in arguments.only:
        outcomes = measure_install(stage, arguments.runs)
        results["install"] = {
            name: [asdict(run) for run in runs] for name, runs in outcomes.items()
        }
        tell("", "Install", *install_table(outcomes), sep="\n")
    if "update" in arguments.only:
        updates = measure_update(stage)
        note("update: xdelta3, casync, zchunk")
        deltas = rivals.differences(stage.v1.image, stage.v2.image, stage.work, stage.server)
        results["update"] = {name: asdict(it) for name, it in {**updates, **deltas}.items()}
        tell("", "Update v1 -> v2", *update_table(updates, deltas), sep="\n")
    if "publish" in arguments.only:
        made = measure_publish(stage)
        results["publish"] = {name: asdict(it) for name, it in made.items()}
        tell("", "Publish", *publish_lines(made), sep="\n")
    if "resume" in arguments.only:
        resumed = measure_resume(stage, arguments.kills)
        results["resume"] = asdict(resumed)
        tell("", "Resume", resume_line(resumed), sep="\n")
    if "memory" in arguments.only:
        measured = measure_memory(stage)
        results["memory"] = {name: asdict(it) for name, it in measured.items()}
        tell("", "Memory", *memory_lines(measured), sep="\n")
    return results


def describe_images(stage: Stage) -> dict[str, int]:
    """Return the sizes that put all other figures in proportion."""
    return {
        "v1 image bytes": stage.v1.image.stat().st_size,
        "v2 image bytes": stage.v2.image.stat().st_size,
        "packages of another version": len(stage.v2.packages - stage.v1.packages),
        "bytes of v2 in blocks v1 does not hold": images.changed_bytes(
            stage.v1.image, stage.v2.image
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.payload",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Needs root (loop devices) and, the first time, the Debian mirror of this machine.",
    )
    parser.add_argument("--runs", type=int, default=5, help="rounds of installing (5)")
    parser.add_argument("--kills", type=int, default=100, help="times to kill our program (100)")
    parser.add_argument("--level", type=int, default=rivals.LEVEL, help="zstd level for everyone")
    parser.add_argument("--cache", type=Path, default=images.DEFAULT_CACHE, help="what is kept")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON at the end")
    arguments = parser.parse_args()
    try:
        with staged(arguments.cache, arguments.level) as stage:
            results = measure_all(stage, arguments)
    except BenchError as error:
        print(f"payload benchmark: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(results, indent=2, default=str))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
