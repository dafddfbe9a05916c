"""etcd v3 over its HTTP+JSON gateway, as far as it is needed here.

The gateway ignores fields that it does not know, so a misspelled compare would guard nothing: each
kind of operation is a value here, and one function writes it down. The other rules kept here:

* Reads are linearizable, always: a member that lost the others answers with an error, never with
  what it remembers.
* A request that changes something is sent to another endpoint only when the first cannot have done
  it. Where that is not known the outcome is *unclear*, an error of its own: read, then decide.
* Everything has a deadline, there (``Grpc-Timeout``) and here (kept where bytes leave the socket,
  so it holds for a slow drip too); answers have a largest size. A watch asks for ``hasleader``: a
  member without a leader ends it, and does not go silent.

Answers of etcd 3.4 to 3.6 are taken: integers come as strings, zeros and empty lists not at all.
What has no header, or fewer parts than were asked for, is no answer of etcd, and believed nothing.
"""

import base64
import io
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

from update_agent.errors import HostError
from update_agent.host import connection

_MAX_ANSWER = 8_000_000
"""Bytes."""
_SILENT = 1.0
"""Seconds that a member gets beyond the deadline which it was told."""
_STATUS = 2.0
"""Seconds for a member to say how it is."""


class EtcdError(HostError):
    """etcd did not do what it was asked for, and it is known that it did not."""


class UnclearError(EtcdError):
    """etcd may have done what it was asked for, or may still do it."""


class UnreachableError(EtcdError):
    """No endpoint answers."""


class NoQuorumError(EtcdError):
    """etcd answers, and has no leader, or cannot reach a majority."""


class AuthError(EtcdError):
    """User, password or rights are wrong."""


class TokenError(AuthError):
    """The token by which etcd knows a user is not good any more."""


class CertificateError(EtcdError):
    """One side does not accept the other's certificate."""


class CompactedError(EtcdError):
    """What was asked for is older than what etcd keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach etcd."""

    endpoints: tuple[str, ...]
    """URLs of members."""
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    """Files in PEM."""
    user: str | None = None
    password_file: str | None = None
    deadline: float = 5.0
    """Seconds for one request to one endpoint."""


# Operations --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Get:
    """Read a key, or all that begin with it, the oldest first. ``limit`` 0: all."""

    key: str
    prefix: bool = False
    limit: int = 0
    values: bool = True
    """Else only that they are there, and since when."""


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key, or all that begin with it."""

    key: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Holds when ``key`` was last written at ``revision``; 0: it does not exist."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Created:
    """Holds when ``key`` was created at ``revision``; 0: it does not exist."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Absent:
    """Holds when no key begins with ``prefix``."""

    prefix: str


Compare = Unchanged | Created | Absent


@dataclass(frozen=True, slots=True)
class Either:
    """Read ``success`` when ``compare`` held before all that is done with it, else ``failure``.

    At most one of them is in a transaction.
    """

    compare: Compare
    success: tuple[Get, ...]
    failure: tuple[Get, ...]


Operation = Get | Put | Delete | Either


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A key as it stands."""

    key: str
    value: bytes
    created: int
    changed: int
    """Revisions."""
    lease: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a Get found: all keys that there are, and those that were asked for."""

    entries: tuple[Entry, ...] = ()
    count: int = 0

    @property
    def entry(self) -> Entry | None:
        """The first."""
        return self.entries[0] if self.entries else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a transaction. ``found`` has one for each Get of the branch that was taken."""

    succeeded: bool
    cluster: str
    revision: int
    found: tuple[Found, ...] = ()
    either: bool = False
    """The compare of an Either held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member of the cluster."""

    id: str
    name: str
    urls: tuple[str, ...]
    """For its clients."""
    peers: tuple[str, ...]
    """For the other members."""
    learner: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What a watch saw: a key's value, or None when it is gone."""

    key: str
    value: bytes | None
    revision: int


def written(operation: Operation | Compare) -> dict[str, Any]:
    """Return an operation as the gateway wants it in a transaction."""
    match operation:
        case Get():
            return {"request_range": _range(operation)}
        case Put():
            return {"request_put": _put(operation)}
        case Delete():
            return {"request_delete_range": _keys(operation.key, prefix=operation.prefix)}
        case Either():
            return {"request_txn": _txn((operation.compare,), operation.success, operation.failure)}
        case _:
            return _compared(operation)


def _compared(it: Compare) -> dict[str, Any]:
    match it:
        case Unchanged():
            return _compare(it.key, "MOD", "mod_revision", it.revision)
        case Created():
            return _compare(it.key, "CREATE", "create_revision", it.revision)
        case Absent():
            none = _compare(it.prefix, "CREATE", "create_revision", 0)
            return none | _keys(it.prefix, prefix=True)


def _txn(
    compares: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation]
) -> dict[str, Any]:
    return {
        "compare": [written(it) for it in compares],
        "success": [written(it) for it in success],
        "failure": [written(it) for it in failure],
    }


def _compare(key: str, target: str, name: str, revision: int) -> dict[str, Any]:
    return {"key": _coded(key), "target": target, "result": "EQUAL", name: str(revision)}


def _range(it: Get) -> dict[str, Any]:
    made: dict[str, Any] = _keys(it.key, prefix=it.prefix)
    if it.limit:
        made["limit"] = str(it.limit)
    if not it.values:
        made["keys_only"] = True
    if it.prefix:
        made |= {"sort_order": "ASCEND", "sort_target": "CREATE"}
    return made


def _put(it: Put) -> dict[str, Any]:
    made: dict[str, Any] = {"key": _coded(it.key), "value": _coded(it.value)}
    if it.lease:
        made["lease"] = str(it.lease)
    return made


def _keys(key: str, *, prefix: bool) -> dict[str, Any]:
    if not prefix:
        return {"key": _coded(key)}
    end = key.encode()
    return {"key": _coded(key), "range_end": _coded(end[:-1] + bytes([end[-1] + 1]))}


def _coded(data: str | bytes) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


# The client --------------------------------------------------------------------------------------


class Etcd:
    """A cluster of etcd. May be used by several threads; one at a time sends.

    All methods raise EtcdErrors; those that change something raise UnclearError too.
    """

    def __init__(self, access: Access, chance: Callable[[], float] = random.random) -> None:
        if not access.endpoints:
            raise ValueError("no endpoint of etcd")
        self._access = access
        self._at = int(chance() * len(access.endpoints))
        self._lock = threading.RLock()
        self._adapter = _Adapter(access)
        self._token: str | None = None
        self.sent = 0
        """Requests."""

    def close(self) -> None:
        """Close all connections."""
        self._adapter.close()

    def get(self, wanted: Get) -> Answer:
        """Return what ``wanted`` finds."""
        found = self.txn((), (wanted,))
        if not found.found:
            raise UnclearError(f"etcd did not answer what there is at {wanted.key}")
        return found

    def txn(
        self,
        compares: Sequence[Compare],
        success: Sequence[Operation],
        failure: Sequence[Operation] = (),
        *,
        again: bool = False,
    ) -> Answer:
        """Do ``success`` when all ``compares`` hold, else ``failure``; all of it or nothing.

        ``again``: to do it twice does no harm, so another endpoint is asked when it is not known
        what the first did.
        """
        reads = all(isinstance(it, Get | Either) for it in (*success, *failure))
        body = _txn(compares, success, failure)
        found = _answer(self._call("/v3/kv/txn", body, again=reads or again))
        wanted = _gets(success if found.succeeded else failure, either=found.either)
        if len(found.found) != wanted:
            raise UnclearError(f"etcd sent {len(found.found)} of {wanted} answers")
        return found

    def grant(self, seconds: int) -> int:
        """Return a new lease."""
        return _int(self._call("/v3/lease/grant", {"TTL": str(seconds)}, again=True), "ID")

    def keep_alive(self, lease: int) -> bool:
        """Begin the lease's time anew; return whether it still was one."""
        found = self._call("/v3/lease/keepalive", {"ID": str(lease)}, again=True)
        return _int(_dict(found, "result"), "TTL") > 0

    def members(self) -> list[Member]:
        """Return who belongs to the cluster."""
        found = self._call("/v3/cluster/member/list", {"linearizable": True}, again=True)
        return [
            Member(
                id=str(it.get("ID", "0")),
                name=str(it.get("name", "")),
                urls=_texts(it, "clientURLs"),
                peers=_texts(it, "peerURLs"),
                learner=it.get("isLearner") is True,
            )
            for it in _list(found, "members")
        ]

    def index(self, member: Member) -> int | None:
        """Return how far the log of ``member`` goes, by itself.

        None: it does not answer, has no leader, or complains.
        """
        for url in member.urls:
            with suppress(EtcdError), self._lock:
                found = self._authorized(url, "/v3/maintenance/status", {}, _STATUS)
                itself = str(_dict(found, "header").get("member_id", "0")) == member.id
                if itself and _int(found, "leader") and not found.get("errors"):
                    return _int(found, "raftIndex")
        return None

    def watch(self, key: str, since: int, *, seconds: float) -> Generator[list[Event], None, None]:
        """Yield what happens to ``key`` from revision ``since`` on, in a connection of its own.

        First an empty list: the watch has begun. Ends after ``seconds`` without news. Raises
        CompactedError, and NoQuorumError as soon as the member has no leader.
        """
        create = {"create_request": {"key": _coded(key), "start_revision": str(since)}}
        with self._lock:
            url = self._url
            headers = self._headers(url) | {"Grpc-Metadata-hasleader": "true"}
        try:
            with closing(self._watch(url, create, headers, seconds)) as events:
                yield from events
        except EtcdError as error:
            self._failed(url, error)
            raise

    def _watch(
        self, url: str, create: Mapping[str, Any], headers: Mapping[str, str], seconds: float
    ) -> Generator[list[Event], None, None]:
        deadline = _Deadline(self._access.deadline)
        with closing(_Adapter(self._access)) as adapter:
            with _told(url):
                answer = adapter.post(url + "/v3/watch", create, headers, deadline)
            with answer:
                if answer.status_code != requests.codes.ok:
                    raise _refused(url, answer.status_code, _parsed(url, _body(url, answer)))
                for line in _lines(url, answer, deadline, seconds):
                    yield _watched(url, line)

    def _failed(self, url: str, error: EtcdError) -> None:
        """Ask another endpoint next time, or for another token."""
        with self._lock:
            if isinstance(error, AuthError):
                self._token = None
            elif url == self._url and not isinstance(error, CompactedError):
                self._at += 1

    # Sending

    @property
    def _url(self) -> str:
        endpoints = self._access.endpoints
        return endpoints[self._at % len(endpoints)].rstrip("/")

    def _call(self, path: str, body: Mapping[str, Any], *, again: bool) -> dict[str, Any]:
        """Ask the endpoints in turn. ``again``: doing it twice does no harm."""
        with self._lock:
            errors: list[EtcdError] = []
            for _ in self._access.endpoints:
                try:
                    return self._authorized(self._url, path, body, self._access.deadline)
                except UnclearError as error:
                    self._at += 1
                    if not again:
                        raise
                    errors.append(error)
                except (UnreachableError, NoQuorumError, CertificateError) as error:
                    self._at += 1
                    errors.append(error)
            raise _summed(errors)

    def _authorized(
        self, url: str, path: str, body: Mapping[str, Any], seconds: float
    ) -> dict[str, Any]:
        try:
            return self._post(url, path, body, seconds)
        except TokenError:
            self._token = None
            return self._post(url, path, body, seconds)

    def _post(self, url: str, path: str, body: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        headers = self._headers(url)
        headers["Grpc-Timeout"] = f"{seconds * 1000:.0f}m"
        return self._send(url, path, body, headers, seconds)

    def _send(
        self, url: str, path: str, body: Mapping[str, Any], headers: dict[str, str], seconds: float
    ) -> dict[str, Any]:
        self.sent += 1
        with _told(url):
            answer = self._adapter.post(url + path, body, headers, _Deadline(seconds + _SILENT))
            with answer:
                found = _parsed(url, _body(url, answer))
        if answer.status_code != requests.codes.ok:
            raise _refused(url, answer.status_code, found)
        return found

    def _headers(self, url: str) -> dict[str, str]:
        access = self._access
        if not access.user:
            return {}
        if self._token is None:
            body = {"name": access.user, "password": _password(access.password_file)}
            try:
                found = self._send(url, "/v3/auth/authenticate", body, {}, access.deadline)
            except UnclearError as error:  # a token more harms nobody
                raise UnreachableError(str(error), hint=error.hint) from error
            self._token = str(found.get("token", ""))
        return {"Authorization": self._token}


def _password(path: str | None) -> str:
    if path is None:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AuthError(
            f"cannot read the password for etcd from {path}: {error}",
            hint="cluster.password_file must be readable by the user update-agent",
        ) from error


# One request -------------------------------------------------------------------------------------


class _Deadline:
    """Until when a peer may take its time. A stream's moves on with each piece of news."""

    def __init__(self, seconds: float) -> None:
        self.begin(seconds)

    def begin(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left. Raises TimeoutError."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def read_into(self, raw: io.RawIOBase, sock: socket.socket, buffer: memoryview) -> int:
        """Read what the socket has. Raises TimeoutError."""
        sock.settimeout(self.left())
        return raw.readinto(buffer) or 0


class _Whole(urllib3.connection.HTTPConnection):
    """Sends a request in one piece: headers and body by themselves are two packets.

    Where the other side has closed meanwhile, what it said last is read nevertheless: in TLS 1.3 it
    is only there that it refuses a client's certificate.
    """

    response_class = connection.Response
    _held: bytearray | None = None

    def request(self, *words: Any, **more: Any) -> None:  # noqa: ANN401
        self._held = bytearray()
        try:
            super().request(*words, **more)
            data, self._held = bytes(self._held), None
            self.send(data)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise BrokenPipeError from error  # urllib3 goes on to read
        finally:
            self._held = None

    def send(self, data: Any) -> None:  # noqa: ANN401
        if self._held is None:
            super().send(data)
        else:
            self._held += data


class _TlsConnection(_Whole, urllib3.connection.HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Whole


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Adapter(HTTPAdapter):
    """Sends as requests does, past its sessions: there are no redirects, cookies or proxies."""

    def __init__(self, access: Access) -> None:
        super().__init__(pool_maxsize=1)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        self._verify = connection.trusted(access.ca)
        self._cert = (access.cert, access.key) if access.cert and access.key else access.cert

    def post(
        self, url: str, body: Mapping[str, Any], headers: Mapping[str, str], deadline: _Deadline
    ) -> requests.Response:
        """Send a request, and return the answer as far as its headers."""
        made = _blank(url).copy()
        made.body = json.dumps(body).encode()
        made.headers.update(headers)
        made.headers["Content-Length"] = str(len(made.body))
        with connection.watched(deadline):
            return self.send(
                made, timeout=deadline.left(), stream=True, verify=self._verify, cert=self._cert
            )


@lru_cache(maxsize=64)
def _blank(url: str) -> requests.PreparedRequest:
    """Return a request without a body: to make one anew costs more than to fill one in."""
    return requests.Request("POST", url).prepare()


# What went wrong ---------------------------------------------------------------------------------


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Turn what requests raises into our errors, the narrowest first."""
    try:
        yield
    except requests.exceptions.SSLError as error:
        raise _tls(url, error) from error
    except requests.exceptions.ConnectTimeout as error:
        raise UnreachableError(f"{url} does not answer", hint=_REACH) from error
    except (
        requests.exceptions.ReadTimeout, urllib3.exceptions.ReadTimeoutError, TimeoutError,
    ) as error:  # fmt: skip
        raise UnclearError(f"{url} did not answer in time", hint=_REACH) from error
    except requests.exceptions.ConnectionError as error:
        raise _broken(url, error) from error
    except (
        requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema,
        requests.exceptions.MissingSchema,
    ) as error:  # fmt: skip
        raise UnreachableError(f"{error}", hint=_REACH) from error
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        raise UnclearError(f"{url} broke off: {str(error)[:200]}", hint=_REACH) from error
    except OSError as error:  # requests looks whether the files exist
        raise _unusable(error) from error


def _broken(url: str, error: requests.exceptions.ConnectionError) -> EtcdError:
    """Return which of our errors it is that a connection ended with, or did not begin with."""
    cause = error.args[0] if error.args else error
    if isinstance(cause, urllib3.exceptions.MaxRetryError):
        return UnreachableError(f"{url} cannot be reached", hint=_REACH)
    if isinstance(cause, urllib3.exceptions.ProtocolError):
        cause = cause.args[-1]
    if isinstance(cause, (PermissionError, FileNotFoundError, IsADirectoryError)):
        return _unusable(cause)
    return UnclearError(f"{url} broke off: {cause}", hint=_REACH)


def _tls(url: str, error: Exception) -> EtcdError:
    """Return what it means that TLS failed: only what is said of certificates is sure."""
    said = str(error)
    if any(word in said for word in ("EOF", "RECORD_LAYER", "timed out")):
        return UnclearError(f"{url} broke off: {said[-200:]}", hint=f"{_REACH}; does it speak TLS?")
    return CertificateError(
        f"{url}: {said[-200:]}",
        hint="check the dates and names of etcd's and this host's certificates, and the clock",
    )


def _unusable(error: OSError) -> CertificateError:
    return CertificateError(
        f"cannot use the certificates for etcd: {error}",
        hint="see cluster.ca, cluster.cert and cluster.key: 'update-agentctl config'",
    )


_REACH = "is etcd up there? curl URL/health; endpoints are cluster.endpoints"

_QUORUM = "etcdctl endpoint health --cluster, etcdctl alarm list; a majority must run"
_LOGIN = "see cluster.user and cluster.password_file"
_RIGHTS = "grant the user's role read and write of the prefix /update-agent/"
_VERSIONS = "wanted the client URL of etcd 3.4 to 3.6"

_MEANINGS: tuple[tuple[type[EtcdError], str, tuple[int, ...], tuple[str, ...]], ...] = (
    (NoQuorumError, _QUORUM, (), ("no leader", "too many requests", "not supported for learner")),
    (TokenError, _LOGIN, (16,), ("invalid auth token", "user name is empty", "store is old")),
    (AuthError, _LOGIN, (), ("authentication failed", "authentication is not enabled")),
    (AuthError, _RIGHTS, (7,), ("permission denied",)),
    (CompactedError, _VERSIONS, (), ("compacted",)),
    (EtcdError, _VERSIONS, (3, 5, 9, 11, 12), ("http status 404",)),
)
"""Errors by which etcd says that nothing was done: what they are, by gRPC's code or by a word.

Not among them is code 8: when its space is exceeded, etcd may have written nevertheless.
"""


def _refused(url: str, status: int, found: Mapping[str, Any]) -> EtcdError:
    """Return which error an answer is."""
    code = _int(found, "code") or _int(found, "grpc_code")
    said = str(found.get("message") or found.get("error") or f"HTTP status {status}")[:300]
    for kind, hint, codes, words in _MEANINGS:
        if code in codes or any(word in said.lower() for word in words):
            return kind(f"{url}: {said}", hint=hint)
    return UnclearError(f"{url}: {said}", hint=_QUORUM)


def _summed(errors: Sequence[EtcdError]) -> EtcdError:
    """Return what the failures of all endpoints come to: an answer says more than silence."""
    said = "; ".join(dict.fromkeys(str(it) for it in errors))
    for kind in (CertificateError, NoQuorumError):
        for it in errors:
            if isinstance(it, kind):
                return kind(said, hint=it.hint)
    if any(word in said for word in ("etcdserver:", "context deadline exceeded")):
        return NoQuorumError(said, hint=_QUORUM)
    return UnreachableError(said, hint=_REACH)


# Answers -----------------------------------------------------------------------------------------


def _body(url: str, answer: requests.Response) -> bytes:
    data = bytearray()
    while piece := answer.raw.read1(65536):
        data += piece
        if len(data) > _MAX_ANSWER:
            raise UnclearError(f"{url} sends more than {_MAX_ANSWER} bytes")
    return bytes(data)


def _parsed(url: str, data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnclearError(
            f"{url} does not answer in JSON: {data[:60]!r}", hint="is this etcd's client URL?"
        ) from error
    return found if isinstance(found, dict) else {}


def _answer(found: Mapping[str, Any]) -> Answer:
    header = _dict(found, "header")
    cluster, revision = _int(header, "cluster_id"), _int(header, "revision")
    if not cluster or not revision:
        raise UnclearError(f"no answer of etcd: {str(found)[:60]}", hint=_REACH)
    return Answer(
        succeeded=found.get("succeeded") is True,
        cluster=str(cluster),
        revision=revision,
        found=tuple(_found(it) for it in _ranges(found)),
        either=any(
            _dict(it, "response_txn").get("succeeded") is True for it in _list(found, "responses")
        ),
    )


def _ranges(found: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield what was found for each Get, those of an Either in its place."""
    for it in _list(found, "responses"):
        if "response_range" in it:
            yield _dict(it, "response_range")
        elif "response_txn" in it:
            yield from _ranges(_dict(it, "response_txn"))


def _gets(operations: Sequence[Operation], *, either: bool) -> int:
    """Return how many answers ``operations`` have, where the compare of an Either held, or not."""
    counts = (
        len(it.success if either else it.failure) if isinstance(it, Either) else isinstance(it, Get)
        for it in operations
    )
    return sum(counts)


def _found(it: Mapping[str, Any]) -> Found:
    return Found(entries=tuple(_entry(kv) for kv in _list(it, "kvs")), count=_int(it, "count"))


def _entry(it: Mapping[str, Any]) -> Entry:
    return Entry(
        key=_decoded(it.get("key", "")).decode(errors="replace"),
        value=_decoded(it.get("value", "")),
        created=_int(it, "create_revision"),
        changed=_int(it, "mod_revision"),
        lease=_int(it, "lease"),
    )


def _lines(
    url: str, answer: requests.Response, deadline: _Deadline, seconds: float
) -> Iterator[bytes]:
    """Yield the lines of a watch, until none comes for ``seconds``."""
    data, began = bytearray(), False
    while True:
        try:
            with _told(url):
                piece = answer.raw.read1(65536)
        except UnclearError as error:
            if began and isinstance(error.__cause__, urllib3.exceptions.ReadTimeoutError):
                return
            raise UnreachableError(str(error), hint=error.hint) from error
        if not piece:
            raise UnreachableError(f"{url} ended a watch", hint=_REACH)
        data += piece
        if len(data) > _MAX_ANSWER:
            raise UnreachableError(f"{url} sends more than {_MAX_ANSWER} bytes")
        *lines, rest = bytes(data).split(b"\n")
        data, began = bytearray(rest), began or bool(lines)
        if lines:
            deadline.begin(seconds)
        yield from filter(None, lines)


def _watched(url: str, line: bytes) -> list[Event]:
    found = _parsed(url, line)
    if "error" in found:
        error = found["error"]
        raise _refused(url, requests.codes.ok, error if isinstance(error, dict) else found)
    result = _dict(found, "result")
    if result.get("canceled") is True:
        why = str(result.get("cancel_reason", ""))
        if _int(result, "compact_revision") or "compacted" in why:
            raise CompactedError(f"{url}: the watch began before what etcd keeps")
        raise _refused(url, requests.codes.ok, {"message": why or "the watch was ended"})
    return [_event(it) for it in _list(result, "events")]


def _event(it: Mapping[str, Any]) -> Event:
    entry = _entry(_dict(it, "kv"))
    gone = it.get("type") == "DELETE"
    return Event(key=entry.key, value=None if gone else entry.value, revision=entry.changed)


def _decoded(text: object) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except ValueError as error:
        raise UnclearError("etcd sent a key or value that is no base64") from error


def _int(found: Mapping[str, Any], name: str) -> int:
    """Return an integer that may come as a string, or, when it is zero, not at all."""
    try:
        return int(found.get(name, 0))
    except (TypeError, ValueError, OverflowError) as error:  # 1e999 is a number of JSON
        raise UnclearError(f"etcd sent {name}={found[name]!r}, wanted an integer") from error


def _dict(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    it = found.get(name)
    return it if isinstance(it, dict) else {}


def _list(found: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    it = found.get(name)
    return [each for each in it if isinstance(each, dict)] if isinstance(it, list) else []


def _texts(found: Mapping[str, Any], name: str) -> tuple[str, ...]:
    it = found.get(name)
    return tuple(str(each) for each in it) if isinstance(it, list) else ()
