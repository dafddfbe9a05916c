"""``update-agent-image``: make slot images, and put payloads into slots without a daemon.

What makes images and disks is imported only for the verbs that do: it needs much that ``apply``, in
factories and on a broken host, does not.
"""

import hashlib
import json
import math
import os
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

from update_agent import cli
from update_agent.core import payload
from update_agent.core.payload import Index, PayloadError, Totals
from update_agent.core.release import MAX_INDEX
from update_agent.errors import HostError, ReleaseError
from update_agent.host import install as installing
from update_agent.host.device import Device, open_device
from update_agent.host.download import Download, NoMirrorError
from update_agent.host.http import HttpError, Limits, Network, Way, get
from update_agent.host.install import Done, Source
from update_agent.publish import seal as sealing

if TYPE_CHECKING:
    from tqdm import tqdm

_DISK_RATE = 300e6
"""Bytes a second that a disk is expected to read and write, before anything was measured."""

_EPILOG = """\
examples:
  update-agent-image build --version 1.0.0 --output v1.img
  update-agent-image disk --image v1.img --output disk.img
  update-agent-image disk --image v1.img --output /dev/sdX
  update-agent-image seal --root root/ --kernel linux.efi --output v2.img
  update-agent-image apply --index http://server/v2.index --slot /dev/sda3 --source /dev/sda2
  update-agent-image apply --index v2.from.v1.index --full v2.index --slot slot.img --source v1.img

'update-publish payload' makes indexes and blobs; 'update-agent-slots' changes boot flags."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    os.umask(0o022)  # what is made is for everyone: images, and the cache they come from
    words = sys.argv[1:] if argv is None else argv
    return cli.run(command(words), words)


def command(words: Sequence[str] | None = None) -> ArgumentParser:
    """Return what the program can be told: all of it, or what a command line of ``words`` needs."""
    made = cli.parser(
        "update-agent-image", "Make slot images, and put them into slots by hand.", _EPILOG
    )
    verbs = made.add_subparsers(title="verbs", metavar="VERB", required=True)
    build = verbs.add_parser(
        "build",
        help="make a slot image of Debian packages and update-agent",
        description="Make the slot image of a release: install Debian's packages from this "
        "machine's own apt sources (once, then from the cache), lay update-agent and the files "
        "of partition-layout/image/ over them, and seal the root with its kernel. The same "
        "packages and version give the same bytes. Needs root.",
    )
    disk = verbs.add_parser(
        "disk",
        help="make a disk that boots: an image file, or an installation on a device",
        description="Make a disk that boots: the selector, the slot image in slot A, an empty "
        "slot B, and STATE. On a device this is the installation: everything on it is lost, "
        "what was written is read back, and a device in use is refused.",
    )
    for name, verb, module in (("build", build, "build"), ("disk", disk, "disk_image")):
        if words is None or name in words:
            import_module(f"update_agent.publish.{module}").add_options(verb)
    _add_seal(
        verbs.add_parser(
            "seal",
            help="make a slot image of a root file system and a kernel",
            description="Make a slot image: the root as erofs, its dm-verity tree, the kernel. "
            "The same input gives the same bytes. Prints the verity root hash.",
        )
    )
    _add_apply(
        verbs.add_parser(
            "apply",
            help="put a payload into a slot: factory and recovery",
            description="Fetch a payload, write it to a slot, read everything back and verify it. "
            "What the slot already holds right is kept, so the command can be repeated after any "
            "interruption. Boot flags are left alone, and no signature is checked: name the "
            "SHA-256 of the index, or trust the way to it.",
        )
    )
    return made


# seal --------------------------------------------------------------------------------------------


def _add_seal(verb: ArgumentParser) -> None:
    verb.add_argument("--root", type=Path, required=True, metavar="EROFS-OR-FOLDER",
                      help="the root file system")  # fmt: skip
    verb.add_argument("--kernel", type=Path, required=True, metavar="FILE",
                      help="the unified kernel image")  # fmt: skip
    verb.add_argument("--output", type=Path, required=True, metavar="IMAGE",
                      help="the slot image to make")  # fmt: skip
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=seal)


def seal(options: Namespace) -> int:
    """Make a slot image and print its root hash."""
    root_hash = sealing.seal(options.root, options.kernel, options.output)
    size = options.output.stat().st_size
    if options.json:
        print(json.dumps({"image": str(options.output), "bytes": size, "root_hash": root_hash}))
    else:
        print(f"{options.output}: {size / 1e6:.1f} MB, root hash {root_hash}")
    return 0


# apply -------------------------------------------------------------------------------------------


def _add_apply(verb: ArgumentParser) -> None:
    verb.add_argument("--index", required=True, metavar="URL-OR-FILE",
                      help="the payload's index; its blob lies beside it")  # fmt: skip
    verb.add_argument("--sha256", type=_sha256, metavar="HEX", help="what the index must hash to")
    verb.add_argument("--full", metavar="URL-OR-FILE",
                      help="index of the full payload, for when a delta payload doesn't fit the "
                      "source")  # fmt: skip
    verb.add_argument("--full-sha256", type=_sha256, metavar="HEX",
                      help="what the index of the full payload must hash to; with --full, --sha256 "
                      "needs it")  # fmt: skip
    verb.add_argument("--mirror", action="append", default=[], metavar="URL",
                      help="the same index at another server; may be repeated")  # fmt: skip
    verb.add_argument("--slot", type=Path, required=True, metavar="DEVICE-OR-FILE",
                      help="where the image goes; all of it is overwritten")  # fmt: skip
    verb.add_argument("--source", type=Path, metavar="DEVICE-OR-FILE",
                      help="a slot or image to take equal parts from")  # fmt: skip
    verb.add_argument("--source-index", type=Path, metavar="FILE",
                      help="its index, which spares reading it to find them")  # fmt: skip
    verb.add_argument("--rate", type=_positive, metavar="MB/S", help="fetch at most this fast")
    verb.add_argument("--deadline", type=_positive, default=Limits().deadline, metavar="SECONDS",
                      help="give up after this time (default: %(default).0f)")  # fmt: skip
    verb.add_argument("--proxy", metavar="URL", help="fetch through this proxy")
    verb.add_argument("--ca", metavar="FILE", help="certificates to accept for HTTPS")
    verb.add_argument("--connections", type=_count, default=Way().connections, metavar="N",
                      help="connections to each server (default: %(default)s)")  # fmt: skip
    verb.add_argument("--json", action="store_true", help="print JSON, and no progress")
    verb.set_defaults(run=apply, wrong_usage=verb.error)


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise ArgumentTypeError(f"{text!r} is no SHA-256, wanted 64 hexadecimal digits")
    return text.lower()


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _count(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,3}", text):
        raise ArgumentTypeError(f"{text!r} is no whole number from 1 to 9999")
    return int(text)


def apply(options: Namespace) -> int:
    """Put a payload into a slot and say what was done."""
    if options.full and options.sha256 and not options.full_sha256:
        options.wrong_usage("--full with --sha256 needs --full-sha256: else it is not checked")
    network = Network(
        Limits(rate=options.rate and options.rate * 1e6, deadline=options.deadline),
        Way(proxy=options.proxy, ca_file=options.ca, connections=options.connections),
    )
    with ExitStack() as stack:
        began = network.now()
        sources = [_source(network, options.index, options.mirror, options.sha256, stack)]
        if options.full:
            sources.append(_source(network, options.full, [], options.full_sha256, stack))
            _check_alike(*sources)
        fetch_rate = _fetch_rate(network.fetched, network.now() - began, options.rate)
        target = stack.enter_context(_slot(options.slot, sources[0].index.image_size))
        booted = options.source and stack.enter_context(open_device(options.source))
        if booted and booted.identity == target.identity:
            raise HostError(
                f"{options.slot} is the source as well", hint="name the slot that is to be written"
            )
        booted_index = options.source_index and _decode(
            _read(options.source_index), options.source_index
        )
        with _Bar(fetch_rate=fetch_rate, quiet=options.json) as bar:
            done = installing.install(
                target, sources, booted=booted, booted_index=booted_index, progress=bar
            )
    result = {**_as_json(done, network), "expected_seconds": round(bar.expected, 3)}
    print(json.dumps(result) if options.json else _as_text(result))
    return 0


def _fetch_rate(fetched: int, seconds: float, limit: float | None) -> float:
    """Return the bytes a second to expect: what the indexes came with, or the limit in MB/s."""
    measured = fetched / seconds if fetched else _DISK_RATE
    return min(measured, limit * 1e6) if limit else measured


def _slot(path: Path, size: int) -> AbstractContextManager[Device]:
    """Open the slot; an image file is made, or made as large as needed."""
    try:
        if not path.exists() and Path("/dev") in path.absolute().parents:
            raise HostError(f"there is no device {path}")
        if not path.exists() or (path.is_file() and path.stat().st_size < size):
            with path.open("ab") as file:
                file.truncate(size)
    except OSError as error:
        raise HostError(f"cannot make {path}: {error.strerror}") from error
    return open_device(path, writable=True, exclusive=True)


def _source(
    network: Network, where: str, mirrors: Sequence[str], wanted: str | None, stack: ExitStack
) -> Source:
    remote = where.startswith(("http://", "https://"))
    data = _fetch(network, (where, *mirrors)) if remote else _read(Path(where))
    found = hashlib.sha256(data).hexdigest()
    if wanted and found != wanted:
        raise ReleaseError(f"{where} has the SHA-256 {found}, wanted {wanted}")
    index = _decode(data, where)
    if remote:
        urls = [_blob_name(url) for url in (where, *mirrors)]
        blob: installing.Blob = Download(network, urls, blob_size=index.blob_size)
    else:
        file = stack.enter_context(open_device(Path(_blob_name(where))))
        blob = installing.FileBlob(file, index, network.took)
    return Source(name=where, index=index, blob=blob)


def _fetch(network: Network, urls: Sequence[str]) -> bytes:
    """Return an index from the first server that gives it."""
    errors: list[HttpError] = []
    for url in urls:
        try:
            return get(network, url, max_size=MAX_INDEX)
        except HttpError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    raise NoMirrorError("no mirror is left: " + "; ".join(map(str, errors)), hint=errors[-1].hint)


def _blob_name(index: str) -> str:
    if not index.endswith(".index"):
        raise HostError(f"{index} does not end in .index, so its blob can't be named")
    return index.removesuffix(".index") + ".blob"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error


def _decode(data: bytes, where: object) -> Index:
    try:
        return payload.decode(data)
    except PayloadError as error:
        raise PayloadError(f"{where}: {error}", hint=error.hint) from error


def _check_alike(first: Source, second: Source) -> None:
    """Refuse to fall over to the payload of another image."""
    if first.index.root_hash != second.index.root_hash:
        raise ReleaseError(
            f"{first.name} makes the image with root hash {first.index.root_hash.hex()},"
            f" {second.name} the one with {second.index.root_hash.hex()}",
            hint="--full is the full payload of the same image",
        )


class _Bar:
    """Progress for people: the plan as a line, then a bar with rate and time left."""

    def __init__(self, *, fetch_rate: float, quiet: bool) -> None:
        self.expected = 0.0
        self._fetch_rate = fetch_rate
        self._quiet = quiet
        self._bar: tqdm[NoReturn] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def planned(self, source: Source, totals: Totals) -> None:
        self.expected = totals.seconds(fetch_rate=self._fetch_rate, disk_rate=_DISK_RATE)
        if not self._quiet:
            print(
                f"{source.name}: fetch {totals.fetch / 1e6:.1f} MB of"
                f" {source.index.stored_size / 1e6:.1f}, copy {totals.copy / 1e6:.1f}, keep"
                f" {totals.keep / 1e6:.1f}, write {totals.write / 1e6:.1f};"
                f" about {self.expected:.0f} s",
                file=sys.stderr,
            )

    def show(self, step: str, done: int, size: int) -> None:
        if self._quiet:
            return
        if self._bar is None:
            from tqdm import tqdm  # noqa: PLC0415  loads slowly, and only people need it

            self._bar = tqdm(desc=step, total=size, unit="B", unit_scale=True, disable=None)
        self._bar.update(done - self._bar.n)


def _as_json(done: Done, network: Network) -> dict[str, Any]:
    totals = done.totals
    return {
        "payload": done.payload,
        "fetched_bytes": network.fetched,
        "saved_bytes": done.saved,
        "copied_bytes": totals.copy,
        "kept_bytes": totals.keep,
        "zero_bytes": totals.zero,
        "written_bytes": done.written,
        "seconds": round(done.seconds, 3),
        "seconds_by_step": {step: round(took, 3) for step, took in done.seconds_by_step.items()},
        "peak_memory_bytes": done.peak_memory,
    }


def _as_text(result: dict[str, Any]) -> str:
    mb = {key: f"{value / 1e6:.1f} MB" for key, value in result.items() if key.endswith("bytes")}
    return (
        f"the slot holds the whole image, read back and verified: {mb['written_bytes']} written,"
        f" {mb['kept_bytes']} kept, in {result['seconds']:.1f} s\n"
        f"fetched {mb['fetched_bytes']}, saved {mb['saved_bytes']},"
        f" copied {mb['copied_bytes']} from the source"
    )
