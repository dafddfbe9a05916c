"""``update-publish init``, ``keys``, ``sign``, ``refresh``, ``verify``, ``status``."""

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace, _SubParsersAction
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from tuf.api.metadata import Key, Root, Targets, Timestamp

from update_agent.core import trust
from update_agent.core.trust import DELEGATED
from update_agent.publish import channels, releases, verbs, verify
from update_agent.publish.keys import Keyring, ask
from update_agent.publish.repository import (
    EXPIRES_DAYS,
    OFFLINE,
    ONLINE,
    ROLES,
    Plan,
    Repository,
    RepositoryError,
    check_threshold,
)

_ROLES = (*ROLES, "online")
"""What --role takes: ``online`` is all online roles at once."""


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
    _add_keys(verbs_.add_parser("keys", help="list, add, rotate and revoke signing keys"))
    sign = verbs_.add_parser(
        "sign",
        help="add signatures to what waits for them",
        description="Sign what is staged with the keys at hand, and publish what has enough "
        "signatures then. For offline ceremonies: carry the repository to the keys, one after the "
        "other, and back.",
    )
    verbs.add_options(sign)
    sign.set_defaults(run=run_sign)
    refresh = verbs_.add_parser(
        "refresh",
        help="sign a new timestamp; run it daily",
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
    verb.add_argument("--passphrase", action="store_true",
                      help="protect the offline keys that are made with a passphrase")  # fmt: skip
    verb.set_defaults(run=run_init)


def _role_uri(text: str) -> tuple[str, str]:
    role, _, uri = text.partition("=")
    if role not in _ROLES or ":" not in uri:
        raise ArgumentTypeError(f"{text!r} is no ROLE=URI; roles are {', '.join(_ROLES)}")
    return role, uri


def _role_number(text: str) -> tuple[str, int]:
    role, _, number = text.partition("=")
    if role not in ROLES or not re.fullmatch("[1-9][0-9]{0,3}", number):
        raise ArgumentTypeError(f"{text!r} is no ROLE=NUMBER; roles are {', '.join(ROLES)}")
    return role, int(number)


def run_init(options: Namespace) -> int:
    """Make a repository, or end what an earlier run began."""
    offline = verbs.keyring(options)
    online = Keyring([options.online_keys]) if options.online_keys else offline
    made = Repository(options.repository, offline)
    with made.locked():
        if not made.exists and not made.staged(Timestamp.type):
            made.create(_plan(options, offline, online))
        made = Repository(options.repository, Keyring([*offline.folders, *online.folders]))
        made.sign()
        committed = made.commit()
    verbs.show(options, {"repository": str(options.repository), **verbs.committed_plain(committed)},
               _init_text(made, online, verbs.committed_text(made, committed)))  # fmt: skip
    return 0


def _plan(options: Namespace, offline: Keyring, online: Keyring) -> Plan:
    named: dict[str, list[str]] = {}
    for role, uri in options.key:
        for one in ONLINE if role == "online" else (role,):
            named.setdefault(one, []).append(uri)
    passphrase = ask("passphrase for the offline keys") if options.passphrase else None
    keys: dict[str, list[Key]] = {}
    for role in ROLES:
        ring = online if role in ONLINE else offline
        if role in named:
            keys[role] = [_imported(ring, role, number, uri)
                          for number, uri in enumerate(named[role], 1)]  # fmt: skip
        elif role == Root.type:
            keys[role] = [ring.generate(f"root-{number}", passphrase) for number in (1, 2, 3)]
        elif role in ONLINE:
            keys[role] = [ring.generate("online")]
        else:
            keys[role] = [ring.generate(role, passphrase)]
    thresholds = {Root.type: min(2, len(keys[Root.type])), **dict(options.threshold)}
    return Plan(keys=keys, thresholds=thresholds, days=dict(options.expires))


def _imported(ring: Keyring, role: str, number: int, uri: str) -> Key:
    for entry in ring:
        if entry.uri == uri:
            return entry.key
    return ring.add(f"{role}-{number}", uri)


def _init_text(repository: Repository, online: Keyring, committed: str) -> str:
    root = repository.metadata_path(Root.type, 1)
    return (
        f"{committed}\n\n"
        f"{root} is what hosts trust: bring it to them on a way that you trust.\n"
        f"Keep offline, and twice: the keys of {', '.join(OFFLINE)}.\n"
        f"The server needs only the online key, in {online.folders[0]}:"
        f" for {', '.join(ONLINE)}. Run 'update-publish refresh' there every day."
    )


# keys --------------------------------------------------------------------------------------------


def _add_keys(verb: ArgumentParser) -> None:
    actions = verb.add_subparsers(title="verbs", metavar="VERB", required=True)
    listing = actions.add_parser("list", help="show who signs what")
    verbs.add_options(listing)
    listing.set_defaults(run=run_list)
    add = actions.add_parser(
        "add",
        help="let one more key sign for a role",
        description="Let one more key sign for a role. Without --uri a file is made.",
    )
    verbs.add_options(add)
    add.add_argument("name", metavar="NAME", help="what people call the key")
    add.add_argument("--role", action="append", required=True, choices=_ROLES, metavar="ROLE",
                     help=f"one of {', '.join(_ROLES)}; may be repeated")  # fmt: skip
    add.add_argument("--threshold", type=int, metavar="N", help="signatures that the roles need")
    _add_source(add)
    add.set_defaults(run=run_add)
    rotate = actions.add_parser(
        "rotate",
        help="put a new key in the place of an old one",
        description="Let a new key sign wherever the old one does. While the old key is at hand "
        "too, hosts notice nothing. Whatever somebody did with a stolen timestamp or snapshot key "
        "is forgotten by the hosts with the key.",
    )
    verbs.add_options(rotate)
    rotate.add_argument("old", metavar="OLD", help="name or key id")
    rotate.add_argument("name", metavar="NEW", help="what people call the new key")
    _add_source(rotate)
    rotate.set_defaults(run=run_rotate)
    revoke = actions.add_parser(
        "revoke",
        help="take a key its say",
        description="Let a key sign for nothing any more. Each role must keep enough others.",
    )
    verbs.add_options(revoke)
    revoke.add_argument("old", metavar="NAME", help="name or key id")
    revoke.set_defaults(run=run_revoke)


def _add_source(verb: ArgumentParser) -> None:
    verb.add_argument("--uri", metavar="URI", help="where the key is: file:PATH.pem, "
                      "hsm:2?label=..., awskms:..., gcpkms:..., azurekms:..., hv:..., gnupg:..."
                      )  # fmt: skip
    verb.add_argument("--public-key", type=Path, metavar="FILE.pem",
                      help="its public half, where it can't be asked for it")  # fmt: skip
    verb.add_argument("--passphrase", action="store_true",
                      help="protect a file that is made with a passphrase")  # fmt: skip


def run_list(options: Namespace) -> int:
    """Show who signs what."""
    repository = verbs.opened(options)
    rows, plain = [], []
    for role in ROLES:
        found = _delegator(repository, role).get_delegated_role(role)
        for key_id in found.keyids:
            name = repository.keyring.name(key_id)
            plain.append({"role": role, "key_id": key_id, "name": name,
                          "threshold": found.threshold})  # fmt: skip
            rows.append(f"{role:10} {found.threshold} of {len(found.keyids)}  {key_id[:12]}"
                        f"  {name or '(in no key ring here)'}")  # fmt: skip
    verbs.show(options, plain, "\n".join(rows))
    return 0


def run_add(options: Namespace) -> int:
    """Let one more key sign."""
    roles = [it for role in options.role for it in (ONLINE if role == "online" else (role,))]

    def edit(repository: Repository) -> None:
        key = _new_key(repository.keyring, options)
        for role in roles:
            _edit(
                repository, role, partial(_add_key, key=key, role=role, threshold=options.threshold)
            )

    return _change(options, edit)


def run_rotate(options: Namespace) -> int:
    """Put a new key in the place of an old one."""

    def edit(repository: Repository) -> None:
        old = _key_id(repository, options.old)
        key = _new_key(repository.keyring, options)
        roles = _roles_of(repository, old)
        if not roles and not _roles_of(repository, key.keyid):
            raise RepositoryError(f"{options.old} signs for no role")
        for role in roles:
            _edit(repository, role, partial(_replace_key, old=old, key=key, role=role))

    return _change(options, edit)


def run_revoke(options: Namespace) -> int:
    """Take a key its say."""

    def edit(repository: Repository) -> None:
        old = _key_id(repository, options.old)
        for role in _roles_of(repository, old):
            _edit(repository, role, partial(_revoke_key, old=old, role=role))

    return _change(options, edit)


def _change(options: Namespace, edit: Callable[[Repository], None]) -> int:
    repository = verbs.opened(options)
    with repository.locked():
        edit(repository)
        committed = repository.commit()
    verbs.show(options, verbs.committed_plain(committed),
               verbs.committed_text(repository, committed))  # fmt: skip
    return 0


def _new_key(ring: Keyring, options: Namespace) -> Key:
    for entry in ring:
        if entry.name == options.name:
            return entry.key
    if options.uri:
        return ring.add(options.name, options.uri, options.public_key)
    passphrase = ask(f"passphrase for {options.name}") if options.passphrase else None
    return ring.generate(options.name, passphrase)


def _key_id(repository: Repository, name: str) -> str:
    """Return the key that is called ``name``, in a ring or by the beginning of its id."""
    ids = {key_id for role in ROLES
           for key_id in _delegator(repository, role).get_delegated_role(role).keyids}  # fmt: skip
    found = [it for it in ids if len(name) > 3 and it.startswith(name)]  # noqa: PLR2004
    return found[0] if len(found) == 1 else repository.keyring.find(name).key_id


def _delegator(repository: Repository, role: str) -> Root | Targets:
    if role in DELEGATED:
        return repository.targets(Targets.type)
    return repository.newest(Root, Root.type)


def _roles_of(repository: Repository, key_id: str) -> list[str]:
    return [role for role in ROLES
            if key_id in _delegator(repository, role).get_delegated_role(role).keyids]  # fmt: skip


def _edit(repository: Repository, role: str, edit: Callable[[Root | Targets], None]) -> None:
    """Change who signs for ``role``, in the newest version of whatever says so; stage it."""
    delegator = _delegator(repository, role)
    before = delegator.to_dict()
    edit(delegator)
    check_threshold(delegator, role)
    if delegator.to_dict() != before:
        repository.stage(Targets.type if role in DELEGATED else Root.type, delegator)


def _add_key(it: Root | Targets, key: Key, role: str, threshold: int | None) -> None:
    it.add_key(key, role)
    if threshold is not None:
        it.get_delegated_role(role).threshold = threshold


def _replace_key(it: Root | Targets, old: str, key: Key, role: str) -> None:
    it.add_key(key, role)
    it.revoke_key(old, role)


def _revoke_key(it: Root | Targets, old: str, role: str) -> None:
    it.revoke_key(old, role)


# sign, refresh -----------------------------------------------------------------------------------


def run_sign(options: Namespace) -> int:
    """Add signatures, and publish what has enough."""
    repository = Repository(options.repository, verbs.keyring(options))
    with repository.locked():
        if not repository.exists and not repository.staged(Root.type):
            repository.want()
        repository.sign()
        committed = repository.commit()
    verbs.show(options, verbs.committed_plain(committed),
               verbs.committed_text(repository, committed))  # fmt: skip
    return 0


def run_refresh(options: Namespace) -> int:
    """Sign a new timestamp."""
    repository = verbs.opened(options)
    with repository.locked():
        committed = repository.commit(refresh=True)
    verbs.show(options, verbs.committed_plain(committed),
               verbs.committed_text(repository, committed))  # fmt: skip
    return 0


# verify, status ----------------------------------------------------------------------------------


def _add_verify(verb: ArgumentParser) -> None:
    verbs.add_options(verb, keys=False)
    verb.add_argument("--ahead", type=verbs.duration, default=timedelta(days=2), metavar="TIME",
                      help="warn of what expires within this time (default: 2d)")  # fmt: skip
    verb.add_argument("--quick", action="store_true", help="don't read the payloads' stored bytes")
    verb.set_defaults(run=run_verify)


def run_verify(options: Namespace) -> int:
    """Look at everything."""
    repository = Repository(options.repository, Keyring([]))
    repository.want()
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
    repository = Repository(options.repository, verbs.keyring(options))
    if not repository.exists and not repository.staged(Root.type):
        repository.want()
    roles = [_role_plain(repository, role) for role in ROLES]
    waiting = repository.waiting()
    there = repository.exists
    plain = {
        "roles": roles,
        "waiting": [{"role": it.role, "signed": it.signed, "threshold": it.threshold,
                     "missing": list(it.missing)} for it in waiting],
        "releases": len(releases.listed(repository)) if there else 0,
        "channels": [
            {"channel": it.channel, "version": it.version and str(it.version),
             "paused": bool(it.paused)} for it in (channels.listed(repository) if there else [])
        ],
    }  # fmt: skip
    verbs.show(options, plain, _status_text(repository, plain))
    return 0


def _role_plain(repository: Repository, role: str) -> dict[str, Any]:
    data = repository.published(role)
    found = _delegator(repository, role).get_delegated_role(role)
    signed = trust.metadata(data or repository.staged(role) or b"").signed
    return {
        "role": role, "version": signed.version if data else None,
        "expires": f"{signed.expires:%Y-%m-%dT%H:%M:%SZ}", "threshold": found.threshold,
        "days_left": round((signed.expires - repository.now) / timedelta(days=1), 1),
        "keys": [repository.keyring.name(it) or it[:12] for it in found.keyids],
    }  # fmt: skip


def _status_text(repository: Repository, plain: dict[str, Any]) -> str:
    lines = ["role       version  expires in  signatures  keys"]
    lines += [
        f"{it['role']:10} {it['version'] or '-'!s:>7}  {it['days_left']:>5.1f} days"
        f"  {it['threshold']} of {len(it['keys']):<5}  {', '.join(it['keys'])}"
        for it in plain["roles"]
    ]
    for it in repository.waiting():
        names = ", ".join(repository.keyring.name(key) or key[:12] for key in it.missing)
        lines.append(f"{it.role} {it.version} waits: {it.signed} of {it.threshold} signatures;"
                     f" missing: {names}")  # fmt: skip
    lines.append(f"{plain['releases']} releases")
    lines += [
        f"channel {it['channel']} offers {it['version'] or 'nothing yet'}"
        f"{', paused' if it['paused'] else ''}"
        for it in plain["channels"]
    ]
    return "\n".join(lines)
