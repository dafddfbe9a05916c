"""Keys in files, in a token, in people's pockets: who can sign, and what is said if nobody."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from securesystemslib.signer import SSlibKey, VaultSigner
from tuf.api.metadata import Metadata, Timestamp

from update_agent.publish import keys
from update_agent.publish.keys import KeyFileError, Keyring

PEM, PKCS8 = Encoding.PEM, PrivateFormat.PKCS8


def no_secret(_: str) -> str:
    raise AssertionError("nobody should be asked")


def signs(ring: Keyring, *key_ids: str) -> bool:
    """Return whether all of these keys are at hand, and sign so that their public halves agree."""
    metadata = Metadata(Timestamp())
    ring.sign(metadata, key_ids)
    for key_id, signature in metadata.signatures.items():
        ring.find(key_id).key.verify_signature(signature, metadata.signed_bytes)
    return set(metadata.signatures) == set(key_ids)


# Files -------------------------------------------------------------------------------------------


def test_a_key_that_was_made_signs_after_the_ring_is_read_again(tmp_path: Path) -> None:
    made = Keyring([tmp_path], no_secret).generate("releases")

    ring = Keyring([tmp_path], no_secret)

    assert signs(ring, made.keyid)
    assert ring.name(made.keyid) == "releases"
    assert ring.find("releases").key == ring.find(made.keyid[:10]).key == made


def test_a_key_in_a_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    made = Keyring([tmp_path], no_secret).generate("releases")
    pem = tmp_path / "releases.pem"

    assert pem.stat().st_mode & 0o777 == 0o600
    pem.chmod(0o640)
    with pytest.raises(KeyFileError, match=r"releases\.pem can be read by others") as refused:
        Keyring([tmp_path], no_secret).sign(Metadata(Timestamp()), [made.keyid])
    assert refused.value.hint == f"chmod 600 {pem}"


def test_a_passphrase_protects_a_key_and_is_asked_for_by_name(tmp_path: Path) -> None:
    made = Keyring([tmp_path], no_secret).generate("root-1", lambda _: "open sesame")
    asked: list[str] = []

    def answer(what: str) -> str:
        asked.append(what)
        return "open sesame"

    assert b"ENCRYPTED" in (tmp_path / "root-1.pem").read_bytes()
    assert signs(Keyring([tmp_path], answer), made.keyid)
    assert asked == ["passphrase of root-1.pem"]
    with pytest.raises(KeyFileError, match="the passphrase is wrong, or it is no key"):
        Keyring([tmp_path], lambda _: "open says me").sign(Metadata(Timestamp()), [made.keyid])


def test_the_passphrase_can_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Keyring([tmp_path]).generate("root-1", lambda _: "open sesame")
    monkeypatch.setenv(keys.PASSPHRASE, "open sesame")

    assert signs(Keyring([tmp_path]), made.keyid)


def test_without_anybody_to_ask_the_way_out_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Keyring([tmp_path]).generate("root-1", lambda _: "open sesame")
    monkeypatch.delenv(keys.PASSPHRASE, raising=False)
    monkeypatch.setattr("getpass.getpass", _end_of_file)

    with pytest.raises(KeyFileError, match="nobody can be asked") as refused:
        Keyring([tmp_path]).sign(Metadata(Timestamp()), [made.keyid])
    assert refused.value.hint == f"set {keys.PASSPHRASE}"


def _end_of_file(_: str) -> str:
    raise EOFError


def test_making_a_key_again_gives_the_same_key(tmp_path: Path) -> None:
    first = Keyring([tmp_path], no_secret).generate("releases")

    assert Keyring([tmp_path], no_secret).generate("releases") == first


def test_a_key_whose_ring_was_not_written_yet_is_found_again(tmp_path: Path) -> None:
    first = Keyring([tmp_path], no_secret).generate("releases")
    (tmp_path / keys.RING).unlink()  # as after a kill between both files

    assert Keyring([tmp_path], no_secret).generate("releases") == first


def test_a_file_with_another_key_is_refused(tmp_path: Path) -> None:
    ring = Keyring([tmp_path], no_secret)
    one, two = ring.generate("one"), ring.generate("two")
    shutil.copy(tmp_path / "two.pem", tmp_path / "one.pem")

    with pytest.raises(KeyFileError, match=r"one\.pem holds another key"):
        Keyring([tmp_path], no_secret).sign(Metadata(Timestamp()), [one.keyid])
    assert signs(Keyring([tmp_path], no_secret), two.keyid)


def test_a_key_that_is_gone_is_not_at_hand(tmp_path: Path) -> None:
    made = Keyring([tmp_path], no_secret).generate("one")
    (tmp_path / "one.pem").unlink()

    assert not signs(Keyring([tmp_path], no_secret), made.keyid)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be used: it is no key in PEM"), (b"\0" * 500, "cannot be used")],
)
def test_a_key_that_is_damaged_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    made = Keyring([tmp_path], no_secret).generate("one")
    (tmp_path / "one.pem").write_bytes(content)

    with pytest.raises(KeyFileError, match=message) as refused:
        Keyring([tmp_path], no_secret).sign(Metadata(Timestamp()), [made.keyid])
    assert "one.pem" in str(refused.value)


def test_a_damaged_ring_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    Keyring([tmp_path], no_secret).generate("one")
    (tmp_path / keys.RING).write_bytes(b"{")

    with pytest.raises(Exception, match=r"keyring\.json is no plain JSON"):
        Keyring([tmp_path])


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_keys_of_other_kinds_sign_too(tmp_path: Path, kind: str) -> None:
    private = (
        ec.generate_private_key(ec.SECP256R1())
        if kind == "ecdsa"
        else rsa.generate_private_key(65537, 2048)
    )
    path = tmp_path / "other.pem"
    path.write_bytes(private.private_bytes(PEM, PKCS8, NoEncryption()))
    path.chmod(0o600)
    ring = Keyring([tmp_path / "ring"], no_secret)

    added = ring.add("other", f"file:{path}")

    assert added.keytype == kind
    assert signs(Keyring([tmp_path / "ring"], no_secret), added.keyid)


# Rings -------------------------------------------------------------------------------------------


def test_several_rings_are_one_and_each_key_stays_in_its_own(tmp_path: Path) -> None:
    offline = Keyring([tmp_path / "offline"], no_secret).generate("root-1")
    online = Keyring([tmp_path / "online"], no_secret).generate("online")

    both = Keyring([tmp_path / "offline", tmp_path / "online"], no_secret)

    assert signs(both, offline.keyid, online.keyid)
    assert not signs(Keyring([tmp_path / "online"]), offline.keyid, online.keyid)


def test_a_name_that_is_taken_or_unknown_is_refused(tmp_path: Path) -> None:
    ring = Keyring([tmp_path], no_secret)
    ring.generate("one")
    other = Keyring([tmp_path / "other"], no_secret).generate("two")

    with pytest.raises(KeyFileError, match="another key is called one already"):
        ring.add("one", f"file:{tmp_path}/other/two.pem")
    assert ring.name(other.keyid) == other.keyid[:12]
    with pytest.raises(KeyFileError, match="0 keys are called two") as refused:
        ring.find("two")
    assert refused.value.hint == "known: one"


@pytest.mark.case(98)
@pytest.mark.parametrize("name", ["../one", "a/b", "", ".hidden", "x" * 64])
def test_a_name_that_would_lead_elsewhere_makes_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyFileError, match="is no name for a key"):
        Keyring([tmp_path / "ring"], no_secret).generate(name)
    assert list(tmp_path.rglob("*.pem")) == []


# Keys elsewhere ----------------------------------------------------------------------------------


def test_a_kind_of_key_that_nobody_knows_is_refused_with_those_known(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="nobody knows keys of the kind magic") as refused:
        Keyring([tmp_path]).add("x", "magic:wand")

    assert refused.value.hint
    assert {"file", "hsm", "awskms", "gcpkms", "azurekms", "hv"} <= set(
        refused.value.hint.removeprefix("known: ").split(", ")
    )


def test_a_key_that_cannot_be_asked_for_its_public_half_needs_it_named(tmp_path: Path) -> None:
    uri = "azurekms://vault.example/keys/release/1"
    ring = Keyring([tmp_path], no_secret)
    public = tmp_path / "public.pem"
    private = ec.generate_private_key(ec.SECP256R1())
    public.write_bytes(private.public_key().public_bytes(PEM, PublicFormat.SubjectPublicKeyInfo))

    with pytest.raises(KeyFileError, match="name its public key too") as refused:
        ring.add("cloud", uri)
    assert refused.value.hint == "--public-key FILE.pem"
    assert ring.add("cloud", uri, public).keytype == "ecdsa"
    assert ring.find("cloud").uri == uri


def test_a_key_whose_id_no_ring_takes_leaves_the_ring_as_it_was(tmp_path: Path) -> None:
    ring = Keyring([tmp_path])
    ring.generate("old")
    before = (tmp_path / "keyring.json").read_bytes()
    key = SSlibKey("1" * 40, "ed25519", "ed25519", {"public": "00" * 32})

    with pytest.raises(KeyFileError, match="gnupg:x: Expected `str` matching regex"):
        ring._remember("gpg", "gnupg:x", key, tmp_path)

    assert (tmp_path / "keyring.json").read_bytes() == before


@pytest.mark.parametrize("wanted", ["hv:release", "hv:release/1"])
def test_vault_tells_the_newest_version_of_a_key_alone(
    wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = SSlibKey("1" * 64, "ed25519", "ed25519", {"public": "00" * 32})
    monkeypatch.setattr(VaultSigner, "import_", lambda name: (f"hv:{name}/2", key))

    with pytest.raises(KeyFileError, match="the newest version of that key is hv:release/2"):
        Keyring([tmp_path]).add("vault", wanted)
    assert Keyring([tmp_path]).add("vault", "hv:release/2") is key


def test_a_cloud_that_is_not_installed_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"hv:release/1 cannot be had: .*hvac"):
        Keyring([tmp_path]).add("vault", "hv:release/1")


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The label of a software PKCS#11 token with an ECDSA key in slot 2."""
    (tmp_path / "tokens").mkdir()
    config = tmp_path / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {tmp_path}/tokens\nlog.level = ERROR\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(config))
    monkeypatch.setenv("PYKCS11LIB", "/usr/lib/softhsm/libsofthsm2.so")
    monkeypatch.setenv(keys.PASSPHRASE, "1234")
    private = ec.generate_private_key(ec.SECP256R1())
    pem = tmp_path / "private.pem"
    pem.write_bytes(private.private_bytes(PEM, PKCS8, NoEncryption()))
    util = ["softhsm2-util", "--token", "release team"]
    subprocess.run(
        [*util[:1], "--init-token", "--free", "--label", "release team", "--pin", "1234",
         "--so-pin", "1234"], check=True, capture_output=True, env=dict(os.environ),
    )  # fmt: skip
    subprocess.run(
        [*util, "--import", str(pem), "--label", "release", "--id", "02", "--pin", "1234"],
        check=True, capture_output=True, env=dict(os.environ),
    )  # fmt: skip
    return "release team"


def test_a_key_in_a_token_signs_and_never_is_a_file(tmp_path: Path, token: str) -> None:
    uri = f"hsm:2?label={token.replace(' ', '+')}"

    added = Keyring([tmp_path / "ring"]).add("release-hsm", uri)

    assert added.keytype == "ecdsa"
    assert signs(Keyring([tmp_path / "ring"]), added.keyid)
    assert [it.name for it in (tmp_path / "ring").iterdir()] == [keys.RING]
