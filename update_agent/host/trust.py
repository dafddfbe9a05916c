"""A repository, as one host believes it: what is new, and that nobody made it older.

python-tuf's client fetches and verifies in a folder of its own. What it accepted is then verified
again by the rules in ``core/trust.py``, held against what this host remembers (``journal.py``), and
only then kept, all of it or nothing: first the journal, then the files, each durable before the
next. So a power cut leaves a memory that is as high as the cache, or higher. Roots are the one
exception: one that was verified is kept even when what follows it fails, because who lost his keys
shall not speak again.

The clock by which things expire is never behind the newest time that was ever certain. It can be
ahead; then all is expired, and nothing is remembered of it.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import quote

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from update_agent.core import channel, release, trust
from update_agent.core.channel import Channel
from update_agent.core.release import PayloadReference, Release
from update_agent.core.trust import (
    CHANNELS,
    MAX_SIZES,
    RELEASES,
    Evidence,
    ExpiredError,
    RollbackError,
    Sayings,
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

_ROOTS = "root_history"
"""The folder in which python-tuf looks for roots."""

T = TypeVar("T")


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
        self._says: Sayings | None = None

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.enter_context(self._cache.locked())
            self._journal = Journal(self._cache.folder / "journal")
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def now(self) -> datetime:
        """The time by which things expire."""
        return self._now_under(self._root)

    def _now_under(self, root: Root) -> datetime:
        return max(self._system_time, self._journal.high.floor(root))

    def refresh(self) -> None:
        """Learn what is new, from the first server that tells it well.

        Raises ReleaseError, HostError: that of the only server, or one that tells those of all.
        """
        url, self._says = self._first(self._refresh_from)
        self._urls.remove(url)
        self._urls.insert(0, url)

    def channel(self, name: str) -> Channel | None:
        """Return what the channel ``name`` says, or None when there is no such channel.

        Raises ReleaseError, HostError.
        """
        path = channel.path(name)
        data = self._document(CHANNELS, path, "channel.json", channel.MAX_SIZE)
        return None if data is None else channel.decode(data, name)

    def release(self, product: str, version: Version) -> Release | None:
        """Return what the release says, or None when it is not (or no longer) there.

        Raises ReleaseError, HostError.
        """
        path = release.path(product, version)
        data = self._document(RELEASES, path, "release.json", release.MAX_SIZE)
        return None if data is None else release.decode(data, product, version)

    def index(self, found: Release, payload: PayloadReference) -> bytes:
        """Return the index of ``payload``, a part of the release ``found``.

        Raises ReleaseError, HostError.
        """
        return self._fetch(
            found.index_path(payload), payload.index_size, lambda data: trust.index(data, payload)
        )

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

    @property
    def _root(self) -> Root:
        """The newest root that is kept."""
        return trust.root_at_the_end(self._trusted, self._cache.roots_after(self._trusted))

    def _refresh_from(self, url: str) -> Sayings:
        began = self.now
        try:
            return self._once_from(url)
        except ExpiredError:
            if self.now == began:
                raise
            return self._once_from(url)  # a new root made us forget a time set with stolen keys

    def _once_from(self, url: str) -> Sayings:
        with _staging() as staging:
            self._cache.copy_to(staging)
            client = _Client(url, self._trusted, staging.folder, self._network, self.now)
            try:
                data = client.refresh()
            except RollbackError:
                self._keep_roots(staging)
                self._complain_about_rollback(url, client.fetched)
                raise
            except UpdateAgentError:
                self._keep_roots(staging)
                raise
            following = list(staging.roots_after(self._trusted))
        with _named(url):
            return self._keep(following, data)

    def _keep(self, following: Sequence[bytes], data: Mapping[str, bytes]) -> Sayings:
        """Keep what is good, whole and not older than before. Keeps nothing otherwise."""
        root = trust.root_at_the_end(self._trusted, following)
        now = self._now_under(root)
        says = trust.sayings(root, data)
        says.want_current(now)
        whole = {Root.type: (following or [self._trusted])[-1], **data}
        marks = {name: trust.mark(root, name, found) for name, found in whole.items()}
        certain = max(now, says.signed_at or now)
        self._journal.append(self._journal.high.raised(marks, certain))
        self._cache.write_roots(self._trusted, following)
        for name, found in data.items():
            self._cache.write(f"{name}.json", found)
        return says

    def _keep_roots(self, staging: "_Cache") -> None:
        """Keep the roots that were verified, unless there were newer ones before."""
        following = list(staging.roots_after(self._trusted))
        if not following:
            return
        root = trust.root_at_the_end(self._trusted, following)
        mark = trust.mark(root, Root.type, following[-1])
        with suppress(RollbackError):
            self._journal.append(self._journal.high.raised({Root.type: mark}))
            self._cache.write_roots(self._trusted, following)

    def _complain_about_rollback(self, url: str, fetched: Mapping[str, bytes]) -> None:
        """Raise RollbackError that tells what is older than before, as far as that is known."""
        for name, offered in trust.versions(fetched).items():
            old = self._journal.high.marks.get(name)
            if old and offered < old.version:
                raise trust.rolled_back(f"{url}: {name}", offered, old.version)

    def _document(self, role: str, path: str, kept_as: str, max_size: int) -> bytes | None:
        if self._says is None:
            raise RuntimeError("refresh first")
        targets = self._says.delegated[role]
        info = targets.targets.get(path)
        if info is None:
            return None
        if info.length > max_size:
            raise UntrustedError(f"{path} has {info.length} bytes, wanted at most {max_size}")
        kept = self._cache.read(kept_as)
        if kept is not None:
            with suppress(UntrustedError):
                trust.target(targets, path, kept)
                return kept
        folder, _, name = path.rpartition("/")
        hashed = f"targets/{folder}/{info.hashes['sha256']}.{name}"
        data = self._fetch(hashed, info.length, lambda it: trust.target(targets, path, it))
        self._cache.write(kept_as, data)
        return data

    def _fetch(self, path: str, max_size: int, check: Callable[[bytes], None]) -> bytes:
        """Return a file that passes ``check``, from the first server that has it."""

        def fetch(url: str) -> bytes:
            data = get(self._network, f"{url}/{quote(path)}", max_size=max_size)
            with _named(url):
                check(data)
            return data

        return self._first(fetch)[1]

    def _first(self, do: Callable[[str], T]) -> tuple[str, T]:
        """Return the first server with which ``do`` does well, and what it returned there."""
        errors: list[UpdateAgentError] = []
        for url in self._urls:
            try:
                return url, do(url)
            except UpdateAgentError as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        family = ReleaseError if isinstance(errors[0], ReleaseError) else HostError
        raise family(
            f"none of {len(errors)} servers can be used: " + "; ".join(map(str, errors)),
            hint=errors[0].hint,
        ) from errors[0]


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Let errors say which server it was."""
    try:
        yield
    except ReleaseError as error:
        raise type(error)(f"{url}: {error}", hint=error.hint) from error


# python-tuf's client -----------------------------------------------------------------------------


class _Fetcher(FetcherInterface):
    """Lets python-tuf fetch over our network, and see only what it may expect."""

    def __init__(self, base: str, network: Network) -> None:
        self._base = base
        self._network = network
        self.fetched: dict[str, bytes] = {}
        """What came last, by role."""

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return metadata. Raises UpdateAgentError, which python-tuf lets pass."""
        role = self._role(url)
        try:
            data = get(self._network, url, max_size=min(max_length, MAX_SIZES[role]))
        except StatusError as error:
            if role == Root.type and error.status in _GONE:
                raise DownloadHTTPError(str(error), error.status) from error
            raise
        with _named(url):
            trust.check(data, role)
        self.fetched[role] = data
        return data

    def _role(self, url: str) -> str:
        """Return which role is at ``url``: VERSION.ROLE.json, or timestamp.json."""
        name = url.removeprefix(self._base).removesuffix(".json")
        role = name if name == Timestamp.type else name.partition(".")[2]
        if role not in MAX_SIZES:
            raise UntrustedError(f"{url} is of a role that nobody here knows")
        return role

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise NotImplementedError(f"python-tuf fetches {url} in another way than it did")


class _Client:
    """python-tuf's client for one server, its errors made ours."""

    def __init__(
        self, url: str, trusted: bytes, staging: Path, network: Network, now: datetime
    ) -> None:
        self._url = url
        self._staging = staging
        self._now = now
        base = f"{url}/metadata/"
        self._fetcher = _Fetcher(base, network)
        with self._translated():
            self._updater = Updater(
                str(staging), base, fetcher=self._fetcher, config=_CONFIG, bootstrap=trusted
            )
        # The library has no public way to say what time it is.
        verified = self._updater._trusted_set  # noqa: SLF001
        if not isinstance(verified.reference_time, datetime):
            raise TypeError("python-tuf keeps its time elsewhere than it did")
        verified.reference_time = now

    @property
    def fetched(self) -> Mapping[str, bytes]:
        """What the server sent, by role, verified or not."""
        return self._fetcher.fetched

    def refresh(self) -> dict[str, bytes]:
        """Return what each role says now. Raises UpdateAgentError."""
        with self._translated():
            self._updater.refresh()
            for pattern in trust.DELEGATED.values():
                self._updater.get_targetinfo(pattern.replace("*", "any"))
        kept = {name: _read(self._staging / f"{name}.json") for name in ROLES}
        found = {name: data for name, data in kept.items() if data is not None}
        # It keeps its timestamp when another comes that has the same version; that is for us to see
        found[Timestamp.type] = self.fetched[Timestamp.type]
        return found

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except BadVersionNumberError as error:
            raise RollbackError(f"{self._url}: {error}") from error
        except ExpiredMetadataError as error:
            self._complain_about_expiry()
            raise ExpiredError(f"{self._url}: {error}") from error
        except OSError as error:
            raise _cannot("write", error, self._staging) from error
        except (RepositoryError, DownloadError) as error:
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise UntrustedError(f"{self._url}: {error}{cause}") from error

    def _complain_about_expiry(self) -> None:
        """Raise ExpiredError with what, since when; python-tuf verified it before it said so."""
        for name in (Root.type, *ROLES):
            data = self.fetched.get(name) or _read(self._staging / f"{name}.json")
            if data is not None:
                signed = trust.metadata(data).signed
                trust.want_current(signed, f"{self._url}: {name}", self._now)


# What is kept ------------------------------------------------------------------------------------


class _Cache:
    """A folder of verified files, in the layout that python-tuf reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._roots = folder / _ROOTS

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others out of the folder, which is made. Raises HostError."""
        try:
            files.make_folders(self._roots)
            lock = files.locked(self.folder / "lock")
        except BlockingIOError as error:
            raise HostError(
                f"another process uses {self.folder}", hint="wait until it is done"
            ) from error
        except OSError as error:
            raise HostError(
                f"cannot use {self.folder}: {error.strerror}",
                hint="run as root, or name another folder for what this host remembers",
            ) from error
        with lock:
            yield

    def read(self, name: str) -> bytes | None:
        return _read(self.folder / name)

    def write(self, name: str, data: bytes) -> None:
        self._write(self.folder / name, data)

    def write_roots(self, trusted: bytes, following: Sequence[bytes]) -> None:
        """Write the roots that follow the trusted one."""
        first = trust.trusted_root(trusted).version + 1
        for version, data in enumerate(following, first):
            self._write(self._roots / f"{version}.root.json", data)

    def roots_after(self, trusted: bytes) -> Iterator[bytes]:
        """Yield the roots that follow the trusted one, as far as they are there and verify."""
        root = trust.trusted_root(trusted)
        while data := _read(self._roots / f"{root.version + 1}.root.json"):
            try:
                root = trust.next_root(root, data)
            except ReleaseError:
                return
            yield data

    def copy_to(self, other: "_Cache") -> None:
        """Copy what python-tuf would read. Raises HostError."""
        names = [f"{name}.json" for name in ROLES]
        for path in (*(self.folder / name for name in names), *self._roots.glob("*.root.json")):
            if (data := _read(path)) is not None:
                copy = other.folder / path.relative_to(self.folder)
                try:
                    copy.write_bytes(data)
                except OSError as error:
                    raise _cannot("write", error, copy) from error

    def _write(self, path: Path, data: bytes) -> None:
        if _read(path) == data:
            return
        try:
            files.replace(path, data)
        except OSError as error:
            raise _cannot("write", error, path) from error


@contextmanager
def _staging() -> Iterator[_Cache]:
    """Yield a cache that is gone afterwards. Raises HostError."""
    with ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            (folder / _ROOTS).mkdir()
        except OSError as error:
            raise _cannot("write", error, tempfile.gettempdir()) from error
        yield _Cache(folder)


def _cannot(do: str, error: OSError, path: Path | str) -> HostError:
    return HostError(
        f"cannot {do} {error.filename or path}: {error.strerror}",
        hint="is the disk full, or read-only? nothing that was trusted before is lost",
    )


def _read(path: Path) -> bytes | None:
    """Return what is in ``path``; what cannot be read is fetched again."""
    try:
        return path.read_bytes()
    except OSError:
        return None
