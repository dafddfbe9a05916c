"""``update-agentctl doctor``: everything that an update will need, looked at beforehand.

Each check looks at one thing, changes nothing, and says how to mend what it finds. One that cannot
look (no root, no disk of ours) says so and is a warning: only what would keep an update from
working is a problem.
"""

import json
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from update_agent import cli
from update_agent.core.reason import Reason
from update_agent.core.settings import Settings, Strategy
from update_agent.ctl.words import length, megabytes, row
from update_agent.errors import HostError, UpdateAgentError
from update_agent.host import cgroup, config, identity, paths, programs, writer
from update_agent.host.writer import Writer

SYNCHRONIZED = Path("/run/systemd/timesync/synchronized")

_ROOM = 64_000_000
"""Bytes that the state folder should have left: metadata, the record, and what replaces them."""
_SOON = timedelta(days=30)
"""Before a root or certificate expires, people want to hear of it."""
_BUILT = datetime(2026, 1, 1, tzinfo=UTC)
"""No clock is right that says less."""
_PROBLEM = HostError.exit_code
_PATIENCE = 10.0
"""Seconds for the writer to answer."""
_TRIAL = timedelta(minutes=10)
"""From the boot to the end of a trial: update-agent-trial.timer, unless a drop-in says more."""


class Level(StrEnum):
    """How a check went."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found, and the way out."""

    check: str
    level: Level
    text: str
    hint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the checks look at."""

    settings: Settings
    state: Path = paths.FOLDER
    writer: Path = writer.PATH
    health: Path = programs.HEALTH
    pre_reboot: Path = programs.PRE_REBOOT
    synchronized: Path = SYNCHRONIZED
    cgroups: Path = cgroup.ROOT

    @property
    def now(self) -> datetime:
        """The time of the system."""
        return datetime.now(UTC)


Found = Iterator[tuple[Level, str, str | None]]


def add_options(verb: ArgumentParser) -> None:
    """Add the options of ``doctor``."""
    verb.add_argument("--json", action="store_true", help="print JSON")
    cli.add_settings(verb, config.FOLDERS)
    verb.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Check everything, print each finding, and return 4 when there is a problem."""
    found = list(examine(options.settings or config.FOLDERS))
    if options.json:
        print(json.dumps([
            {"check": it.check, "level": it.level, "text": it.text, "hint": it.hint}
            for it in found
        ], indent=2))  # fmt: skip
    else:
        for it in found:
            print("\n".join(_lines(it)))
        print(_verdict(found))
    return _PROBLEM if any(it.level is Level.PROBLEM for it in found) else 0


def examine(folders: Sequence[Path]) -> Iterator[Finding]:
    """Yield what all checks find on this host, set up by the files in ``folders``."""
    try:
        host = Host(settings=config.settings(folders))
    except UpdateAgentError as error:
        yield Finding(check="settings", level=Level.PROBLEM, text=str(error), hint=error.hint)
        return
    yield Finding(check="settings", level=Level.OK, text="readable, and every value can be used")
    for name, check in CHECKS.items():
        yield from looked(name, check, host)


def looked(name: str, check: Callable[[Host], Found], host: Host) -> Iterator[Finding]:
    """Yield what one check finds; an error of it is a problem."""
    try:
        for level, text, hint in check(host):
            yield Finding(check=name, level=level, text=text, hint=hint)
    except UpdateAgentError as error:
        yield Finding(check=name, level=Level.PROBLEM, text=str(error), hint=error.hint)
    except PermissionError as error:
        yield Finding(
            check=name, level=Level.WARNING, text=f"cannot look: {error}", hint="run it as root"
        )


# Checks ------------------------------------------------------------------------------------------


def _identity(_: Host) -> Found:
    product, version = identity.image()
    identity.machine_id()
    yield Level.OK, f"{product} {version}, {identity.architecture()}", None


def _root(host: Host) -> Found:
    from update_agent.core import trust  # noqa: PLC0415  heavy, and status is in a hurry
    from update_agent.host.root import read_root  # noqa: PLC0415

    path = Path(host.settings.update.root)
    root = trust.trusted_root(read_root(path))
    left = root.expires - host.now
    text = f"{path}, version {root.version}, until {root.expires:%Y-%m-%d}"
    if left < timedelta(0):
        yield Level.WARNING, f"{text}: expired; a newer one must come from the repository", None
    elif left < _SOON:
        yield Level.WARNING, f"{text}: expires soon", "the release team signs a new root"
    else:
        yield Level.OK, text, None


def _repository(host: Host) -> Found:
    from update_agent.host.http import Limits, Network, Way, get  # noqa: PLC0415

    if not host.settings.update.repository:
        yield (
            Level.PROBLEM,
            "no repository is set: this host is not updated",
            "set update.repository in /etc/update-agent/*.toml",
        )
    network = host.settings.network
    for url in host.settings.update.repository:
        way = Network(Limits(deadline=20, attempts=1), Way(proxy=network.proxy, ca_file=network.ca))
        try:
            get(way, f"{url.rstrip('/')}/metadata/timestamp.json", max_size=1_000_000)
        except UpdateAgentError as error:
            yield Level.PROBLEM, str(error), error.hint or "is the address right, and a way there?"
        else:
            yield Level.OK, f"{url} answers", None


def _state(host: Host) -> Found:
    folder = host.state
    if not folder.is_dir():
        yield Level.PROBLEM, f"{folder} is missing", "systemd-tmpfiles --create"
        return
    room = os.statvfs(folder)
    free = room.f_bavail * room.f_frsize
    if free < _ROOM:
        yield (
            Level.PROBLEM,
            f"{folder} has {megabytes(free)} left, wanted {megabytes(_ROOM)}",
            "make room on the STATE partition",
        )
    elif room.f_flag & os.ST_RDONLY:
        yield Level.PROBLEM, f"{folder} is on a read-only file system", "see dmesg, then reboot"
    elif os.geteuid() == 0 or os.access(folder, os.W_OK):
        yield Level.OK, f"{folder} can be written, {megabytes(free)} left", None
    else:
        yield Level.WARNING, f"{folder}: not known whether it can be written", "run it as root"


def _clock(host: Host) -> Found:
    from update_agent.host.journal import Journal  # noqa: PLC0415

    now, least = host.now, _BUILT
    journal = host.state / paths.TRUST / "journal"
    if journal.exists():
        least = max(least, Journal(journal).high.time)
    if now < least:
        yield (
            Level.PROBLEM,
            f"the clock says {now:%Y-%m-%d %H:%M} UTC, but it is after {least:%Y-%m-%d %H:%M}",
            "timedatectl",
        )
    elif not host.synchronized.exists():
        yield (
            Level.WARNING,
            f"{now:%Y-%m-%d %H:%M} UTC; nothing says that it is synchronized",
            "timedatectl timesync-status",
        )
    else:
        yield Level.OK, f"{now:%Y-%m-%d %H:%M} UTC, synchronized", None


def _disk(_: Host) -> Found:
    from update_agent.ctl.slots import look  # noqa: PLC0415

    if os.geteuid() != 0:
        yield Level.WARNING, "only root may read the disk", "run it as root"
        return
    view = look(None)
    if isinstance(view.slots, HostError):
        raise view.slots
    if view.tables.sound:
        yield Level.OK, f"{view.disk}: both copies of the partition table are good", None
    else:
        yield (
            Level.WARNING,
            f"{view.disk}: one copy of the partition table is damaged; the next update repairs it",
            "update-agentctl slots",
        )
    if view.booted is None:
        yield Level.PROBLEM, "this host runs from none of its slots", "update-agentctl slots"
    elif view.slots[view.booted].flags.successful:
        yield Level.OK, f"slot {view.booted} is booted, and confirmed", None
    else:
        yield (
            Level.PROBLEM,
            f"slot {view.booted} is booted on trial: until it is confirmed nothing is installed",
            "systemctl status update-agent-confirm",
        )


def _writer(host: Host) -> Found:
    """Its socket is systemd's, and can always be opened: only an answer shows that it runs."""
    try:
        with Writer(host.writer, patience=_PATIENCE) as slots:
            state = slots.state()
    except HostError as error:
        if isinstance(error.__cause__, PermissionError):
            yield Level.WARNING, "only root may ask the writer", "run it as root"
        else:
            hint = error.hint or "systemctl status update-agent-writer.socket update-agent-writer"
            yield Level.PROBLEM, f"the writer: {error}", hint
    else:
        yield Level.OK, f"{host.writer} answers: {state.why}", None


def _limits(host: Host) -> Found:
    """Without these an update works, but the host's work may notice it, or it is slow."""
    path = host.cgroups / cgroup.SLICE / "io.max"
    if path.exists():
        yield Level.OK, f"{path} is there: the disk can be shared", None
    else:
        yield (
            Level.WARNING,
            f"{path} is not there: no io controller, or update-agentd does not run",
            "cgroup v2 with the io controller; systemctl status updateagent.slice",
        )
    try:
        cgroup.Waits(host.cgroups)
    except HostError as error:
        yield Level.WARNING, f"{error}: updates have one speed", error.hint
    else:
        yield Level.OK, "the kernel tells how long this host's work waits for disks", None


_IN_TROUBLE = (
    Reason.UNREACHABLE, Reason.UNTRUSTED, Reason.EXPIRED, Reason.SLOTS, Reason.INSTALLATION
)  # fmt: skip
"""What a host waits for though nobody decided that it should."""


def _daemon(_: Host) -> Found:
    from update_agent.ctl.agent import Agent, asked  # noqa: PLC0415

    found = asked(Agent.properties)
    yield Level.OK, f"runs, and is {found['State']}", None
    if found["Reason"] in _IN_TROUBLE:
        yield Level.PROBLEM, found["ReasonText"], found["ReasonEnds"]
    if found["Paused"]:
        yield Level.WARNING, f"updates are paused: {found['Paused']}", "update-agentctl resume"


def _programs(host: Host) -> Found:
    for folder in (host.health, host.pre_reboot):
        good, bad = programs.listed(folder), programs.left_out(folder)
        for path in bad:
            yield (
                Level.PROBLEM,
                f"{path} is not executable, and so is left out",
                f"chmod +x {path}, or move it away",
            )
        if good and not bad:
            yield Level.OK, f"{folder}: {', '.join(path.name for path in good)}", None
        elif not bad:
            yield Level.OK, f"{folder}: no programs", None


def _trial(host: Host) -> Found:
    """Compare: a release that has to soak for longer than its trial lasts is never confirmed."""
    trial = host.settings.trial
    takes = trial.health + trial.soak
    said = f"trial.health and trial.soak may take {length(takes.total_seconds())}"
    if takes < _TRIAL:
        yield Level.OK, f"{said} of a trial's 10 minutes", None
    else:
        yield (
            Level.WARNING,
            f"{said}, and a trial ends 10 minutes after the boot: every release may fall back",
            "shorter ones, or a longer OnBootSec= for update-agent-trial.timer",
        )


def _reboots(host: Host) -> Found:
    from update_agent.core import window  # noqa: PLC0415
    from update_agent.host import reboot as root  # noqa: PLC0415

    reboot = host.settings.reboot
    text = f"strategy {reboot.strategy}"
    if reboot.windows:
        opens = window.opens(reboot.windows, host.now)
        ahead = length((opens - host.now).total_seconds()) if opens else "some time"
        yield Level.OK, f"{text}, the next window opens in {ahead}", None
    else:
        yield Level.OK, f"{text}, at any time", None
    drain = reboot.drain.total_seconds()
    given = root.limit_of(drain)
    if given != drain:
        yield Level.WARNING, f"reboot.drain is taken for {length(given)}", "from 1s to 1d"


def _cluster(host: Host) -> Found:
    from update_agent.host.cluster import connected  # noqa: PLC0415
    from update_agent.host.etcd import EtcdError, Get  # noqa: PLC0415
    from update_agent.host.group import PREFIX, Group  # noqa: PLC0415

    cluster, strategy = host.settings.cluster, host.settings.reboot.strategy
    if strategy is not Strategy.LOCK:
        yield Level.OK, f"nobody is asked, for reboot.strategy is {strategy}", None
        return
    yield from _certificates(host)
    silent: list[EtcdError] = []
    for url in cluster.endpoints:
        with closing(connected(replace(cluster, endpoints=(url,)))) as etcd:
            try:
                etcd.get(Get(f"{PREFIX}{cluster.group}/reboot"))
            except EtcdError as error:
                silent.append(error)
            else:
                yield Level.OK, f"{url} answers", None
    none = len(silent) == len(cluster.endpoints)
    for failed in silent:
        yield Level.PROBLEM if none else Level.WARNING, str(failed), failed.hint
    if none:
        return
    with closing(connected(cluster)) as etcd:
        view = Group(etcd, cluster.group).look()
    if view.semaphore:
        held = len(view.semaphore.holders)
        yield (
            Level.OK,
            f"reboot slots of the group {cluster.group}: {view.semaphore.slots}, held: {held}",
            None,
        )
    else:
        yield (
            Level.PROBLEM,
            view.broken or f"etcd has no reboot slots for the group {cluster.group}",
            "update-agentctl lock slots 1",
        )


def _certificates(host: Host) -> Found:
    """Certificates end at once on all hosts that got them together."""
    from update_agent.host.certificates import file_until, server_until  # noqa: PLC0415
    from update_agent.host.cluster import access  # noqa: PLC0415

    cluster = host.settings.cluster
    named = {"cluster.ca": cluster.ca, "cluster.cert": cluster.cert}
    for name, path in named.items():
        if path:
            yield _until(f"{name} {path}", file_until(Path(path)), host.now)
    for url in cluster.endpoints:
        if url.startswith("https:"):
            try:
                yield _until(f"the certificate of {url}", server_until(url, access(cluster)),
                             host.now)  # fmt: skip
            except HostError as error:
                yield Level.WARNING, str(error), None


def _until(what: str, until: datetime, now: datetime) -> tuple[Level, str, str | None]:
    text, left = f"{what} is good until {until:%Y-%m-%d}", until - now
    if left < timedelta(0):
        return Level.PROBLEM, f"{text}: expired", "put a newer one in its place"
    if left < _SOON:
        ahead = length(left.total_seconds())
        return Level.WARNING, f"{text}: expires in {ahead}", "put a newer one in its place"
    return Level.OK, text, None


CHECKS = {
    "identity": _identity,
    "root": _root,
    "repository": _repository,
    "state": _state,
    "clock": _clock,
    "disk": _disk,
    "writer": _writer,
    "limits": _limits,
    "daemon": _daemon,
    "programs": _programs,
    "trial": _trial,
    "reboots": _reboots,
    "cluster": _cluster,
}
"""In the order in which they are shown, after the settings."""


# For people --------------------------------------------------------------------------------------


def _lines(it: Finding) -> list[str]:
    lines = row(it.level, f"{it.check}: {it.text}")
    return [*lines, *row("", f"-> {it.hint}")] if it.hint else lines


def _verdict(found: list[Finding]) -> str:
    problems = sum(it.level is Level.PROBLEM for it in found)
    warnings = sum(it.level is Level.WARNING for it in found)
    if problems:
        return f"{problems} of {len(found)} would keep an update from working"
    return "an update will find all it needs" + (f"; {warnings} warnings" if warnings else "")
