"""The manual pages are what the programs say of themselves, and pages that man accepts."""

import subprocess
from pathlib import Path

import pytest

from tests import manuals

PAGES = manuals.pages()


def test_no_page_is_behind_its_source_and_none_is_left_over() -> None:
    there = {path: path.read_text() for path in manuals.FOLDER.rglob("*.*")}

    assert there == PAGES, "run python -m tests.manuals"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_man_shows_the_page_without_a_complaint(page: Path) -> None:
    shown = subprocess.run(
        ["man", "--warnings", "--local-file", page],
        capture_output=True, text=True, check=True, env={"LC_ALL": "C.UTF-8", "MANWIDTH": "100"},
    )  # fmt: skip

    assert shown.stderr == ""
    assert f"{page.stem} - " in shown.stdout


def test_a_program_without_a_page_would_be_missed() -> None:
    scripts = Path(manuals.FOLDER.parents[1], "pyproject.toml").read_text()
    _, _, rest = scripts.partition("[project.scripts]\n")
    table, _, _ = rest.partition("\n\n")

    assert {line.split(" = ")[0] for line in table.splitlines()} == {
        page.stem for page in PAGES if page.stem != manuals.SETTINGS
    }
