"""``update-publish keys``: list, add, rotate, revoke."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from re import fullmatch

from tuf.api.metadata import Key, Root, Targets

from update_agent.core.trust import DELEGATED
from update_agent.publish import verbs
from update_agent.publish.keys import NAME, Keyring, ask_new, is_beginning
from update_agent.publish.repository import (
    ONLINE,
    ROLES,
    Repository,
    RepositoryError,
    check_threshold,
)

WORDS = (*ROLES, "online")
"""What --role takes: ``online`` is all online roles at once."""


def roles_of(word: str) -> tuple[str, ...]:
    """Return the roles that a word of ``WORDS`` means."""
    return ONLINE if word == "online" else (word,)


def add_verbs(verb: ArgumentParser) -> None:
    """Add the verbs of this module."""
    actions = verb.add_subparsers(title="verbs", metavar="VERB", required=True)
    listing = actions.add_parser(
        "list", help="show who signs what",
        description="Show which keys sign for each role, what is staged included.",
    )  # fmt: skip
    verbs.add_options(listing)
    listing.set_defaults(run=run_list)
    add = actions.add_parser(
        "add",
        help="let one more key sign for a role, or give the role another threshold",
        description="Let one more key sign for a role. Without --uri a file is made, unless there "
        "is a key of this name. With a key that signs already, --threshold is all that changes.",
    )
    verbs.add_options(add)
    add.add_argument("name", type=_name, metavar="NAME", help="what people call the key")
    add.add_argument("--role", action="append", required=True, choices=WORDS, metavar="ROLE",
                     help=f"one of {', '.join(WORDS)}; may be repeated")  # fmt: skip
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
    rotate.add_argument("name", type=_name, metavar="NEW", help="what people call the new key")
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
                      "hsm:2?label=..., awskms:..., gcpkms:..., azurekms:..., hv:NAME/VERSION"
                      )  # fmt: skip
    verb.add_argument("--public-key", type=Path, metavar="FILE.pem",
                      help="its public half, where it can't be asked for it")  # fmt: skip
    verb.add_argument("--passphrase", action="store_true",
                      help="protect a file that is made with a passphrase")  # fmt: skip


def _name(text: str) -> str:
    if not fullmatch(NAME, text):
        raise ArgumentTypeError(
            f"{text!r} is no name, wanted letters, digits, dots, - and _, 63 at most"
        )
    return text


class Speakers:
    """Who signs what, newest edits included; changed in memory, then staged at once."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._held: dict[str, Root | Targets] = {
            Root.type: repository.newest(Root, Root.type),
            Targets.type: repository.newest(Targets, Targets.type),
        }
        self._before = {name: signed.to_dict() for name, signed in self._held.items()}

    def of(self, role: str) -> Root | Targets:
        """Return what says who signs ``role``."""
        return self._held[Targets.type if role in DELEGATED else Root.type]

    def roles(self, key_id: str) -> list[str]:
        """Return what a key signs."""
        return [it for it in ROLES if key_id in self.of(it).get_delegated_role(it).keyids]

    def key_id(self, name: str) -> str:
        """Return the key called ``name``, in a ring or by the beginning of its id."""
        ids = {key_id for it in ROLES for key_id in self.of(it).get_delegated_role(it).keyids}
        found = [it for it in ids if is_beginning(it, name)]
        return found[0] if len(found) == 1 else self._repository.keyring.find(name).key_id

    def stage(self) -> None:
        """Stage what was changed. Raises RepositoryError when a role has not enough keys."""
        for role in ROLES:
            check_threshold(self.of(role), role)
        for name, signed in self._held.items():
            if signed.to_dict() != self._before[name]:
                self._repository.stage(name, signed)


def run_list(options: Namespace) -> int:
    """Show who signs what."""
    repository = verbs.opened(options, begun=True)
    rows, plain = [], []
    for role in ROLES:
        found = repository.delegator(role).get_delegated_role(role)
        for key_id in found.keyids:
            name = repository.keyring.name(key_id)
            plain.append({"role": role, "key_id": key_id, "name": name,
                          "threshold": found.threshold})  # fmt: skip
            shown = name if name != key_id[:12] else "(in no key ring here)"
            rows.append(
                f"{role:10} {found.threshold} of {len(found.keyids)}  {key_id[:12]}  {shown}"
            )
    verbs.show(options, plain, "\n".join(rows))
    return 0


def run_add(options: Namespace) -> int:
    """Let one more key sign."""

    def edit(speakers: Speakers, ring: Keyring) -> None:
        key = _new_key(ring, options)
        for role in (role for word in options.role for role in roles_of(word)):
            speakers.of(role).add_key(key, role)
            if options.threshold is not None:
                speakers.of(role).get_delegated_role(role).threshold = options.threshold

    return _change(options, verbs.opened(options), edit)


def run_rotate(options: Namespace) -> int:
    """Put a new key in the place of an old one."""

    def edit(speakers: Speakers, ring: Keyring) -> None:
        old = speakers.key_id(options.old)
        roles = speakers.roles(old)
        if not roles and not ring.named(options.name):
            raise RepositoryError(f"{options.old} signs for no role", hint="see keys list")
        key = _new_key(ring, options)
        if key.keyid == old:
            raise RepositoryError(f"{options.name} is {options.old}, not another key")
        for role in roles:
            speakers.of(role).add_key(key, role)
            speakers.of(role).revoke_key(old, role)

    return _change(options, verbs.opened(options), edit)


def run_revoke(options: Namespace) -> int:
    """Take a key its say."""

    def edit(speakers: Speakers, _: Keyring) -> None:
        old = speakers.key_id(options.old)
        for role in speakers.roles(old):
            speakers.of(role).revoke_key(old, role)

    repository = verbs.opened(options)
    _change(options, repository, edit)
    return verbs.out(repository, Root.type, Targets.type)


def _change(
    options: Namespace, repository: Repository, edit: Callable[[Speakers, Keyring], None]
) -> int:
    with repository.locked():
        speakers = Speakers(repository)
        edit(speakers, repository.keyring)
        speakers.stage()
        committed = repository.commit()
    return verbs.report(options, repository, committed)


def _new_key(ring: Keyring, options: Namespace) -> Key:
    if options.uri:
        return ring.add(options.name, options.uri, options.public_key)
    return ring.generate(options.name, ask_new if options.passphrase else None)
