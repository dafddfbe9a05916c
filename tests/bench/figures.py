"""What a benchmark finds: figures, for its own print and for the table of all of them.

A benchmark is a module with ``command``, which says what it can be told, and ``measured``, which
yields what it finds as soon as it has it. What cannot be measured here is told with its reason; a
BenchError ends a benchmark, and what it found until then counts.
"""

import json
import math
import statistics
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from tests.bench.measure import BenchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """What was measured beside a figure, in the same run and unit."""

    name: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One thing that was measured; of several times the median, and what lay around it."""

    name: str
    value: float
    unit: str = ""
    against: tuple[Against, ...] = ()
    spread: tuple[float, float] | None = None

    @classmethod
    def of(cls, name: str, values: Sequence[float], unit: str, *against: Against) -> "Figure":
        """Return the figure of what was measured one or several times."""
        return cls(
            name=name,
            value=statistics.median(values),
            unit=unit,
            against=against,
            spread=(min(values), max(values)) if len(values) > 1 else None,
        )

    def ratio(self, other: Against) -> float:
        """Return this, divided by what it stands against."""
        return self.value / other.value if other.value else math.inf

    def cells(self) -> tuple[str, str, str]:
        """Return what stands in a table: name, amount, ratio to each that it stands against."""
        amount = f"{short(self.value)} {self.unit}".rstrip()
        if self.spread:
            amount += f" ({short(self.spread[0])} to {short(self.spread[1])})"
        ratios = (f"{self.ratio(it):.2f} of {it.name} ({short(it.value)})" for it in self.against)
        return self.name, amount, "; ".join(ratios)

    def line(self) -> str:
        """Return this for people who watch."""
        name, amount, against = self.cells()
        return f"{name}: {amount}" + (f"; {against}" if against else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmeasured:
    """A thing that could not be measured here."""

    name: str
    reason: str

    def line(self) -> str:
        """Return this for people who watch."""
        return f"{self.name}: not measured: {self.reason}"


Found = Figure | Unmeasured
Measuring = Callable[[Namespace], Iterator[Found]]


def main(command: ArgumentParser, measured: Measuring, argv: Sequence[str] | None = None) -> int:
    """Run one benchmark, print what it finds, and return the exit code."""
    command.add_argument("--json", action="store_true", help="print JSON, one line for each figure")
    options = command.parse_args(argv)
    try:
        for found in measured(options):
            print(json.dumps(asdict(found)) if options.json else found.line(), flush=True)
    except BenchError as error:
        print(f"{command.prog}: {error}", file=sys.stderr)
        return 1
    return 0


def table(found: Sequence[Found]) -> str:
    """Return figures as a table in Markdown; below it, what could not be measured."""
    figures = [it for it in found if isinstance(it, Figure)]
    missing = [f"* {it.line()}" for it in found if isinstance(it, Unmeasured)]
    head = ["| what | figure | beside it, in the same run |", "|---|---|---|"]
    rows = [f"| {' | '.join(map(_escaped, it.cells()))} |" for it in figures]
    return "\n".join([*head, *rows, *(["", *missing] if missing else [])]) + "\n"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def short(value: float) -> str:
    """Return a number with as many digits as mean something."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"
