"""What all tests share: numbered cases, and figures that are printed at the end of the run."""

from collections.abc import Callable

import pytest
from hypothesis import settings

settings.register_profile("here", deadline=None)  # machines are shared: no assert is timed
settings.load_profile("here")

_FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Keep a line for the end of the run: what a test measured, for whoever reads the output."""
    return request.config.stash.setdefault(_FIGURES, []).append


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    lines = config.stash.get(_FIGURES, [])
    if lines:
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(lines))
