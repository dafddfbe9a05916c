"""Which members of etcd run on this host, and the way to etcd that the settings say."""

import platform

import pytest

from tests.etcd import Cluster
from update_agent.core import settings
from update_agent.core.settings import Duration
from update_agent.errors import HostError
from update_agent.host import cluster
from update_agent.host.etcd import Access, Member


def member(*urls: str, name: str = "elsewhere", peers: tuple[str, ...] = ()) -> Member:
    return Member(id="1", name=name, urls=urls, peers=peers)


def is_own(it: Member, **more: object) -> bool:
    return cluster.own(settings.Cluster(**more), [it]) == {"1"}  # type: ignore[arg-type]


def test_a_member_at_an_address_of_this_host_is_its_own(etcd3: Cluster) -> None:
    ours, other = f"https://{etcd3.network}.1:2379", f"https://{etcd3.network}.2:2379"

    assert is_own(member(ours))
    assert is_own(member(other, ours))
    assert is_own(member("http://localhost:2379", peers=(ours,)))
    assert not is_own(member(other))


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:2379",
        "http://127.0.0.1:2379",
        "http://[::1]:2379",
        "http://nobody.invalid:2379",
        "http://192.0.2.1:2379",
        "unix:///run/etcd",
        "",
    ],
)
def test_what_every_host_has_or_none_is_nobody_s(url: str) -> None:
    assert not is_own(member(url))


def test_a_member_of_this_host_s_name_is_its_own() -> None:
    assert is_own(member("http://192.0.2.1:2379", name=platform.node()))


def test_the_name_that_is_set_decides(etcd3: Cluster) -> None:
    ours = f"https://{etcd3.network}.1:2379"

    assert is_own(member("http://localhost:2379", name="one"), member="one")
    assert not is_own(member(ours, name="two"), member="one")


def test_the_way_to_etcd_is_that_of_the_settings() -> None:
    said = settings.Cluster(
        endpoints=("https://a.example",), ca="/ca", cert="/cert", key="/key", user="u",
        password_file="/p", deadline=Duration(seconds=3),  # noqa: S106
    )  # fmt: skip

    assert cluster.access(said) == Access(
        endpoints=("https://a.example",), ca="/ca", cert="/cert", key="/key", user="u",
        password_file="/p", deadline=3.0,  # noqa: S106
    )  # fmt: skip


def test_without_endpoints_there_is_no_cluster() -> None:
    with pytest.raises(HostError, match="names no etcd"):
        cluster.connected(settings.Cluster())
