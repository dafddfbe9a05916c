"""``update-agentctl lock``: the reboot slots of this host's group, as people see and steer them.

Needs no daemon: etcd is asked with this host's own settings and certificates. Nothing here asks
back. What can cost the cluster a host, taking a reboot slot from its holder, wants the holder's
name and the revision at which he was seen, and is refused when anything changed since.
"""

import json
import sys
import time
from argparse import (
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from textwrap import fill
from typing import Any

from update_agent import cli
from update_agent.core import semaphore, units
from update_agent.core.reason import Wait
from update_agent.core.semaphore import MAX_SLOTS, Accepted, Holder, Semaphore
from update_agent.core.version import Version
from update_agent.ctl.words import WIDTH, iso, length, row, when
from update_agent.errors import HostError
from update_agent.host import cluster, config, group
from update_agent.host.etcd import Etcd
from update_agent.host.group import Edit, Group, View

_AGAIN = 2.0
"""Seconds between two looks of ``--watch``."""

_EPILOG = """\
examples:
  update-agentctl lock slots 1              begin: one host of the group reboots at a time
  update-agentctl lock slots 3 --gap 5m     three at a time, a new one 5 minutes after a return
  update-agentctl lock slots 3 --apart rack never two of one rack (cluster.labels.rack)
  update-agentctl lock slots 0              freeze: nobody begins; who is away comes back
  update-agentctl lock status               who reboots, who waits, which releases are bad
  update-agentctl lock release web-7 --revision 8122
                                            web-7 will never return: let the next one go
  update-agentctl lock forgive 1.2.0        hosts may install 1.2.0 again

A host that does not come back keeps its reboot slot: that is what stops a bad release. Look at the
host before its slot is released."""


def add_options(verb: ArgumentParser) -> None:
    """Add the verbs of ``lock``."""
    verb.epilog = _EPILOG
    verb.description = fill(verb.description or "", WIDTH)
    verb.formatter_class = RawDescriptionHelpFormatter
    verbs = verb.add_subparsers(title="verbs", metavar="VERB", required=True)
    status = _verb(verbs, "status", "show slots, holders, who waits, bad releases, rules", _status,
                   "print JSON; with --watch one line each")  # fmt: skip
    status.add_argument("--watch", action="store_true", help="look again every"
                        f" {_AGAIN:.0f} seconds, and say how long each holder was seen"
                        " here")  # fmt: skip
    slots = _verb(
        verbs, "slots", "say how many hosts may reboot at a time, and under which rules; after a"
        " restore of etcd, that what it holds is right", _slots,
    )  # fmt: skip
    slots.add_argument("slots", type=_number, metavar="NUMBER", help="0: nobody begins")
    slots.add_argument("--gap", type=_gap, metavar="TIME", help="such as 5m, from one host's"
                       " return to the next reboot; 0s: none (default: as it is)")  # fmt: skip
    slots.add_argument("--apart", action="append", metavar="LABEL", help="no two hosts with one"
                       " value of this label reboot at a time; may be repeated; none: no label"
                       " (default: as it is)")  # fmt: skip
    release = _verb(
        verbs, "release", "take the reboot slot of a host that never returns; nothing happens if"
        " anything changed since revision N", _release,
    )  # fmt: skip
    release.add_argument("host", metavar="HOST", help="its name, or its machine id")
    release.add_argument("--revision", type=int, required=True, metavar="N",
                         help="at which 'lock status' showed it")  # fmt: skip
    forgive = _verb(
        verbs, "forgive", "let hosts install a release that rolled back: when the host was the"
        " cause, and not the release", _forgive,
    )  # fmt: skip
    forgive.add_argument("version", type=cli.argument(Version), metavar="VERSION",
                         help="as 'lock status' lists it")  # fmt: skip


def _verb(
    verbs: Any,  # noqa: ANN401  what add_subparsers returns has no public name
    name: str,
    what: str,
    run: Callable[["Seat", Namespace], int],
    json_help: str = "print what 'lock status --json' prints then",
) -> ArgumentParser:
    made: ArgumentParser = verbs.add_parser(name, help=what, description=f"{what.capitalize()}.")
    cli.add_settings(made, config.FOLDERS)
    made.add_argument("--json", action="store_true", help=json_help)
    made.set_defaults(run=lambda options: _seated(options, run))
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Where somebody looks at a group from."""

    etcd: Etcd
    group: Group

    def look(self) -> tuple[View, Semaphore]:
        """Return the group as it stands. Raises HostError when it has no slots."""
        view = self.group.look()
        if view.semaphore:
            return view, view.semaphore
        raise _absent(view, self.group.name)


def _absent(view: View, name: str) -> HostError:
    if view.broken:
        return HostError(
            view.broken, hint=f"etcdctl get {group.PREFIX}{name}/reboot, and mend it by hand"
        )
    return HostError(
        f"etcd has no reboot slots for the group {name}",
        hint="update-agentctl lock slots 1; or is cluster.group another one?",
    )


def _seated(options: Namespace, run: Callable[[Seat, Namespace], int]) -> int:
    with seat(options.settings or config.FOLDERS) as found:
        return run(found, options)


@contextmanager
def seat(folders: Sequence[Path]) -> Iterator[Seat]:
    """Yield this host's view of its group. Raises HostError."""
    settings = config.settings(folders).cluster
    with closing(cluster.connected(settings)) as etcd:
        yield Seat(etcd=etcd, group=Group(etcd, settings.group))


# Verbs -------------------------------------------------------------------------------------------


def _status(it: Seat, options: Namespace) -> int:
    while True:
        if options.json:
            _print_json(it, indent=None if options.watch else 2)
        else:
            _print_text(it, watched=options.watch)
        if not options.watch:
            return 0
        time.sleep(_AGAIN)


def _print_json(it: Seat, *, indent: int | None = 2) -> None:
    view, slots = it.look()
    found = _plain(it.group, view, slots, group.bad_releases(it.etcd))
    print(json.dumps(found, indent=indent), flush=True)


def _print_text(it: Seat, *, watched: bool) -> None:
    view, slots = it.look()
    lines = _text(it.group, view, slots, group.bad_releases(it.etcd), watched=watched)
    if watched and sys.stdout.isatty():
        print("\x1b[H\x1b[2J", end="")
    print("\n".join(lines), flush=True)


def _done(it: Seat, options: Namespace, said: str) -> int:
    """Say what was done, or, for programs, how the group stands then."""
    if options.json:
        _print_json(it)
    else:
        print(said)
    return 0


def _slots(it: Seat, options: Namespace) -> int:
    apart = None if options.apart is None else [name for name in options.apart if name != "none"]
    now = datetime.now(UTC)

    def edit(view: View) -> Edit | Wait:
        if view.broken:
            raise _absent(view, it.group.name)
        changed = semaphore.change(
            view.semaphore, slots=options.slots, gap=options.gap, apart=apart,
            accepted=Accepted(at=now, cluster=view.cluster),
        )  # fmt: skip
        return Edit(semaphore=changed, always=True)

    it.group.change(edit)
    _, slots = it.look()
    said = f"the group {it.group.name} has {_number_of_slots(slots)}{_rules(slots)}"
    if len(slots.holders) > slots.slots:
        said += f"\n(held by {len(slots.holders)} now: nobody begins until there are fewer)"
    return _done(it, options, said)


def _release(it: Seat, options: Namespace) -> int:
    view, slots = it.look()
    _want_revision(view, slots, options.revision)
    host, held = _holder(slots, options.host)
    if wait := group.force(it.group, host, options.revision):
        now, slots = it.look()
        _want_revision(now, slots, options.revision)
        raise HostError(wait.sentence, hint=wait.ends)
    said = f"the reboot slot of {held.name} ({host}) is free; it was {_wish(held)}"
    return _done(it, options, said)


def _forgive(it: Seat, options: Namespace) -> int:
    version = options.version.text
    hosts = group.bad_hosts(it.etcd, version)
    group.forgive(it.etcd, version)
    if hosts:
        said = (
            f"{version}, which rolled back on {', '.join(hosts)}, may be installed again; on"
            " these hosts themselves with 'update-agentctl force'"
        )
    else:
        said = f"no host said that {version} rolled back"
    return _done(it, options, said)


def _want_revision(view: View, slots: Semaphore, revision: int) -> None:
    if view.changed != revision:
        held = semaphore.names(slots.holders.values()) or "nobody"
        raise HostError(
            f"the reboot slots changed since revision {revision}: they are at revision"
            f" {view.changed}, held by {held}",
            hint="update-agentctl lock status, and decide again",
        )


def _holder(slots: Semaphore, wanted: str) -> tuple[str, Holder]:
    """Return the one holder that goes by the name or machine id ``wanted``. Raises HostError."""
    found = [(host, it) for host, it in slots.holders.items() if wanted in (host, it.name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise HostError(
            f"{len(found)} holders are called {wanted}: {', '.join(host for host, _ in found)}",
            hint="name the machine id",
        )
    held = semaphore.names(slots.holders.values()) or "nobody"
    raise HostError(
        f"{wanted} holds no reboot slot; they are held by {held}",
        hint="update-agentctl lock status",
    )


# For programs ------------------------------------------------------------------------------------


def _plain(it: Group, view: View, slots: Semaphore, bad: dict[str, list[str]]) -> dict[str, Any]:
    return {
        "group": it.name,
        "revision": view.changed,
        "slots": slots.slots,
        "gap_seconds": slots.gap,
        "apart": list(slots.apart),
        "accepted": iso(slots.accepted.at if slots.accepted else None),
        "holders": [
            {**_plain_wish(host, held), "seen_seconds": round(it.seen(held.nonce))}
            for host, held in slots.holders.items()
        ],
        "waiting": view.waiting,
        "queue": [
            {"place": place, **_plain_wish(one.host, one.wish)}
            for place, one in enumerate(view.queue, 1)
        ],
        "bad_releases": bad,
    }


def _plain_wish(host: str, held: Holder) -> dict[str, Any]:
    return {
        "host": host, "name": held.name, "since": iso(held.since),
        "from": held.running and held.running.text, "to": held.target and held.target.text,
        "offered": semaphore.is_offer(held), "confirmed": iso(held.confirmed),
        "labels": dict(held.labels), "member": held.member,
    }  # fmt: skip


# For people --------------------------------------------------------------------------------------


def _text(
    it: Group, view: View, slots: Semaphore, bad: dict[str, list[str]], *, watched: bool
) -> list[str]:
    free = max(0, slots.slots - len(slots.holders))
    lines = row("group", f"{it.name}: {_number_of_slots(slots)}, {free} free{_rules(slots)}")
    lines += row("revision", str(view.changed))
    now = datetime.now(UTC)
    for host, held in slots.holders.items():
        seen = f"; seen here for {length(it.seen(held.nonce))}" if watched else ""
        lines += row("holder", f"{held.name} ({host})", f"{_wish(held, now)}{seen}")
    for place, one in enumerate(view.queue, 1):
        lines += row(f"waiting {place}", f"{one.wish.name}: {_wish(one.wish, now)}")
    if view.waiting > len(view.queue):
        lines += row("", f"and {view.waiting - len(view.queue)} more")
    for version, hosts in bad.items():
        lines += row("bad", f"{version} rolled back on {', '.join(hosts)}")
    return lines


def _number_of_slots(slots: Semaphore) -> str:
    match slots.slots:
        case 0:
            return "no reboot slots: reboots are frozen"
        case 1:
            return "1 reboot slot"
        case more:
            return f"{more} reboot slots"


def _rules(slots: Semaphore) -> str:
    said = f"; {length(slots.gap)} between two hosts" if slots.gap else ""
    return said + (f"; never two of one {' or '.join(slots.apart)}" if slots.apart else "")


def _wish(held: Holder, now: datetime | None = None) -> str:
    """Return what a host is up to; ages are by its own clock and this one."""
    said = f"{held.running or '?'} -> {held.target or 'a reboot'}"
    if now:
        said += f", since {iso(held.since)} ({when(held.since, now)})"
    if semaphore.is_offer(held):
        said += ", its turn since others left"
    if held.confirmed:
        said += f", rebooted {iso(held.confirmed)}"
    labels = ", ".join(f"{name}={value}" for name, value in held.labels.items())
    return said + (f", {labels}" if labels else "") + (", member of etcd" if held.member else "")


# Arguments ---------------------------------------------------------------------------------------


def _number(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > MAX_SLOTS:
        raise ArgumentTypeError(f"{text!r} is no number from 0 to {MAX_SLOTS}")
    return int(text)


@cli.argument
def _gap(text: str) -> int:
    return int(units.duration(text).total_seconds())
