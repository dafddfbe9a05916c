"""A host against a repository that lies: each lie is called by its name, and nothing of it kept."""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import DelegatedRole, Delegations, Root

from tests.lies import (
    BELOW_ROOT,
    DAY,
    INDEX,
    NAMES,
    NOW,
    Client,
    Simulator,
    key,
    made_channel,
    made_release,
    memory,
    served,
    sign_plain,
)
from tests.web import Altered, Chunked, Fault, Fine, Raw, Truncated, Web
from update_agent.core import channel, release, trust
from update_agent.core.document import DocumentError
from update_agent.core.release import IdentityError
from update_agent.core.trust import (
    CHANNELS,
    RELEASES,
    SIGNED_AT,
    ExpiredError,
    RollbackError,
    UntrustedError,
)
from update_agent.core.version import Version
from update_agent.errors import HostError, ReleaseError, UpdateAgentError
from update_agent.host import files
from update_agent.host.http import (
    DeadlineError,
    Limits,
    Network,
    StatusError,
    TooLongError,
    TooShortError,
    UnreachableError,
)

TIMESTAMP, SNAPSHOT, TARGETS = "timestamp", "snapshot", "targets"


@pytest.fixture
def sim() -> Simulator:
    return Simulator()


@pytest.fixture
def web(sim: Simulator) -> Iterator[Web]:
    with served(sim) as web:
        yield web


@pytest.fixture
def client(sim: Simulator, web: Web) -> Iterator[Client]:
    """A host that never looked."""
    with memory() as folder:
        yield Client(folder, [web.url("")], sim.bytes_of("root"))


@pytest.fixture
def knowing(sim: Simulator, client: Client) -> Client:
    """A host that looked, when there were two versions of everything."""
    sim.publish(*BELOW_ROOT)
    assert client.offers() == "1.2.0"
    return client


def forget(client: Client) -> None:
    """Leave zeros where the cache was; the journal was flushed and stays."""
    for path in client.state.rglob("*.json"):
        path.write_bytes(b"" if path.stat().st_size % 2 else bytes(path.stat().st_size))


def recovers(sim: Simulator, client: Client, version: str = "1.3.0") -> None:
    """The honest repository goes on, and the host with it."""
    for name in BELOW_ROOT:
        sim.said(name).version = max(sim.said(name).version, 10)
    sim.add_channel(made_channel(version=version))
    sim.publish(*BELOW_ROOT)
    assert client.offers() == version


# What works --------------------------------------------------------------------------------------


def test_a_host_learns_what_is_new(sim: Simulator, knowing: Client) -> None:
    sim.add_channel(made_channel(version="1.3.0"))
    sim.publish(CHANNELS)

    assert knowing.offers() == "1.3.0"


def test_a_release_and_its_index_come_with_what_proves_them(client: Client) -> None:
    with client.opened() as repository:
        repository.refresh()
        found = repository.release("web", Version("1.2.0"))
        assert found is not None
        assert repository.index(found, found.full) == INDEX
        assert repository.channel("stable") == made_channel()
        evidence = repository.evidence()

    proven = trust.prove(
        client.root, evidence, product="web", version=found.version, now=NOW, channel_name="stable"
    )
    assert proven.release == found
    assert proven.channel == made_channel()


def test_evidence_is_there_only_for_what_was_fetched(client: Client) -> None:
    with client.opened() as repository:
        repository.refresh()

        with pytest.raises(RuntimeError, match="fetch channel and release first"):
            repository.evidence()


def test_nothing_is_asked_before_a_refresh(client: Client) -> None:
    with client.opened() as repository, pytest.raises(RuntimeError, match="refresh first"):
        repository.channel("stable")


def test_nothing_new_costs_next_to_nothing(
    client: Client, web: Web, figure: Callable[[str], None]
) -> None:
    client.look()
    before, requests = client.network.fetched, len(web.requests)
    began = time.perf_counter()
    client.look()
    seconds = time.perf_counter() - began
    fetched = client.network.fetched - before

    assert fetched < 2000
    assert [it.path for it in web.requests[requests:]] == [
        "/metadata/2.root.json",
        "/metadata/timestamp.json",
    ]
    figure(
        f"refresh with nothing new: {seconds * 1000:.0f} ms on loopback,"
        f" {fetched} bytes besides headers in {len(web.requests) - requests} requests"
    )


# Older than before -------------------------------------------------------------------------------


@pytest.mark.case(1)
@pytest.mark.parametrize("cache", ["there", "zeroed"])
def test_an_older_timestamp_is_refused(sim: Simulator, knowing: Client, cache: str) -> None:
    if cache == "zeroed":
        forget(knowing)
    sim.timestamp.version = 1
    sim.write(TIMESTAMP)

    knowing.refuses(RollbackError, r"timestamp 1 is offered, version 2 was trusted before")
    recovers(sim, knowing)


@pytest.mark.case(2)
@pytest.mark.parametrize("cache", ["there", "zeroed"])
@pytest.mark.parametrize("name", BELOW_ROOT)
def test_a_version_with_another_content_is_refused(
    sim: Simulator, knowing: Client, name: str, cache: str
) -> None:
    if cache == "zeroed":
        forget(knowing)
    sim.said(name).expires += DAY
    if name != TIMESTAMP:
        sim.timestamp.version += 1
    if name not in (TIMESTAMP, SNAPSHOT):
        sim.snapshot.version += 1
    sim.write(name)

    knowing.refuses(
        (UntrustedError if name == SNAPSHOT and cache == "there" else RollbackError),
        r"snapshot 2 is not what was vouched for"
        if name == SNAPSHOT and cache == "there"
        else rf"{name} 2 says something else than it did before",
    )
    recovers(sim, knowing)


@pytest.mark.case(2)
def test_signatures_may_change_where_the_content_does_not(sim: Simulator, knowing: Client) -> None:
    data = json.loads(sim.bytes_of(TIMESTAMP))
    data["signatures"].append({"keyid": "ab" * 32, "sig": ""})
    sim.files[sim.path(TIMESTAMP)] = json.dumps(data).encode()

    assert knowing.offers() == "1.2.0"


@pytest.mark.case(3)
@pytest.mark.parametrize("cache", ["there", "zeroed"])
def test_an_older_snapshot_is_refused_under_a_new_timestamp(
    sim: Simulator, knowing: Client, cache: str
) -> None:
    if cache == "zeroed":
        forget(knowing)
    sim.snapshot.version = 1
    sim.timestamp.version += 1
    sim.write(SNAPSHOT)

    knowing.refuses(RollbackError, "snapshot 1 is offered, version 2 was trusted before")
    recovers(sim, knowing)


@pytest.mark.case(4)
@pytest.mark.parametrize("cache", ["there", "zeroed"])
@pytest.mark.parametrize("name", [TARGETS, RELEASES, CHANNELS])
def test_an_older_role_is_refused_under_a_new_snapshot(
    sim: Simulator, knowing: Client, name: str, cache: str
) -> None:
    if cache == "zeroed":
        forget(knowing)
    sim.said(name).version = 1
    sim.snapshot.version += 1
    sim.timestamp.version += 1
    sim.write(name)

    knowing.refuses(RollbackError, f"{name} 1 is offered, version 2 was trusted before")
    recovers(sim, knowing)


@pytest.mark.case(4)
@pytest.mark.parametrize("name", [TARGETS, RELEASES, CHANNELS])
def test_a_role_is_of_the_version_that_the_snapshot_names(
    sim: Simulator, knowing: Client, name: str
) -> None:
    sim.said(name).version = 5
    sim.show(name)
    old = sim.bytes_of(name)
    sim.snapshot.meta[f"{name}.json"].version = 6
    sim.files[f"/metadata/6.{name}.json"] = old
    sim.publish(SNAPSHOT)

    knowing.refuses(RollbackError, f"{name}")
    recovers(sim, knowing)


@pytest.mark.case(5)
@pytest.mark.parametrize("cache", ["there", "zeroed"])
@pytest.mark.parametrize("name", [TARGETS, RELEASES, CHANNELS])
def test_a_role_does_not_vanish_from_the_snapshot(
    sim: Simulator, knowing: Client, name: str, cache: str
) -> None:
    if cache == "zeroed":
        forget(knowing)
    del sim.snapshot.meta[f"{name}.json"]
    sim.publish(SNAPSHOT)

    knowing.refuses(
        UntrustedError,
        f"New snapshot is missing info for '{name}.json'"
        if cache == "there"
        else f"(?i)role {name} was delegated but is not part of snapshot",
    )
    sim.show(name)
    recovers(sim, knowing)


@pytest.mark.case(5)
def test_the_timestamp_names_a_snapshot(sim: Simulator, knowing: Client) -> None:
    plain = sim.plain(TIMESTAMP)
    plain["version"] = sim.timestamp.version = 3
    plain["meta"] = {}
    sim.put_plain(TIMESTAMP, plain)

    knowing.refuses(UntrustedError, "timestamp.json: this is no TUF metadata: 'snapshot.json'")
    recovers(sim, knowing)


# Time --------------------------------------------------------------------------------------------


@pytest.mark.case(6)
@pytest.mark.parametrize("name", NAMES)
def test_what_expired_is_refused_with_the_time_since_when(
    sim: Simulator, knowing: Client, name: str
) -> None:
    sim.said(name).expires = NOW - timedelta(hours=1)
    sim.publish(name)
    before = knowing.kept()

    with pytest.raises(
        ExpiredError,
        match=f"{name} .* expired at 2026-06-01 11:00 UTC, and it is 2026-06-01 12:00 UTC now",
    ) as caught:
        knowing.look()

    assert "update-publish refresh" in str(caught.value.hint)
    after = knowing.kept()
    assert {it: after[it] for it in after if "root" not in it and it != "journal"} == {
        it: before[it] for it in before if it != "journal"
    }
    sim.said(name).expires = NOW + DAY
    sim.publish(name)
    assert knowing.offers() == "1.2.0"


@pytest.mark.case(13)
def test_a_clock_at_1970_is_put_forward_by_what_is_remembered(
    sim: Simulator, knowing: Client
) -> None:
    knowing.now = datetime(1970, 1, 1, tzinfo=UTC)
    sim.timestamp.expires = NOW - DAY
    sim.publish(TIMESTAMP)

    knowing.refuses(ExpiredError, "timestamp 3 expired at 2026-05-31 12:00 UTC")
    with knowing.opened() as repository:
        assert repository.now == NOW


@pytest.mark.case(13)
def test_a_first_look_at_1970_learns_the_time_from_what_is_signed(
    sim: Simulator, client: Client
) -> None:
    client.now = datetime(1970, 1, 1, tzinfo=UTC)
    assert client.offers() == "1.2.0"

    with client.opened() as repository:
        assert repository.now == NOW
    sim.timestamp.expires = NOW - timedelta(minutes=1)
    sim.publish(TIMESTAMP)
    client.refuses(ExpiredError, "timestamp 2 expired")


@pytest.mark.case(13)
def test_a_clock_at_2099_finds_all_expired_and_remembers_nothing_of_it(
    sim: Simulator, knowing: Client
) -> None:
    knowing.now = datetime(2099, 1, 1, tzinfo=UTC)

    knowing.refuses(
        ExpiredError, "root 1 expired at 2028-05-31 12:00 UTC, and it is 2099-01-01 00:00 UTC now"
    )
    knowing.now = NOW
    assert knowing.offers() == "1.2.0"
    recovers(sim, knowing)


@pytest.mark.case(13)
def test_a_clock_that_steps_back_during_an_update_changes_nothing(knowing: Client) -> None:
    knowing.now = NOW + 3 * DAY
    knowing.look()
    knowing.now = NOW - 400 * DAY
    assert knowing.offers() == "1.2.0"

    with knowing.opened() as repository:
        assert repository.now == NOW + 3 * DAY


@pytest.mark.case(13)
@pytest.mark.parametrize(
    "text", ["2027-07-01T00:00:00Z", "2026-06-07T12:00:00", "soon", 5, None, "\x00", ["a"]]
)
def test_a_time_of_signing_that_cannot_be_is_not_believed(
    sim: Simulator, client: Client, text: object
) -> None:
    sim.timestamp.unrecognized_fields[SIGNED_AT] = text
    sim.timestamp.expires = datetime(9999, 12, 31, tzinfo=UTC)
    sim.publish(TIMESTAMP)

    client.look()

    with client.opened() as repository:
        assert repository.now == NOW


@pytest.mark.case(101)
def test_while_the_timestamp_signer_is_down_a_host_says_so_and_goes_on_afterwards(
    sim: Simulator, knowing: Client
) -> None:
    knowing.now = NOW + 8 * DAY

    knowing.refuses(
        ExpiredError,
        "timestamp 2 expired at 2026-06-08 12:00 UTC, and it is 2026-06-09 12:00 UTC now",
    )

    sim.timestamp.expires = NOW + 15 * DAY
    sim.publish(TIMESTAMP)
    assert knowing.offers() == "1.2.0"


# Roots and keys ----------------------------------------------------------------------------------


@pytest.fixture
def two(sim: Simulator) -> Simulator:
    """A repository whose root needs two of two keys."""
    sim.root.add_key(key("second").public_key, Root.type)
    sim.root.roles[Root.type].threshold = 2
    sim.signers[Root.type] = [key(Root.type), key("second")]
    sim.write(Root.type)
    return sim


@pytest.fixture
def strict(two: Simulator, client: Client) -> Client:
    client.root_file.write_bytes(two.bytes_of(Root.type))
    client.root = two.bytes_of(Root.type)
    client.look()
    return client


@pytest.mark.case(7)
def test_a_root_with_one_of_two_signatures_is_refused(two: Simulator, strict: Client) -> None:
    two.signers[Root.type].pop()
    two.publish(Root.type)

    strict.refuses(UntrustedError, "root was signed by 1/2 keys")
    two.signers[Root.type].append(key("second"))
    two.write(Root.type)
    recovers(two, strict)


@pytest.mark.case(8)
def test_a_root_that_skips_a_version_is_refused(sim: Simulator, knowing: Client) -> None:
    sim.root.version = 3
    sim.show(Root.type)
    sim.files["/metadata/2.root.json"] = sim.bytes_of(Root.type)

    knowing.refuses(RollbackError, "Expected root version 2 instead got version 3")
    sim.root.version = 2
    sim.show(Root.type)
    recovers(sim, knowing)


@pytest.mark.case(9)
@pytest.mark.parametrize("signed_by", ["new", "old"])
def test_a_new_root_is_signed_by_the_old_keys_and_by_the_new(
    sim: Simulator, knowing: Client, signed_by: str
) -> None:
    sim.rotate(Root.type)
    new = sim.signers[Root.type]
    if signed_by == "old":
        sim.signers[Root.type] = [key(Root.type)]
    sim.publish(Root.type)

    knowing.refuses(UntrustedError, "root was signed by 0/1 keys")
    sim.signers[Root.type] = [key(Root.type), *new]
    sim.write(Root.type)
    recovers(sim, knowing)


def again(public: SSlibKey, how: str) -> SSlibKey:
    """Return the same key under another id, perhaps written in another way."""
    value = public.keyval["public"]
    written = {"same": value, "upper": value.upper(), "spaced": " ".join((value[:2], value[2:]))}
    more = {"comment": "another"} if how == "more" else {}
    keyval = {"public": written.get(how, value), **more}
    return SSlibKey("cd" * 32, public.keytype, public.scheme, keyval)


@pytest.mark.case(10)
@pytest.mark.parametrize("how", ["same", "upper", "spaced", "more"])
def test_one_key_under_two_ids_does_not_count_twice(
    sim: Simulator, knowing: Client, how: str
) -> None:
    twin = again(key(Root.type).public_key, how)
    sim.root.add_key(twin, Root.type)
    sim.root.roles[Root.type].threshold = 2
    sim.signers[Root.type] = [key(Root.type), CryptoSigner(key(Root.type)._private_key, twin)]
    sim.publish(Root.type)

    knowing.refuses(UntrustedError, "root names one key twice")
    sim.root.revoke_key(twin.keyid, Root.type)
    sim.root.roles[Root.type].threshold = 1
    sim.signers[Root.type] = [key(Root.type)]
    sim.write(Root.type)
    recovers(sim, knowing)


@pytest.mark.case(10)
def test_one_key_under_two_ids_does_not_count_twice_for_a_delegation(
    sim: Simulator, knowing: Client
) -> None:
    sim.targets.add_key(again(key(RELEASES).public_key, "upper"), RELEASES)
    sim.publish(TARGETS)

    knowing.refuses(UntrustedError, "targets names one key twice")


@pytest.mark.case(16)
@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        pytest.param(Path.unlink, HostError, "cannot read the trusted root .*No such", id="none"),
        pytest.param(
            lambda it: it.write_bytes(b""), UntrustedError, "the trusted root is empty", id="empty"
        ),
        pytest.param(
            lambda it: it.write_bytes(b" \n\0\0"[:2]), UntrustedError, "is empty", id="blank"
        ),
        pytest.param(
            lambda it: it.write_bytes(bytes(4096)), UntrustedError, "no plain JSON", id="zeros"
        ),
        pytest.param(
            lambda it: (it.unlink(), it.mkdir()), HostError, "Is a directory", id="folder"
        ),
        pytest.param(
            lambda it: it.write_bytes(b"\x89PNG\r\n"), UntrustedError, "no plain JSON", id="garbage"
        ),
        pytest.param(
            lambda it: it.write_bytes(it.read_bytes()[:-10]),
            UntrustedError, "no plain JSON", id="cut",
        ),
        pytest.param(
            lambda it: it.write_bytes(_unsigned(it.read_bytes())),
            UntrustedError, "root 1 has 0 good signatures .*wanted 1", id="unsigned",
        ),
        pytest.param(
            lambda it: it.write_bytes(it.read_bytes().replace(b'"version":1', b'"version":7')),
            UntrustedError, "has 0 good signatures", id="edited",
        ),
        pytest.param(
            lambda it: it.write_bytes(bytes(600_000)), UntrustedError, "wanted at most 512000",
            id="huge",
        ),
    ],
)  # fmt: skip
def test_without_a_trusted_root_nothing_is_asked(
    knowing: Client, web: Web, make: Callable[[Path], None], error: type[Exception], match: str
) -> None:
    make(knowing.root_file)
    asked = len(web.requests)
    before = knowing.kept()

    with pytest.raises(error, match=match) as caught:
        knowing.look()

    assert "root" in str(getattr(caught.value, "hint", ""))
    assert len(web.requests) == asked
    assert knowing.kept() == before


@pytest.mark.case(16)
def test_a_root_that_may_not_be_read_is_none(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)

    with pytest.raises(HostError, match=r"cannot read the trusted root .*: Permission denied"):
        client.look()


def _unsigned(data: bytes) -> bytes:
    return json.dumps({**json.loads(data), "signatures": []}).encode()


@pytest.mark.case(16)
def test_a_trusted_root_that_expired_leads_to_its_successor(sim: Simulator, client: Client) -> None:
    client.now = NOW + 731 * DAY
    client.refuses(ExpiredError, "root 1 expired at 2028-05-31 12:00 UTC")
    for name in NAMES:
        sim.said(name).expires = client.now + DAY
    sim.publish(*NAMES)

    assert client.offers() == "1.2.0"


@pytest.mark.parametrize("name", BELOW_ROOT)
def test_a_compromised_key_is_replaced_and_speaks_no_more(
    sim: Simulator, knowing: Client, name: str
) -> None:
    stolen = sim.signers[name]
    sim.rotate(name)
    sim.publish(Root.type)
    sim.publish(TARGETS, *BELOW_ROOT)
    assert knowing.offers() == "1.2.0"
    for each in BELOW_ROOT:
        sim.said(each).version += 1
    good, sim.signers[name] = sim.signers[name], stolen
    sim.write(*BELOW_ROOT)

    knowing.refuses(UntrustedError, f"{name} was signed by 0/1 keys")
    sim.signers[name] = good
    recovers(sim, knowing)


def test_a_new_root_is_kept_even_when_what_follows_fails(sim: Simulator, knowing: Client) -> None:
    sim.rotate(TIMESTAMP)
    sim.publish(Root.type)  # the timestamp is still signed by the old key

    with pytest.raises(UntrustedError, match="timestamp was signed by 0/1 keys"):
        knowing.look()

    assert knowing.kept()["root_history/2.root.json"] == sim.bytes_of(Root.type)
    del sim.files["/metadata/2.root.json"]
    knowing.refuses(UntrustedError, "timestamp was signed by 0/1 keys")


@pytest.mark.parametrize("status", [403, 404])
def test_a_root_that_was_known_cannot_be_hidden(
    sim: Simulator, knowing: Client, web: Web, status: int
) -> None:
    sim.publish(Root.type)
    knowing.look()
    shutil.rmtree(knowing.state / "root_history")
    forget(knowing)
    web.play(Altered(status=status, body=b""))

    knowing.refuses(RollbackError, "root 1 is offered, version 2 was trusted before")
    assert knowing.offers() == "1.2.0"


def test_a_hundred_rotations_are_followed_at_once(sim: Simulator, knowing: Client) -> None:
    for _ in range(100):
        sim.publish(Root.type)

    assert knowing.offers() == "1.2.0"
    assert "root_history/101.root.json" in knowing.kept()


def test_roots_without_end_are_not_followed_to_the_end(
    sim: Simulator, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("update_agent.host.trust._CONFIG.max_root_rotations", 5)
    for _ in range(20):
        sim.publish(Root.type)

    client.look()

    assert len([it for it in client.kept() if "root" in it]) == 5


@pytest.mark.case(11)
@pytest.mark.parametrize("version", [2**53 + 1, 2**63 - 1])
@pytest.mark.parametrize("name", [TIMESTAMP, SNAPSHOT, CHANNELS])
def test_a_version_at_the_end_of_all_numbers_is_refused(
    sim: Simulator, knowing: Client, name: str, version: int
) -> None:
    plain = sim.plain(name)
    plain["version"] = version
    for other in (SNAPSHOT, TIMESTAMP):
        sim.said(other).version += 1
    sim.said(name).version = version
    sim.put_plain(name, plain)

    knowing.refuses(DocumentError, r"(Expected `int` <= 9007199254740992|more than 64 bits)")


@pytest.mark.case(11)
def test_a_version_beyond_all_numbers_is_refused(sim: Simulator, knowing: Client) -> None:
    sim.timestamp.version = 2**63
    sim.show(TIMESTAMP)

    knowing.refuses(DocumentError, "number 9223372036854775808 needs more than 64 bits")


@pytest.mark.case(11)
@pytest.mark.parametrize("cache", ["there", "zeroed"])
def test_who_counted_up_with_stolen_keys_is_forgotten_with_them(
    sim: Simulator, knowing: Client, cache: str
) -> None:
    honest = {name: sim.said(name).version for name in BELOW_ROOT}
    for name in (TIMESTAMP, SNAPSHOT, CHANNELS):
        sim.said(name).version = 2**53 - 1
    sim.timestamp.expires = datetime(9999, 1, 1, tzinfo=UTC)
    sim.timestamp.unrecognized_fields[SIGNED_AT] = f"{NOW + 25 * DAY:%Y-%m-%dT%H:%M:%SZ}"
    sim.write(CHANNELS)
    assert knowing.offers() == "1.2.0"  # poisoned: channels 2**53 - 1, and a clock 25 days ahead
    if cache == "zeroed":
        forget(knowing)
    for name, version in honest.items():
        sim.said(name).version = version
    sim.timestamp.expires = NOW + 7 * DAY
    sim.timestamp.unrecognized_fields[SIGNED_AT] = f"{NOW:%Y-%m-%dT%H:%M:%SZ}"
    sim.publish(CHANNELS)
    with pytest.raises((RollbackError, ExpiredError)):
        knowing.look()

    sim.rotate(TIMESTAMP, SNAPSHOT, CHANNELS)
    sim.publish(Root.type)
    sim.publish(TARGETS, CHANNELS)

    assert knowing.offers() == "1.2.0"
    with knowing.opened() as repository:
        assert repository.now == NOW
    recovers(sim, knowing)


# Power -------------------------------------------------------------------------------------------


@pytest.mark.case(12)
@pytest.mark.parametrize("damage", ["empty", "zeros", "half", "gone"])
def test_a_cache_that_lost_its_content_does_not_lose_its_memory(
    sim: Simulator, client: Client, damage: str
) -> None:
    client.look()
    old = dict(sim.files)
    sim.add_channel(made_channel(version="1.3.0"))
    sim.publish(*BELOW_ROOT)
    client.look()
    for path in client.state.rglob("*.json"):
        data = path.read_bytes()
        left = {"empty": b"", "zeros": bytes(len(data)), "half": data[: len(data) // 2]}
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(left[damage])
    new = dict(sim.files)
    sim.files.clear()
    sim.files.update(old)

    client.refuses(RollbackError, "timestamp 1 is offered, version 2 was trusted before")

    sim.files.update(new)
    assert client.offers() == "1.3.0"


class PowerCutError(BaseException):
    """No code survives that."""


OPERATIONS = ("open", "fsync", "rename", "replace", "unlink", "mkdir", "truncate")


class Power:
    """Cuts the power before the n-th operation on files; what was not flushed may be lost."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, left: int) -> None:
        self.folder = folder
        self.left = left
        self.unflushed: set[int] = set()
        real_fsync = os.fsync

        def fsync(fd: int) -> None:
            self.step()
            real_fsync(fd)
            self.unflushed.discard(os.fstat(fd).st_ino)

        real_rename, real_open, real_mkdir = Path.rename, Path.open, Path.mkdir

        def rename(path: Path, target: Path) -> Path:
            self.step()
            return real_rename(path, target)

        def open_(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:  # noqa: ANN401
            if set(mode) & set("wa+") and self.folder in path.parents:
                self.step()
                file = real_open(path, mode, *rest, **more)
                self.unflushed.add(os.fstat(file.fileno()).st_ino)
                return file
            return real_open(path, mode, *rest, **more)

        def mkdir(path: Path, *rest: Any, **more: Any) -> None:  # noqa: ANN401
            if self.folder in path.parents:
                self.step()
            real_mkdir(path, *rest, **more)

        patch.setattr(os, "fsync", fsync)
        patch.setattr(Path, "rename", rename)
        patch.setattr(Path, "open", open_)
        patch.setattr(Path, "mkdir", mkdir)

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise PowerCutError


def _lose(client: Client, power: Power, how: str) -> None:
    """Do to what was not flushed what a power cut does; an append loses only what was appended."""
    for path in client.state.rglob("*"):
        if path.is_file() and path.stat().st_ino in power.unflushed:
            data = path.read_bytes()
            kept = data.rfind(b"\n", 0, len(data) - 1) + 1 if path.name == "journal" else 0
            if how == "zeros":
                path.write_bytes(data[:kept] + bytes(len(data) - kept))
            elif how == "short":
                path.write_bytes(data[: kept + (len(data) - kept) // 2])


@pytest.mark.case(12, 47)
@pytest.mark.parametrize(
    ("first", "how"), [(False, "as it is"), (False, "zeros"), (False, "short"), (True, "zeros")]
)
def test_a_power_cut_at_any_file_operation_lets_nobody_roll_back(
    sim: Simulator, client: Client, how: str, *, first: bool
) -> None:
    if not first:
        client.look()
    old = dict(sim.files)
    sim.add_channel(made_channel(version="1.3.0"))
    sim.rotate(CHANNELS)
    sim.publish(*NAMES)
    new = dict(sim.files)
    sim.add_channel(made_channel(version="1.4.0"))
    sim.publish(*BELOW_ROOT)
    newer = dict(sim.files)
    cuts, folder = 0, client.folder
    for number in range(1000):
        client.folder = folder / f"{number}"
        client.folder.mkdir()
        client.root_file.write_bytes(client.root)
        _serve(sim, old)
        if not first:
            client.look()
        _serve(sim, new)
        with pytest.MonkeyPatch.context() as patch:
            power = Power(patch, client.state, number)
            try:
                client.look()
                done = True
            except PowerCutError:
                done = False
        _lose(client, power, how)
        learned = _marks(client).get(TIMESTAMP, 0)

        if learned == 2:
            _serve(sim, old)
            client.refuses(RollbackError, "is offered, version 2 was trusted before")
        _serve(sim, newer)
        assert client.offers() == "1.4.0"
        if done:
            assert learned == 2
            break
        cuts += 1
    assert cuts > 20


def _serve(sim: Simulator, shown: dict[str, bytes]) -> None:
    sim.files.clear()
    sim.files.update(shown)


def _marks(client: Client) -> dict[str, int]:
    """Return what is durably remembered, by its own words."""
    path = client.state / "journal"
    if not path.exists():
        return {}
    with client.opened() as repository:
        return {name: mark.version for name, mark in repository._journal.high.marks.items()}


@pytest.mark.case(12)
def test_whatever_is_in_the_cache_was_in_the_journal_before(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = files.replace

    def replaced(path: Path, data: bytes) -> None:
        order.append(path.name)
        real(path, data)

    monkeypatch.setattr(files, "replace", replaced)
    client.look()

    assert order[0] == "journal"


@pytest.mark.case(38)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_full_disk_is_told_and_nothing_is_lost(
    sim: Simulator, knowing: Client, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    sim.add_channel(made_channel(version="1.3.0"))
    sim.publish(*BELOW_ROOT)

    def refuse(_fd: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        knowing.refuses(HostError, f"cannot write .*journal.*: {os.strerror(code)}")

    assert knowing.offers() == "1.3.0"


@pytest.mark.case(38)
def test_a_full_temporary_folder_is_told(knowing: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkdtemp", refuse)
        knowing.refuses(HostError, "cannot write .*: No space left on device")

    assert knowing.offers() == "1.2.0"


@pytest.mark.case(38)
def test_a_state_folder_that_cannot_be_made_is_told(client: Client) -> None:
    client.state.write_bytes(b"a file")

    with pytest.raises(HostError, match=r"cannot use .*state") as caught:
        client.look()

    assert "name another folder" in str(caught.value.hint)


@pytest.mark.case(49)
def test_two_processes_do_not_share_a_memory(knowing: Client) -> None:
    with knowing.opened(), pytest.raises(HostError, match="another process uses"):
        knowing.look()

    assert knowing.offers() == "1.2.0"


def test_a_damaged_journal_holds_no_lock(knowing: Client) -> None:
    good = (knowing.state / "journal").read_bytes()
    (knowing.state / "journal").write_bytes(bytes(len(good)))
    kept = []
    for _ in range(2):
        with pytest.raises(HostError, match=r"journal, what this host remembers") as caught:
            knowing.look()
        kept.append(caught.value)
    (knowing.state / "journal").write_bytes(good)

    assert knowing.offers() == "1.2.0"


# What is rejected is not kept --------------------------------------------------------------------


def _flip(sim: Simulator, name: str) -> bytes:
    data = bytearray(sim.bytes_of(name))
    at = data.index(b'"sig":"') + 7
    data[at] = ord("0") if data[at] != ord("0") else ord("1")
    return bytes(data)


def _plain(sim: Simulator, name: str, **fields: object) -> bytes:
    return sign_plain({**sim.plain(name), **fields}, sim.signers[name])


def _duplicated(sim: Simulator, name: str) -> bytes:
    return sim.bytes_of(name).replace(b'"version":', b'"version":1,"version":', 1)


def _nested(sim: Simulator, name: str) -> bytes:
    deep: object = 1
    for _ in range(50):
        deep = [deep]
    return _plain(sim, name, x=deep)


def _text(sim: Simulator, name: str, old: bytes, new: bytes) -> bytes:
    data = sim.bytes_of(name)
    assert old in data
    return data.replace(old, new, 1)


def _version(sim: Simulator, name: str, new: bytes) -> bytes:
    version = sim.said(name).version
    return _text(sim, name, b'"version":%d}' % version, b'"version":%b}' % new)


SPOILS: dict[str, Callable[[Simulator, str], bytes]] = {
    "wrong-signature": _flip,
    "no-signature": lambda sim, name: _unsigned(sim.bytes_of(name)),
    "signed-by-another": lambda sim, name: sign_plain(sim.plain(name), [key("stranger")]),
    "other-type": lambda sim, name: sign_plain(
        sim.plain(TIMESTAMP if name != TIMESTAMP else SNAPSHOT), sim.signers[name]
    ),
    "truncated": lambda sim, name: sim.bytes_of(name)[:-20],
    "empty": lambda _sim, _name: b"",
    "zeros": lambda sim, name: bytes(len(sim.bytes_of(name))),
    "html": lambda _sim, _name: b"<html>log in</html>",
    "a-list": lambda _sim, _name: b"[]",
    "null": lambda _sim, _name: b"null",
    "huge": lambda sim, name: sim.bytes_of(name) + b" " * trust.MAX_SIZES[name],
    "duplicate-key": _duplicated,
    "deep": _nested,
    "bottomless": lambda _sim, _name: b"[" * 9000,
    "float-version": lambda sim, name: _version(sim, name, b"3.0"),
    "bool-version": lambda sim, name: _plain(sim, name, version=True),
    "text-version": lambda sim, name: _plain(sim, name, version="3"),
    "zero-version": lambda sim, name: _plain(sim, name, version=0),
    "negative-version": lambda sim, name: _plain(sim, name, version=-1),
    "no-version": lambda sim, name: _plain(sim, name, version=None),
    "nan-version": lambda sim, name: _version(sim, name, b"NaN"),
    "infinite-version": lambda sim, name: _version(sim, name, b"Infinity"),
    "million-digits": lambda sim, name: _version(sim, name, b"9" * 10_000),
    "spec-2": lambda sim, name: _plain(sim, name, spec_version="2.0.0"),
    "odd-expiry": lambda sim, name: _plain(sim, name, expires="tomorrow"),
    "expiry-10000": lambda sim, name: _plain(sim, name, expires="10000-01-01T00:00:00Z"),
    "no-utf8": lambda sim, name: _text(sim, name, b'"_type"', b'"\xff\xfe"'),
    "half-character": lambda sim, name: _text(sim, name, b'"_type"', b'"x":"\\ud800","_type"'),
}


@pytest.mark.case(18, 19)
@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_rejected_is_never_kept(
    sim: Simulator, knowing: Client, name: str, spoil: str
) -> None:
    sim.publish(*([Root.type] if name == Root.type else BELOW_ROOT))
    sim.put(name, SPOILS[spoil](sim, name))
    if name not in (Root.type, SNAPSHOT, TIMESTAMP):
        sim.show(SNAPSHOT)
    if name not in (Root.type, TIMESTAMP):
        sim.show(TIMESTAMP)
    before = knowing.kept()

    with pytest.raises(UpdateAgentError, match=name) as caught:
        knowing.look()

    assert isinstance(caught.value, UntrustedError | DocumentError | TooLongError)
    assert knowing.kept() == before
    sim.show(name)
    recovers(sim, knowing)


@pytest.mark.case(18)
def test_a_timestamp_is_not_kept_before_all_that_follows_is_good(
    sim: Simulator, knowing: Client
) -> None:
    sim.publish(TIMESTAMP)
    sim.timestamp.snapshot_meta.version += 1
    sim.timestamp.version += 5
    sim.files[sim.path(TIMESTAMP)] = sim.signed(TIMESTAMP)

    knowing.refuses(StatusError, "/metadata/4.snapshot.json answers 404")
    sim.timestamp.version -= 4
    sim.publish(SNAPSHOT)
    assert knowing.offers() == "1.2.0"


# Odd things, signed well by stolen keys ----------------------------------------------------------


def _targets_of(role: str, **fields: object) -> Callable[[Simulator], None]:
    def lie(sim: Simulator) -> None:
        sim.said(role).version += 1
        sim.snapshot.version += 1
        sim.timestamp.version += 1
        sim.put_plain(role, {**sim.plain(role), **fields})

    return lie


PATH = "channels/stable.json"
SHA = "ab" * 32


def _delegates(sim: Simulator) -> None:
    """Let ``channels`` say who speaks for releases."""
    public = key(CHANNELS).public_key
    role = DelegatedRole(RELEASES, [public.keyid], 1, terminating=True, paths=["channels/*"])
    sim.channels.targets.clear()
    sim.channels.delegations = Delegations(keys={public.keyid: public}, roles={RELEASES: role})
    sim.publish(CHANNELS)


ODD: dict[str, tuple[Callable[[Simulator], None], str]] = {
    "hash-is-missing": (
        _targets_of(CHANNELS, targets={PATH: {"length": 5, "hashes": {"sha512": SHA * 2}}}),
        "missing required field `sha256`",
    ),
    "hash-is-a-path": (
        _targets_of(CHANNELS, targets={PATH: {"length": 5, "hashes": {"sha256": "../../x"}}}),
        "Expected `str` matching regex",
    ),
    "length-is-true": (
        _targets_of(CHANNELS, targets={PATH: {"length": True, "hashes": {"sha256": SHA}}}),
        "Expected `int`, got `bool`",
    ),
    "length-is-negative": (
        _targets_of(CHANNELS, targets={PATH: {"length": -1, "hashes": {"sha256": SHA}}}),
        "Expected `int` >= 0",
    ),
    "length-is-endless": (
        _targets_of(CHANNELS, targets={PATH: {"length": 2**40, "hashes": {"sha256": SHA}}}),
        "channels/stable.json has 1099511627776 bytes, wanted at most 65536",
    ),
    "speaks-of-releases": (
        _targets_of(
            CHANNELS,
            targets={"releases/a/1/release.json": {"length": 1, "hashes": {"sha256": SHA}}},
        ),
        "channels speaks about 'releases/a/1/release.json', which is not its to say",
    ),
    "speaks-of-folders-below": (
        _targets_of(
            CHANNELS, targets={"channels/a/b.json": {"length": 1, "hashes": {"sha256": SHA}}}
        ),
        "channels speaks about 'channels/a/b.json', which is not its to say",
    ),
    "releases-speaks-of-channels": (
        _targets_of(RELEASES, targets={PATH: {"length": 1, "hashes": {"sha256": SHA}}}),
        "releases speaks about 'channels/stable.json', which is not its to say",
    ),
    "delegates": (_delegates, "channels delegates, which is for targets alone"),
    "meta-version-is-true": (
        _targets_of(
            TIMESTAMP,
            meta={"snapshot.json": {"version": True, "length": 1, "hashes": {"sha256": SHA}}},
        ),
        "Expected `int`, got `bool`",
    ),
    "meta-without-hash": (
        _targets_of(TIMESTAMP, meta={"snapshot.json": {"version": 2}}),
        "missing required field `length`",
    ),
    "hash-of-another-kind": (
        _targets_of(
            TIMESTAMP,
            meta={
                "snapshot.json": {
                    "version": 3, "length": 5, "hashes": {"sha256": SHA, "rot13": "ab"},
                }
            },
        ),
        "snapshot.json answers 404",
    ),
}  # fmt: skip


@pytest.mark.case(19)
@pytest.mark.parametrize("lie", ODD)
def test_what_stolen_keys_sign_well_but_oddly_is_refused(
    sim: Simulator, knowing: Client, lie: str
) -> None:
    tell, match = ODD[lie]
    before = knowing.kept()
    tell(sim)

    with pytest.raises(UpdateAgentError, match=match):
        knowing.look()

    after = knowing.kept()
    if "bytes, wanted at most" in match:  # of a document: the roles are good
        after = {it: after[it] for it in before if it == "channel.json"}
    assert after.items() <= before.items()


# Documents and servers ---------------------------------------------------------------------------


@pytest.mark.case(17)
def test_a_channel_that_is_not_signed_for_is_none(client: Client) -> None:
    with client.opened() as repository:
        repository.refresh()

        assert repository.channel("beta") is None
        assert repository.release("web", Version("9.0.0")) is None
        assert repository.release("db", Version("1.2.0")) is None


@pytest.mark.case(17)
@pytest.mark.parametrize("status", [404, 403, 410, 500, 503])
def test_a_channel_that_is_signed_for_but_not_there_is_an_error(
    client: Client, web: Web, status: int
) -> None:
    with client.opened() as repository:
        repository.refresh()
        web.play(Altered(status=status, body=b"", reason="No"))

        with pytest.raises(StatusError, match=rf"/targets/channels/.*\.stable\.json .*{status} No"):
            repository.channel("stable")

        assert repository.channel("stable") == made_channel()


@pytest.mark.case(17)
@pytest.mark.parametrize("status", [403, 404, 500])
@pytest.mark.parametrize("name", BELOW_ROOT)
def test_metadata_that_is_named_but_not_there_is_an_error(
    sim: Simulator, knowing: Client, web: Web, name: str, status: int
) -> None:
    sim.publish(*BELOW_ROOT)
    for _ in range(1 + BELOW_ROOT.index(name)):
        web.play(Fine())
    web.play(Altered(status=status, reason="No", body=b""))

    knowing.refuses(StatusError, f"{sim.path(name)} answers {status} No")
    recovers(sim, knowing)


@pytest.mark.case(17)
@pytest.mark.parametrize("status", [410, 429, 500, 503])
def test_only_403_and_404_say_that_there_is_no_newer_root(
    knowing: Client, web: Web, status: int
) -> None:
    web.play(Altered(status=status, body=b"", reason="No"))

    knowing.refuses(StatusError, rf"/metadata/2\.root\.json answers {status} No")
    assert knowing.offers() == "1.2.0"


@pytest.mark.case(15)
def test_a_channel_of_another_name_is_not_this_channel(sim: Simulator, client: Client) -> None:
    other = made_channel("beta")
    sim.add_target(sim.channels, "channels/stable.json", channel_bytes(other))
    sim.publish(CHANNELS)

    with pytest.raises(
        DocumentError, match=r"channel stable: the document is that of channel beta"
    ):
        client.look()


def channel_bytes(made: channel.Channel) -> bytes:
    from update_agent.core import document  # noqa: PLC0415

    return document.encode(made)


@pytest.mark.case(15)
@pytest.mark.parametrize("field", ["product", "version"])
def test_a_release_under_the_name_of_another_is_refused(
    sim: Simulator, client: Client, field: str
) -> None:
    from update_agent.core import document  # noqa: PLC0415

    fields: dict[str, Any] = (
        {"product": "db"} if field == "product" else {"version": Version("9.0.0")}
    )
    data = (
        document.encode(made_release(**{"product": "web", "version": "1.2.0"} | fields))
        if (field == "product")
        else document.encode(replace(made_release(), version=Version("9.0.0")))
    )
    sim.add_target(sim.releases, release.path("web", Version("1.2.0")), data)
    sim.publish(RELEASES)

    with client.opened() as repository:
        repository.refresh()
        with pytest.raises(IdentityError, match=r"release web 1\.2\.0: the document is that of"):
            repository.release("web", Version("1.2.0"))


@pytest.mark.case(14)
def test_an_index_of_another_release_is_refused(sim: Simulator, client: Client) -> None:
    made = made_release()
    sim.files[f"/{made.index_path(made.full)}"] = INDEX[:-1] + b"!"
    with client.opened() as repository:
        repository.refresh()
        found = repository.release("web", Version("1.2.0"))
        assert found is not None

        with pytest.raises(
            UntrustedError, match=r"the index has 33 bytes and the SHA-256 .* wanted"
        ):
            repository.index(found, found.full)


@pytest.mark.case(21, 22, 34)
@pytest.mark.parametrize("lie", ["other", "short", "long", "cut", "endless"])
def test_a_document_that_is_not_what_was_signed_is_not_kept(
    sim: Simulator, client: Client, web: Web, lie: str
) -> None:
    path = sim.target_url(sim.channels, PATH)
    good = sim.files[path]
    faults: dict[str, tuple[Fault, type[UpdateAgentError], str]] = {
        "other": (Altered(body=b" " * len(good)), UntrustedError, "not what was signed"),
        "short": (Altered(body=good[:-1]), UntrustedError, "not what was signed"),
        "long": (Altered(body=good + b" "), TooLongError, "wanted at most"),
        "cut": (Truncated(after=5), TooShortError, "stopped before the promised end"),
        "endless": (Chunked(size=64, endless=True), TooLongError, "sends more than"),
    }
    fault, error, match = faults[lie]
    with client.opened() as repository:
        repository.refresh()
        web.play(fault)
        with pytest.raises(error, match=match):
            repository.channel("stable")
        assert "channel.json" not in client.kept()

        assert repository.channel("stable") == made_channel()


@pytest.mark.parametrize("name", [SNAPSHOT, TARGETS, RELEASES, CHANNELS, TIMESTAMP])
def test_no_server_decides_how_much_metadata_is_read(client: Client, web: Web, name: str) -> None:
    before = BELOW_ROOT.index(name) + 1
    for _ in range(before):
        web.play(Fine())
    web.play(Chunked(size=4096, endless=True))

    client.refuses(TooLongError, f"{name}.json sends more than")
    assert client.offers() == "1.2.0"


def test_a_deadline_ends_all_of_it(client: Client) -> None:
    times = iter([0.0, 1.0, 10_000.0])
    client.network = Network(Limits(deadline=5), now=lambda: next(times, 10_000.0))

    client.refuses(DeadlineError, "longer than 5 s")


# Mirrors -----------------------------------------------------------------------------------------


@pytest.fixture
def mirrored(sim: Simulator, client: Client) -> Iterator[tuple[Client, Web]]:
    """A host with a mirror before the honest server, as it was a version ago."""
    with Web(sim.files) as mirror:
        sim.add_channel(made_channel(version="1.3.0"))
        sim.publish(*BELOW_ROOT)
        client.look()
        client.urls = [mirror.url(""), *client.urls]
        yield client, mirror


def _stale(_mirror: Web) -> None:
    pass


def _broken(mirror: Web) -> None:
    mirror.always = Altered(status=500, body=b"")


def _silent(mirror: Web) -> None:
    mirror.always = Raw(data=b"")


def _lying(mirror: Web) -> None:
    stranger = Simulator()
    stranger.signers = {name: [key("stranger")] for name in NAMES}
    stranger.publish(*NAMES)
    mirror.files = stranger.files


def _empty(mirror: Web) -> None:
    mirror.files = {}


@pytest.mark.case(35)
@pytest.mark.parametrize("fault", [_stale, _broken, _silent, _lying, _empty])
def test_a_bad_mirror_before_a_good_one_does_no_harm(
    mirrored: tuple[Client, Web], fault: Callable[[Web], None]
) -> None:
    client, mirror = mirrored
    fault(mirror)

    assert client.offers() == "1.3.0"


@pytest.mark.case(35)
def test_a_mirror_that_lacks_a_document_is_passed_by(
    sim: Simulator, client: Client, web: Web
) -> None:
    partial = {path: data for path, data in sim.files.items() if "/targets/" not in path}
    with Web(partial) as mirror:
        client.urls = [mirror.url(""), web.url("")]

        assert client.offers() == "1.2.0"


@pytest.mark.case(35)
def test_when_no_mirror_is_good_each_says_why(mirrored: tuple[Client, Web], web: Web) -> None:
    client, mirror = mirrored
    web.always = Altered(status=503, reason="Busy", body=b"")

    client.refuses(
        ReleaseError,
        f"none of 2 servers can be used: {mirror.url('')}: timestamp 1 is offered, version 2 was"
        rf" trusted before; {web.url('')}/metadata/2.root.json answers 503 Busy",
    )


def test_a_server_that_is_not_there_is_told(client: Client) -> None:
    client.urls = ["http://127.0.0.1:1"]

    client.refuses(UnreachableError, "http://127.0.0.1:1/metadata/2.root.json cannot be fetched")


# The library -------------------------------------------------------------------------------------


def test_the_library_keeps_its_time_where_we_set_it(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.now = NOW + 8 * DAY  # the tests' own clock says something else, whatever it says
    client.refuses(ExpiredError, "it is 2026-06-09 12:00 UTC now")

    real = trust_module().Updater

    class Moved(real):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **more: Any) -> None:  # noqa: ANN401
            super().__init__(*args, **more)
            self._trusted_set.reference_time = None

    monkeypatch.setattr("update_agent.host.trust.Updater", Moved)
    with pytest.raises(TypeError, match="keeps its time elsewhere"):
        client.look()


def trust_module() -> Any:  # noqa: ANN401
    from update_agent.host import trust as module  # noqa: PLC0415

    return module
