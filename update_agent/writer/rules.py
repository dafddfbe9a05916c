"""Which proven release may come onto a host. Pure: a decision about values.

The rule kept here: whoever asks, no release comes onto a host but one for its product and
architecture, not below the version that runs unless the signed channel says so, not from a version
it cannot be installed over, and not one that the channel holds in quarantine. Who shows no channel
goes up only, and is told of no quarantine.
"""

from update_agent.core import release
from update_agent.core.channel import Channel
from update_agent.core.reason import Wait
from update_agent.core.release import IdentityError, Release
from update_agent.core.trust import Proven
from update_agent.core.wire import RefusedError
from update_agent.writer.host import Host


def want_product(host: Host, product: str) -> None:
    """Raise IdentityError when a release of ``product`` is asked for on another one's host."""
    if product != host.product:
        raise IdentityError(
            f"a release of {product} is asked for, this host's product is {host.product}",
            hint="choose a channel of this host's product",
        )


def want_admissible(host: Host, proven: Proven) -> None:
    """Raise IdentityError or RefusedError unless the proven release may come onto ``host``."""
    found, channel = proven.release, proven.channel
    want_product(host, found.product)
    held_back = release.held_back(host.as_asked, found)
    if isinstance(held_back, Wait):
        raise RefusedError(held_back.sentence, hint=f"wanted: {held_back.ends}")
    if channel and channel.product != host.product:
        raise IdentityError(
            f"channel {channel.channel} is for product {channel.product},"
            f" this host's is {host.product}"
        )
    if channel and found.version in channel.quarantined:
        raise RefusedError(
            f"{found.version} is quarantined in channel {channel.channel}",
            hint="wanted: another release",
        )
    if found.version < host.version and not _allowed_down(host, found, channel):
        raise RefusedError(
            f"{found.version} is below the version that runs, {host.version}, and no signed"
            " channel allows this downgrade",
            hint="update-publish channel promote --downgrade-from makes one that does",
        )


def _allowed_down(host: Host, found: Release, channel: Channel | None) -> bool:
    return (
        channel is not None
        and channel.version == found.version
        and host.version in channel.downgrade_from
    )
