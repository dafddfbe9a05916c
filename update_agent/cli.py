"""What every program's ``main`` does alike: tell an expected failure from a bug, and exit with it.

What a code means is in ``EXIT_CODES``; 3 is a ReleaseError, 4 a HostError, and 1 a bug, with its
traceback.
"""

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from update_agent import __version__
from update_agent.errors import UpdateAgentError

EXIT_CODES = {
    0: "done",
    2: "wrong usage",
    3: "the release or payload cannot be trusted or used",
    4: "the disk, the network or the system failed, or its state forbids what was asked for",
}
_TOLD = "\n".join(["exit codes:", *(f"  {code}  {told}" for code, told in EXIT_CODES.items())])

INTERRUPTED = 130
"""What shells report for a program that Ctrl-C ended."""


T = TypeVar("T")


class _Parser(ArgumentParser):
    """A parser that takes options by their whole name alone, as do the parsers of its verbs."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  passed on as they are
        super().__init__(**{"allow_abbrev": False, **options})


def parser(program: str, description: str, epilog: str = "") -> ArgumentParser:
    """Return a parser with what all programs share: --version, examples, exit codes."""
    made = _Parser(
        prog=program,
        description=description,
        epilog=f"{epilog}\n\n{_TOLD}" if epilog else _TOLD,
        formatter_class=RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return made


def add_settings(command: ArgumentParser, folders: Iterable[Path]) -> None:
    """Add --settings: what is read in place of the files in ``folders``."""
    command.add_argument(
        "--settings", type=Path, action="append", metavar="FOLDER",
        help="read the *.toml files here; may be repeated, a later folder hides files of an earlier"
        f" (default: {' '.join(map(str, folders))})",
    )  # fmt: skip


def argument(read: Callable[[str], T]) -> Callable[[str], T]:
    """Return ``read`` for an option: what it refuses, with an error of ours, is wrong usage."""

    def checked(text: str) -> T:
        try:
            return read(text)
        except UpdateAgentError as error:
            raise ArgumentTypeError(str(error)) from error

    return checked


def run(command: ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse ``argv``, call the chosen verb's ``run`` with the result, and return the exit code."""
    options = command.parse_args(argv)
    verb: Callable[..., int] = options.run
    try:
        done = verb(options)
        sys.stdout.flush()
    except UpdateAgentError as error:
        return complain(command.prog, error)
    except BrokenPipeError:  # the reader of our output, such as head(1), has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"{command.prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    else:
        return done


def complain(program: str, error: UpdateAgentError) -> int:
    """Print ``error`` with its way out and return its exit code."""
    print(f"{program}: {error}", file=sys.stderr)
    if error.hint:
        print(f"({error.hint})", file=sys.stderr)
    return error.exit_code
