"""README's diagrams are true."""

import pytest

from tests import diagrams, sections
from tests.test_house import PACKAGE


@pytest.mark.parametrize("name", diagrams.DIAGRAMS)
def test_the_diagram_is_what_the_code_says(name: str) -> None:
    drawn = diagrams.DIAGRAMS[name]()

    assert diagrams.README.read_text() == sections.replaced(diagrams.README, name, drawn), (
        "run python -m tests.diagrams"
    )


def test_no_part_of_the_house_is_missing_from_its_diagram() -> None:
    parts = {it.name.removesuffix(".py") for it in PACKAGE.iterdir() if it.name[0] not in "_."}

    assert parts - {"errors", "man"} == set(diagrams._PARTS)
