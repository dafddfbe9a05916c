"""What every search does alike: try by the number, on all cores, and name the one that failed.

The same seed tries the same, however many cores there are.
"""

import multiprocessing
import sys
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from random import Random

Try = Callable[[Random], str | Counter[str]]
"""Tries one thing; returns how it ended, or what is to be counted."""


def parser(module: str, about: str, what: str, *, count: int) -> ArgumentParser:
    made = ArgumentParser(prog=f"python -m {module}", description=about)
    made.add_argument("--count", type=int, default=count, help=f"{what} to try (default {count})")
    made.add_argument("--seed", type=int, default=1, help=f"the same seed tries the same {what}")
    made.add_argument("--repeat", metavar="NAME", help="try the one that a failure named")
    made.set_defaults(what=what, prog=made.prog)
    return made


def searched(
    one: Try,
    options: Namespace,
    *,
    part: int,
    prepare: Callable[..., None] | None = None,
    prepared: tuple[object, ...] = (),
) -> Counter[str]:
    """Return the outcomes of all that ``options`` ask for, tried in parts; say how far it is."""
    outcomes: Counter[str] = Counter()
    began, tried = time.monotonic(), 0
    with multiprocessing.Pool(initializer=prepare, initargs=prepared) as pool:
        tasks = _tasks(options.seed, options.count, part)
        for count, some in pool.imap_unordered(partial(_part, one, options.prog), tasks):
            outcomes += some
            tried += count
            per_second = tried / (time.monotonic() - began)
            progress = f"\r{tried:,} of {options.count:,} {options.what}, {per_second:,.0f}/s "
            print(progress, end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return outcomes


def repeated(one: Try, name: str) -> str | Counter[str]:
    return one(Random(name))  # noqa: S311  must repeat, need not be secret


def tell(outcomes: Counter[str], kept: str) -> None:
    """Print what came of a search, in which nothing failed."""
    print(kept)
    for outcome, times in outcomes.most_common():
        print(f"{times:>10,}  {outcome}")


def _tasks(seed: int, count: int, part: int) -> Iterator[tuple[int, int, int]]:
    for index, start in enumerate(range(0, count, part)):
        yield seed, index, min(part, count - start)


def _part(one: Try, prog: str, task: tuple[int, int, int]) -> tuple[int, Counter[str]]:
    """Try ``count`` of a part. A failure names the seed that repeats it."""
    seed, index, count = task
    outcomes: Counter[str] = Counter()
    for number in range(count):
        name = f"{seed}:{index}:{number}"
        try:
            found = repeated(one, name)
        except Exception as error:
            error.add_note(f"repeat it with: {prog} --repeat {name}")
            raise
        outcomes.update([found] if isinstance(found, str) else found)
    return count, outcomes
