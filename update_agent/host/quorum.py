"""Whether etcd stands it when this host reboots, should one of its members run here."""

from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from update_agent.core.quorum import Standing, quorum
from update_agent.core.reason import Wait
from update_agent.host.etcd import Etcd, Member


def quorum_wait(etcd: Etcd, members: Sequence[Member], own: Collection[str]) -> Wait | None:
    """Return why this host must not reboot now: without it etcd would lose its quorum.

    ``members`` are all that etcd has. ``own`` is what one that runs here may go by: its name, its
    id, and the names and addresses of this host, as in a member's URLs. Raises EtcdError.
    """
    if not any(_is_one(it, own) for it in members):
        return None
    return quorum([_standing(etcd, it, own) for it in members])


def _standing(etcd: Etcd, it: Member, own: Collection[str]) -> Standing:
    return Standing(
        name=it.name or it.id,
        mine=_is_one(it, own),
        learner=it.learner,
        index=etcd.index(it),
    )


def _is_one(it: Member, own: Collection[str]) -> bool:
    hosts = {urlsplit(url).hostname for url in (*it.urls, *it.peers)}
    return any(word in (it.name, it.id) or word in hosts for word in own if word)
