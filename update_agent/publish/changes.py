"""What an edit of a role changes, in sentences for whoever is asked to sign it.

The rule kept here: all that differs is said, if not word by word then by the name of its field;
only number, date and signatures are not. ``digest`` stands for just that: all that a role says.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tuf.api.metadata import Key, Role, Root, Signed, Targets

from update_agent.core.trust import SIGNED_AT

FOLLOWS = "x-follows"
"""The field in which an edit names, by its ``digest``, what was published when it was made."""

_TOLD = ("targets", "roles", "keys", "delegations")
"""Fields of which every part that changes has a sentence of its own."""


def changes(before: Signed | None, after: Signed, name: Callable[[str], str]) -> list[str]:
    """Return what ``after`` says that ``before`` did not, or no more.

    ``before`` is None for what nobody published yet; ``name`` tells what people call a key.
    """
    found = [
        *_targets_changed(before, after),
        *_keys_changed(before, after, name),
        *_signers_changed(before, after, name),
        *_fields_changed(before, after),
    ]
    return found or ["is as before, for longer"]


def say_the_same(one: Signed, other: Signed) -> bool:
    """Return whether two versions of a role differ in nothing but number and date."""
    return _said(one) == _said(other)


def digest(signed: Signed) -> str:
    """Return what stands for all that a role says, whoever signed it when."""
    return hashlib.sha256(json.dumps(_said(signed), sort_keys=True).encode()).hexdigest()


def _said(signed: Signed) -> dict[str, Any]:
    return {**signed.to_dict(), "version": 0, "expires": "", FOLLOWS: ""}


def _targets_changed(before: Signed | None, after: Signed) -> Iterator[str]:
    """Yield which files a role names from now on, or names no more."""
    old = before.targets if isinstance(before, Targets) else {}
    new = after.targets if isinstance(after, Targets) else {}
    yield from (f"adds {path}" for path in new if path not in old)
    yield from (f"removes {path}" for path in old if path not in new)
    for path in sorted(new.keys() & old.keys()):
        if new[path].to_dict() != old[path].to_dict():
            yield f"changes {path}"


def _keys_changed(
    before: Signed | None, after: Signed, name: Callable[[str], str]
) -> Iterator[str]:
    """Yield which keys are others under the ids of before."""
    old, new = _keys(before), _keys(after)
    for key in sorted(old.keys() & new.keys()):
        if old[key].to_dict() != new[key].to_dict():
            yield f"changes what the key {name(key)} is"


def _signers_changed(
    before: Signed | None, after: Signed, name: Callable[[str], str]
) -> Iterator[str]:
    """Yield who signs for what from now on, and who not any more."""
    old_roles, new_roles = _roles(before), _roles(after)
    for role in sorted(old_roles.keys() | new_roles.keys()):
        old, new = old_roles.get(role, Role([], 1)), new_roles.get(role, Role([], 1))
        for key in sorted(set(old.keyids) - set(new.keyids)):
            yield f"takes {role} from the key {name(key)}"
        for key in sorted(set(new.keyids) - set(old.keyids)):
            yield f"lets the key {name(key)} sign {role}"
        if old.threshold != new.threshold:
            yield f"wants {new.threshold} signatures of {role}, and not {old.threshold}"
        if before and _scope(old) != _scope(new):
            yield f"changes what {role} speaks for"


def _fields_changed(before: Signed | None, after: Signed) -> Iterator[str]:
    """Yield which of all other things a role says are not as before."""
    if before is None:
        return
    old, new = _said(before), _said(after)
    for field in sorted(old.keys() | new.keys()):
        if field not in (*_TOLD, SIGNED_AT) and old.get(field) != new.get(field):
            yield f"changes {field}"


def _keys(signed: Signed | None) -> Mapping[str, Key]:
    """Return all keys that ``signed`` names, by their ids."""
    if isinstance(signed, Root):
        return signed.keys
    if isinstance(signed, Targets) and signed.delegations:
        return signed.delegations.keys
    return {}


def _roles(signed: Signed | None) -> Mapping[str, Role]:
    """Return all roles of which ``signed`` says who signs."""
    if isinstance(signed, Root):
        return signed.roles
    if isinstance(signed, Targets) and signed.delegations:
        return signed.delegations.roles or {}
    return {}


def _scope(role: Role) -> dict[str, Any]:
    """Return all that is said of a role but who signs: such as the paths that are its own."""
    return {**role.to_dict(), "keyids": [], "threshold": 0}
