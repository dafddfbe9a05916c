"""``update-publish release``: add, list, show, withdraw."""

import json
import platform
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from update_agent.core import document
from update_agent.core.release import Release
from update_agent.core.trust import RELEASES
from update_agent.core.version import Version
from update_agent.publish import channels, releases, verbs
from update_agent.publish.payload import DELTA_LEVEL, LEVEL
from update_agent.publish.repository import RepositoryError

_LAST = 3
"""Releases before a new one that get a delta payload when nothing else is said."""


def add_verbs(verb: ArgumentParser) -> None:
    """Add the verbs of this module."""
    actions = verb.add_subparsers(title="verbs", metavar="VERB", required=True)
    add = actions.add_parser(
        "add",
        help="publish a slot image as a release",
        description="Make the payloads of a slot image, put them into the repository, and sign the "
        "release. Nobody is offered it before a channel is promoted to it. Repeating the command "
        "adds the deltas that are missing, and changes nothing else.",
    )
    verbs.add_options(add)
    add.add_argument("image", type=Path, metavar="IMAGE", help="made by update-agent-image seal")
    _add_identity(add)
    add.add_argument("--architecture", type=verbs.name, default=platform.machine(), metavar="NAME",
                     help="of the hosts, as uname -m says it (default: %(default)s)")  # fmt: skip
    add.add_argument("--from", dest="sources", action="append", type=_source, metavar="OLD",
                     help="make a delta for hosts with this version, or image; may be repeated; "
                     "'none' for none")  # fmt: skip
    add.add_argument("--last", type=_count, default=_LAST, metavar="N",
                     help="without --from: deltas from so many releases before (default: "
                     "%(default)s)")  # fmt: skip
    add.add_argument("--minimum-version", type=verbs.version, metavar="VERSION",
                     help="hosts below this take another release first")  # fmt: skip
    add.add_argument("--level", type=int, choices=range(1, 23), metavar="1-22",
                     help=f"of zstd (default: {LEVEL} for full payloads, {DELTA_LEVEL} for "
                     "deltas)")  # fmt: skip
    add.set_defaults(run=run_add)
    listing = actions.add_parser("list", help="show all releases")
    verbs.add_options(listing, keys=False)
    listing.add_argument("--product", type=verbs.name, metavar="NAME", help="only those of this")
    listing.set_defaults(run=run_list)
    show = actions.add_parser("show", help="show one release and its payloads")
    verbs.add_options(show, keys=False)
    _add_identity(show)
    show.set_defaults(run=run_show)
    withdraw = actions.add_parser(
        "withdraw",
        help="let no further host install a release",
        description="Take a release out of what is signed. Hosts that run it keep running; the "
        "version can't be used again. Pausing a channel is quicker: it needs the online key only.",
    )
    verbs.add_options(withdraw)
    _add_identity(withdraw)
    verbs.add_author(withdraw, reason=True)
    withdraw.set_defaults(run=run_withdraw)


def _add_identity(verb: ArgumentParser) -> None:
    verb.add_argument("--product", type=verbs.name, required=True, metavar="NAME",
                      help="what the image is, as IMAGE_ID in its os-release")  # fmt: skip
    verb.add_argument("--version", type=verbs.version, required=True, metavar="VERSION",
                      help="SemVer, as IMAGE_VERSION in its os-release")  # fmt: skip


def _source(text: str) -> Version | Path | None:
    if text == "none":
        return None
    try:
        is_file = "/" in text or Path(text).exists()
    except OSError:  # no name of a file can be that long
        is_file = False
    return Path(text) if is_file else verbs.version(text)


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,2}", text):
        raise ArgumentTypeError(f"{text!r} is no number from 0 to 99")
    return int(text)


def run_add(options: Namespace) -> int:
    """Publish a slot image."""
    repository = verbs.opened(options)
    if options.sources is None:
        before = [it.version for it in releases.listed(repository, options.product)
                  if it.version < options.version]  # fmt: skip
        sources: list[Version | Path] = list(before[-options.last :] if options.last else [])
    else:
        sources = [it for it in options.sources if it is not None]
    with verbs.Bars(quiet=options.json) as bars:
        added = releases.add(
            repository,
            options.image,
            product=options.product,
            version=options.version,
            architecture=options.architecture,
            sources=sources,
            minimum_version=options.minimum_version,
            level=options.level,
            progress=bars,
        )
    plain = {**_plain(added.release), "new_payloads": added.new_payloads}
    return verbs.report(options, repository, added.committed, _text(added.release), plain)


def run_list(options: Namespace) -> int:
    """Show all releases."""
    repository = verbs.opened(options)
    found = releases.listed(repository, options.product)
    gone = releases.withdrawals(repository.targets(RELEASES))
    plain = {
        "releases": [_plain(it) for it in found],
        "withdrawn": [{"path": path, "author": it.author, "reason": it.reason}
                      for path, it in gone.items()],
    }  # fmt: skip
    lines = [
        f"{it.product} {it.version!s:12} {it.published:%Y-%m-%d %H:%M}  {it.architecture}"
        f"  {it.full.stored_size / 1e6:7.1f} MB"
        f"  deltas from: {', '.join(_deltas(it)) or 'none'}"
        for it in found
    ]
    lines += [
        f"{' '.join(path.split('/')[1:3])} withdrawn {it.time:%Y-%m-%d %H:%M} by {it.author}:"
        f" {it.reason}"
        for path, it in gone.items()
    ]
    verbs.show(options, plain, "\n".join(lines) or "no releases yet")
    return 0


def run_show(options: Namespace) -> int:
    """Show one release."""
    found = releases.find(verbs.opened(options), options.product, options.version)
    if found is None:
        raise RepositoryError(
            f"there is no release {options.product} {options.version}",
            hint="see update-publish release list",
        )
    verbs.show(options, _plain(found), _text(found))
    return 0


def run_withdraw(options: Namespace) -> int:
    """Let no further host install a release."""
    repository = verbs.opened(options)
    committed = releases.withdraw(
        repository,
        options.product,
        options.version,
        author=options.author,
        reason=options.reason,
    )
    still = [it.channel for it in channels.listed(repository)
             if (it.product, it.version) == (options.product, options.version)]  # fmt: skip
    lines = [f"channel {it} still offers it: promote another version" for it in still]
    verbs.report(
        options, repository, committed, "\n".join(lines), {"channels_that_offer_it": still}
    )
    return verbs.out(repository, RELEASES)


def _deltas(found: Release) -> list[str]:
    return [str(it.source.version) for it in found.payloads if it.source]


def _plain(found: Release) -> dict[str, object]:
    plain: dict[str, object] = json.loads(document.encode(found))
    return plain


def _text(found: Release) -> str:
    size = f"{found.image_size / 1e6:.1f} MB"
    lines = [
        f"{found.product} {found.version} for {found.architecture}, {size}",
        f"  root hash {found.root_hash}",
    ]
    lines += [
        f"  {'full' if it.source is None else f'delta from {it.source.version}':24}"
        f" {it.stored_size / 1e6:7.1f} MB  {found.index_path(it)}"
        for it in found.payloads
    ]
    if found.minimum_version:
        lines.append(f"  can be installed from {found.minimum_version} or later")
    return "\n".join(lines)
