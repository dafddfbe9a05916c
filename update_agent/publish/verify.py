"""A look at a whole repository: as a host would, at every file of it, and at what expires soon."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import MetaFile, Root, Signed, Snapshot, Targets, Timestamp

from update_agent.core import channel, payload, release, trust
from update_agent.core.payload import Index
from update_agent.core.release import PayloadReference, Release
from update_agent.core.trust import CHANNELS, RELEASES, UntrustedError
from update_agent.core.version import Version
from update_agent.errors import UpdateAgentError
from update_agent.publish.releases import read_index, withdrawals
from update_agent.publish.repository import Repository


@dataclass
class Findings:
    """What is wrong, what will be, and what was looked at."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    releases: int = 0
    channels: int = 0
    files: int = 0
    superseded: int = 0
    """Files that nothing names any more, kept for hosts that are behind."""
    bytes: int = 0
    """Of payloads."""


def verify(
    repository: Repository,
    *,
    ahead: timedelta = timedelta(0),
    blobs: bool = True,
    advance: Callable[[int], None] = lambda _: None,
) -> Findings:
    """Look at everything; ``ahead`` is how long it should still be valid.

    ``blobs`` reads all stored bytes of all payloads, and calls ``advance`` with their numbers.
    """
    look = _Look(repository, blobs=blobs, advance=advance)
    look.at_roles(ahead)
    look.at_releases()
    look.at_channels()
    look.at_the_rest()
    return look.found


class _Look:
    """One walk through a repository."""

    def __init__(
        self, repository: Repository, *, blobs: bool, advance: Callable[[int], None]
    ) -> None:
        self.found = Findings()
        self._repository = repository
        self._blobs = blobs
        self._advance = advance
        self._named: set[Path] = set()
        """Files that are in somebody's list."""
        self._roles: dict[str, Targets] = {}
        self._versions: set[tuple[str, Version]] = set()

    # Roles ---------------------------------------------------------------------------------------

    def at_roles(self, ahead: timedelta) -> None:
        """Verify who says what, and how long it holds."""
        for signed, name in self._verified():
            self._name(self._repository.metadata_path(name, signed.version))
            left = signed.expires - self._repository.now
            if left <= timedelta(0):
                self.found.problems.append(f"{name} {signed.version} expired {-left} ago")
            elif left < ahead:
                self.found.warnings.append(f"{name} {signed.version} expires in {left}")

    def _verified(self) -> Iterator[tuple[Signed, str]]:
        """Yield the roles as far as one leads to the next."""
        with self._noted():
            roots = self._repository.roots()
            for version in range(1, len(roots)):
                self._name(self._repository.metadata_path(Root.type, version))
            root = trust.root_at_the_end(roots[0] if roots else b"", roots[1:])
            yield root, Root.type
            timestamp = trust.role(root, Timestamp, Timestamp.type, self._data(Timestamp.type))
            yield timestamp, Timestamp.type
            data = self._data(Snapshot.type)
            self._want(timestamp.snapshot_meta, Snapshot.type, data)
            snapshot = trust.role(root, Snapshot, Snapshot.type, data)
            yield snapshot, Snapshot.type
            data = self._data(Targets.type)
            self._want(snapshot.meta.get("targets.json"), Targets.type, data)
            targets = trust.role(root, Targets, Targets.type, data)
            yield targets, Targets.type
            if targets.targets:
                self.found.problems.append("targets lists files; it should only delegate")
            for name in trust.DELEGATED:
                with self._noted():
                    data = self._data(name)
                    self._want(snapshot.meta.get(f"{name}.json"), name, data)
                    self._roles[name] = trust.delegated(targets, name, data)
                    yield self._roles[name], name

    def _data(self, name: str) -> bytes:
        data = self._repository.published(name)
        if data is None:
            raise UntrustedError(f"there is no {name}")
        return data

    def _want(self, meta: MetaFile | None, name: str, data: bytes) -> None:
        try:
            if meta is None:
                raise UntrustedError(f"nothing vouches for {name}")
            meta.verify_length_and_hashes(data)
        except LengthOrHashMismatchError as error:
            raise UntrustedError(f"{name} is not what was vouched for: {error}") from error

    # What they speak about -----------------------------------------------------------------------

    def at_releases(self) -> None:
        """Verify each release and its payloads."""
        for path, data in self._targets(RELEASES):
            with self._noted():
                _, product, version, _ = path.split("/")
                made = release.decode(data, product, Version(version))
                self._versions.add((product, made.version))
                self.found.releases += 1
                for reference in made.payloads:
                    with self._noted():
                        self._at_payload(made, reference)

    def at_channels(self) -> None:
        """Verify each channel, and that what it leads to is there."""
        for path, data in self._targets(CHANNELS):
            with self._noted():
                made = channel.decode(data, path.removeprefix("channels/").removesuffix(".json"))
                self.found.channels += 1
                for version in (made.version, *made.floors):
                    if version and (made.product, version) not in self._versions:
                        self._at_dead_end(made.channel, made.product, version)

    def _at_dead_end(self, name: str, product: str, version: Version) -> None:
        if RELEASES not in self._roles:
            return  # which is a problem already
        if release.path(product, version) in withdrawals(self._roles[RELEASES]):
            self.found.warnings.append(
                f"channel {name} leads to {product} {version}, which was withdrawn:"
                " promote another version"
            )
        else:
            self.found.problems.append(
                f"channel {name} leads to {product} {version}, which is not there"
            )

    def _targets(self, name: str) -> Iterator[tuple[str, bytes]]:
        targets = self._roles.get(name)
        if targets is None:
            return
        for path, info in targets.targets.items():
            self._name(self._repository.target_path(path, info.hashes["sha256"]))
            with self._noted():
                data = self._repository.read_target(targets, path)
                yield path, data or b""

    def _at_payload(self, made: Release, reference: PayloadReference) -> None:
        folder = self._repository.folder
        path = self._name(folder / made.index_path(reference))
        blob = self._name(folder / made.blob_path(reference))
        index = read_index(path, reference)
        source = reference.source.root_hash if reference.source else payload.NO_HASH.hex()
        for what, has, wanted in (
            ("makes the image", index.root_hash.hex(), made.root_hash),
            ("is made from the image", index.source_root_hash.hex(), source),
            ("has a blob of", index.blob_size, reference.blob_size),
        ):
            if has != wanted:
                raise UntrustedError(f"{path} {what} {has}, the release says {wanted}")
        size = blob.stat().st_size if blob.exists() else 0
        if size != index.blob_size:
            raise UntrustedError(f"{blob} has {size} bytes, wanted {index.blob_size}")
        self.found.bytes += size
        if self._blobs:
            self._at_blob(blob, index)

    def _at_blob(self, path: Path, index: Index) -> None:
        with path.open("rb") as file:
            for number, chunk in enumerate(index):
                if not chunk.stored_length:
                    continue
                file.seek(chunk.blob_offset)
                data = file.read(chunk.stored_length)
                if hashlib.sha256(data).digest() != chunk.stored_digest:
                    raise UntrustedError(f"{path}: chunk {number} does not have its hash")
                self._advance(chunk.stored_length)

    # Files ---------------------------------------------------------------------------------------

    def at_the_rest(self) -> None:
        """Look for what is missing, and for what has no place here."""
        folder = self._repository.folder
        for path in sorted(self._named):
            if not path.exists():
                self.found.problems.append(f"{path.relative_to(folder)} is missing")
        gone = self._withdrawn()
        for path in self._files():
            self.found.files += 1
            with self._noted():
                if path in self._named:
                    continue
                if self._was_published(path) or any(it in path.parents for it in gone):
                    self.found.superseded += 1
                else:
                    self.found.problems.append(f"{path.relative_to(folder)} is in nobody's list")

    def _files(self) -> Iterator[Path]:
        for part in ("metadata", "targets", "payloads"):
            folder = self._repository.folder / part
            yield from (path for path in sorted(folder.rglob("*")) if path.is_file())

    def _withdrawn(self) -> list[Path]:
        """Return the folders of releases that were withdrawn."""
        paths = withdrawals(self._roles[RELEASES]) if RELEASES in self._roles else {}
        named = [path.split("/")[1:3] for path in paths]
        return [
            self._repository.folder / release.payload_folder(product, Version(version))
            for product, version in named
        ]

    def _was_published(self, path: Path) -> bool:
        """Return whether a file has the name that its content gives it, as all that was ours."""
        if path.parent == self._repository.folder / "metadata":
            name = path.name.removesuffix(".json").rpartition(".")[2]
            try:
                version = trust.metadata(path.read_bytes()).signed.version
            except UpdateAgentError:
                return False
            return path == self._repository.metadata_path(name, version)
        index = path.with_suffix(".index") if path.suffix == ".blob" else path
        if not index.exists():
            return False
        return hashlib.sha256(index.read_bytes()).hexdigest() == path.name.partition(".")[0]

    def _name(self, path: Path) -> Path:
        self._named.add(path)
        return path

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Turn an error within into a problem that was found."""
        try:
            yield
        except UpdateAgentError as error:
            self.found.problems.append(str(error))
        except OSError as error:
            self.found.problems.append(f"cannot read {error.filename}: {error.strerror}")
