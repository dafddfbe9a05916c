"""From a trusted root to a release, by bytes alone: each link of the chain, broken in turn."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import Metadata, Root, Targets, Timestamp

from tests.lies import DAY, INDEX, NAMES, NOW, Simulator, key, made_channel, made_release
from update_agent.core import channel, document, release, trust
from update_agent.core.document import DocumentError
from update_agent.core.release import IdentityError
from update_agent.core.trust import (
    BEGINNING,
    CHANNELS,
    RELEASES,
    Evidence,
    ExpiredError,
    HighWater,
    Mark,
    Proven,
    RollbackError,
    UntrustedError,
)
from update_agent.core.version import Version
from update_agent.errors import UpdateAgentError

TARGETS = Targets.type
NEW = Version("1.2.0")
RELEASE = release.path("web", NEW)
CHANNEL = channel.path("stable")


@pytest.fixture
def sim() -> Simulator:
    return Simulator()


@pytest.fixture
def root(sim: Simulator) -> bytes:
    return sim.bytes_of(Root.type)


def evidence(sim: Simulator, **other: object) -> Evidence:
    roots = [sim.files[f"/metadata/{n}.root.json"] for n in range(2, sim.root.version + 1)]
    whole: dict[str, Any] = {
        "roots": roots,
        "targets": sim.bytes_of(TARGETS),
        "releases": sim.bytes_of(RELEASES),
        "release": sim.files[sim.target_url(sim.releases, RELEASE)],
        "channels": sim.bytes_of(CHANNELS),
        "channel": sim.files[sim.target_url(sim.channels, CHANNEL)],
    }
    return Evidence(**{**whole, **other})


def prove(
    root: bytes,
    shown: Evidence,
    *,
    product: str = "web",
    version: Version = NEW,
    now: datetime = NOW,
    channel_name: str | None = None,
) -> Proven:
    return trust.prove(
        root, shown, product=product, version=version, now=now, channel_name=channel_name
    )


def test_good_evidence_proves_a_release(sim: Simulator, root: bytes) -> None:
    found = prove(root, evidence(sim))

    assert found.release == made_release()
    assert (found.root_version, found.releases_version, found.channel) == (1, 1, None)
    trust.index(INDEX, found.release.full)


def test_good_evidence_proves_a_channel_when_asked(sim: Simulator, root: bytes) -> None:
    assert prove(root, evidence(sim), channel_name="stable").channel == made_channel()


def test_a_chain_of_roots_leads_to_new_keys(sim: Simulator, root: bytes) -> None:
    for _ in range(3):
        old = sim.signers[Root.type]
        sim.rotate(Root.type, TARGETS)
        sim.signers[Root.type] = [*old, *sim.signers[Root.type]]
        sim.publish(Root.type)
        sim.signers[Root.type] = sim.signers[Root.type][-1:]
    sim.publish(TARGETS)

    assert prove(root, evidence(sim)).root_version == 4


# Each link, broken -------------------------------------------------------------------------------

LINKS = ("targets", "releases", "release", "channels", "channel")


@pytest.mark.parametrize("link", LINKS)
def test_any_flipped_bit_of_any_link_is_found(sim: Simulator, root: bytes, link: str) -> None:
    shown = evidence(sim)
    good: bytes = getattr(shown, link)
    for at in range(0, len(good), 7):
        for bit in (1, 4):
            bad = good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :]
            if _says_the_same(good, bad):
                continue
            changed: dict[str, Any] = {link: bad}
            with pytest.raises((UntrustedError, DocumentError)):
                prove(root, replace(shown, **changed), channel_name="stable")


def _says_the_same(good: bytes, bad: bytes) -> bool:
    """Tell whether ``bad`` holds the same signatures of the same; hex has two cases, say."""
    try:
        one, other = (Metadata.from_bytes(it) for it in (good, bad))
    except Exception:  # noqa: BLE001  whatever it is, it does not say the same
        return False
    signatures = [
        {name: it.signature.lower() for name, it in each.signatures.items()}
        for each in (one, other)
    ]
    return bool(one.signed == other.signed and signatures[0] == signatures[1])


@pytest.mark.parametrize("wrong", ["", "releases", "channels", "targets", "release", "channel"])
@pytest.mark.parametrize("link", LINKS)
def test_no_link_stands_for_another(sim: Simulator, root: bytes, link: str, wrong: str) -> None:
    if wrong == link:
        return
    shown = evidence(sim)
    changed: dict[str, Any] = {link: getattr(shown, wrong) if wrong else b""}

    with pytest.raises((UntrustedError, DocumentError)):
        prove(root, replace(shown, **changed), channel_name="stable")


@pytest.mark.parametrize("name", [TARGETS, RELEASES, CHANNELS])
@pytest.mark.parametrize("by", ["nobody", "stranger", "other roles"])
def test_each_role_is_signed_by_its_own_keys(
    sim: Simulator, root: bytes, name: str, by: str
) -> None:
    others = [key(it) for it in NAMES if it != name]
    sim.signers[name] = {"nobody": [], "stranger": [key("stranger")], "other roles": others}[by]
    sim.show(name)

    with pytest.raises(UntrustedError, match=f"{name} 1 has 0 good signatures .*, wanted 1"):
        prove(root, evidence(sim), channel_name="stable")


@pytest.mark.parametrize("name", [Root.type, TARGETS, RELEASES, CHANNELS])
def test_each_role_expires(sim: Simulator, root: bytes, name: str) -> None:
    sim.said(name).expires = NOW - timedelta(seconds=1)
    sim.publish(name)

    with pytest.raises(ExpiredError, match=f"{name} 2 expired at 2026-06-01 11:59 UTC"):
        prove(root, evidence(sim), channel_name="stable")


def test_the_first_second_after_the_end_is_too_late(sim: Simulator, root: bytes) -> None:
    end = sim.releases.expires
    prove(root, evidence(sim), now=end - timedelta(seconds=1))

    with pytest.raises(ExpiredError, match="releases 1 expired"):
        prove(root, evidence(sim), now=end)


def test_roots_in_between_may_have_expired(sim: Simulator, root: bytes) -> None:
    sim.root.expires = NOW - DAY
    sim.publish(Root.type)
    sim.root.expires = NOW + DAY
    sim.publish(Root.type)

    assert prove(root, evidence(sim)).root_version == 3


@pytest.mark.case(8, 9)
@pytest.mark.parametrize(
    ("roots", "match"),
    [
        pytest.param([3], "root 3 is offered, wanted root 2", id="skips"),
        pytest.param([3, 2], "root 3 is offered, wanted root 2", id="out-of-order"),
        pytest.param([2, 2], "root 2 is offered, wanted root 3", id="twice"),
        pytest.param([1], "root 1 is offered, wanted root 2", id="again"),
    ],
)
def test_roots_come_one_after_the_other(
    sim: Simulator, root: bytes, roots: list[int], match: str
) -> None:
    sim.publish(Root.type)
    sim.publish(Root.type)
    shown = [sim.files[f"/metadata/{n}.root.json"] for n in roots]

    with pytest.raises(UntrustedError, match=match):
        prove(root, evidence(sim, roots=shown))


def test_roots_do_not_go_on_for_ever(
    sim: Simulator, root: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "MAX_ROTATIONS", 2)
    for _ in range(3):
        sim.publish(Root.type)

    with pytest.raises(UntrustedError, match="more than 2 roots at once"):
        prove(root, evidence(sim))


@pytest.mark.case(10)
def test_one_point_of_a_curve_is_one_key_however_it_is_written(sim: Simulator) -> None:
    signer = CryptoSigner.generate_ecdsa()
    point = signer._private_key.public_key()
    assert isinstance(point, ec.EllipticCurvePublicKey)
    pem = point.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    for number, text in enumerate((pem, "a note\n" + pem, pem.replace("\n", "\r\n"))):
        twin = SSlibKey(f"{number:064x}", "ecdsa", "ecdsa-sha2-nistp256", {"public": text})
        sim.root.add_key(twin, Root.type)
    sim.publish(Root.type)

    with pytest.raises(UntrustedError, match="root names one key twice"):
        trust.trusted_root(sim.bytes_of(Root.type))


@pytest.mark.case(16)
@pytest.mark.parametrize("public", ["", "xy", "ab", "-----BEGIN PUBLIC KEY-----"])
@pytest.mark.parametrize("kind", [("ed25519", "ed25519"), ("rsa", "rsassa-pss-sha256")])
def test_a_key_that_is_none_is_told_or_signs_nothing(
    sim: Simulator, public: str, kind: tuple[str, str]
) -> None:
    sim.root.add_key(SSlibKey("ef" * 32, *kind, {"public": public}), Root.type)
    sim.root.roles[Root.type].threshold = 2
    sim.publish(Root.type)

    with pytest.raises(UntrustedError, match=r"(which is none|1 good signatures .* wanted 2)"):
        trust.trusted_root(sim.bytes_of(Root.type))


# For whom it is ----------------------------------------------------------------------------------


@pytest.mark.case(15)
@pytest.mark.parametrize(
    ("product", "version", "match"),
    [
        ("db", NEW, "releases/db/1.2.0/release.json is not"),
        ("web", Version("1.3.0"), "releases/web/1.3.0/release.json is not in what"),
    ],
    ids=["product", "version"],
)
def test_a_release_for_others_is_refused(
    sim: Simulator, root: bytes, product: str, version: Version, match: str
) -> None:
    with pytest.raises(UntrustedError, match=match):
        prove(root, evidence(sim), product=product, version=version)


@pytest.mark.case(15)
@pytest.mark.parametrize("fields", [{"product": "db"}, {"version": Version("1.3.0")}])
def test_a_document_under_the_path_of_another_is_refused(
    sim: Simulator, root: bytes, fields: dict[str, object]
) -> None:
    made = replace(made_release(), **fields)  # type: ignore[arg-type]  # one field or the other
    sim.add_target(sim.releases, RELEASE, document.encode(made))
    sim.publish(RELEASES)

    with pytest.raises(IdentityError, match=r"release web 1\.2\.0: the document is that of"):
        prove(root, evidence(sim))


@pytest.mark.parametrize("missing", ["channel", "channels"])
def test_a_channel_that_was_not_shown_says_nothing(
    sim: Simulator, root: bytes, missing: str
) -> None:
    with pytest.raises(UntrustedError, match="nothing proves what channel stable says"):
        prove(root, evidence(sim, **{missing: None}), channel_name="stable")


def test_another_channel_is_not_this_one(sim: Simulator, root: bytes) -> None:
    with pytest.raises(UntrustedError, match=r"channels/beta\.json is not in what"):
        prove(root, evidence(sim), channel_name="beta")


# Who may say what --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (RELEASES, "channels/stable.json"),
        (RELEASES, "releases/web/release.json"),
        (RELEASES, "releases/web/1.2.0/x/release.json"),
        (RELEASES, "releases/web/1.2.0/other.json"),
        (RELEASES, "/releases/web/1.2.0/release.json"),
        (CHANNELS, "releases/web/1.2.0/release.json"),
        (CHANNELS, "channels/a/b.json"),
        (CHANNELS, "channels/a.txt"),
        (CHANNELS, "Channels/a.json"),
        (CHANNELS, "../channels/a.json"),
    ],
)
def test_a_role_speaks_only_in_its_folder(
    sim: Simulator, root: bytes, name: str, path: str
) -> None:
    targets = sim.releases if name == RELEASES else sim.channels
    sim.add_target(targets, path, b"{}")
    sim.publish(name)

    with pytest.raises(UntrustedError, match=f"{name} speaks about '.*', which is not its to say"):
        prove(root, evidence(sim), channel_name="stable")


def test_the_channels_key_cannot_vouch_for_a_release(sim: Simulator, root: bytes) -> None:
    sim.signers[RELEASES] = sim.signers[CHANNELS]
    sim.publish(RELEASES)

    with pytest.raises(UntrustedError, match="releases 2 has 0 good signatures by the keys in"):
        prove(root, evidence(sim))


def test_nobody_is_asked_who_is_not_named(sim: Simulator) -> None:
    sim.targets.delegations = None
    sim.publish(TARGETS)

    with pytest.raises(UntrustedError, match="nobody can say who signed releases"):
        trust.delegated(sim.targets, RELEASES, sim.bytes_of(RELEASES))


@pytest.mark.case(14)
@pytest.mark.parametrize("data", [b"", INDEX[:-1], INDEX + b"x", INDEX[:-1] + b"!"])
def test_an_index_is_the_one_that_the_release_names(data: bytes) -> None:
    with pytest.raises(UntrustedError, match=f"the index has {len(data)} bytes"):
        trust.index(data, made_release().full)


# What is remembered ------------------------------------------------------------------------------


def marked(version: int, *, content: str = "a", keys: str = "1") -> Mark:
    return Mark(version=version, content=content * 64, keys=keys * 64)


def test_marks_only_rise() -> None:
    high = HighWater().raised({"timestamp": marked(5)}, NOW)

    assert high.raised({"timestamp": marked(5)}) == high
    assert high.raised({"timestamp": marked(6, content="b")}).marks["timestamp"].version == 6
    with pytest.raises(RollbackError, match="timestamp 4 is offered, version 5 was trusted before"):
        high.raised({"timestamp": marked(4)})
    with pytest.raises(RollbackError, match="timestamp 5 says something else"):
        high.raised({"timestamp": marked(5, content="b")})


def test_other_keys_begin_anew() -> None:
    high = HighWater().raised({"timestamp": marked(5), "targets": marked(7)}, NOW)
    after = high.raised({"timestamp": marked(1, keys="2")}, NOW - DAY)

    assert after.marks["timestamp"].version == 1
    assert after.marks["targets"].version == 7
    assert after.time == NOW - DAY


def test_time_only_rises_by_the_word_of_the_same_keys() -> None:
    high = HighWater().raised({"timestamp": marked(5)}, NOW)

    assert high.raised({"timestamp": marked(6)}, NOW - DAY).time == NOW
    assert high.raised({"root": marked(6)}).time == NOW
    assert high.raised({"timestamp": marked(6)}, NOW + DAY).time == NOW + DAY


def test_a_time_counts_as_long_as_its_keys(sim: Simulator) -> None:
    mark = trust.mark(sim.root, Timestamp.type, sim.bytes_of(Timestamp.type))
    high = HighWater().raised({Timestamp.type: mark}, NOW)
    assert high.floor(sim.root) == NOW
    assert HighWater(time=NOW).floor(sim.root) == BEGINNING

    sim.rotate(Timestamp.type)
    assert high.floor(sim.root) == BEGINNING


# The shape ---------------------------------------------------------------------------------------


def _set(*path: str, value: object) -> Callable[[dict[str, object]], None]:
    def change(plain: dict[str, object]) -> None:
        at: object = plain
        for step in path[:-1]:
            assert isinstance(at, dict)
            at = at[step]
        assert isinstance(at, dict)
        at[path[-1]] = value

    return change


@pytest.mark.case(19)
@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("root", _set("roles", "root", "threshold", value=True), "Expected `int`, got `bool`"),
        ("root", _set("roles", "root", "threshold", value=0), "Expected `int` >= 1"),
        ("root", _set("roles", "root", "keyids", value="ab"), "Expected `array`, got `str`"),
        ("root", _set("roles", value=[]), "Expected `object`, got `array`"),
        ("root", _set("keys", value={"a": 1}), "Expected `object`, got `int`"),
        ("root", _set("consistent_snapshot", value=1), "Expected `bool`, got `int`"),
        ("root", _set("_type", value="mirrors"), "Invalid value 'mirrors'"),
        ("root", _set("_type", value=5), "Expected `str`"),
        ("root", _set("version", value=1.5), "number 1.5 is no integer"),
        ("timestamp", _set("meta", "snapshot.json", "version", value=True), "got `bool`"),
        ("timestamp", _set("meta", "snapshot.json", "length", value=None), "got `null`"),
        ("snapshot", _set("meta", "targets.json", "hashes", value={}), "missing required field"),
        ("targets", _set("delegations", "roles", value=None), "got `null`"),
        ("targets", _set("targets", value={"x": 1}), "Expected `object`, got `int`"),
        ("releases", _set("expires", value=5), "Expected `str`, got `int`"),
    ],
)
def test_metadata_of_another_shape_is_refused(
    sim: Simulator, name: str, change: Callable[[dict[str, object]], None], match: str
) -> None:
    plain = sim.plain(name)
    change(plain)
    data = json.dumps({"signatures": [], "signed": plain}).encode()

    with pytest.raises(DocumentError, match=match):
        trust.check(data, name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("other", NAMES)
def test_each_role_has_its_type(sim: Simulator, name: str, other: str) -> None:
    data = sim.bytes_of(other)
    if sim.said(name).type == sim.said(other).type and (other != TARGETS or name == other):
        trust.check(data, name)
        return

    with pytest.raises(UntrustedError, match=f"{name} (is metadata of type .*, wanted|delegates)"):
        trust.check(data, name)


def test_what_is_no_metadata_is_told() -> None:
    with pytest.raises(UntrustedError, match="this is no TUF metadata"):
        trust.metadata(b"{}")


def test_what_is_quoted_steers_no_terminal(sim: Simulator) -> None:
    data = json.dumps({"signatures": [], "signed": {**sim.plain(TARGETS), "spec_version": "\x1b["}})

    with pytest.raises(UntrustedError, match=r"Failed to parse spec_version \?\["):
        trust.check(data.encode(), TARGETS)


def test_expected_failures_are_of_the_release_team() -> None:
    for error in (UntrustedError, ExpiredError, RollbackError, DocumentError, IdentityError):
        assert issubclass(error, UpdateAgentError)
        assert error.exit_code == 3


def test_the_beginning_is_before_everything() -> None:
    assert datetime(1970, 1, 1, tzinfo=UTC) == BEGINNING
