"""A repository, as one host believes it: what is new, and that nobody made it older.

python-tuf's client fetches and verifies in a folder of its own; what it accepted is then held
against what this host remembers (``journal.py``) and against the rules in ``core/trust.py``, and
only then kept: first the journal, then the files, each durable before the next. So a power cut
leaves a memory that is as high as the cache, or higher. A root that was verified is kept even when
what follows it fails: who lost his keys shall not speak again.

The clock by which things expire is never behind the newest time that was ever certain. It can be
ahead; then all is expired, and nothing is remembered of it.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Self
from urllib.parse import quote

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadHTTPError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.api.metadata import Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from update_agent.core import channel, document, release, trust
from update_agent.core.channel import Channel
from update_agent.core.release import PayloadReference, Release
from update_agent.core.trust import (
    CHANNELS,
    MAX_SIZES,
    RELEASES,
    Evidence,
    ExpiredError,
    RollbackError,
    UntrustedError,
)
from update_agent.core.version import Version
from update_agent.errors import HostError, ReleaseError, UpdateAgentError
from update_agent.host import files
from update_agent.host.http import Network, StatusError, get
from update_agent.host.journal import Journal
from update_agent.host.root import read_root

ROLES = (Timestamp.type, Snapshot.type, Targets.type, RELEASES, CHANNELS)
"""What is kept, in the order in which one leads to the next; roots have a folder of their own."""

_CONFIG = UpdaterConfig(
    max_root_rotations=trust.MAX_ROTATIONS,
    max_delegations=len(trust.DELEGATED) + 1,
    root_max_length=MAX_SIZES[Root.type],
    timestamp_max_length=MAX_SIZES[Timestamp.type],
    snapshot_max_length=MAX_SIZES[Snapshot.type],
    targets_max_length=max(MAX_SIZES[name] for name in (Targets.type, *trust.DELEGATED)),
)

_GONE = (403, 404)
"""What servers say of a root that does not exist yet."""


class TrustedRepository:
    """What the servers at ``urls`` publish, mirrors of one another, the first preferred.

    ``trusted_root`` is the file that came with the system, ``state`` the folder of what this host
    remembers. Raises UntrustedError, HostError. Use it in a ``with``: one at a time per folder.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        trusted_root: Path,
        state: Path,
        network: Network,
        now: datetime,
    ) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        self._trusted = read_root(trusted_root)
        self._cache = _Cache(state)
        self._network = network
        self._system_time = now
        self._stack = ExitStack()
        self._client: _Client | None = None

    def __enter__(self) -> Self:
        self._stack.enter_context(self._cache.locked())
        self._journal = Journal(self._cache.folder / "journal")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def now(self) -> datetime:
        """The time by which things expire."""
        return max(self._system_time, self._journal.high.time)

    def refresh(self) -> None:
        """Learn what is new, from the first server that tells it well.

        Raises the error of the only server, or one that tells the errors of all.
        """
        errors: list[UpdateAgentError] = []
        for url in self._urls:
            try:
                self._refresh_from(url)
            except UpdateAgentError as error:
                errors.append(error)
            else:
                return
        if len(errors) == 1:
            raise errors[0]
        family = ReleaseError if isinstance(errors[0], ReleaseError) else HostError
        raise family(
            f"none of {len(errors)} servers can be used: " + "; ".join(map(str, errors)),
            hint=errors[0].hint,
        ) from errors[0]

    def channel(self, name: str) -> Channel | None:
        """Return what the channel ``name`` says, or None when there is no such channel."""
        data = self._target(channel.path(name), "channel.json", channel.MAX_SIZE)
        return None if data is None else channel.decode(data, name)

    def release(self, product: str, version: Version) -> Release | None:
        """Return what the release says, or None when it is not (or no longer) there."""
        path = release.path(product, version)
        data = self._target(path, "release.json", release.MAX_SIZE)
        return None if data is None else release.decode(data, product, version)

    def index(self, found: Release, payload: PayloadReference) -> bytes:
        """Return the index of ``payload``, a part of the release ``found``."""
        data = self._fetch(found.index_path(payload), payload.index_size)
        trust.index(data, payload)
        return data

    def evidence(self) -> Evidence:
        """Return the signed bytes that prove the channel and the release fetched last."""
        kept = {name: self._cache.read(f"{name}.json") for name in (*ROLES, "channel", "release")}
        whole = {name: data for name, data in kept.items() if data is not None}
        if len(whole) < len(kept):
            raise RuntimeError("fetch channel and release first")
        return Evidence(
            roots=list(self._cache.roots_after(self._trusted)),
            targets=whole[Targets.type],
            releases=whole[RELEASES],
            release=whole["release"],
            channels=whole[CHANNELS],
            channel=whole["channel"],
        )

    def _refresh_from(self, url: str) -> None:
        staging = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._cache.copy_to(staging)
        client = _Client(url, self._trusted, staging, self._network, self.now)
        try:
            client.refresh()
        except UpdateAgentError:
            with suppress(RollbackError):
                self._keep_verified(staging, None)
            raise
        self._keep_verified(staging, client.signed_at)
        self._client = client

    def _keep_verified(self, staging: Path, certain: datetime | None) -> None:
        """Keep what python-tuf left in ``staging``. Raises RollbackError, and keeps nothing then.

        ``certain`` is a time known from signed metadata, when all of it was good.
        """
        following = list(_Cache(staging).roots_after(self._trusted))
        root = trust.root_at_the_end(self._trusted, following)
        data = {Root.type: (following or [self._trusted])[-1]}
        for name in ROLES:
            if (found := _Cache(staging).read(f"{name}.json")) is not None:
                data[name] = found
        marks = {name: trust.mark(root, name, found) for name, found in data.items()}
        time = max(self.now, certain) if certain else self._journal.high.time
        high = self._journal.high.raised(marks, time)
        self._cache.prepare()
        self._journal.append(high)
        for number, found in enumerate(following, trust.trusted_root(self._trusted).version + 1):
            self._cache.write_root(number, found)
        for name, found in data.items():
            if name != Root.type:
                self._cache.write(f"{name}.json", found)

    def _target(self, path: str, kept_as: str, max_size: int) -> bytes | None:
        if self._client is None:
            raise RuntimeError("refresh first")
        info = self._client.target(path)
        self._keep_verified(self._client.staging, None)
        if info is None:
            return None
        if info.length > max_size:
            raise UntrustedError(f"{path} has {info.length} bytes, wanted at most {max_size}")
        data = self._cache.read(kept_as)
        if data is not None and _is(info, data):
            return data
        folder, _, name = path.rpartition("/")
        hashed = f"targets/{folder}/{info.hashes['sha256']}.{name}"
        data = self._fetch(hashed, info.length)
        if not _is(info, data):
            raise UntrustedError(f"{self._client.url}/{hashed} is not what was signed")
        self._cache.write(kept_as, data)
        return data

    def _fetch(self, path: str, max_size: int) -> bytes:
        if self._client is None:
            raise RuntimeError("refresh first")
        return get(self._network, f"{self._client.url}/{quote(path)}", max_size=max_size)


# python-tuf's client -----------------------------------------------------------------------------


class _Fetcher(FetcherInterface):
    """Lets python-tuf fetch over our network, and see only plain JSON."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.fetched: dict[str, bytes] = {}
        """What came last, by role."""

    def download_bytes(self, url: str, max_length: int) -> bytes:
        name = url.rpartition("/")[2]
        role = name.removesuffix(".json").rpartition(".")[2]
        try:
            data = get(self._network, url, max_size=min(max_length, MAX_SIZES.get(role, 0)))
        except StatusError as error:
            if role == Root.type and error.status in _GONE:
                raise DownloadHTTPError(str(error), error.status) from error
            raise
        document.check_metadata(data, url, max_size=max_length)
        self.fetched[role] = data
        return data

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise NotImplementedError(f"python-tuf fetches {url} in another way than it did")


class _Client:
    """python-tuf's client for one server, its errors made ours."""

    def __init__(
        self, url: str, trusted: bytes, staging: Path, network: Network, now: datetime
    ) -> None:
        self.url = url
        self.staging = staging
        self._now = now
        self._fetcher = _Fetcher(network)
        with self._translated():
            self._updater = Updater(
                str(staging),
                f"{url}/metadata/",
                fetcher=self._fetcher,
                config=_CONFIG,
                bootstrap=trusted,
            )
        # The library has no public way to say what time it is.
        verified = self._updater._trusted_set  # noqa: SLF001
        if not isinstance(verified.reference_time, datetime):
            raise TypeError("python-tuf keeps its time elsewhere than it did")
        verified.reference_time = now

    def refresh(self) -> None:
        with self._translated():
            self._updater.refresh()

    def target(self, path: str) -> TargetFile | None:
        with self._translated():
            return self._updater.get_targetinfo(path)

    @property
    def signed_at(self) -> datetime:
        """When the newest metadata was signed, as far as it says so."""
        data = _Cache(self.staging).read(f"{Timestamp.type}.json")
        if data is None:
            raise RuntimeError("refreshed, but without a timestamp")
        return trust.signed_at(trust.metadata(data).signed) or self._now

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except BadVersionNumberError as error:
            raise RollbackError(f"{self.url}: {error}") from error
        except ExpiredMetadataError as error:
            self._complain_about_expiry()
            raise ExpiredError(f"{self.url}: {error}") from error
        except OSError as error:
            raise HostError(f"cannot write {error.filename}: {error.strerror}") from error
        except RepositoryError as error:
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise UntrustedError(f"{self.url}: {error}{cause}") from error

    def _complain_about_expiry(self) -> None:
        """Raise ExpiredError with what, since when; python-tuf verified it before it said so."""
        for name in (Root.type, *ROLES):
            data = self._fetcher.fetched.get(name) or _Cache(self.staging).read(f"{name}.json")
            if data is not None:
                signed = trust.metadata(data).signed
                trust.want_current(signed, f"{self.url}: {name}", self._now)


# What is kept ------------------------------------------------------------------------------------


class _Cache:
    """A folder of verified files, in the layout that python-tuf reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._roots = folder / "root_history"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others out of the folder, which is made."""
        try:
            self.prepare()
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(
                f"cannot use {self.folder}: {error.strerror}",
                hint="run as root, or name another folder for what this host remembers",
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise HostError(
                f"another process uses {self.folder}", hint="wait until it is done"
            ) from error
        try:
            yield
        finally:
            os.close(lock)

    def prepare(self) -> None:
        files.make_folders(self._roots)

    def read(self, name: str) -> bytes | None:
        return _read(self.folder / name)

    def write(self, name: str, data: bytes) -> None:
        self._write(self.folder / name, data)

    def write_root(self, version: int, data: bytes) -> None:
        self._write(self._roots / f"{version}.root.json", data)

    def roots_after(self, trusted: bytes) -> Iterator[bytes]:
        """Yield the roots that follow the trusted one, as far as they are there and verify."""
        root = trust.trusted_root(trusted)
        while data := _read(self._roots / f"{root.version + 1}.root.json"):
            try:
                root = trust.next_root(root, data)
            except UpdateAgentError:
                return
            yield data

    def copy_to(self, folder: Path) -> None:
        """Copy what python-tuf would read."""
        other = _Cache(folder)
        other.prepare()
        names = [f"{name}.json" for name in ROLES]
        for path in (*(self.folder / name for name in names), *self._roots.glob("*.root.json")):
            if (data := _read(path)) is not None:
                (folder / path.relative_to(self.folder)).write_bytes(data)

    def _write(self, path: Path, data: bytes) -> None:
        if _read(path) == data:
            return
        try:
            files.replace(path, data)
        except OSError as error:
            raise HostError(f"cannot write {path}: {error.strerror}") from error


def _read(path: Path) -> bytes | None:
    """Return what is in ``path``; what cannot be read is fetched again."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _is(info: TargetFile, data: bytes) -> bool:
    try:
        info.verify_length_and_hashes(data)
    except RepositoryError:
        return False
    return True
