"""Whoever is asked to sign an edit is told all that it changes."""

import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Key, Root, Signed, TargetFile, Targets

from update_agent.publish import changes

ANN, BOB = (CryptoSigner.generate_ed25519().public_key for _ in range(2))
NAMES = {ANN.keyid: "ann", BOB.keyid: "bob"}
RELEASE = "releases/os/1.0.0/release.json"


def role() -> Targets:
    """What targets says: releases is ann's, and one file is listed."""
    speaks = DelegatedRole("releases", [ANN.keyid], 1, terminating=True, paths=["releases/*"])
    said = Targets(
        delegations=Delegations(keys={ANN.keyid: ANN}, roles={"releases": speaks}),
        targets={RELEASE: TargetFile.from_data(RELEASE, b"1", ["sha256"])},
        unrecognized_fields={"x-expires-days": 30},
    )
    said.add_key(ANN, "releases")
    return said


def told(before: Signed | None, after: Signed) -> list[str]:
    return changes.changes(before, after, NAMES.__getitem__)


def lists_another(it: Targets) -> None:
    it.targets["releases/x"] = it.targets[RELEASE]


def lists_none(it: Targets) -> None:
    it.targets.clear()


def lists_other_bytes(it: Targets) -> None:
    it.targets[RELEASE] = TargetFile.from_data(RELEASE, b"2", ["sha256"])


def lets_bob_sign(it: Targets) -> None:
    it.add_key(BOB, "releases")


def takes_it_from_ann(it: Targets) -> None:
    it.add_key(BOB, "releases")
    it.revoke_key(ANN.keyid, "releases")


def wants_two(it: Targets) -> None:
    it.get_delegated_role("releases").threshold = 2


def exchanges_ann_s_key(it: Targets) -> None:
    assert it.delegations
    it.delegations.keys[ANN.keyid] = Key.from_dict(ANN.keyid, BOB.to_dict())


def widens_releases(it: Targets) -> None:
    found = it.get_delegated_role("releases")
    assert isinstance(found, DelegatedRole)
    found.paths = ["*"]


def is_for_ever(it: Targets) -> None:
    it.unrecognized_fields["x-expires-days"] = 9999


@pytest.mark.parametrize(
    ("edit", "sentences"),
    [
        (lists_another, ["adds releases/x"]),
        (lists_none, [f"removes {RELEASE}"]),
        (lists_other_bytes, [f"changes {RELEASE}"]),
        (lets_bob_sign, ["lets the key bob sign releases"]),
        (takes_it_from_ann, ["takes releases from the key ann", "lets the key bob sign releases"]),
        (wants_two, ["wants 2 signatures of releases, and not 1"]),
        (exchanges_ann_s_key, ["changes what the key ann is"]),
        (widens_releases, ["changes what releases speaks for"]),
        (is_for_ever, ["changes x-expires-days"]),
    ],
)
def test_each_change_has_its_sentence(
    edit: Callable[[Targets], None], sentences: list[str]
) -> None:
    after = role()
    edit(after)

    assert told(role(), after) == sentences
    assert not changes.say_the_same(role(), after)
    assert changes.digest(role()) != changes.digest(after)


def test_number_date_and_what_was_before_are_nothing_to_tell() -> None:
    after = role()
    after.version = 7
    after.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    after.unrecognized_fields[changes.FOLLOWS] = changes.digest(role())

    assert told(role(), after) == ["is as before, for longer"]
    assert changes.say_the_same(role(), after)
    assert changes.digest(role()) == changes.digest(after)


def test_of_what_nobody_published_all_is_told() -> None:
    root = Root()
    root.add_key(ANN, "timestamp")

    assert told(None, role()) == [f"adds {RELEASE}", "lets the key ann sign releases"]
    assert told(None, root) == ["lets the key ann sign timestamp"]


def test_the_root_is_told_by_its_roles() -> None:
    before = Root()
    before.add_key(ANN, "root")
    after = copy.deepcopy(before)
    after.add_key(BOB, "root")
    after.roles["root"].threshold = 2

    assert told(before, after) == [
        "lets the key bob sign root", "wants 2 signatures of root, and not 1",
    ]  # fmt: skip
