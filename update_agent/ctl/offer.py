"""``update-agentctl offer``: what this host would install now, without a daemon."""

import json
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from update_agent import cli
from update_agent.core.release import Host
from update_agent.core.rollout import RING
from update_agent.core.settings import Update
from update_agent.core.version import Version
from update_agent.ctl.words import iso
from update_agent.errors import HostError
from update_agent.host import identity, paths
from update_agent.host.http import Limits, Network, Way
from update_agent.host.offer import Offer, ask
from update_agent.host.trust import TrustedRepository

_DEADLINE = 300.0
"""Seconds for everything together; it is a few kilobytes."""


def add_options(verb: ArgumentParser) -> None:
    """Add the options of ``offer``."""
    verb.add_argument("--repository", action="append", required=True, metavar="URL",
                      help="where the repository is; mirrors by repeating")  # fmt: skip
    verb.add_argument("--root", type=Path, default=Path(Update().root), metavar="FILE",
                      help="the trusted root (default: %(default)s)")  # fmt: skip
    verb.add_argument("--channel", default="stable", metavar="NAME",
                      help="(default: %(default)s)")  # fmt: skip
    verb.add_argument("--state", type=Path, default=paths.FOLDER / paths.TRUST, metavar="FOLDER",
                      help="what the host remembers, so that nobody can offer it the past "
                      "(default: %(default)s)")  # fmt: skip
    verb.add_argument("--product", metavar="NAME", help="(default: IMAGE_ID in os-release)")
    verb.add_argument("--version", type=cli.argument(Version), metavar="VERSION",
                      help="what runs (default: IMAGE_VERSION in os-release)")  # fmt: skip
    verb.add_argument("--architecture", default=identity.architecture(), metavar="NAME",
                      help="(default: %(default)s)")  # fmt: skip
    verb.add_argument("--machine-id", metavar="ID", help="(default: /etc/machine-id)")
    verb.add_argument("--force", action="store_true", help="as if somebody here wants it now: past "
                      "the waves; never past signatures, a pause or a quarantine")  # fmt: skip
    verb.add_argument("--proxy", metavar="URL", help="fetch through this proxy")
    verb.add_argument("--ca", metavar="FILE", help="certificates to accept for HTTPS")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Ask, and print the answer; no offer is an answer too."""
    host = _host(options)
    network = Network(Limits(deadline=_DEADLINE), Way(proxy=options.proxy, ca_file=options.ca))
    now = identity.clock()  # by our own file, which others may not see in a checkout
    with (
        _as_owner(options.state),
        TrustedRepository(
            options.repository,
            trusted_root=options.root,
            state=options.state,
            network=network,
            now=now,
        ) as repository,
    ):
        repository.refresh()
        offer = ask(repository, host, options.channel)
    if options.json:
        print(json.dumps({**_plain(offer, host), "fetched_bytes": network.fetched}))
    else:
        print(_text(offer, host, options.channel))
    return 0


@contextmanager
def _as_owner(folder: Path) -> Iterator[None]:
    """Work as whom ``folder`` belongs to: into what root left there, the daemon could not write."""
    there = next(it for it in (folder, *folder.absolute().parents) if it.exists())
    owner, group = there.stat().st_uid, there.stat().st_gid
    if os.geteuid() != 0 or owner == 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(group)
    os.seteuid(owner)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(os.getgid())
        os.setgroups(groups)


def _host(options: Namespace) -> Host:
    product, version = options.product, options.version
    if not (product and version):
        runs = _running()
        product, version = product or runs[0], version or Version(runs[1])
    return Host(
        product=product,
        architecture=options.architecture,
        version=version,
        machine_id=options.machine_id or identity.machine_id(),
        forced=options.force,
    )


def _running() -> tuple[str, str]:
    try:
        return identity.image()
    except HostError as error:
        raise HostError(
            str(error), hint="say what to ask for, with --product and --version"
        ) from error


def _plain(offer: Offer, host: Host) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "offer": None, "product": host.product, "running": str(host.version), "place": offer.place,
        "reason": None, "time": iso(offer.time),
    }  # fmt: skip
    if offer.wait:
        plain["reason"] = {
            "code": offer.wait.reason, "sentence": offer.wait.sentence, "ends": offer.wait.ends,
            "until": iso(offer.wait.until),
        }  # fmt: skip
    if offer.release:
        plain["offer"] = {
            "version": str(offer.release.version), "root_hash": offer.release.root_hash,
            "image_bytes": offer.release.image_size,
            "payloads": [
                {"path": offer.release.index_path(it), "stored_bytes": it.stored_size,
                 "from": it.source and str(it.source.version)}
                for it in offer.release.payloads_for(host.version)
            ],
        }  # fmt: skip
    return plain


def _text(offer: Offer, host: Host, channel_name: str) -> str:
    if offer.wait:
        return (
            f"no update for {host.product} {host.version} in channel {channel_name}"
            f" ({offer.wait.reason}): {offer.wait.sentence}\n"
            f"what would end it: {offer.wait.ends}"
        )
    if offer.release is None:
        raise RuntimeError("an offer is a release or a reason")
    where = f" (this host stands at {offer.place * 100 / RING:.4f} %)" if offer.place else ""
    found = f"{host.product} {offer.release.version}"
    lines = [
        f"{found} for this host, which has {host.version}: channel {channel_name} offers it{where}"
    ]
    lines += [
        f"  {f'delta from {it.source.version}' if it.source else 'full payload':22}"
        f" {it.stored_size / 1e6:8.1f} MB at most  {offer.release.index_path(it)}"
        for it in offer.release.payloads_for(host.version)
    ]
    return "\n".join(lines)
