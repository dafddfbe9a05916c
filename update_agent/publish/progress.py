"""Progress of long work, for people: a line for each step, with the time since it all began."""

import sys
import time
from collections.abc import Callable

Tell = Callable[[str], None]
"""Takes a line of progress."""


def teller() -> Tell:
    """Return what prints progress to standard error."""
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", file=sys.stderr)

    return tell


def silent(_: str) -> None:
    """Take a line, and print nothing."""
