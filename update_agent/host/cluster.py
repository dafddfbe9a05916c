"""The cluster as a host's settings say it: the way to etcd, who this host is there, its members.

Which members of etcd run on this host is found out by their addresses: one that a packet to it
would leave from is this host's own. Loopback addresses say nothing, for every host has them.
"""

import ipaddress
import platform
import socket
from collections.abc import Iterable
from contextlib import suppress
from math import ceil
from urllib.parse import urlsplit

from update_agent.core.settings import Cluster
from update_agent.errors import HostError
from update_agent.host import identity
from update_agent.host.etcd import Access, Etcd, Member
from update_agent.host.lock import Me


def connected(cluster: Cluster) -> Etcd:
    """Return a client of the etcd in ``cluster``. Raises HostError when none is named."""
    if not cluster.endpoints:
        raise HostError(
            "no cluster is set: cluster.endpoints names no etcd",
            hint="set cluster.endpoints in /etc/update-agent/*.toml; 'update-agentctl config'",
        )
    return Etcd(access(cluster))


def access(cluster: Cluster) -> Access:
    """Return how to reach etcd."""
    return Access(
        endpoints=cluster.endpoints,
        ca=cluster.ca,
        cert=cluster.cert,
        key=cluster.key,
        user=cluster.user,
        password_file=cluster.password_file,
        deadline=cluster.deadline.total_seconds(),
    )


def me(cluster: Cluster, machine_id: str, drain: float) -> Me:
    """Return who this host is to its group. Raises HostError.

    ``drain``: seconds that it may take to get ready for a reboot.
    """
    return Me(
        host=machine_id,
        name=platform.node(),
        boot_id=identity.boot_id(),
        labels=cluster.labels,
        member=cluster.member is not None,
        drain=ceil(drain),
    )


def own(cluster: Cluster, members: Iterable[Member]) -> set[str]:
    """Return the ids of those of ``members`` that run on this host."""
    return {it.id for it in members if _is_own(cluster, it)}


def _is_own(cluster: Cluster, member: Member) -> bool:
    if cluster.member is not None:
        return member.name == cluster.member
    hosts = {urlsplit(url).hostname for url in (*member.urls, *member.peers)}
    return member.name == platform.node() or any(_is_here(it) for it in hosts if it)


def _is_here(host: str) -> bool:
    """Return whether ``host``, a name or an address, is this one."""
    with suppress(OSError, UnicodeError):
        return any(
            _leaves_from(family, where)
            for family, _, _, _, where in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
        )
    return False


def _leaves_from(family: int, where: tuple[object, ...]) -> bool:
    """Return whether a packet to ``where`` would have it as its source; none is sent."""
    if ipaddress.ip_address(str(where[0])).is_loopback:
        return False
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(where)
        return bool(probe.getsockname()[0] == where[0])
    return False
