"""Odd metadata against the promise that a host refuses it by name, or believes what is signed.

Takes a good repository, garbles one thing in it (a field anywhere in a role or a document becomes
something odd, is doubled, lost, or moved; or bytes of the text change) and looks at it as a host
does. What was garbled is mostly signed again by the keys of its role: keys can be stolen. Held:

* nothing comes out but UpdateAgentError, and its message can be printed;
* what was refused left nothing behind but roots, and the honest repository works afterwards;
* what was believed is signed, and for this host.

    python -m tests.fuzz.trust --count 20000 --seed 1
"""

import copy
import json
import sys
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import pytest
from tuf.api.metadata import Root, Snapshot, Timestamp

from tests.fuzz import search
from tests.lies import BELOW_ROOT, NAMES, NOW, Client, Simulator, memory, sign_plain
from update_agent.core import channel, release, trust
from update_agent.core.reason import Wait
from update_agent.core.release import Host
from update_agent.core.trust import CHANNELS, RELEASES
from update_agent.core.version import Version
from update_agent.errors import UpdateAgentError
from update_agent.host import trust as host_trust
from update_agent.host.http import Network, StatusError, TooLongError

PART = 50
"""Repositories that a worker tries before it tells."""

HOST = Host(
    product="web",
    architecture="x86_64",
    version=Version("1.0.0"),
    machine_id="0123456789abcdef" * 2,
)

ODD: tuple[object, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    2**31,
    2**53 - 1,
    2**53,
    2**53 + 1,
    2**63 - 1,
    2**63,
    -(2**63),
    0.5,
    1e300,
    "",
    " ",
    "a",
    "..",
    "../..",
    "/",
    "\0",
    "\ud800",
    "\x1b[2J",
    "\u0661",
    "%s",
    "%2e%2e",
    "a" * 70,
    "a" * 5000,
    "ab" * 32,
    "AB" * 32,
    "root",
    "timestamp",
    "snapshot",
    "targets",
    "releases",
    "channels",
    "snapshot.json",
    "channels/stable.json",
    "releases/web/1.2.0/release.json",
    "1.0.0",
    "1.2.0",
    "2.0.0",
    "1.0",
    "web",
    "stable",
    "x86_64",
    "aarch64",
    "ed25519",
    "rsa",
    "-----BEGIN PUBLIC KEY-----",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "2026-06-01T12:00:00Z",
    "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+23:59",
    "2026-02-30T00:00:00Z",
    "10000-01-01T00:00:00Z",
    [],
    {},
    [[]],
    [{}],
    [1],
    {"a": {}},
    {"": 1},
)


class BrokenPromiseError(AssertionError):
    """What must never happen."""


# Garbling ----------------------------------------------------------------------------------------


def places(value: object) -> Iterator[tuple[Any, Any]]:
    """Yield each container with each key in it."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def garble(plain: dict[str, Any], random: Random) -> None:
    """Change one thing somewhere."""
    found = list(places(plain))
    holder, key = random.choice(found)
    what = random.randrange(6)
    if what < 3 or (what == 3 and isinstance(holder, list)):
        holder[key] = copy.deepcopy(random.choice(ODD))
    elif what == 3:
        holder[str(random.choice(ODD))] = holder.pop(key)
    elif what == 4:
        del holder[key]
    else:
        other, its = random.choice(found)
        holder[key] = copy.deepcopy(other[its])


def garble_text(data: bytes, random: Random) -> bytes:
    """Change bytes, as a line does that is broken."""
    text = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        at = random.randrange(len(text) + 1)
        match random.randrange(5):
            case 0:
                text[at : at + 1] = bytes([random.randrange(256)])
            case 1:
                del text[at : at + random.choice((1, 5, 100, 10_000))]
            case 2:
                text[at:at] = random.choice(
                    (b"{", b"[", b'"', b",", b"\\u", b"\xff", b"1e9", b"NaN")
                )
            case 3:
                other = random.randrange(len(text) + 1)
                text[at:at] = text[other : other + 50]
            case _:
                text[at:at] = random.choice((b"[" * 5000, b"9" * 5000, b" " * 20_000))
    return bytes(text)


def lie(sim: Simulator, random: Random) -> str:
    """Garble something of ``sim``; return what."""
    name = random.choice((*NAMES, Timestamp.type, Snapshot.type, CHANNELS, CHANNELS, "document"))
    if name == "document":
        return lie_in_document(sim, random)
    sim.publish(*([Root.type] if name == Root.type else BELOW_ROOT))
    plain = sim.plain(name)
    how = random.randrange(10)
    if how < 7:
        for _ in range(random.choice((1, 1, 1, 2))):
            garble(plain, random)
        sim.put(name, sign_plain(plain, sim.signers[name]))
    elif how < 9:
        sim.put(name, garble_text(sim.bytes_of(name), random))
    else:
        whole = json.loads(sim.bytes_of(name))
        garble(whole, random)
        sim.put(name, json.dumps(whole).encode())
    vouch(sim, name)
    return name


def lie_in_document(sim: Simulator, random: Random) -> str:
    role, path = random.choice((
        (CHANNELS, channel.path("stable")), (RELEASES, release.path("web", Version("1.2.0"))),
    ))  # fmt: skip
    targets = sim.channels if role == CHANNELS else sim.releases
    data = sim.files[sim.target_url(targets, path)]
    if random.random() < 0.8:
        plain = json.loads(data)
        garble(plain, random)
        data = json.dumps(plain).encode()
    else:
        data = garble_text(data, random)
    sim.add_target(targets, path, data)
    sim.publish(role)
    return path


def vouch(sim: Simulator, name: str) -> None:
    """Let those above name what was garbled as it is."""
    if name not in (Root.type, Snapshot.type, Timestamp.type):
        sim.show(Snapshot.type)
    if name not in (Root.type, Timestamp.type):
        sim.show(Timestamp.type)


# Judging -----------------------------------------------------------------------------------------


def look(client: Client, before: dict[str, bytes]) -> str:
    """Do all that a host does with what a repository says; return what came of it."""
    with client.opened() as repository:
        try:
            repository.refresh()
        except UpdateAgentError as error:
            if roles_of(client) != before:
                raise BrokenPromiseError("roles were refused, and kept") from error
            raise
        found = repository.channel("stable")
        if found is None:
            return "no channel"
        answer = release.wanted(HOST, found, repository.now)
        if isinstance(answer, Wait):
            print_it(f"{answer.sentence} {answer.ends}")
            return f"waits: {answer.reason}"
        made = repository.release("web", answer)
        if made is None:
            return "withdrawn"
        if held := release.held_back(HOST, made):
            print_it(held.sentence)
            return f"waits: {held.reason}"
        repository.index(made, made.full)
        proven = trust.prove(
            client.root, repository.evidence(), product=HOST.product, version=answer,
            now=repository.now, channel_name="stable",
        )  # fmt: skip
        if proven.release.product != HOST.product:
            raise BrokenPromiseError("a release for others")
        return "believed"


def print_it(message: str) -> None:
    message.encode()
    if "\x1b" in message or "\0" in message:
        raise BrokenPromiseError(f"a message steers the terminal: {message!r}")


def roles_of(client: Client) -> dict[str, bytes]:
    """Return what is kept but for roots, which outlive what follows them, and documents."""
    ours = {f"{name}.json" for name in BELOW_ROOT}
    return {path: data for path, data in client.kept().items() if path in ours}


def one(random: Random, patch: pytest.MonkeyPatch) -> str:
    """Try one garbled repository; return how it ended."""
    sim = Simulator()

    def get(_network: Network, url: str, *, max_size: int) -> bytes:
        data = sim.files.get(url.removeprefix("http://sim"))
        if data is None:
            raise StatusError(f"{url!a} answers 404", status=404)
        if len(data) > max_size:
            raise TooLongError(f"{url!a} is too long")
        return data

    patch.setattr(host_trust, "get", get)
    with memory() as folder:
        client = Client(folder, ["http://sim"], sim.bytes_of(Root.type))
        if random.random() < 0.5:
            client.look()
        honest = copy.deepcopy(sim)
        before = roles_of(client) if client.state.exists() else {}
        what = lie(sim, random)
        try:
            outcome = look(client, before)
        except UpdateAgentError as error:
            print_it(str(error))
            outcome = f"refused: {type(error).__name__}"
        recover(sim, honest, client, what)
        return outcome


def recover(sim: Simulator, honest: Simulator, client: Client, what: str) -> None:
    """Let the repository be honest again, with new keys where the old ones said something."""
    if what == Root.type:
        return  # whoever signs an odd root that is good has to live with it
    for name in BELOW_ROOT:
        honest.said(name).version = sim.said(name).version + 5
        honest.said(name).expires = max(honest.said(name).expires, NOW)
    old = honest.signers[Root.type]
    honest.rotate(Timestamp.type, Snapshot.type)
    honest.signers[Root.type] = old
    honest.publish(Root.type)
    honest.publish(*BELOW_ROOT)
    sim.files.clear()
    sim.files.update(honest.files)
    if client.offers() != "1.2.0":
        raise BrokenPromiseError(f"after a lie in {what}, the truth was refused")


# The program -------------------------------------------------------------------------------------


def alone(random: Random) -> str:
    with pytest.MonkeyPatch.context() as patch:
        return one(random, patch)


def main(argv: Sequence[str] | None = None) -> int:
    about = "Look at garbled repositories; fails on a broken promise."
    options = search.parser("tests.fuzz.trust", about, "repositories", count=5_000).parse_args(argv)
    if options.repeat:
        print(search.repeated(alone, options.repeat))
        return 0
    outcomes = search.searched(alone, options, part=PART)
    search.tell(outcomes, f"{outcomes.total():,} repositories, 0 promises broken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
