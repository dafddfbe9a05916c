"""Which proven release may come onto which host, as a table."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from update_agent.core.channel import Change, Channel
from update_agent.core.release import IdentityError, PayloadReference, Release
from update_agent.core.trust import Proven
from update_agent.core.version import Version
from update_agent.core.wire import RefusedError
from update_agent.writer.host import Host
from update_agent.writer.rules import want_admissible, want_product

NOW = datetime(2026, 11, 24, tzinfo=UTC)
HOST = Host(
    disk=Path("disk"), booted=2, product="os", version=Version("1.5.0"), architecture="x86_64"
)
RELEASE = Release(
    product="os", architecture="x86_64", version=Version("1.6.0"), published=NOW, image_size=4096,
    root_hash="0" * 64,
    payloads=(PayloadReference(index_size=1, index_sha256="0" * 64, blob_size=0, stored_size=0),),
)  # fmt: skip
DOWN = Version("1.4.0")


def channel(product: str = "os", *, version: Version = DOWN, **fields: object) -> Channel:
    change = Change(time=NOW, author="a", what="w")
    made = Channel.created("stable", product, change).promote(version, change)
    return replace(made, **fields)  # type: ignore[arg-type]


def proven(said: Channel | None = None, **fields: object) -> Proven:
    found = replace(RELEASE, **fields)  # type: ignore[arg-type]
    return Proven(release=found, channel=said, root_version=1, releases_version=1)


ALLOWED = channel(downgrade_from=(HOST.version,))


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(proven(), id="newer"),
        pytest.param(proven(version=HOST.version), id="the-same"),
        pytest.param(proven(minimum_version=HOST.version), id="from-just-this-version"),
        pytest.param(proven(ALLOWED, version=DOWN), id="down-as-the-channel-says"),
        pytest.param(proven(channel(quarantined=(DOWN,))), id="another-one-is-in-quarantine"),
    ],
)
def test_what_may_come(found: Proven) -> None:
    want_admissible(HOST, found)


@pytest.mark.parametrize(
    ("found", "error", "match"),
    [
        pytest.param(proven(product="nas"), IdentityError, "a release of nas", id="product"),
        pytest.param(proven(architecture="arm"), IdentityError, "is for arm", id="architecture"),
        pytest.param(proven(minimum_version=Version("1.5.1")), RefusedError,
                     "can be installed from 1.5.1 or later", id="minimum"),
        pytest.param(proven(version=Version("1.5.0-rc.1")), RefusedError,
                     "1.5.0-rc.1 is below the version that runs, 1.5.0", id="its-own-candidate"),
        pytest.param(proven(version=DOWN), RefusedError, "is below", id="down"),
        pytest.param(proven(channel(), version=DOWN), RefusedError, "is below", id="down-unsaid"),
        pytest.param(proven(ALLOWED, version=Version("1.3.0")), RefusedError, "is below",
                     id="down-to-what-the-channel-does-not-offer"),
        pytest.param(proven(channel(downgrade_from=(Version("1.5.1"),)), version=DOWN),
                     RefusedError, "is below", id="down-from-another"),
        pytest.param(proven(channel("nas", downgrade_from=(HOST.version,)), version=DOWN),
                     IdentityError, "channel stable is for product nas", id="a-strange-channel"),
        pytest.param(proven(channel(quarantined=(RELEASE.version,))), RefusedError,
                     "1.6.0 is quarantined", id="quarantine"),
        pytest.param(proven(replace(ALLOWED, quarantined=(DOWN,)), version=DOWN), RefusedError,
                     "1.4.0 is quarantined", id="quarantine-before-downgrade"),
    ],
)  # fmt: skip
def test_what_may_not(found: Proven, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match.replace(".", r"\.")):
        want_admissible(HOST, found)


def test_another_product_is_refused_before_anything_is_read() -> None:
    with pytest.raises(IdentityError, match=r"^a release of nas is asked for, this host's produ"):
        want_product(HOST, "nas")
