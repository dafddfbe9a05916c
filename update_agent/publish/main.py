"""``update-publish``: what the release team and operators do with images, releases and channels."""

import json
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from update_agent import cli
from update_agent.publish import cli_channel, cli_release, cli_repository, payload
from update_agent.publish.verbs import Bars

_EPILOG = """\
from nothing to a release on its way (the order of a first day):
  update-publish init --repository www --keys offline --online-keys online
  update-publish release add v1.img --product os --version 1.0.0 --repository www ...
  update-publish channel create stable --product os ...
  update-publish channel promote stable 1.0.0 --wave 1%:1h --wave 10%:4h --wave 100%:1d ...
  update-publish channel pause stable --reason "hosts in rack 7 don't come back" ...
  update-publish refresh ...                 every day, where no update-server does
  update-publish verify ...                                  before and after

www can be served by any web server. 'update-agent-image seal' makes images, 'update-agentctl offer'
shows what a host would be offered."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    os.umask(0o022)  # the tree is for everyone; files with keys say who may read them
    return cli.run(command(), argv)


def command() -> ArgumentParser:
    """Return what the program can be told."""
    made = cli.parser("update-publish", "Publish releases, and steer who gets them.", _EPILOG)
    verbs = made.add_subparsers(title="verbs", metavar="VERB", required=True)
    cli_repository.add_verbs(verbs)
    cli_release.add_verbs(verbs.add_parser("release", help="add, list, show, withdraw releases"))
    cli_channel.add_verbs(
        verbs.add_parser("channel", help="create, promote, pause, resume, simulate channels")
    )
    _add_payload(
        verbs.add_parser(
            "payload",
            help="make a full or a delta payload of a slot image, without a repository",
            description="Make the payload of a slot image: an index and a blob. With --from, one "
            "that only hosts with that image in their booted slot can use, and that is smaller.",
        )
    )
    return made


def _add_payload(verb: ArgumentParser) -> None:
    verb.add_argument("image", type=Path, metavar="IMAGE", help="a slot image")
    verb.add_argument("--from", dest="source", type=Path, metavar="IMAGE",
                      help="the slot image that hosts have now")  # fmt: skip
    verb.add_argument("--output", type=Path, required=True, metavar="FOLDER",
                      help="where NAME.index and NAME.blob go")  # fmt: skip
    verb.add_argument("--level", type=int, choices=range(1, 23), metavar="1-22",
                      help=f"of zstd (default: {payload.LEVEL}, with --from"
                      f" {payload.DELTA_LEVEL})")  # fmt: skip
    verb.add_argument("--json", action="store_true", help="print JSON, and no progress")
    verb.set_defaults(run=make)


def make(options: Namespace) -> int:
    """Make a payload and say how large it is."""
    with Bars(quiet=options.json) as bars:
        bars.begin("chunks", options.image.stat().st_size if options.image.exists() else 0)
        made = payload.make(
            options.image, options.output,
            source=options.source, level=options.level, progress=bars.advance,
        )  # fmt: skip
    sizes = {"index": made.index.stat().st_size, "blob": made.blob.stat().st_size}
    if options.json:
        print(json.dumps({
            "index": str(made.index), "index_bytes": sizes["index"],
            "blob": str(made.blob), "blob_bytes": sizes["blob"],
            "chunks": made.chunks,
        }))  # fmt: skip
    else:
        print(f"{made.index}: {made.chunks} chunks, {sizes['index'] / 1e6:.1f} MB")
        print(f"{made.blob}: {sizes['blob'] / 1e6:.1f} MB")
    return 0
