"""Whether etcd stands it when this host reboots, should one of its members run here."""

from collections.abc import Collection, Sequence

from update_agent.core.quorum import Standing, quorum
from update_agent.core.reason import Wait
from update_agent.host.etcd import Etcd, Member


def quorum_wait(etcd: Etcd, members: Sequence[Member], own: Collection[str]) -> Wait | None:
    """Return why this host must not reboot now: without it etcd would lose its quorum.

    ``members`` are all that etcd has, ``own`` the ids of those that run here (``cluster.py``).
    """
    if not any(it.id in own for it in members):
        return None
    return quorum([_standing(etcd, it, mine=it.id in own) for it in members])


def _standing(etcd: Etcd, it: Member, *, mine: bool) -> Standing:
    return Standing(name=it.name or it.id, mine=mine, learner=it.learner, index=etcd.index(it))
