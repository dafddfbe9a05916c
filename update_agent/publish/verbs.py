"""What the verbs of ``update-publish`` share: where repository and keys are, who does it, why."""

import getpass
import json
import os
import re
import socket
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from tuf.api.metadata import Root

from update_agent import cli
from update_agent.core import document, plan
from update_agent.core.document import MAX_TEXT
from update_agent.core.units import UnitError
from update_agent.core.version import Version
from update_agent.errors import HostError
from update_agent.publish.keys import KEYS, Keyring, named_folders
from update_agent.publish.repository import Committed, Repository, Waiting

if TYPE_CHECKING:
    from tqdm import tqdm

REPOSITORY = "UPDATE_PUBLISH_REPOSITORY"
"""The environment variable that stands for --repository, as ``KEYS`` stands for --keys."""
ROOT = "UPDATE_PUBLISH_ROOT"
"""And for --root."""


def add_options(verb: ArgumentParser, *, keys: bool = True) -> None:
    """Add the options that name the repository and the keys."""
    verb.add_argument("--repository", type=Path, metavar="FOLDER",
                      default=Path(os.environ.get(REPOSITORY, ".")),
                      help=f"where it is (default: ${REPOSITORY}, or here)")  # fmt: skip
    verb.add_argument("--root", type=Path, metavar="FILE",
                      default=os.environ.get(ROOT) and Path(os.environ[ROOT]),
                      help="the 1.root.json that hosts trust; a repository that begins with another"
                      f" is refused (default: ${ROOT}, or any)")  # fmt: skip
    if keys:
        verb.add_argument("--keys", type=Path, action="append", metavar="FOLDER",
                          help=f"a key ring; may be repeated (default: ${KEYS}, or"
                          " ~/.config/update-publish)")  # fmt: skip
    verb.add_argument("--json", action="store_true", help="print JSON")


def add_author(verb: ArgumentParser, *, reason: bool) -> None:
    """Add the options that say who changes something, and why."""
    verb.add_argument("--reason", type=_text, required=reason, default="", metavar="TEXT",
                      help="why, for everyone who looks at it later")  # fmt: skip
    verb.add_argument("--author", type=_text, default=_whoever(), metavar="WHO",
                      help="who does it (default: %(default)s)")  # fmt: skip


def _whoever() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user that has no name
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _text(text: str) -> str:
    if len(text) > MAX_TEXT or not text.isprintable():
        raise ArgumentTypeError(f"wanted a line of printable text, {MAX_TEXT} characters at most")
    return text


def keyring(options: Namespace) -> Keyring:
    """Return the key rings that the options name; none for verbs that only look."""
    if not hasattr(options, "keys"):
        return Keyring([])
    return Keyring(options.keys or named_folders() or [Path.home() / ".config" / "update-publish"])


def opened(options: Namespace, *, begun: bool = False) -> Repository:
    """Return the repository that the options name; ``begun`` is enough where it need not be out."""
    repository = Repository(options.repository, keyring(options), first=_first(options.root))
    if not (begun and repository.staged(Root.type)):
        repository.want()
    return repository


def _first(root: Path | None) -> bytes | None:
    try:
        return root.read_bytes() if root else None
    except OSError as error:
        raise HostError(f"cannot read {root}: {error.strerror}") from error


def show(options: Namespace, plain: object, text: str) -> None:
    """Print ``plain`` as JSON, or ``text``."""
    print(json.dumps(plain) if options.json else text)


def report(
    options: Namespace,
    repository: Repository,
    committed: Committed,
    text: str = "",
    plain: Mapping[str, object] | None = None,
) -> int:
    """Print what was done and what became of it. Returns 0."""
    said = {**(plain or {}), "changes": committed.changes, "published": committed.published,
            "waiting": [waiting_plain(it) for it in committed.waiting]}  # fmt: skip
    lines = [*([text] if text else []), *committed.changes]
    names = ", ".join(committed.published)
    lines.append(f"published {names}" if names else "nothing new was published")
    lines += [waiting_text(repository, it) for it in committed.waiting]
    if committed.waiting:
        lines.append("(it stays staged; 'update-publish sign --keys FOLDER' adds the signatures of"
                     " the keys there)")  # fmt: skip
    show(options, said, "\n".join(lines))
    return 0


def out(repository: Repository, *roles: str) -> int:
    """Return the exit code of what has to reach hosts: 0 when nothing of ``roles`` waits."""
    return HostError.exit_code if any(map(repository.staged, roles)) else 0


def waiting_plain(it: Waiting) -> dict[str, object]:
    """Return what is waited for, for JSON."""
    return {"role": it.role, "version": it.version, "signed": it.signed,
            "threshold": it.threshold, "missing": list(it.missing)}  # fmt: skip


def waiting_text(repository: Repository, it: Waiting) -> str:
    """Return what is waited for, for people."""
    names = ", ".join(map(repository.keyring.name, it.missing))
    return (
        f"{it.role} {it.version} waits for {it.threshold - it.signed} more of"
        f" {it.threshold} signatures, by: {names}"
    )


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


_LAST_YEAR = 9000
"""Room to add any length to a time."""

version = cli.argument(Version)
duration = cli.argument(plan.length)
"""Such as 30m, 4h or 1d12h."""


def name(text: str) -> str:
    """Read the name of a product, channel or architecture."""
    if not re.fullmatch(document.NAME, text):
        raise ArgumentTypeError(
            f"{text!r} is no name, wanted lower case letters, digits, - and _, 63 at most"
        )
    return text


@cli.argument
def moment(text: str) -> datetime | timedelta:
    """Read a time: of the calendar (2026-12-01T08:00Z), or after another (3d)."""
    with suppress(UnitError):
        return plan.length(text)
    with suppress(ValueError, OverflowError):
        found = datetime.fromisoformat(text)
        if found.tzinfo and found.year < _LAST_YEAR:
            return found.astimezone(UTC)
    raise ArgumentTypeError(f"{text!r} is no time, wanted such as 3d or 2026-12-01T08:00Z")
