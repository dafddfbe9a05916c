"""The verbs that change something: the daemon is asked, and followed until it is over.

A verb that waits ends with what became of it: 0 only when what was asked for was done. Whoever
stops waiting stops nothing.
"""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from update_agent.ctl.agent import Agent, NotRunningError, Properties, asked
from update_agent.ctl.status import plain, progress_line
from update_agent.errors import HostError, ReleaseError, UpdateAgentError

_UNDER_WAY = {"checking", "installing", "staged"}
_DONE = {"waiting-to-reboot", "rebooting", "trial"}
_RELEASE_TEAM = {"untrusted", "expired"}
"""Reasons that are the release team's to end, and not this host's."""
_STEP = 10
"""Percent between two lines of progress where no line can be rewritten."""


def add_options(verb: ArgumentParser) -> None:
    """Add the options of all verbs of this module."""
    verb.add_argument("--json", action="store_true", help="print JSON at the end")


def add_waiting_options(verb: ArgumentParser) -> None:
    """Add the options of verbs that wait."""
    add_options(verb)
    verb.add_argument("--no-wait", action="store_true", help="ask, and do not wait for the end")


def add_check_options(verb: ArgumentParser) -> None:
    """Add the options of ``check``."""
    add_waiting_options(verb)
    verb.set_defaults(run=lambda options: _follow(options, "Check", _checked, {"checking"}))


def add_install_options(verb: ArgumentParser) -> None:
    """Add the options of ``install``."""
    add_waiting_options(verb)
    verb.set_defaults(run=lambda options: _follow(options, "Install", _installed))


def add_force_options(verb: ArgumentParser) -> None:
    """Add the options of ``force``."""
    add_waiting_options(verb)
    _add_lock_option(verb)
    verb.set_defaults(run=lambda options: _follow(options, _locked(options, "Force"), _installed))


def add_reboot_options(verb: ArgumentParser) -> None:
    """Add the options of ``reboot``."""
    add_waiting_options(verb)
    _add_lock_option(verb)
    verb.set_defaults(
        run=lambda options: _follow(options, _locked(options, "Reboot"), _rebooted, {"rebooting"})
    )


def add_rollback_options(verb: ArgumentParser) -> None:
    """Add the options of ``rollback``."""
    add_options(verb)
    _add_lock_option(verb)
    verb.set_defaults(
        run=lambda options: _ask(
            options, "the other slot boots next; rebooting", _locked(options, "Rollback")
        )
    )


def add_cancel_options(verb: ArgumentParser) -> None:
    """Add the options of ``cancel``."""
    add_options(verb)
    verb.set_defaults(run=lambda options: _ask(options, "cancelled", "Cancel"))


def add_pause_options(verb: ArgumentParser) -> None:
    """Add the options of ``pause``."""
    add_options(verb)
    verb.add_argument("reason", nargs="?", default="", metavar="REASON", help="for your colleagues")
    verb.set_defaults(
        run=lambda options: _ask(
            options, "paused: nothing begins by itself until 'update-agentctl resume'", "Pause",
            options.reason,
        )
    )  # fmt: skip


def add_resume_options(verb: ArgumentParser) -> None:
    """Add the options of ``resume``."""
    add_options(verb)
    verb.set_defaults(run=lambda options: _ask(options, "updates go on", "Resume"))


def _add_lock_option(verb: ArgumentParser) -> None:
    verb.add_argument(
        "--without-lock", action="store_true",
        help="ask the cluster nothing: neither for a reboot slot, nor whether etcd stands it, nor"
        " whether the release is known to be bad",
    )  # fmt: skip


def _locked(options: Namespace, method: str) -> str:
    return f"{method}WithoutLock" if options.without_lock else method


def _ask(options: Namespace, done: str, method: str, *texts: str) -> int:
    """Ask for something that is done when it is answered."""

    async def ask(agent: Agent) -> Properties:
        await agent.call(method, *texts)
        return await agent.properties()

    _print(options, asked(ask), done)
    return 0


# Waiting -----------------------------------------------------------------------------------------


Judge = Callable[[Properties], str]
"""Says in a sentence what was done, or raises what became of it instead."""


def _follow(options: Namespace, method: str, judge: Judge, under_way: set[str] = _UNDER_WAY) -> int:
    shown = _Line(quiet=options.json)

    async def follow(agent: Agent) -> Properties:
        await agent.call(method)
        return await _until_over(agent, set() if options.no_wait else under_way, shown)

    try:
        found = asked(follow)
    except KeyboardInterrupt:
        shown.end()
        print("(it goes on without you; 'update-agentctl cancel' stops it)", file=sys.stderr)
        raise
    finally:
        shown.end()
    if options.no_wait:
        _print(options, found, "asked; see 'update-agentctl status --watch'")
        return 0
    return _judged(options, found, judge)


async def _until_over(agent: Agent, under_way: set[str], shown: "_Line") -> Properties:
    """Return what the daemon shows once its state is none of those ``under_way``."""
    found: Properties = {}
    try:
        async for found in agent.changes():
            if found["State"] not in under_way:
                return found
            shown.show(found)
    except NotRunningError as error:
        if found.get("State") == "rebooting":
            return found  # it was ended by the reboot
        raise NotRunningError(
            f"{error} while this host was {found.get('State', 'asked')}", hint=error.hint
        ) from error
    raise RuntimeError("changes end with an error")


def _judged(options: Namespace, found: Properties, judge: Judge) -> int:
    try:
        said = judge(found)
    except UpdateAgentError:
        if options.json:
            _print(options, found, "")
        raise
    _print(options, found, said)
    return 0


def _print(options: Namespace, found: Properties, said: str) -> None:
    print(json.dumps(plain(found), indent=2) if options.json else said)


def _checked(found: Properties) -> str:
    """Judge a check: any answer will do, but it has to be one."""
    reason = found["Reason"]
    if reason in _RELEASE_TEAM or reason == "unreachable":
        raise _failure(found)
    if found["State"] in _DONE:
        return _installed(found)
    if found["State"] in _UNDER_WAY:
        return f"{found['TargetVersion']} is offered, and being installed"
    if found["State"] == "failed":
        raise _failure(found)
    return str(found["ReasonText"]) if reason else "the repository answered"


def _installed(found: Properties) -> str:
    """Judge an installation."""
    state, version = found["State"], found["TargetVersion"]
    match state:
        case "rebooting":
            return f"{version} is installed; rebooting into it"
        case "waiting-to-reboot":
            return f"{version} is installed; {found['ReasonText']} (ends: {found['ReasonEnds']})"
        case "trial":
            return f"{found['RunningVersion']} runs, on trial"
        case "idle" if found["Reason"] == "up-to-date":
            return str(found["ReasonText"])
        case _:
            raise _failure(found)


def _rebooted(found: Properties) -> str:
    if found["State"] != "rebooting":
        raise HostError(
            f"not rebooted: {found['ReasonText'] or found['State']}",
            hint=found["ReasonEnds"] or None,
        )
    return "rebooting"


def _failure(found: Properties) -> UpdateAgentError:
    """Return why nothing was installed."""
    said, hint = f"not installed: {found['ReasonText']}", found["ReasonEnds"]
    if found["State"] == "failed" or not found["Reason"]:
        past: dict[str, Any] = (found["History"] or [{}])[-1]
        said = f"{past.get('To', 'the release')} was {past.get('Outcome', 'not installed')}"
        said += f": {past['Why']}" if past.get("Why") else ""
        hint = "update-agentctl history"
    if found["State"] == "failed" or found["Reason"] in _RELEASE_TEAM:
        return ReleaseError(said, hint=hint or None)
    return HostError(said, hint=hint or None)


def _rewritable() -> bool:
    return sys.stderr.isatty()


@dataclass
class _Line:
    """What is shown while waiting: a line that is rewritten, or lines where that cannot be."""

    quiet: bool = False
    rewritten: bool = field(default_factory=_rewritable)
    _last: tuple[str, int] = ("", -1)
    _open: bool = False

    def show(self, found: Properties) -> None:
        """Show how far it is, on stderr: stdout is for what becomes of it."""
        if self.quiet:
            return
        progress = found["Progress"]
        line = f"{found['State']} {found['TargetVersion']}".rstrip()
        if progress:
            line += f": {progress_line(progress)}"
        if self.rewritten:
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
            self._open = True
            return
        size = progress.get("Size", 0)
        tenth = progress["Done"] * 100 // size // _STEP if size else -1
        key = (f"{found['State']} {progress.get('Step', '')}", tenth)
        if key != self._last:
            print(line, file=sys.stderr, flush=True)
        self._last = key

    def end(self) -> None:
        """Leave what was shown last, on a line of its own."""
        if self._open:
            print(file=sys.stderr)
        self._open = False
