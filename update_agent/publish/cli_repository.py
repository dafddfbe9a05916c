"""``update-publish init``, ``sign``, ``refresh``, ``verify``, ``status``."""

import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, _SubParsersAction
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from tuf.api.metadata import Root, Timestamp

from update_agent.core import trust
from update_agent.errors import HostError
from update_agent.publish import channels, cli_keys, releases, verbs, verify
from update_agent.publish.cli_keys import roles_of
from update_agent.publish.keys import Keyring, ask_new
from update_agent.publish.repository import (
    EXPIRES_DAYS,
    OFFLINE,
    ONLINE,
    ROLES,
    Plan,
    Repository,
)

_FILES = {Root.type: ("root-1", "root-2", "root-3"), **dict.fromkeys(ONLINE, ("online",))}
"""Keys that are made for a role when none is named, if they are not called like it."""


def add_verbs(verbs_: "_SubParsersAction[ArgumentParser]") -> None:
    """Add the verbs of this module."""
    _add_init(
        verbs_.add_parser(
            "init",
            help="make a repository and its keys",
            description="Make a repository: keys, roles, a first version of all metadata. Keys "
            "that are not named with --key are made as files. Whatever a run leaves undone, the "
            "same command ends.",
        )
    )
    cli_keys.add_verbs(verbs_.add_parser("keys", help="list, add, rotate and revoke signing keys"))
    sign = verbs_.add_parser(
        "sign",
        help="add signatures to what waits for them",
        description="Show what is staged, ask, sign it with the keys at hand, and publish what "
        "has enough signatures then. For offline ceremonies: carry the repository to the keys, "
        "one after the other, and back.",
    )
    verbs.add_options(sign)
    sign.add_argument("--renew", action="append", default=[], choices=ROLES, metavar="ROLE",
                      help="first stage this role as it is, to be valid for longer; for root,"
                      " targets and releases, which refresh leaves alone; may be repeated"
                      )  # fmt: skip
    sign.add_argument("--yes", action="store_true", help="sign what is shown without asking")
    sign.set_defaults(run=run_sign)
    refresh = verbs_.add_parser(
        "refresh",
        help="sign a new timestamp; run it daily where no update-server does",
        description="Sign a new timestamp, and the snapshot and channels when half of their time "
        "is over. Hosts stop to learn of anything when the timestamp has expired.",
    )
    verbs.add_options(refresh)
    refresh.set_defaults(run=run_refresh)
    _add_verify(verbs_.add_parser(
        "verify",
        help="look at everything: signatures, hashes, expiry, what is missing or nobody's",
        description="Verify the whole repository as a host would, and every file of it. Exits "
        "with 3 when something is wrong.",
    ))  # fmt: skip
    status = verbs_.add_parser(
        "status",
        help="show roles, keys, expiry, and what waits for signatures",
        description="Show each role's version, expiry and keys, what waits for signatures, and "
        "what each channel offers.",
    )
    verbs.add_options(status)
    status.set_defaults(run=run_status)


# init --------------------------------------------------------------------------------------------


def _add_init(verb: ArgumentParser) -> None:
    verbs.add_options(verb)
    verb.add_argument("--online-keys", type=Path, metavar="FOLDER",
                      help="the key ring for channels, snapshot and timestamp, which goes to the "
                      "server (default: with the others)")  # fmt: skip
    verb.add_argument("--key", action="append", default=[], type=_role_uri, metavar="ROLE=URI",
                      help="use this key for a role, or 'online' for channels, snapshot and "
                      "timestamp; such as releases=hsm:2?label=... or root=awskms:..."
                      )  # fmt: skip
    verb.add_argument("--threshold", action="append", default=[], type=_role_number,
                      metavar="ROLE=N", help="signatures that a role needs (default: root=2, all "
                      "others 1)")  # fmt: skip
    verb.add_argument("--expires", action="append", default=[], type=_role_number,
                      metavar="ROLE=DAYS", help="days for which a role is valid after it was "
                      "signed (default: " +
                      " ".join(f"{role}={days}" for role, days in EXPIRES_DAYS.items()) + ")"
                      )  # fmt: skip
    verb.add_argument("--passphrase", dest="secret", action="store_const", default=None,
                      const=cache(lambda _: ask_new("new passphrase of all offline keys")),
                      help="protect the offline keys that are made with a passphrase")  # fmt: skip
    verb.set_defaults(run=run_init)


def _role_uri(text: str) -> tuple[str, str]:
    role, _, uri = text.partition("=")
    if role not in cli_keys.WORDS or ":" not in uri:
        raise ArgumentTypeError(f"{text!r} is no ROLE=URI; roles are {', '.join(cli_keys.WORDS)}")
    return role, uri


def _role_number(text: str) -> tuple[str, int]:
    role, _, number = text.partition("=")
    if role not in ROLES or not re.fullmatch("[1-9][0-9]{0,3}", number):
        raise ArgumentTypeError(f"{text!r} is no ROLE=NUMBER; roles are {', '.join(ROLES)}")
    return role, int(number)


def run_init(options: Namespace) -> int:
    """Make a repository, or end what an earlier run began."""
    ring = verbs.keyring(options)
    online = options.online_keys or ring.folders[0]
    ring = Keyring(list(dict.fromkeys([*ring.folders, online])))
    repository = Repository(options.repository, ring)
    with repository.locked():
        if not repository.exists and not repository.staged(Timestamp.type):
            repository.create(_plan(options, ring, online))
        repository.sign()
        committed = repository.commit()
    said = {"repository": str(options.repository)}
    return verbs.report(options, repository, committed, _init_text(repository, online), said)


def _plan(options: Namespace, ring: Keyring, online: Path) -> Plan:
    keys = {}
    for role in ROLES:
        into, secret = (online, None) if role in ONLINE else (ring.folders[0], options.secret)
        uris = [uri for word, uri in options.key if role in roles_of(word)]
        keys[role] = [
            ring.at(uri) or ring.add(f"{role}-{number}", uri, into=into)
            for number, uri in enumerate(uris, 1)
        ] or [ring.generate(name, secret, into=into) for name in _FILES.get(role, (role,))]
    thresholds = {Root.type: min(2, len(keys[Root.type])), **dict(options.threshold)}
    return Plan(keys=keys, thresholds=thresholds, days=dict(options.expires))


def _init_text(repository: Repository, online: Path) -> str:
    root = repository.metadata_path(Root.type, 1)
    offline = "\n".join(f"  {role:8} {_names(repository, role)}" for role in OFFLINE)
    return (
        f"{root} is what hosts trust: bring it to them on a way that you trust.\n"
        f"Keep offline, each key of root with somebody else, and a copy of every key:\n{offline}\n"
        f"The server needs only {_names(repository, Timestamp.type)}, in {online}, for"
        f" {', '.join(ONLINE)}. 'update-server serve --keys' signs them anew by itself; beside any"
        " other web server run 'update-publish refresh' every day."
    )


def _names(repository: Repository, role: str) -> str:
    found = repository.delegator(role).get_delegated_role(role)
    names = ", ".join(map(repository.keyring.name, found.keyids))
    many = f" ({found.threshold} of them sign)" if len(found.keyids) > 1 else ""
    return f"{names}{many}"


# sign, refresh -----------------------------------------------------------------------------------


def run_sign(options: Namespace) -> int:
    """Add signatures, and publish what has enough."""
    repository = verbs.opened(options, begun=True)
    with repository.locked():
        for role in options.renew:
            repository.renew(role)
        _agreed(options, repository)
        repository.sign()
        committed = repository.commit()
    return verbs.report(options, repository, committed)


def _agreed(options: Namespace, repository: Repository) -> None:
    """Show what is signed, and ask, where somebody is there. Raises HostError for a no."""
    for it in repository.changes():
        print(it, file=sys.stderr)
    if options.yes or not sys.stdin.isatty():
        return
    print("sign this? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise HostError(
            "nothing was signed",
            hint="to give an edit up, remove its file in .staged of the repository",
        )


def run_refresh(options: Namespace) -> int:
    """Sign a new timestamp; the exit code says whether it could be done."""
    repository = verbs.opened(options)
    with repository.locked():
        committed = repository.commit(refresh=True)
        ending = repository.ending()
    verbs.report(options, repository, committed)
    for role, left in ending.items():
        when = f"expires in {left.days} days" if left > timedelta(0) else "has expired"
        print(f"warning: {role} {when}: {_renewal(role)}", file=sys.stderr)
    good = committed.published and all(it > timedelta(0) for it in ending.values())
    return 0 if good else HostError.exit_code


def _renewal(role: str) -> str:
    """Return how a role is signed anew."""
    if role in OFFLINE:
        return f"update-publish sign --renew {role}, with its keys"
    return "run refresh where its key is"


# verify, status ----------------------------------------------------------------------------------


def _add_verify(verb: ArgumentParser) -> None:
    verbs.add_options(verb, keys=False)
    verb.add_argument("--ahead", type=verbs.duration, default=timedelta(days=2), metavar="TIME",
                      help="warn of what expires within this time (default: 2d)")  # fmt: skip
    verb.add_argument("--quick", action="store_true", help="don't read the payloads' stored bytes")
    verb.set_defaults(run=run_verify)


def run_verify(options: Namespace) -> int:
    """Look at everything."""
    repository = verbs.opened(options)
    with verbs.Bars(quiet=options.json) as bars:
        bars.begin("payloads", 0)
        found = verify.verify(
            repository, ahead=options.ahead, blobs=not options.quick, advance=bars.advance
        )
    plain: dict[str, Any] = {
        "problems": found.problems, "warnings": found.warnings, "releases": found.releases,
        "channels": found.channels, "files": found.files, "superseded": found.superseded,
        "payload_bytes": found.bytes,
    }  # fmt: skip
    lines = [f"problem: {it}" for it in found.problems]
    lines += [f"warning: {it}" for it in found.warnings]
    lines.append(
        f"{found.releases} releases, {found.channels} channels, {found.files} files"
        f" ({found.superseded} superseded), {found.bytes / 1e6:.1f} MB of payloads:"
        f" {len(found.problems) or 'no'} problems"
    )
    verbs.show(options, plain, "\n".join(lines))
    return 3 if found.problems else 0


def run_status(options: Namespace) -> int:
    """Show where everything stands."""
    repository = verbs.opened(options, begun=True)
    roles = [_role_plain(repository, role) for role in ROLES]
    waiting, changes = repository.waiting(), list(repository.changes())
    found = channels.listed(repository) if repository.exists else []
    plain = {
        "roles": roles,
        "changes": changes,
        "waiting": [verbs.waiting_plain(it) for it in waiting],
        "releases": len(releases.listed(repository)) if repository.exists else 0,
        "channels": [{"channel": it.channel, "version": it.version and str(it.version),
                      "paused": bool(it.paused)} for it in found],
    }  # fmt: skip
    lines = ["role       version  expires in  signatures  keys", *map(_role_text, roles)]
    lines += [f"staged: {it}" for it in changes]
    lines += [verbs.waiting_text(repository, it) for it in waiting]
    lines.append(f"{plain['releases']} releases")
    lines += [channels.sentence(it, repository.now) for it in found]
    verbs.show(options, plain, "\n".join(lines))
    return 0


def _role_plain(repository: Repository, role: str) -> dict[str, Any]:
    data = repository.published(role)
    found = repository.delegator(role).get_delegated_role(role)
    signed = trust.metadata(data or repository.staged(role) or b"").signed
    return {
        "role": role, "version": signed.version if data else None,
        "expires": f"{signed.expires:%Y-%m-%dT%H:%M:%SZ}", "threshold": found.threshold,
        "days_left": round((signed.expires - repository.now) / timedelta(days=1), 1),
        "keys": [repository.keyring.name(it) for it in found.keyids],
    }  # fmt: skip


def _role_text(it: dict[str, Any]) -> str:
    return (
        f"{it['role']:10} {it['version'] or '-'!s:>7}  {it['days_left']:>5.1f} days"
        f"  {it['threshold']} of {len(it['keys']):<5}  {', '.join(it['keys'])}"
    )
