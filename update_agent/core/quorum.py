"""Whether etcd stands the reboot of one of its members.

More than half of the voting members must stay that answer, have a leader, and are not far behind:
one that still catches up can't yet vote for what is written next.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from update_agent.core.reason import Reason, Wait

LAG = 5000
"""Entries of the log that a member may be behind the foremost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a member of etcd stands."""

    name: str
    mine: bool = False
    """It runs on the host that wants to reboot."""
    learner: bool = False
    """It has no vote."""
    index: int | None = None
    """How far its log goes; None: it does not answer, has no leader, or complains."""


def quorum(members: Sequence[Standing]) -> Wait | None:
    """Return why the host of those that are ``mine`` must not reboot now."""
    voters = [it for it in members if not it.learner]
    if not any(it.mine for it in voters):
        return None
    foremost = max((it.index for it in voters if it.index is not None), default=0)
    others = [it for it in voters if not it.mine]
    well = [it for it in others if it.index is not None and it.index >= foremost - LAG]
    needed = len(voters) // 2 + 1
    if len(well) >= needed:
        return None
    ill = ", ".join(it.name for it in others if it not in well)
    return Wait(
        reason=Reason.QUORUM,
        sentence=f"this host is a member of etcd, which has {len(voters)}, and needs {needed};"
        f" without this host {len(well)} would be left"
        + (f", for these are not well: {ill}" if ill else ""),
        ends="all members are well: 'etcdctl endpoint health --cluster'"
        if ill
        else "more members: three stand the reboot of one",
    )
