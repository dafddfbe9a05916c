"""Releases in a repository: added once, never changed, withdrawn when they are bad.

The payloads are made beside the repository and moved into it, blob before index, before anything
signed names them. A release that is there can get further deltas; the same version with another
image is refused.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Protocol

from tuf.api.metadata import Targets

from update_agent.core import document, payload, release
from update_agent.core.chunking import BLOCK
from update_agent.core.payload import Index
from update_agent.core.release import PayloadReference, Release, Source
from update_agent.core.trust import RELEASES
from update_agent.core.version import Version
from update_agent.errors import HostError, ReleaseError
from update_agent.host import files, identity, install, slot
from update_agent.host.device import Device, open_device
from update_agent.publish import payload as making
from update_agent.publish import uki, whole
from update_agent.publish.repository import Committed, Repository, RepositoryError

WITHDRAWN = "x-withdrawn"
"""Field of ``releases`` that remembers what was withdrawn, by path."""


_LOCK = "lock"
"""The file in a folder that whoever works in it has locked."""


class Progress(Protocol):
    """Who wants to know how far the work is."""

    def begin(self, what: str, size: int) -> None:
        """Take note that a step of ``size`` bytes begins."""
        ...

    def advance(self, size: int) -> None:
        """Take note that ``size`` more bytes are done."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """Who withdrew a release, when and why."""

    time: document.Time
    author: document.Text
    reason: document.Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What ``add`` did."""

    release: Release
    new_payloads: int
    committed: Committed


def add(
    repository: Repository,
    image: Path,
    *,
    product: str,
    version: Version,
    architecture: str,
    sources: Sequence[Path | Version] = (),
    minimum_version: Version | None = None,
    level: int | None = None,
    progress: Progress,
) -> Added:
    """Add a release made of ``image``, with a delta for hosts with each of ``sources``.

    A source is a release in the repository, or the image of one; ``level`` is zstd's. The whole
    image is held against its hashes first. Raises ReleaseError, HostError.
    """
    repository.want()
    with open_device(image) as device:
        size, root_hash = slot.layout(device).image_size, slot.root_hash(device).hex()
        _want_named(device, product, version)
    known = find(repository, product, version)
    wish = _Wish(architecture, root_hash, minimum_version)
    _want_possible(repository, product, version, known, wish)
    _want_whole(image, size, root_hash, progress)
    payloads = _by_source(known)
    with _workplace(repository) as folder:
        work = _Work(repository, product, folder, level, progress)
        for source in (None, *sources):
            old = work.source(source) if source else None
            if old and old.source.root_hash == root_hash:
                raise RepositoryError(f"{old.source.version} is the same image as {version}")
            key = old.source.root_hash if old else None
            if key not in payloads:
                payloads[key] = work.payload(version, image, root_hash, old)
    made = Release(
        product=product,
        architecture=architecture,
        version=version,
        published=repository.now,
        image_size=size,
        root_hash=root_hash,
        minimum_version=minimum_version,
        payloads=tuple(payloads.values()),
    )
    return _publish(repository, made, wish)


def find(repository: Repository, product: str, version: Version) -> Release | None:
    """Return a release, unpublished ones included, or None."""
    path = release.path(product, version)
    data = repository.read_target(repository.targets(RELEASES), path)
    return None if data is None else release.decode(data, product, version)


def listed(repository: Repository, product: str | None = None) -> list[Release]:
    """Return all releases, or those of a product; the newest last."""
    found = []
    for path in repository.targets(RELEASES).targets:
        _, name, version, _ = path.split("/")
        if product in (None, name):
            one = find(repository, name, Version(version))
            found += [one] if one else []
    return sorted(found, key=lambda it: (it.product, it.version))


def withdrawals(targets: Targets) -> dict[str, Withdrawal]:
    """Return what was withdrawn, by path."""
    kept: Any = targets.unrecognized_fields.get(WITHDRAWN, {})
    return {
        path: document.decode(document.encode(it), Withdrawal, f"withdrawal of {path}")
        for path, it in kept.items()
    }


def withdraw(
    repository: Repository, product: str, version: Version, *, author: str, reason: str
) -> Committed:
    """Let no further host find a release. Its files stay for those that are at it."""
    with repository.locked():
        repository.want()
        targets, path = repository.targets(RELEASES), release.path(product, version)
        if path in targets.targets:
            del targets.targets[path]
            entry = {"time": _text(repository.now), "author": author, "reason": reason}
            targets.unrecognized_fields.setdefault(WITHDRAWN, {})[path] = entry
            repository.stage(RELEASES, targets)
        elif path not in withdrawals(targets):
            raise RepositoryError(
                f"there is no release {product} {version}", hint="see update-publish release list"
            )
        return repository.commit()


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a version must be, if it is there."""

    architecture: str
    root_hash: str
    minimum_version: Version | None


def _publish(repository: Repository, made: Release, wish: _Wish) -> Added:
    """Sign a release; what somebody else published of it meanwhile stays."""
    with repository.locked():
        targets, path = repository.targets(RELEASES), release.path(made.product, made.version)
        known = find(repository, made.product, made.version)
        _want_possible(repository, made.product, made.version, known, wish)
        if known:
            payloads = {**_by_source(made), **_by_source(known)}
            made = replace(known, payloads=tuple(payloads.values()))
        if made != known:
            data = document.encode(made)
            # What hosts would refuse is refused here.
            release.decode(data, made.product, made.version)
            repository.write_target(targets, path, data)
            repository.stage(RELEASES, targets)
        return Added(
            release=made,
            new_payloads=len(made.payloads) - len(_by_source(known)),
            committed=repository.commit(),
        )


def _by_source(found: Release | None) -> dict[str | None, PayloadReference]:
    payloads = found.payloads if found else ()
    return {it.source.root_hash if it.source else None: it for it in payloads}


def _want_possible(
    repository: Repository, product: str, version: Version, known: Release | None, wish: _Wish
) -> None:
    """Raise RepositoryError for a version that is taken: by another image, or by a bad one."""
    if release.path(product, version) in withdrawals(repository.targets(RELEASES)):
        raise RepositoryError(
            f"{product} {version} was withdrawn", hint="publish the image as a new version"
        )
    if known is None:
        return
    if (known.architecture, known.root_hash) != (wish.architecture, wish.root_hash):
        raise RepositoryError(
            f"{product} {version} is published, for {known.architecture} with the root hash"
            f" {known.root_hash}; this image is for {wish.architecture} and has {wish.root_hash}",
            hint="a version is published once; give the new image a new one",
        )
    if wish.minimum_version not in (None, known.minimum_version):
        raise RepositoryError(
            f"{product} {version} is published, to be installed from"
            f" {known.minimum_version or 'any version'}; that cannot change",
            hint="a floor in the channel can: update-publish channel floors",
        )


def _want_named(device: Device, product: str, version: Version) -> None:
    """Hold that the system says of itself what is said of it here; else hosts install it for ever.

    A kernel that carries no os-release says nothing.
    """
    parts = slot.layout(device)
    kernel = device.read(parts.kernel_offset + BLOCK, parts.kernel_region_size - BLOCK)
    said = identity.assignments(uki.os_release(kernel), device.path)
    for name, wanted in (("IMAGE_ID", product), ("IMAGE_VERSION", str(version))):
        if said and said.get(name) != wanted:
            raise RepositoryError(
                f"the system in {device.path} says {name}={said.get(name)}, wanted {wanted}",
                hint="publish it under its own name, or build it with the right one",
            )


def _want_whole(image: Path, size: int, root_hash: str, progress: Progress) -> None:
    """Hold every block of the image: nobody after us does, before it boots."""
    progress.begin(f"check {image.name}", size)
    with open_device(image) as device:
        whole.check(device, progress.advance)
        _want_unchanged(image, slot.root_hash(device).hex(), root_hash)


def _want_unchanged(image: Path, found: str, root_hash: str) -> None:
    """Hold that a file, which is opened anew for each step, still is the same image."""
    if found != root_hash:
        raise RepositoryError(
            f"{image} was changed meanwhile: its root hash was {root_hash}, now it is {found}",
            hint="publish a file that nobody writes to",
        )


# Payloads ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Old:
    """An image that hosts have, and a file with it."""

    source: Source
    image: Path


@dataclass(frozen=True, slots=True)
class _Work:
    """Payloads of ``product``, made in ``folder``."""

    repository: Repository
    product: str
    folder: Path
    level: int | None
    progress: Progress

    def payload(
        self, version: Version, image: Path, root_hash: str, old: _Old | None
    ) -> PayloadReference:
        """Make a payload of the image with ``root_hash``, and move it to its place."""
        what = f"{version} from {old.source.version}" if old else f"{version}"
        self.progress.begin(what, image.stat().st_size)
        made = making.make(
            image, self.folder, source=old.image if old else None, level=self.level,
            progress=self.progress.advance,
        )  # fmt: skip
        data = made.index.read_bytes()
        index = payload.decode(data)
        _want_unchanged(image, index.root_hash.hex(), root_hash)
        reference = PayloadReference(
            index_size=len(data),
            index_sha256=hashlib.sha256(data).hexdigest(),
            blob_size=index.blob_size,
            stored_size=index.stored_size,
            source=old.source if old else None,
        )
        place = self.repository.folder / release.payload_folder(self.product, version)
        try:
            files.make_folders(place)
            for file in (made.blob, made.index):
                file.rename(place / f"{reference.index_sha256}{file.suffix}")
                files.flush_folder(place)
        except OSError as error:
            raise HostError(f"cannot write {place}: {error.strerror}") from error
        return reference

    def source(self, named: Path | Version) -> _Old:
        """Return an old image, out of the repository when it is named by its version."""
        if isinstance(named, Version):
            old = find(self.repository, self.product, named)
            if old is None:
                raise RepositoryError(
                    f"there is no release {self.product} {named} to make a delta from",
                    hint="see update-publish release list, or name its image",
                )
            return _Old(Source(version=named, root_hash=old.root_hash), self._unpacked(old))
        with open_device(named) as device:
            root_hash = slot.root_hash(device).hex()
        for old in listed(self.repository, self.product):
            if old.root_hash == root_hash:
                return _Old(Source(version=old.version, root_hash=root_hash), named)
        raise RepositoryError(
            f"{named} is no release of {self.product}", hint="add it first, or name its version"
        )

    def _unpacked(self, old: Release) -> Path:
        """Make the image of a release from its full payload."""
        output = self.folder / f"{old.version}.img"
        index = read_index(self.repository.folder / old.index_path(old.full), old.full)
        self.progress.begin(f"unpack {old.version}", index.image_size)
        output.write_bytes(b"")
        os.truncate(output, index.image_size)
        with (
            open_device(self.repository.folder / old.blob_path(old.full)) as blob,
            open_device(output, writable=True) as target,
        ):
            source = install.Source(
                name=str(old.version), index=index, blob=install.FileBlob(blob, index)
            )
            shown = _Unpacking(self.progress)
            install.install(target, [source], booted=None, booted_index=None, progress=shown)
        return output


def read_index(path: Path, reference: PayloadReference) -> Index:
    """Return the index in a file of the repository, if it is the one that a release names."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReleaseError(f"cannot read {path}: {error.strerror}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != reference.index_sha256:
        raise ReleaseError(f"{path} has the SHA-256 {found}, wanted {reference.index_sha256}")
    return payload.decode(data)


class _Unpacking:
    """Shows the progress of an installation as that of a step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = 0

    def planned(self, source: install.Source, totals: payload.Totals) -> None:
        """Nothing to say."""

    def show(self, step: str, done: int, size: int) -> None:
        del step, size
        self._progress.advance(done - self._done)
        self._done = done


@contextmanager
def _workplace(repository: Repository) -> Iterator[Path]:
    """Yield a folder on the repository's file system, and clean up those of killed runs.

    Whoever works holds the lock in his folder, and the kernel lets go of it for the dead. A number
    of a process would not do: in a container, or on a shared file system, it is somebody else's.
    """
    parent = repository.folder / ".work"
    try:
        with _alone(parent):  # else somebody could see a folder before its lock is held
            for old in parent.iterdir():
                if old.is_dir():
                    _remove(old)
            work = Path(tempfile.mkdtemp(dir=parent))
            lock = files.locked(work / _LOCK)
        with lock:
            try:
                yield work
            finally:
                with _alone(parent):
                    shutil.rmtree(work)
    except OSError as error:
        raise HostError(f"cannot work in {parent}: {error.strerror}") from error


def _remove(folder: Path) -> None:
    """Remove a folder that nobody works in any more."""
    with suppress(BlockingIOError), files.locked(folder / _LOCK):
        shutil.rmtree(folder)


def _alone(parent: Path) -> IO[bytes]:
    """Wait for the others, who only make and remove folders; be alone until it is closed."""
    return files.locked(parent / _LOCK, lambda: None, mode=0o644)


def _text(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"
