"""The table in tests/README.md is true."""

from tests import cases


def test_the_table_of_cases_is_up_to_date() -> None:
    assert cases.README.read_text() == cases.written(), "run python -m tests.cases"


def test_every_marked_case_has_a_title() -> None:
    assert set(cases.marked()) <= set(cases.CASES)
