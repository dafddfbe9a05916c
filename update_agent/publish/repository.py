"""The repository as its publishers see it: a tree of files, and the order in which they change.

    metadata/N.root.json, N.targets.json, N.releases.json, N.channels.json, N.snapshot.json,
             timestamp.json
    targets/releases/PRODUCT/VERSION/SHA256.release.json, targets/channels/SHA256.NAME.json
    payloads/PRODUCT/VERSION/SHA256.index, SHA256.blob
    .staged/ROLE.json    edits that wait for signatures; nobody else reads them

Everything but ``timestamp.json`` is written once and never changed. An edit is staged first, with
the signatures that the keys at hand give; ``commit`` publishes what is signed by enough: roles,
then the snapshot that names them, then the timestamp that names the snapshot, by one rename. A root
that names other keys comes last, and what it asks for is signed for it beforehand, by the old keys
and by the new. So hosts find the old state or the new one, and the next command ends what a killed
one began.
"""

import hashlib
import sys
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from update_agent.core import trust
from update_agent.core.trust import CHANNELS, DELEGATED, RELEASES, SIGNED_AT
from update_agent.errors import HostError, ReleaseError
from update_agent.host import files
from update_agent.publish import changes
from update_agent.publish.changes import FOLLOWS
from update_agent.publish.keys import Keyring

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)

ONLINE = (CHANNELS, Snapshot.type, Timestamp.type)
"""Roles whose keys are at hand whenever something is published."""
OFFLINE = (Root.type, Targets.type, RELEASES)
ROLES = (*OFFLINE, *ONLINE)

EXPIRES_DAYS: Mapping[str, int] = {
    Root.type: 730,
    Targets.type: 730,
    RELEASES: 365,
    CHANNELS: 90,
    Snapshot.type: 30,
    Timestamp.type: 7,
}
"""Days for which a role is valid after it was signed, when nothing else was said."""

_HOLDERS = {Targets.type: Root.type, **dict.fromkeys(DELEGATED, Targets.type)}
"""Who says who signs, of roles that snapshot vouches for; in the order in which they follow."""

_DAYS = "x-expires-days"
_TOP = (Root.type, Targets.type, Snapshot.type, Timestamp.type)
_COMPACT = JSONSerializer(compact=True)


class RepositoryError(HostError):
    """The repository cannot be used, or what was asked for does not fit it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a new repository is made: keys, thresholds and days of each role."""

    keys: Mapping[str, list[Key]]
    thresholds: Mapping[str, int] = field(default_factory=dict)
    days: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A staged role that has not enough signatures."""

    role: str
    version: int
    signed: int
    threshold: int
    missing: tuple[str, ...]
    """Ids of the keys that have not signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What a commit did."""

    published: tuple[str, ...] = ()
    """Roles with a new version, as ``ROLE N``."""
    waiting: tuple[Waiting, ...] = ()
    changes: tuple[str, ...] = ()
    """What was staged would change, whoever staged it."""


class _LackError(Exception):
    """A role has to be signed anew, and the keys are not at hand."""

    def __init__(self, waiting: Waiting) -> None:
        super().__init__(waiting.role)
        self.waiting = waiting


class Repository:
    """The repository in ``folder``. Edit and commit while ``locked``.

    ``first`` is the root that it has to begin with, where that is known from elsewhere.
    """

    def __init__(
        self,
        folder: Path,
        keyring: Keyring,
        now: datetime | None = None,
        *,
        first: bytes | None = None,
    ) -> None:
        self.folder = folder
        self.keyring = keyring
        self._first = first
        self.now = (now or datetime.now(UTC)).replace(microsecond=0)
        self._metadata = folder / "metadata"
        self._staging = folder / ".staged"

    # The tree ------------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether hosts can learn something here."""
        return self._read(self.metadata_path(Timestamp.type, 0)) is not None

    def want(self) -> None:
        """Raise RepositoryError where there is no repository."""
        if not self.exists:
            hint = "update-publish init makes one"
            if self._staging.exists():
                hint = "it waits for signatures: update-publish status"
            raise RepositoryError(f"{self.folder} is no repository", hint=hint)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one publisher after the other work; whoever comes second waits."""
        with _translated(self.folder):
            lock = files.locked(self.folder / ".lock", _tell_waiting, mode=0o644)
        with lock:
            self._sweep()
            self.want_sound()
            self.settle()
            yield

    def want_sound(self) -> None:
        """Raise ReleaseError unless what is published is signed: every edit begins with it.

        Whoever can write here and has no key could have a signer sign what he never saw.
        """
        roots = self.roots()
        if not roots and (self.exists or self._first is not None):
            raise trust.UntrustedError(
                f"{self.folder} has no root", hint="restore metadata/1.root.json from a copy"
            )
        if not self.exists:
            return
        data = {name: it for name in ROLES if (it := self.published(name))}
        chain = [trust.trusted_root(roots[0])]
        for it in roots[1:]:
            chain.append(trust.next_root(chain[-1], it))
        try:
            trust.sayings(chain[-1], data)
        except ReleaseError:
            if len(chain) == 1:
                raise
            trust.sayings(chain[-2], data)  # of a run that was killed: the last root came first

    def want_keys(self, *names: str) -> None:
        """Raise RepositoryError unless the keys at hand are enough to sign these roles.

        For who has nobody to ask for the rest: an edit that was staged unsigned would stand in the
        way of all that follow.
        """
        for name in names:
            delegator = self.delegator(name)
            threshold = delegator.get_delegated_role(name).threshold
            at_hand = sum(self.keyring.can_sign(it) for it in _key_ids(delegator, name))
            if at_hand < threshold:
                raise RepositoryError(
                    f"{name} wants {threshold} signatures, and {at_hand} of its keys are at hand",
                    hint="--keys names the rings with the online keys",
                )

    def _sweep(self) -> None:
        """Remove the unfinished files of runs that were killed."""
        with _translated(self.folder):
            for part in (self._metadata, self._staging, self.folder / "targets"):
                for path in part.rglob(".*.json.*"):
                    path.unlink()

    def metadata_path(self, name: str, version: int) -> Path:
        """Return the file of a version of a role."""
        stem = name if name == Timestamp.type else f"{version}.{name}"
        return self._metadata / f"{stem}.json"

    def target_path(self, path: str, sha256: str) -> Path:
        """Return the file of a target, which has its hash before its name."""
        folder, _, name = path.rpartition("/")
        return self.folder / "targets" / folder / f"{sha256}.{name}"

    def read_target(self, targets: Targets, path: str) -> bytes | None:
        """Return what ``targets`` lists at ``path``, or None. Raises when it is not that."""
        info = targets.targets.get(path)
        if info is None:
            return None
        file = self.target_path(path, info.hashes["sha256"])
        data = self._read(file)
        if data is None:
            raise ReleaseError(f"{file} is missing", hint="restore it, or publish it again")
        trust.target(targets, path, data)
        return data

    # What is published ---------------------------------------------------------------------------

    def roots(self) -> list[bytes]:
        """Return all roots, the first first. Raises ReleaseError when it is not the right one."""
        found: list[bytes] = []
        while data := self._read(self.metadata_path(Root.type, len(found) + 1)):
            found.append(data)
        if found and self._first not in (None, found[0]):
            raise trust.UntrustedError(
                f"{self.metadata_path(Root.type, 1)} is not the root that was named with --root",
                hint="another repository, or somebody who wants signatures for theirs",
            )
        return found

    def root(self) -> Root:
        """Return the newest root."""
        roots = self.roots()
        if not roots:
            raise RepositoryError(f"{self.folder} has no root")
        return _signed(Root, roots[-1])

    def published(self, name: str) -> bytes | None:
        """Return the metadata that hosts see: what the timestamp leads to."""
        if name == Root.type:
            return next(reversed(self.roots()), None)
        timestamp = self._read(self.metadata_path(Timestamp.type, 0))
        if name == Timestamp.type or timestamp is None:
            return timestamp
        version = _signed(Timestamp, timestamp).snapshot_meta.version
        snapshot = self._must_read(self.metadata_path(Snapshot.type, version))
        if name == Snapshot.type:
            return snapshot
        meta = _signed(Snapshot, snapshot).meta.get(f"{name}.json")
        return self._must_read(self.metadata_path(name, meta.version)) if meta else None

    def staged(self, name: str) -> bytes | None:
        """Return an edit that is not published yet."""
        return self._read(self._staging / f"{name}.json")

    def newest(self, kind: type[S], name: str) -> S:
        """Return what a role says, unpublished edits included: the base of the next edit.

        Raises RepositoryError where a key at hand would sign what nobody with a key has seen.
        """
        data = self.staged(name) or self.published(name)
        if data is None:
            raise RepositoryError(f"{self.folder} has no {name}")
        if self._could_sign(name) and not self._is_vouched(name, data):
            raise RepositoryError(
                f"the staged {name} {_version(data)} was signed by nobody",
                hint="see what it would change: update-publish status; then sign it, or remove"
                f" {self._staging}/{name}.json",
            )
        return _signed(kind, data)

    def targets(self, name: str) -> Targets:
        """Return the newest ``targets``, ``releases`` or ``channels``."""
        return self.newest(Targets, name)

    def delegator(self, name: str) -> Root | Targets:
        """Return what says who signs a role, unpublished edits included."""
        holder = _HOLDERS.get(name, Root.type)
        data = self.staged(holder) or self.published(holder)
        if data is None:
            hint = "update-publish init, once more, ends what was begun"
            raise RepositoryError(f"{self.folder} has no {holder}", hint=hint)
        return _signed_by_kind(data)

    # Edits ---------------------------------------------------------------------------------------

    def create(self, plan: Plan) -> None:
        """Stage the first version of every role; nothing is published before ``commit``."""
        for name in ROLES:
            if not plan.keys.get(name):
                raise RepositoryError(f"nobody is named to sign {name}")
        root = Root(consistent_snapshot=True, roles={name: Role([], 1) for name in _TOP})
        top = Targets(
            delegations=Delegations(
                keys={},
                roles={
                    name: DelegatedRole(name, [], 1, terminating=True, paths=[pattern])
                    for name, pattern in DELEGATED.items()
                },
            )
        )
        for name in ROLES:
            delegator: Root | Targets = top if name in DELEGATED else root
            for key in plan.keys[name]:
                delegator.add_key(key, name)
            delegator.get_delegated_role(name).threshold = plan.thresholds.get(name, 1)
            check_threshold(delegator, name)
        for name, signed in (
            (Root.type, root), (Targets.type, top), (RELEASES, Targets()), (CHANNELS, Targets()),
            (Snapshot.type, Snapshot(meta={})), (Timestamp.type, Timestamp()),
        ):  # fmt: skip
            signed.unrecognized_fields[_DAYS] = plan.days.get(name, EXPIRES_DAYS[name])
            self.stage(name, signed)

    def stage(
        self, name: str, signed: Root | Targets | Snapshot | Timestamp, *, sign: bool = True
    ) -> None:
        """Keep an edit of a role as its next version, signed by the keys at hand.

        Not signed is what comes from elsewhere: ``sign`` does that, when somebody has seen it.
        """
        if data := self.published(name):
            signed.unrecognized_fields[FOLLOWS] = changes.digest(trust.metadata(data).signed)
        signed.version = self._next_version(name)
        self._date(name, signed)
        self._write_staged(name, Metadata(signed), sign=sign)

    def renew(self, name: str) -> None:
        """Stage a role as it is, to be valid for longer, and to be signed; not twice a day."""
        data = self.published(name)
        if data is None or self.staged(name):
            return
        signed = trust.metadata(data).signed
        if signed.expires < self.now + self._valid(name, signed) - timedelta(days=1):
            self.stage(name, signed, sign=False)

    def write_target(self, targets: Targets, path: str, data: bytes) -> None:
        """Write a target's file and list it in ``targets``, which the caller stages."""
        info = TargetFile.from_data(path, data, ["sha256"])
        self._write(self.target_path(path, info.hashes["sha256"]), data)
        targets.targets[path] = info

    def sign(self) -> None:
        """Add the signatures of the keys at hand to everything that is staged."""
        self._stage_dependents()
        for name in ROLES:
            if data := self.staged(name):
                self._write_staged(name, trust.metadata(data))

    def changes(self) -> Iterator[str]:
        """Yield what would change if everything staged was published, a sentence each."""
        for name in ROLES:
            if staged := self.staged(name):
                published, after = self.published(name), trust.metadata(staged).signed
                before = trust.metadata(published).signed if published else None
                for it in changes.changes(before, after, self.keyring.name):
                    yield f"{name} {after.version} {it}"

    def waiting(self) -> list[Waiting]:
        """Return the staged roles that have not enough signatures, and who could help."""
        lacks = [
            lack
            for name in ROLES
            if (data := self.staged(name))
            for judge in self._judges(name, data)
            if (lack := _lack(judge, name, data))
        ]
        lacks.sort(key=lambda it: (ROLES.index(it.role), it.threshold - it.signed))
        return list({it.role: it for it in lacks}.values())  # of a root, what its harder judge says

    def _stage_dependents(self) -> None:
        """Stage what others have to sign anew because of a staged edit of who signs."""
        for name, holder in _HOLDERS.items():
            data, newest = self.staged(holder), self.staged(name) or self.published(name)
            if not data or not newest or not self._is_vouched(holder, data):
                continue
            if not _accepts(_signed_by_kind(data), name, newest):
                if self.staged(name):
                    if self._is_vouched(name, newest):
                        self._write_staged(name, trust.metadata(newest))
                else:
                    self.stage(name, trust.metadata(newest).signed)

    def _judges(self, name: str, data: bytes) -> list[Root | Targets]:
        """Return who must find a staged role signed well, if everything staged is published."""
        if name == Root.type:
            return [_signed(Root, it) for it in (*self.roots()[-1:], data)]
        return [self.delegator(name)]

    # Publishing ----------------------------------------------------------------------------------

    def commit(self, *, refresh: bool = False) -> Committed:
        """Publish what is signed by enough; the rest stays staged.

        ``refresh`` signs a new timestamp in any case, and anew what is past half of its time, as
        far as the keys are at hand.
        """
        self._stage_dependents()
        told = tuple(self.changes()) if self.exists else ()
        lacks = {it.role: it for it in self.waiting()}
        if lacks and not self.exists:
            return Committed(waiting=tuple(lacks.values()))
        for taken in self._choices():
            tree = self._tree(taken)
            if tree is None:
                continue
            try:
                self._vouch(tree, lacks, refresh=refresh)
            except _LackError as error:
                lacks.setdefault(error.waiting.role, error.waiting)
                continue
            published = self._publish(tree)
            self.settle()
            return Committed(published=published, waiting=tuple(lacks.values()), changes=told)
        return Committed(waiting=tuple(lacks.values()), changes=told)

    def settle(self) -> None:
        """End what a killed run began: what is published is not staged any more.

        An edit whose version somebody else took meanwhile becomes the next, if what it changes is
        as it was; else it would undo what the other did, and is put aside.
        """
        for name in ROLES:
            staged, published = self.staged(name), self.published(name)
            if staged is None or published is None or (name == Root.type and not self.exists):
                continue
            if staged == published or name in (Snapshot.type, Timestamp.type):
                self._unstage(name)
            elif _version(staged) <= _version(published):
                signed = trust.metadata(staged).signed
                if _says_the_same(staged, published):  # with the signatures of others
                    self._unstage(name)
                elif _follows(signed, published):
                    self.stage(name, signed, sign=False)
                else:
                    self._put_aside(name, _version(staged), _version(published))

    def _put_aside(self, name: str, staged: int, published: int) -> None:
        aside = self._staging / f"{name}.{staged}.outdated"
        with _translated(aside):
            (self._staging / f"{name}.json").rename(aside)
            files.flush_folder(self._staging)
        print(
            f"warning: the staged {name} {staged} was made before {name} {published} was published,"
            f" and would undo it: it is kept as {aside}; repeat the edit",
            file=sys.stderr,
        )

    def _choices(self) -> Iterator[frozenset[str]]:
        """Yield which staged edits of who signs to publish, as many as possible first."""
        edits = [name for name in (Root.type, Targets.type) if self.staged(name)]
        for count in range(len(edits), -1, -1):
            yield from map(frozenset, combinations(edits, count))

    def _tree(self, taken: Container[str]) -> dict[str, bytes] | None:
        """Return the roles that somebody signs by hand, or None if they don't fit each other."""
        tree = {}
        data = self._taken(Root.type) if Root.type in taken else self.published(Root.type)
        if data is None:
            return None
        tree[Root.type] = data
        for name, holder in _HOLDERS.items():
            found = self._fitting(name, _signed_by_kind(tree[holder]), taken)
            if found is None:
                return None
            tree[name] = found
        return tree

    def _taken(self, name: str) -> bytes | None:
        data = self.staged(name)
        good = data and all(_accepts(judge, name, data) for judge in self._judges(name, data))
        return data if good else None

    def _fitting(self, name: str, holder: Root | Targets, taken: Container[str]) -> bytes | None:
        """Return the staged or published role, the first that ``holder`` accepts."""
        staged, published = self.staged(name), self.published(name)
        if name == Targets.type:
            found = [staged if name in taken else published]
        elif _HOLDERS[name] in taken or not _says_the_same(staged, published):
            found = [staged, published]
        else:  # it was signed anew for somebody who has to wait
            found = [published, staged]
        return next((it for it in found if it and _accepts(holder, name, it)), None)

    def _vouch(self, tree: dict[str, bytes], lacks: dict[str, Waiting], *, refresh: bool) -> None:
        """Add snapshot and timestamp to ``tree``. Raises _LackError."""
        root = _signed(Root, tree[Root.type])
        holder = _signed(Targets, tree[Targets.type])
        with _optional(lacks):
            channels = _signed(Targets, tree[CHANNELS])
            if refresh and self._is_past_half(CHANNELS, channels):
                tree[CHANNELS] = self._signed_anew(CHANNELS, channels, holder)
        meta = {f"{name}.json": _meta(tree[name]) for name in _HOLDERS}
        tree[Snapshot.type] = self._snapshot(root, meta, lacks, refresh=refresh)
        tree[Timestamp.type] = self._timestamp(root, _meta(tree[Snapshot.type]), refresh=refresh)

    def _snapshot(
        self, root: Root, meta: dict[str, MetaFile], lacks: dict[str, Waiting], *, refresh: bool
    ) -> bytes:
        data = self.published(Snapshot.type)
        signed = self.newest(Snapshot, Snapshot.type)
        good = data is not None and signed.meta == meta and _accepts(root, Snapshot.type, data)
        signed.meta = meta
        if data is None or not good:
            return self._signed_anew(Snapshot.type, signed, root)
        with _optional(lacks):
            if refresh and self._is_past_half(Snapshot.type, signed):
                return self._signed_anew(Snapshot.type, signed, root)
        return data

    def _timestamp(self, root: Root, meta: MetaFile, *, refresh: bool) -> bytes:
        data = self.published(Timestamp.type)
        signed = self.newest(Timestamp, Timestamp.type)
        same = signed.snapshot_meta == meta and not refresh
        if data is not None and same and _accepts(root, Timestamp.type, data):
            return data
        signed.snapshot_meta = meta
        signed.unrecognized_fields[SIGNED_AT] = f"{self.now:%Y-%m-%dT%H:%M:%SZ}"
        return self._signed_anew(Timestamp.type, signed, root)

    def _signed_anew(self, name: str, signed: S, delegator: Root | Targets) -> bytes:
        """Return the next version of a role. Raises _LackError."""
        signed.version = self._next_version(name)
        self._date(name, signed)
        metadata = Metadata(signed)
        self._sign(name, metadata)
        data = metadata.to_bytes(_COMPACT)
        if lack := _lack(delegator, name, data):
            raise _LackError(lack)
        return data

    def _publish(self, tree: dict[str, bytes]) -> tuple[str, ...]:
        """Write what is new, in the order in which nobody ever sees half of it."""
        self._want_believable(tree)
        done = []
        for name in self._order(tree):
            version = _version(tree[name])
            path = self.metadata_path(name, version)
            if self._read(path) != tree[name]:
                self._write(path, tree[name])
                done.append(f"{name} {version}")
        return tuple(done)

    def _order(self, tree: dict[str, bytes]) -> list[str]:
        """Return all roles, what is named before what names it.

        A new root comes last, unless what the old keys sign is lost: then nobody learns anything
        until all is written, and whoever has the old keys is not heard again.
        """
        roots = self.roots()
        old = _signed(Root, roots[-1]) if roots else None
        below = (Targets.type, Snapshot.type, Timestamp.type)
        if old and all(_accepts(old, name, tree[name]) for name in below):
            return [*_HOLDERS, Snapshot.type, Timestamp.type, Root.type]
        return [*_HOLDERS, Snapshot.type, Root.type, Timestamp.type]

    def _want_believable(self, tree: dict[str, bytes]) -> None:
        """Raise ReleaseError for what hosts would refuse."""
        roots = self.roots()
        if not roots:
            root = trust.trusted_root(tree[Root.type])
        elif tree[Root.type] == roots[-1]:
            root = _signed(Root, roots[-1])
        else:
            root = trust.next_root(_signed(Root, roots[-1]), tree[Root.type])
        targets = trust.role(root, Targets, Targets.type, tree[Targets.type])
        for name in DELEGATED:
            trust.delegated(targets, name, tree[name])
        trust.role(root, Snapshot, Snapshot.type, tree[Snapshot.type])
        trust.role(root, Timestamp, Timestamp.type, tree[Timestamp.type])

    # Who signs -----------------------------------------------------------------------------------

    def _sign(self, name: str, metadata: Metadata[Any]) -> None:
        """Add a signature of each key at hand that speaks for the role, now or next."""
        holder = _HOLDERS.get(name, Root.type)
        delegators = [
            trust.metadata(data).signed
            for data in (self.staged(holder), self.published(holder))
            if data and self._is_vouched(holder, data)
        ]
        if name == Root.type:
            delegators.append(metadata.signed)
        ids = dict.fromkeys(it for one in delegators for it in _key_ids(one, name))
        self.keyring.sign(metadata, [it for it in ids if it not in metadata.signatures])

    def _is_vouched(self, name: str, data: bytes) -> bool:
        """Whether anybody has signed a role who may by what is published; at first, nobody can."""
        if not self.exists:
            return True
        holder = self._published_delegator(name)
        if holder is None or data == self.published(name):
            return True
        found = trust.metadata(data)
        result = holder.get_verification_result(name, found.signed_bytes, found.signatures)
        return bool(result.signed)

    def _could_sign(self, name: str) -> bool:
        """Whether a key for the role is in a ring here."""
        holder = self._published_delegator(name)
        ids = _key_ids(holder, name) if holder else []
        return any(it.key_id in ids for it in self.keyring)

    def _published_delegator(self, name: str) -> Root | Targets | None:
        """Return what says, by what is published, who signs a role."""
        data = self.published(_HOLDERS.get(name, Root.type))
        return _signed_by_kind(data) if data else None

    def _write_staged(self, name: str, metadata: Metadata[Any], *, sign: bool = True) -> None:
        if sign:
            self._sign(name, metadata)
        self._write(self._staging / f"{name}.json", metadata.to_bytes(_COMPACT))

    def _unstage(self, name: str) -> None:
        with _translated(self._staging):
            (self._staging / f"{name}.json").unlink(missing_ok=True)

    def _next_version(self, name: str) -> int:
        """Return a version that no file has, not even one that a killed run left behind."""
        published = self.published(name)
        used = [_version(published)] if published else [0]
        if name not in (Root.type, Timestamp.type):
            numbers = (it.name.partition(".")[0] for it in self._metadata.glob(f"*.{name}.json"))
            used += [int(it) for it in numbers if it.isdecimal()]
        return max(used) + 1

    # Time ----------------------------------------------------------------------------------------

    def _valid(self, name: str, signed: Signed) -> timedelta:
        return timedelta(days=signed.unrecognized_fields.get(_DAYS, EXPIRES_DAYS[name]))

    def _date(self, name: str, signed: Signed) -> None:
        signed.expires = self.now + self._valid(name, signed)

    def _is_past_half(self, name: str, signed: Signed) -> bool:
        return signed.expires - self.now < self._valid(name, signed) / 2

    def ending(self) -> dict[str, timedelta]:
        """Return how long those roles still hold whose time is nearly over, nine tenths of it."""
        left = {}
        for name in ROLES:
            if data := self.published(name):
                signed = trust.metadata(data).signed
                if signed.expires - self.now < self._valid(name, signed) / 10:
                    left[name] = signed.expires - self.now
        return left

    # Files ---------------------------------------------------------------------------------------

    def _write(self, path: Path, data: bytes) -> None:
        """Write a file of the tree, durably; of one with these bytes, see that it is durable."""
        with _translated(path):
            if self._read(path) == data:
                files.flush_folder(path.parent)
                return
            files.make_folders(path.parent)
            files.replace(path, data)

    def _read(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RepositoryError(f"cannot read {path}: {error.strerror}") from error

    def _must_read(self, path: Path) -> bytes:
        data = self._read(path)
        if data is None:
            raise RepositoryError(f"{path} is missing", hint="restore it from a copy")
        return data


def _tell_waiting() -> None:
    print("waiting for another publisher...", file=sys.stderr)


def check_threshold(delegator: Root | Targets, name: str) -> None:
    """Raise RepositoryError when a role wants more signatures than it has keys."""
    role = delegator.get_delegated_role(name)
    if not 1 <= role.threshold <= len(role.keyids):
        raise RepositoryError(
            f"{name} wants {role.threshold} signatures, and has {len(role.keyids)} keys",
            hint="update-publish keys add gives it another key, and --threshold another number",
        )


def _signed(kind: type[S], data: bytes) -> S:
    """Read metadata of our own making."""
    signed = trust.metadata(data).signed
    if not isinstance(signed, kind):
        raise RepositoryError(f"a file holds {signed.type}, wanted {kind.type}")
    return signed


def _signed_by_kind(data: bytes) -> Root | Targets:
    """Read the metadata of a role that says who signs for others."""
    signed = trust.metadata(data).signed
    if not isinstance(signed, Root | Targets):
        raise RepositoryError(f"a file holds {signed.type}, wanted root or targets")
    return signed


def _says_the_same(one: bytes | None, other: bytes | None) -> bool:
    """Whether two versions of a role differ in nothing but number, date and signatures."""
    if one is None or other is None:
        return False
    return changes.say_the_same(trust.metadata(one).signed, trust.metadata(other).signed)


def _follows(edit: Signed, published: bytes) -> bool:
    """Whether an edit changes what is published, and not what was before."""
    now = changes.digest(trust.metadata(published).signed)
    return bool(edit.unrecognized_fields.get(FOLLOWS) == now)


def _version(data: bytes) -> int:
    version: int = trust.metadata(data).signed.version
    return version


def _key_ids(delegator: Root | Targets, name: str) -> list[str]:
    try:
        return trust.key_ids(delegator, name)
    except ValueError:
        return []


def _lack(delegator: Root | Targets, name: str, data: bytes) -> Waiting | None:
    """Return what is missing for ``delegator`` to accept a role."""
    found = trust.metadata(data)
    result = delegator.get_verification_result(name, found.signed_bytes, found.signatures)
    if result.verified:
        return None
    return Waiting(
        role=name,
        version=found.signed.version,
        signed=len(result.signed),
        threshold=result.threshold,
        missing=tuple(result.unsigned),
    )


def _accepts(delegator: Root | Targets, name: str, data: bytes) -> bool:
    return _lack(delegator, name, data) is None


def _meta(data: bytes) -> MetaFile:
    """Return how a role is named in what vouches for it."""
    digest = hashlib.sha256(data).hexdigest()
    return MetaFile(_version(data), len(data), {"sha256": digest})


@contextmanager
def _optional(lacks: dict[str, Waiting]) -> Iterator[None]:
    """Take note of signatures that can't be had within, and go on without them."""
    try:
        yield
    except _LackError as error:
        lacks.setdefault(error.waiting.role, error.waiting)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RepositoryError(f"cannot write {error.filename or path}: {error.strerror}") from error
