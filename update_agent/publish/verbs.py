"""What the verbs of ``update-publish`` share: where repository and keys are, who does it, why."""

import getpass
import json
import os
import re
import socket
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from update_agent.core.version import Version, VersionError
from update_agent.publish.keys import Keyring
from update_agent.publish.repository import Committed, Repository

if TYPE_CHECKING:
    from tqdm import tqdm

REPOSITORY = "UPDATE_PUBLISH_REPOSITORY"
KEYS = "UPDATE_PUBLISH_KEYS"
"""Environment variables that stand for --repository and --keys, the latter with colons between."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def add_options(verb: ArgumentParser, *, keys: bool = True) -> None:
    """Add the options that name the repository and the keys."""
    verb.add_argument("--repository", type=Path, metavar="FOLDER",
                      default=Path(os.environ.get(REPOSITORY, ".")),
                      help=f"where it is (default: ${REPOSITORY}, or here)")  # fmt: skip
    if keys:
        verb.add_argument("--keys", type=Path, action="append", metavar="FOLDER",
                          help=f"a key ring; may be repeated (default: ${KEYS}, or"
                          " ~/.config/update-publish)")  # fmt: skip
    verb.add_argument("--json", action="store_true", help="print JSON")


def add_author(verb: ArgumentParser, *, reason: bool) -> None:
    """Add the options that say who changes something, and why."""
    verb.add_argument("--reason", required=reason, default="", metavar="TEXT",
                      help="why, for everyone who looks at it later")  # fmt: skip
    verb.add_argument("--author", default=f"{getpass.getuser()}@{socket.gethostname()}",
                      metavar="WHO", help="who does it (default: %(default)s)")  # fmt: skip


def keyring(options: Namespace) -> Keyring:
    """Return the key rings that the options name."""
    named = [Path(part) for part in os.environ.get(KEYS, "").split(":") if part]
    default = Path.home() / ".config" / "update-publish"
    return Keyring(getattr(options, "keys", None) or named or [default])


def opened(options: Namespace) -> Repository:
    """Return the repository that the options name."""
    repository = Repository(options.repository, keyring(options))
    repository.want()
    return repository


def show(options: Namespace, plain: object, text: str) -> None:
    """Print ``plain`` as JSON, or ``text``."""
    print(json.dumps(plain) if options.json else text)


def committed_plain(committed: Committed) -> dict[str, object]:
    """Return what a commit did, for JSON."""
    return {
        "published": list(committed.published),
        "waiting": [
            {"role": it.role, "version": it.version, "signed": it.signed,
             "threshold": it.threshold, "missing": list(it.missing)}
            for it in committed.waiting
        ],
    }  # fmt: skip


def committed_text(repository: Repository, committed: Committed) -> str:
    """Return what a commit did, for people."""
    lines = [f"published {', '.join(committed.published)}" if committed.published
             else "nothing new was published"]  # fmt: skip
    for it in committed.waiting:
        names = ", ".join(repository.keyring.name(key) or key[:12] for key in it.missing)
        lines.append(
            f"{it.role} {it.version} waits for {it.threshold - it.signed} more of"
            f" {it.threshold} signatures, by: {names}"
        )
    if committed.waiting:
        lines.append("('update-publish sign --keys FOLDER' adds those of the keys there)")
    return "\n".join(lines)


class Bars:
    """Progress for people: a bar for each step."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: tqdm[NoReturn] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._close()

    def begin(self, what: str, size: int) -> None:
        """Show a new bar."""
        from tqdm import tqdm  # noqa: PLC0415  loads slowly, and only people need it

        self._close()
        self._bar = tqdm(
            desc=what, total=size, unit="B", unit_scale=True, file=sys.stderr,
            disable=True if self._quiet else None,
        )  # fmt: skip

    def advance(self, size: int) -> None:
        """Move the bar on."""
        if self._bar is not None:
            self._bar.update(size)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


# Words of the command line -----------------------------------------------------------------------


def version(text: str) -> Version:
    """Read a version."""
    try:
        return Version(text)
    except VersionError as error:
        raise ArgumentTypeError(str(error)) from error


def name(text: str) -> str:
    """Read the name of a product, channel or architecture."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", text):
        raise ArgumentTypeError(
            f"{text!r} is no name, wanted lower case letters, digits, - and _, 63 at most"
        )
    return text


def duration(text: str) -> timedelta:
    """Read a length of time such as 30m, 4h or 1d12h."""
    if not re.fullmatch(r"([0-9]{1,6}[smhdw])+", text):
        raise ArgumentTypeError(f"{text!r} is no length of time, wanted such as 30m, 4h or 1d12h")
    parts = re.findall(r"([0-9]+)([smhdw])", text)
    return timedelta(seconds=sum(int(number) * _UNITS[unit] for number, unit in parts))


def moment(text: str) -> datetime:
    """Read a time: from now (3d), or of the calendar (2026-12-01T08:00Z)."""
    if re.fullmatch(r"([0-9]{1,6}[smhdw])+", text):
        return datetime.now(UTC).replace(microsecond=0) + duration(text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise ArgumentTypeError(
            f"{text!r} is no time, wanted such as 3d (from now) or 2026-12-01T08:00Z"
        )
    return found.astimezone(UTC)
