"""All benchmarks, one after the other, and a table of what each found.

``tests/bench/run`` installs what they need and comes here.
"""

import argparse
import os
import platform
import re
import sys
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

from tests import sections
from tests.bench import figures, host, lock, pages, payload, server, writer
from tests.bench.figures import Found

README = Path(__file__).parents[2] / "README.md"
PROGRAM = "tests/bench/run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A benchmark, and what it is told."""

    module: ModuleType
    words: str = ""
    quick: str
    """When there is little time."""

    def options(self, *, quick: bool) -> argparse.Namespace:
        """Return what it is told, as it wants it."""
        words = self.quick if quick else self.words
        told: argparse.Namespace = self.module.command().parse_args(words.split())
        return told


BENCHES = {
    "payload": Bench(
        module=payload,
        quick="--size 64 --runs 3 --kills 10 --only install update publish resume",
    ),
    "writer": Bench(module=writer, words="--folder /var/tmp", quick="--folder /var/tmp --size 40"),
    "lock": Bench(module=lock, quick="--hosts 100 --seconds 2"),
    "server": Bench(module=server, quick="--times 1 --seconds 5 --callers 64"),
    "postgres": Bench(
        module=server, words="--postgres", quick="--postgres --times 1 --seconds 5 --callers 64"
    ),
    "pages": Bench(module=pages, quick="--hosts 5000"),
    "host": Bench(module=host, quick="--times 10 --chunks 20000 --seconds 30"),
}


def measured(name: str, found: list[Found], *, quick: bool) -> bool:
    """Run a benchmark, print and note what it finds, and return whether it came to its end."""
    bench = BENCHES[name]
    print(f"\n{name}", flush=True)
    try:
        for it in bench.module.measured(bench.options(quick=quick)):
            print(f"  {it.line()}", flush=True)
            found.append(it)
    except Exception:  # noqa: BLE001  one that fails, whatever it is, must not lose the others
        traceback.print_exc()
        return False
    return True


def machine() -> str:
    """Return what this was measured on, as a sentence has it."""
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    kernel = re.match(r"[\d.]+\d", platform.release())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{found[1] if found else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB,"
        f" Linux {kernel[0] if kernel else platform.release()}"
    )


def main() -> int:
    """Measure, and print the table."""
    command = argparse.ArgumentParser(prog=PROGRAM, description=__doc__.partition("\n")[0])
    command.add_argument("names", nargs="*", metavar="NAME", help="all unless named")
    command.add_argument("--quick", action="store_true", help="small sizes, a few minutes")
    command.add_argument("--write", action="store_true", help="the tables also go into README.md")
    options = command.parse_args()
    if unknown := set(options.names) - set(BENCHES):
        command.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    failed: list[str] = []
    tables: list[str] = []
    for name in [it for it in BENCHES if it in options.names or not options.names]:
        found: list[Found] = []
        if not measured(name, found, quick=options.quick):
            failed.append(name)
        words = f"sudo {PROGRAM} {name}{' --quick' * options.quick}"
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        tables.append(f"`{words}`, {today}, {machine()}:\n\n{figures.table(found)}")
        if options.write and name not in failed:
            README.write_text(sections.replaced(README, f"bench {name}", tables[-1]))
    print("\n" + "\n".join(tables))
    if failed:
        print(f"{PROGRAM}: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
