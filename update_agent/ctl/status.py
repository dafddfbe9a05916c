"""``update-agentctl status``, ``why``, ``history``: what the daemon shows, as text and as JSON.

Imports nothing heavy: it is asked often, and answers at once.
"""

import json
import sys
import textwrap
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from update_agent import cli
from update_agent.ctl.agent import Agent, NotRunningError, Properties, asked
from update_agent.ctl.main import PROGRAM
from update_agent.ctl.words import WIDTH, clock, iso, length, megabytes, row, time_of, when
from update_agent.errors import HostError
from update_agent.host import identity, paths
from update_agent.host.bus import BusError

RECORD = paths.FOLDER / paths.RECORD

_RING = 10_000
"""Places of a rollout to a percent; ``core/rollout.py``."""

_STATES: Mapping[str, str] = {
    "idle": "idle",
    "checking": "checking",
    "waiting": "waiting",
    "installing": "installing",
    "staged": "installed",
    "waiting-to-reboot": "installed, waiting to reboot",
    "rebooting": "rebooting",
    "trial": "on trial",
    "failed": "failed",
}


def add_options(verb: ArgumentParser) -> None:
    """Add the options of ``status``."""
    verb.add_argument("--json", action="store_true", help="print JSON; with --watch one line each")
    verb.add_argument("--watch", action="store_true", help="print it again with each change")
    verb.set_defaults(run=show)


def add_why_options(verb: ArgumentParser) -> None:
    """Add the options of ``why``."""
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=why)


def add_history_options(verb: ArgumentParser) -> None:
    """Add the options of ``history``."""
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=history)


# Verbs -------------------------------------------------------------------------------------------


def show(options: Namespace) -> int:
    """Print how this host stands; without the daemon what is known without it, and fail."""
    try:
        if options.watch:
            return asked(lambda agent: _watch(agent, as_json=options.json))
        found = asked(Agent.properties)
    except (NotRunningError, BusError) as error:
        if not options.watch:
            _show_without(as_json=options.json)
        return cli.complain(PROGRAM, error)
    now = datetime.now(UTC)
    print(json.dumps(plain(found), indent=2) if options.json else "\n".join(text(found, now)))
    return 0


async def _watch(agent: Agent, *, as_json: bool) -> int:
    async for found in agent.changes():
        if as_json:
            print(json.dumps(plain(found)), flush=True)
            continue
        if sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        print("\n".join(text(found, datetime.now(UTC))), flush=True)
        if not sys.stdout.isatty():
            print(flush=True)
    return 0


def why(options: Namespace) -> int:
    """Print why nothing happens now, and what would end it."""
    found = asked(Agent.properties)
    if options.json:
        print(json.dumps({"state": found["State"], "reason": _reason(found)}, indent=2))
    else:
        now = datetime.now(UTC)
        lines = row("state", _state(found, now))
        print("\n".join([*lines, *(_why(found, now) or row("reason", _no_reason(found)))]))
    return 0


def history(options: Namespace) -> int:
    """Print the attempts that ended, the newest first."""
    found = [_past(it) for it in reversed(asked(Agent.properties)["History"])]
    if options.json:
        print(json.dumps(found, indent=2))
    elif not found:
        print("no update was attempted on this host yet")
    else:
        for past in found:
            print("\n".join(_past_lines(past)))
    return 0


# For programs ------------------------------------------------------------------------------------


def plain(found: Properties) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    progress = found["Progress"]
    return {
        "state": found["State"],
        "since": iso(time_of(found["Since"])),
        "reason": _reason(found),
        "product": found["Product"],
        "running": found["RunningVersion"],
        "target": found["TargetVersion"] or None,
        "channel": found["Channel"],
        "place": found["Place"] - 1 if found["Place"] else None,
        "strategy": found["Strategy"],
        "attempt": found["AttemptId"] or None,
        "progress": (progress and {
            "step": progress["Step"], "done": progress["Done"], "size": progress["Size"],
            "rate": progress["Rate"], "seconds_left": progress.get("SecondsLeft"),
            "throttled_by": progress.get("ThrottledBy"),
        }) or None,
        "last_check": iso(time_of(found["LastCheck"])),
        "next_check": iso(time_of(found["NextCheck"])),
        "failures": found["Failures"],
        "paused": found["Paused"] or None,
        "failed_versions": found["FailedVersions"],
        "slots": [{name.lower(): value for name, value in it.items()} for it in found["Slots"]],
        "history": [_past(it) for it in reversed(found["History"])],
        "agent_version": found["AgentVersion"],
    }  # fmt: skip


def _reason(found: Properties) -> dict[str, Any] | None:
    if not found["Reason"]:
        return None
    return {
        "code": found["Reason"],
        "sentence": found["ReasonText"],
        "ends": found["ReasonEnds"],
        "since": iso(time_of(found["ReasonSince"])),
        "until": iso(time_of(found["ReasonUntil"])),
    }


def _past(it: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "attempt": it["AttemptId"], "from": it["From"], "to": it["To"],
        "began": iso(time_of(it["Began"])), "ended": iso(time_of(it["Ended"])),
        "seconds": round((it["Ended"] - it["Began"]) / 1e6), "outcome": it["Outcome"],
        "why": it["Why"] or None, "fetched": it["Fetched"], "saved": it["Saved"],
    }  # fmt: skip


# For people --------------------------------------------------------------------------------------


def text(found: Properties, now: datetime) -> list[str]:
    """Return what is printed for people."""
    lines = row("state", _state(found, now))
    if found["Progress"]:
        lines += row("progress", progress_line(found["Progress"]))
    lines += _why(found, now)
    lines += row("running", f"{found['Product']} {found['RunningVersion']}")
    if found["TargetVersion"] and found["TargetVersion"] != found["RunningVersion"]:
        lines += row("target", f"{found['Product']} {found['TargetVersion']}")
    lines += _slots(found["Slots"])
    lines += row("channel", _channel(found))
    lines += row("checked", _checked(found, now))
    if found["Paused"]:
        lines += row("paused", f"{found['Paused']} (ends: update-agentctl resume)")
    if found["FailedVersions"]:
        lines += row("avoided", f"{', '.join(found['FailedVersions'])}: failed on this host")
    if found["AttemptId"]:
        lines += row("attempt", found["AttemptId"])
    return lines


def _state(found: Properties, now: datetime) -> str:
    state = _STATES.get(found["State"], found["State"])
    since = time_of(found["Since"])
    if since is None:
        return state
    return f"{state} for {length((now - since).total_seconds())} (since {clock(since, now)})"


def _why(found: Properties, now: datetime) -> list[str]:
    """Return the reason with its age, and what would end it."""
    if not found["Reason"]:
        return []
    since, until = time_of(found["ReasonSince"]), time_of(found["ReasonUntil"])
    age = f", for {length((now - since).total_seconds())}" if since else ""
    lines = row("reason", f"{found['ReasonText']} ({found['Reason']}{age})")
    ahead = f" ({when(until, now)})" if until and until > now else ""
    return [*lines, *row("ends with", f"{found['ReasonEnds']}{ahead}")]


def _no_reason(found: Properties) -> str:
    if found["State"] in {"idle", "waiting"}:
        return "there is none: the repository was not asked yet"
    return "there is none: something is being done"


def _slots(slots: list[dict[str, Any]]) -> list[str]:
    described = [
        f"{it['Slot']}  {it['State']}"
        + (", running" if it["Booted"] else "")
        + (", boots next" if it["Next"] else "")
        for it in slots
    ]
    return row("slots", *(described or ["not known: the writer does not answer"]))


def _channel(found: Properties) -> str:
    if not found["Place"]:
        return str(found["Channel"])
    percent = (found["Place"] - 1) / _RING
    return f"{found['Channel']}; this host stands at {percent:.2f} % of the rollout"


def _checked(found: Properties, now: datetime) -> str:
    last, following = time_of(found["LastCheck"]), time_of(found["NextCheck"])
    said = when(last, now) if last else "never"
    if found["Failures"]:
        said += f"; {found['Failures']} failed in a row"
    return said + (f"; next {when(following, now)}" if following else "")


def progress_line(progress: Mapping[str, Any]) -> str:
    """Return how far an installation is, how fast, how long still, and what holds it back."""
    done, size = progress["Done"], progress["Size"]
    said = f"{progress['Step']} "
    said += f"{done * 100 // size:3} %  {megabytes(done)} of {megabytes(size)}" if size else "..."
    if progress["Rate"]:
        said += f"  {megabytes(progress['Rate'])}/s"
    if "SecondsLeft" in progress:
        said += f"  {length(progress['SecondsLeft'])} left"
    if "ThrottledBy" in progress:
        said += f"  held back by {progress['ThrottledBy']}"
    return said


def _past_lines(past: Mapping[str, Any]) -> list[str]:
    what = f"{past['from']} -> {past['to']}  {past['outcome']}"
    lines = [f"{past['ended']}  {what} after {length(past['seconds'])}"]
    if past["fetched"] or past["saved"]:
        lines.append(f"  fetched {megabytes(past['fetched'])}, saved {megabytes(past['saved'])}")
    if past["why"]:
        lines += textwrap.wrap(past["why"], WIDTH - 2, initial_indent="  ", subsequent_indent="  ")
    return [*lines, f"  attempt {past['attempt']}"]


# Without the daemon ------------------------------------------------------------------------------


def _show_without(*, as_json: bool) -> None:
    """Print what is known of this host though the daemon does not run."""
    product = running = None
    with suppress(HostError):
        product, running = identity.image()
    kept = _kept()
    if as_json:
        print(json.dumps({
            "state": None, "product": product, "running": running,
            "last_known": kept and {"state": kept.get("state"), "since": kept.get("since")},
        }, indent=2))  # fmt: skip
        return
    lines = row("state", "not known: update-agentd does not run")
    if kept:
        lines += row("last", f"{kept.get('state')}, since {kept.get('since')}")
    runs = f"{product} {running}" if product else "no image of ours"
    print("\n".join([*lines, *row("running", runs)]))


def _kept() -> dict[str, Any] | None:
    """Return what the daemon wrote down last, as it stands there."""
    with suppress(OSError, ValueError):
        found = json.loads(RECORD.read_text())
        if isinstance(found, dict):
            return found
    return None
