"""``update-publish channel``: create, promote, rollout, pause, resume, show and more."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from update_agent import cli
from update_agent.core import document, plan
from update_agent.core.channel import RESUMED, Change, Channel
from update_agent.core.rollout import RING, percent, place
from update_agent.errors import HostError
from update_agent.publish import channels, verbs
from update_agent.publish.repository import Repository

_WAVES = """\
A wave is SHARE[:LENGTH][@+START]: up to this share of all hosts, evenly over the length (at once
without one), beginning when the wave before it ends, or START after the rollout began:
  --wave 1%:1h --wave 10%:4h --wave 100%:1d"""


def add_verbs(verb: ArgumentParser) -> None:
    """Add the verbs of this module."""
    actions = verb.add_subparsers(title="verbs", metavar="VERB", required=True)

    def add(name: str, help_: str, run: Callable[[Namespace], int], description: str = "",
            *, author: bool = True, reason: bool = False) -> ArgumentParser:  # fmt: skip
        made = actions.add_parser(
            name, help=help_, description=description or f"{help_[0].upper()}{help_[1:]}."
        )
        verbs.add_options(made, keys=author)
        if name != "list":
            made.add_argument("channel", type=verbs.name, metavar="CHANNEL", help="its name")
        if author:
            verbs.add_author(made, reason=reason)
        made.set_defaults(run=run)
        return made

    create = add("create", "make a channel that offers nothing yet", run_create)
    create.add_argument("--product", type=verbs.name, required=True, metavar="NAME",
                        help="of its hosts")  # fmt: skip
    promote = add("promote", "offer a release, in waves", run_promote,
                  f"Offer a release to the channel's hosts, from now on. {_WAVES}")  # fmt: skip
    promote.add_argument("version", type=verbs.version, metavar="VERSION",
                         help="a published release")  # fmt: skip
    _add_waves(promote, "may be repeated (default: everyone at once)")
    promote.add_argument("--downgrade-from", type=verbs.version, action="append", default=[],
                         metavar="VERSION", help="hosts with this version go down to the one that "
                         "is promoted; may be repeated")  # fmt: skip
    rollout = add("rollout", "give the running rollout other waves", run_rollout,
                  f"Give the running rollout other waves; its clock runs on. {_WAVES}")  # fmt: skip
    _add_waves(rollout, "may be repeated", required=True)
    add("pause", "offer the release to no further host", run_pause,
        "Offer the release to no further host. Hosts that were offered it go on.",
        reason=True)  # fmt: skip
    add("resume", "go on after a pause or a halt", run_resume,
        "Go on where the pause began; after a halt, the release leaves quarantine too. Failures of"
        " the rollout are counted anew from here on.")  # fmt: skip
    quarantine = add("quarantine", "let no further host install a version, forced or not",
                     run_quarantine, reason=True)  # fmt: skip
    quarantine.add_argument("version", type=verbs.version, metavar="VERSION",
                            help="a release, withdrawn or not")  # fmt: skip
    quarantine.add_argument("--anyway", action="store_true",
                            help="even if there is no such release here, yet or any more"
                            )  # fmt: skip
    quarantine.add_argument("--undo", action="store_true", help="take it out of quarantine")
    floors = add("floors", "set the versions that no host passes by on its way up", run_floors)
    floors.add_argument("versions", type=verbs.version, nargs="*", metavar="VERSION",
                        help="all of them; none clears the list")  # fmt: skip
    add("list", "show all channels", run_list, author=False)
    add("show", "show a channel, its rollout and who changed it", run_show, author=False)
    simulate = add("simulate", "show who would get what when", run_simulate,
                   "Show when each host of a list is offered the release, if nothing changes.",
                   author=False)  # fmt: skip
    simulate.add_argument("--hosts", type=Path, required=True, metavar="FILE",
                          help="machine ids, one a line; after it the host's name")  # fmt: skip


def _add_waves(verb: ArgumentParser, help_: str, *, required: bool = False) -> None:
    verb.add_argument("--wave", dest="waves", type=cli.argument(plan.wish), action="append",
                      required=required, metavar="SHARE:LENGTH", help=help_)  # fmt: skip
    verb.add_argument("--deadline", type=_moment_or_none, metavar="TIME",
                      help="when every host is offered it, whatever the waves say: 3d after the "
                      "rollout began, 2026-12-01T08:00Z, or none")  # fmt: skip


def _moment_or_none(text: str) -> datetime | timedelta | str:
    return text if text == "none" else verbs.moment(text)


# Edits -------------------------------------------------------------------------------------------


def run_create(options: Namespace) -> int:
    """Make a channel."""
    repository = verbs.opened(options)
    change = _change(options, repository, "created")
    made = channels.create(repository, options.channel, options.product, change)
    return _report(options, repository, made)


def run_promote(options: Namespace) -> int:
    """Offer a release."""
    repository, version = verbs.opened(options), options.version
    planned = plan.waves(options.waves or [])
    change = _change(options, repository, f"promoted {version}")

    def edit(it: Channel) -> Channel:
        channels.want_release(repository, it.product, version)
        # Of a rollout that runs already, so that the same command twice is one promotion.
        began = it.rollout.started if it.rollout and it.version == version else change.time
        return it.promote(
            version, change, waves=planned, deadline=_deadline(options, it, began, change.time),
            downgrade_from=options.downgrade_from,
        )  # fmt: skip

    return _edit(options, repository, edit)


def run_rollout(options: Namespace) -> int:
    """Give a rollout other waves."""
    repository, planned = verbs.opened(options), plan.waves(options.waves)
    change = _change(options, repository, "changed waves")

    def edit(it: Channel) -> Channel:
        began = it.rollout.started if it.rollout else change.time
        deadline = it.rollout.deadline if it.rollout else None
        if options.deadline is not None:
            deadline = _deadline(options, it, began, change.time)
        return it.reschedule(change, waves=planned, deadline=deadline)

    return _edit(options, repository, edit)


def run_pause(options: Namespace) -> int:
    """Offer the release to no further host."""
    repository = verbs.opened(options)
    change = _change(options, repository, "paused")
    return _edit(options, repository, lambda it: it.pause(change))


def run_resume(options: Namespace) -> int:
    """Go on after a pause or a halt."""
    repository = verbs.opened(options)
    change = _change(options, repository, RESUMED)
    return _edit(options, repository, lambda it: it.go_on(change))


def run_quarantine(options: Namespace) -> int:
    """Let no further host install a version, or let them again."""
    repository, version = verbs.opened(options), options.version
    if options.undo:
        change = _change(options, repository, f"released {version} from quarantine")
        return _edit(options, repository, lambda it: it.release_from_quarantine(version, change))
    change = _change(options, repository, f"quarantined {version}")

    def edit(it: Channel) -> Channel:
        if not options.anyway:
            channels.want_known(repository, it.product, version)
        return it.quarantine(version, change)

    return _edit(options, repository, edit)


def run_floors(options: Namespace) -> int:
    """Set the floors."""
    repository = verbs.opened(options)
    change = _change(options, repository, f"floors {' '.join(map(str, options.versions)) or '-'}")

    def edit(it: Channel) -> Channel:
        for version in options.versions:
            channels.want_release(repository, it.product, version)
        return it.set_floors(options.versions, change)

    return _edit(options, repository, edit)


def _deadline(options: Namespace, it: Channel, began: datetime, now: datetime) -> datetime | None:
    """Return when every host is to be offered it. Raises HostError when that is over by now."""
    given: datetime | timedelta | str | None = options.deadline
    if given is None or isinstance(given, str):
        return None
    found = began + given if isinstance(given, timedelta) else given
    as_it_is = it.rollout.deadline if it.rollout else None
    if found <= now and found != as_it_is:
        raise HostError(
            f"the deadline {found:%Y-%m-%d %H:%M} is over, and all hosts would be offered it at"
            f" once: the rollout began at {began:%Y-%m-%d %H:%M}, it is {now:%Y-%m-%d %H:%M} now",
            hint="name a later time; without --wave, every host is offered it",
        )
    return found


def _change(options: Namespace, repository: Repository, what: str) -> Change:
    return Change(
        time=repository.now, author=options.author, what=what[: document.MAX_TEXT],
        reason=options.reason,
    )  # fmt: skip


def _edit(options: Namespace, repository: Repository, edit: Callable[[Channel], Channel]) -> int:
    return _report(options, repository, channels.edit(repository, options.channel, edit))


def _report(options: Namespace, repository: Repository, made: channels.Edited) -> int:
    """Print what became of a channel; the exit code says whether hosts can see it."""
    text = _text(made.channel, repository.now)
    if not made.changed:
        text = f"it was so before\n{text}"
    plain = {**_plain(made.channel), "changed": made.changed}
    verbs.report(options, repository, made.committed, text, plain)
    return 0 if made.public else HostError.exit_code


# Looks -------------------------------------------------------------------------------------------


def run_list(options: Namespace) -> int:
    """Show all channels."""
    repository = verbs.opened(options)
    found = channels.listed(repository)
    lines = [channels.sentence(it, repository.now) for it in found] or ["no channels yet"]
    verbs.show(options, [_plain(it) for it in found], "\n".join(lines))
    return 0


def run_show(options: Namespace) -> int:
    """Show a channel."""
    repository = verbs.opened(options)
    found = channels.find(repository, options.channel)
    verbs.show(options, _plain(found), _text(found, repository.now))
    return 0


def run_simulate(options: Namespace) -> int:
    """Show when each host is offered the release."""
    repository = verbs.opened(options)
    found = channels.find(repository, options.channel)
    if found.rollout is None or found.version is None:
        raise HostError(f"channel {found.channel} offers nothing yet", hint="promote a version")
    rows = sorted(_simulated(found, options.hosts, repository.now), key=lambda it: it["place"])
    lines = [f"channel {found.channel} offers {found.version} to:"]
    lines += [f"{it['place'] * 100 / RING:8.4f} %  {it['when']:20}  {it['host']}" for it in rows]
    verbs.show(options, rows, "\n".join(lines))
    return 0


def _simulated(found: Channel, hosts: Path, now: datetime) -> Iterator[dict[str, Any]]:
    if found.rollout is None or found.version is None:
        return
    try:
        lines = hosts.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise HostError(f"cannot read {hosts}: {error}") from error
    for line in lines:
        machine_id, _, name = line.strip().partition(" ")
        if not machine_id or machine_id.startswith("#"):
            continue
        where = place(machine_id, found.product, found.version)
        time = found.rollout.opens_at(where)
        is_open = found.rollout.is_open(where, now)
        when = "now" if is_open else f"{time:%Y-%m-%d %H:%M:%S}" if time else (
            "paused" if found.rollout.paused else "never")  # fmt: skip
        yield {
            "host": name.strip() or machine_id, "machine_id": machine_id, "place": where,
            "open": is_open, "when": when,
        }  # fmt: skip


def _plain(found: Channel) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(document.encode(found))
    return plain


def _text(found: Channel, now: datetime) -> str:
    lines = [channels.sentence(found, now)]
    if found.rollout:
        lines += _rollout_lines(found, now)
    for what, versions in (("floors", found.floors), ("quarantined", found.quarantined),
                           ("downgrade from", found.downgrade_from)):  # fmt: skip
        if versions:
            lines.append(f"  {what}: {', '.join(map(str, versions))}")
    lines.append("  changes:")
    lines += [
        f"    {it.time:%Y-%m-%d %H:%M} {it.author} {it.what}{f': {it.reason}' if it.reason else ''}"
        for it in found.changes
    ]
    return "\n".join(lines)


def _rollout_lines(found: Channel, now: datetime) -> Iterator[str]:
    rollout = found.rollout
    if rollout is None:
        return
    if rollout.paused:
        pause = rollout.paused
        yield f"  paused since {pause.since:%Y-%m-%d %H:%M} by {pause.author}: {pause.reason}"
    for wave in rollout.waves:
        opens = rollout.zero(now) + timedelta(seconds=wave.opens)
        ends = opens + timedelta(seconds=wave.length)
        yield (
            f"  up to {percent(wave.share):>9}: {opens:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M}"
            f"{' if it went on now' if rollout.paused else ''}"
        )
    if rollout.deadline:
        yield f"  everyone from {rollout.deadline.astimezone(UTC):%Y-%m-%d %H:%M} on"
