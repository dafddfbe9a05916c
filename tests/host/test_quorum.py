"""Hosts that are members of etcd, against members that are killed, paused, and behind."""

import pytest

from tests.etcd import Cluster, cluster
from update_agent.core.reason import Reason, Wait
from update_agent.host.quorum import quorum_wait


def waits(etcd3: Cluster, *own: str) -> Wait | None:
    """Ask for the host on which the members called ``own`` run."""
    with etcd3.client(deadline=10.0) as etcd:
        members = etcd.members()
        return quorum_wait(etcd, members, {it.id for it in members if it.name in own})


def test_a_member_waits_while_another_is_silent(etcd3: Cluster) -> None:
    etcd3.members[2].pause()
    try:
        wait = waits(etcd3, "m1")
    finally:
        etcd3.members[2].go_on()

    assert wait
    assert "not well: m2" in wait.sentence


@pytest.mark.case(92)
def test_one_of_three_reboots_when_all_are_well(etcd3: Cluster) -> None:
    assert waits(etcd3, "m0") is None


@pytest.mark.case(92)
def test_a_member_waits_while_another_is_off_and_goes_when_it_is_back() -> None:
    with cluster(3) as three:
        three.members[2].kill()

        wait = waits(three, "m0")
        assert wait
        assert wait.reason is Reason.QUORUM
        assert "etcdctl endpoint health" in wait.ends
        assert waits(three, "web-1") is None

        three.start()
        assert waits(three, "m0") is None


@pytest.mark.case(92)
def test_the_only_member_never_reboots(etcd1: Cluster) -> None:
    wait = waits(etcd1, "m0")

    assert wait
    assert wait.ends == "more members: three stand the reboot of one"
