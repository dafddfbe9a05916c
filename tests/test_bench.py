"""What benchmarks find, as people read it; and that all of them can still be told what they are."""

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import sections
from tests.bench import figures
from tests.bench.__main__ import BENCHES, README
from tests.bench.figures import Against, Figure, Found, Unmeasured
from tests.bench.measure import BenchError

RUN = Path(__file__).parent / "bench/run"
OURS = Figure.of("install", [2.0, 1.5, 1.75], "s", Against(name="a | b", value=3.5))


def test_of_several_times_the_median_stands_against_the_other() -> None:
    assert OURS.line() == "install: 1.75 s (1.50 to 2.00); 0.50 of a | b (3.50)"


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (0.0123, "0.012"), (0.5, "0.50"), (1, "1.00"), (12.34, "12.3"), (1234.5, "1,234")],
)
def test_a_number_has_as_many_digits_as_mean_something(value: float, said: str) -> None:
    assert figures.short(value) == said


def test_a_table_says_below_what_was_not_measured() -> None:
    lost = Figure(name="lost", value=0)

    said = figures.table([OURS, Unmeasured(name="rauc", reason="not installed"), lost])

    assert said.splitlines()[2:] == [
        r"| install | 1.75 s (1.50 to 2.00) | 0.50 of a \| b (3.50) |",
        "| lost | 0 |  |",
        "",
        "* rauc: not measured: not installed",
    ]


def test_the_readme_has_a_place_for_the_table_of_each() -> None:
    for name in BENCHES:
        assert sections.replaced(README, f"bench {name}", "x\n") != README.read_text()


def test_what_was_found_before_a_failure_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(_: Namespace) -> Iterator[Found]:
        yield OURS
        raise BenchError("3 reports are lost")

    assert figures.main(ArgumentParser(prog="bench"), fails, []) == 1

    said = capsys.readouterr()
    assert said.out == OURS.line() + "\n"
    assert said.err == "bench: 3 reports are lost\n"


@pytest.mark.parametrize("name", BENCHES)
def test_every_benchmark_understands_what_it_is_told(name: str) -> None:
    whole, quick = (BENCHES[name].options(quick=it) for it in (False, True))

    assert whole != quick


def test_the_help_names_every_benchmark() -> None:
    assert set(re.findall(r"^  (\w+)   ", RUN.read_text(), re.MULTILINE)) == set(BENCHES)
