"""etcd v3 over its HTTP+JSON gateway, as far as it is needed here.

The gateway ignores fields that it does not know, so a misspelled compare would guard nothing: each
kind of operation is a value here, and one function writes it down. The other rules kept here:

* Reads are linearizable, always: a member that lost the others answers with an error, never with
  what it remembers.
* A request that changes something is sent to another endpoint only when the first cannot have done
  it. Where that is not known the outcome is *unclear*, an error of its own: read, then decide.
* Everything has a deadline, here (sockets) and there (``Grpc-Timeout``); answers have a largest
  size. A watch asks for ``hasleader``: a member without a leader ends it, and does not go silent.

Answers of etcd 3.4 to 3.6 are taken: integers come as strings, zeros and empty lists not at all.
"""

import base64
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import urllib3

from update_agent.errors import HostError

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
    count_only: bool = False
    created_until: int = 0
    """A revision: younger keys don't count."""


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key. With ``keep_lease`` it must exist, and keeps the lease that it has."""

    key: str
    value: bytes
    lease: int = 0
    keep_lease: bool = False


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


Operation = Get | Put | Delete
Compare = Unchanged | Created


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
            return {"request_delete_range": {**_keys(operation.key, prefix=operation.prefix)}}
        case Unchanged():
            return _compare(operation.key, "MOD", "mod_revision", operation.revision)
        case Created():
            return _compare(operation.key, "CREATE", "create_revision", operation.revision)


def _compare(key: str, target: str, name: str, revision: int) -> dict[str, Any]:
    return {"key": _coded(key), "target": target, "result": "EQUAL", name: str(revision)}


def _range(it: Get) -> dict[str, Any]:
    made: dict[str, Any] = _keys(it.key, prefix=it.prefix)
    if it.limit:
        made["limit"] = str(it.limit)
    if it.prefix and not it.count_only:
        made |= {"sort_order": "ASCEND", "sort_target": "CREATE"}
    if it.count_only:
        made["count_only"] = True
    if it.created_until:
        made["max_create_revision"] = str(it.created_until)
    return made


def _put(it: Put) -> dict[str, Any]:
    made: dict[str, Any] = {"key": _coded(it.key), "value": _coded(it.value)}
    if it.lease:
        made["lease"] = str(it.lease)
    if it.keep_lease:
        made["ignore_lease"] = True
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
        self._session = _session(access)
        self._token: str | None = None
        self.sent = 0
        """Requests."""

    def close(self) -> None:
        """Close all connections."""
        self._session.close()

    def get(self, wanted: Get) -> Answer:
        """Return what ``wanted`` finds."""
        return self.txn((), (wanted,))

    def txn(
        self,
        compares: Sequence[Compare],
        success: Sequence[Operation],
        failure: Sequence[Operation] = (),
    ) -> Answer:
        """Do ``success`` when all ``compares`` hold, else ``failure``; all of it or nothing."""
        body = {
            "compare": [written(it) for it in compares],
            "success": [written(it) for it in success],
            "failure": [written(it) for it in failure],
        }
        reads = all(isinstance(it, Get) for it in (*success, *failure))
        return _answer(self._call("/v3/kv/txn", body, again=reads))

    def grant(self, seconds: int) -> int:
        """Return a new lease."""
        return _int(self._call("/v3/lease/grant", {"TTL": str(seconds)}, again=True), "ID")

    def keep_alive(self, lease: int) -> bool:
        """Begin the lease's time anew; return whether it still was one."""
        found = self._call("/v3/lease/keepalive", {"ID": str(lease)}, again=True)
        return _int(_dict(found, "result"), "TTL") > 0

    def revoke(self, lease: int) -> None:
        """End a lease; keys with it are gone."""
        self._call("/v3/lease/revoke", {"ID": str(lease)}, again=True)

    def members(self) -> list[Member]:
        """Return who belongs to the cluster."""
        found = self._call("/v3/cluster/member/list", {"linearizable": True}, again=True)
        return [
            Member(
                id=str(it.get("ID", "0")),
                name=str(it.get("name", "")),
                urls=tuple(str(url) for url in _list(it, "clientURLs")),
                peers=tuple(str(url) for url in _list(it, "peerURLs")),
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

    def watch(self, key: str, since: int, *, seconds: float) -> Iterator[list[Event]]:
        """Yield what happens to ``key`` from revision ``since`` on, in a connection of its own.

        First an empty list: the watch has begun. Ends after ``seconds`` without news. Raises
        CompactedError, and NoQuorumError as soon as the member has no leader.
        """
        create = {"key": _coded(key), "start_revision": str(since)}
        with _session(self._access) as session, _told(self._url), suppress(_QuietError):
            with self._lock:
                headers = self._headers() | {"Grpc-Metadata-hasleader": "true"}
            answer = session.post(
                self._url + "/v3/watch", data=json.dumps({"create_request": create}),
                headers=headers, timeout=(self._access.deadline, seconds), stream=True,
            )  # fmt: skip
            with answer:
                for line in _lines(answer):
                    yield _watched(self._url, line)

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
        except AuthError:
            if not self._access.user or not self._token:
                raise
            self._token = None  # it was too old
            return self._post(url, path, body, seconds)

    def _post(self, url: str, path: str, body: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        headers = self._headers(url)
        headers["Grpc-Timeout"] = f"{seconds * 1000:.0f}m"
        return self._send(url, path, body, headers, seconds)

    def _send(
        self, url: str, path: str, body: Mapping[str, Any], headers: dict[str, str], seconds: float
    ) -> dict[str, Any]:
        self.sent += 1
        until = time.monotonic() + seconds + _SILENT
        with _told(url):
            answer = self._session.post(
                url + path, data=json.dumps(body), headers=headers,
                timeout=(seconds, seconds + _SILENT), stream=True, allow_redirects=False,
            )  # fmt: skip
            with answer:
                found = _parsed(url, _body(url, answer, until))
            if answer.status_code != requests.codes.ok:
                raise _refused(url, answer.status_code, found)
            return found

    def _headers(self, url: str | None = None) -> dict[str, str]:
        access = self._access
        if not access.user:
            return {}
        if self._token is None:
            body = {"name": access.user, "password": _password(access.password_file)}
            try:
                found = self._send(
                    url or self._url, "/v3/auth/authenticate", body, {}, access.deadline
                )
            except UnclearError as error:  # a token more harms nobody
                raise UnreachableError(str(error), hint=error.hint) from error
            self._token = str(found.get("token", ""))
        return {"Authorization": self._token}


def _session(access: Access) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    session.verify = access.ca or True
    if access.cert:
        session.cert = (access.cert, access.key) if access.key else access.cert
    return session


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


# What went wrong ---------------------------------------------------------------------------------


class _QuietError(Exception):
    """A watch has nothing to say."""


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Turn what requests raises into our errors."""
    try:
        yield
    except requests.exceptions.SSLError as error:
        raise _certificate(url, error) from error
    except (requests.exceptions.ConnectTimeout, requests.exceptions.ProxyError) as error:
        raise UnreachableError(f"{url} does not answer", hint=_REACH) from error
    except requests.exceptions.ReadTimeout as error:
        raise UnclearError(f"{url} did not answer in time", hint=_REACH) from error
    except requests.exceptions.ConnectionError as error:
        cause = error.args[0] if error.args else error
        reason = getattr(cause, "reason", None)
        if isinstance(reason, urllib3.exceptions.NewConnectionError):
            raise UnreachableError(f"{url} cannot be reached", hint=_REACH) from error
        if "SSL" in str(error) or "certificate" in str(error):
            raise _certificate(url, error) from error
        raise UnclearError(f"{url} broke off: {cause}", hint=_REACH) from error
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        raise UnclearError(f"{url}: {error}", hint=_REACH) from error
    except OSError as error:  # a file with a certificate; no connection was made
        raise CertificateError(
            f"cannot use the certificates for etcd: {error}",
            hint="see cluster.ca, cluster.cert and cluster.key: 'update-agentctl config'",
        ) from error


def _certificate(url: str, error: Exception) -> CertificateError:
    return CertificateError(
        f"{url}: {str(error)[-200:]}",
        hint="check the dates and names of etcd's and this host's certificates, and the clock",
    )


_REACH = "is etcd up there? curl URL/health; endpoints are cluster.endpoints"

_NOT_SENT = ("no leader", "too many requests", "rpc not supported for learner")
_TOKEN = ("invalid auth token", "user name is empty", "auth store is old", "user name not found")


def _refused(url: str, status: int, found: Mapping[str, Any]) -> EtcdError:
    """Return which error an answer is. Codes are gRPC's."""
    code = _int(found, "code")
    said = str(found.get("message") or found.get("error") or f"HTTP status {status}")[:300]
    message = f"{url}: {said}"
    low = said.lower()
    if any(it in low for it in _NOT_SENT):
        return NoQuorumError(message, hint=_QUORUM)
    if code == 16 or any(it in low for it in _TOKEN):  # noqa: PLR2004
        return AuthError(message, hint="see cluster.user and cluster.password_file")
    if code == 7 or "authentication failed" in low:  # noqa: PLR2004
        return AuthError(
            message, hint="grant the user's role read and write of the prefix /update-agent/"
        )
    if "compacted" in low:
        return CompactedError(message)
    if code in (3, 5, 8, 9, 11, 12) or status == requests.codes.not_found:
        return EtcdError(message, hint="etcdctl alarm list; wanted etcd 3.4 to 3.6")
    return UnclearError(message, hint=_QUORUM)


_QUORUM = "etcdctl endpoint health --cluster; more than half of the members must run"


def _summed(errors: Sequence[EtcdError]) -> EtcdError:
    """Return what the failures of all endpoints come to: an answer says more than silence."""
    said = "; ".join(dict.fromkeys(str(it) for it in errors))
    for kind in (CertificateError, NoQuorumError):
        for it in errors:
            if isinstance(it, kind):
                return kind(said, hint=it.hint)
    if any(isinstance(it, UnclearError) and "etcdserver:" in str(it) for it in errors):
        return NoQuorumError(said, hint=_QUORUM)
    return UnreachableError(said, hint=_REACH)


# Answers -----------------------------------------------------------------------------------------


def _body(url: str, answer: requests.Response, until: float) -> bytes:
    data = bytearray()
    while piece := answer.raw.read1(65536):
        data += piece
        if len(data) > _MAX_ANSWER:
            raise UnclearError(f"{url} sends more than {_MAX_ANSWER} bytes")
        if time.monotonic() > until:
            raise UnclearError(f"{url} sends too slowly")
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
    return Answer(
        succeeded=found.get("succeeded") is True,
        cluster=str(header.get("cluster_id", "0")),
        revision=_int(header, "revision"),
        found=tuple(
            _found(_dict(it, "response_range"))
            for it in _list(found, "responses")
            if "response_range" in it
        ),
    )


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


def _lines(answer: requests.Response) -> Iterator[bytes]:
    """Yield the lines of a watch. Raises _QuietError when none comes."""
    data = bytearray()
    while True:
        try:
            piece = answer.raw.read1(65536)
        except (urllib3.exceptions.ReadTimeoutError, TimeoutError) as error:
            raise _QuietError from error
        if not piece:
            raise UnreachableError(f"{answer.url} ended a watch", hint=_REACH)
        data += piece
        if len(data) > _MAX_ANSWER:
            raise UnreachableError(f"{answer.url} sends more than {_MAX_ANSWER} bytes")
        *lines, rest = bytes(data).split(b"\n")
        data = bytearray(rest)
        yield from filter(None, lines)


def _watched(url: str, line: bytes) -> list[Event]:
    found = _parsed(url, line)
    if "error" in found:
        error = found["error"]
        raise NoQuorumError(
            f"{url}: {error.get('message') if isinstance(error, dict) else error}", hint=_QUORUM
        )
    result = _dict(found, "result")
    if result.get("canceled") is True:
        why = str(result.get("cancel_reason", ""))
        if _int(result, "compact_revision") or "compacted" in why:
            raise CompactedError(f"{url}: the watch began before what etcd keeps")
        raise NoQuorumError(f"{url} ended a watch: {why}", hint=_QUORUM)
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
    except (TypeError, ValueError) as error:
        raise UnclearError(f"etcd sent {name}={found[name]!r}, wanted an integer") from error


def _dict(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    it = found.get(name)
    return it if isinstance(it, dict) else {}


def _list(found: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    it = found.get(name)
    return it if isinstance(it, list) else []
