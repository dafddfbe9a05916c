"""What all tests share: numbered cases, and figures that are printed at the end of the run."""

from collections.abc import Callable

import pytest
from hypothesis import settings

settings.register_profile("here", deadline=None)  # machines are shared: no assert is timed
settings.load_profile("here")

_FIGURE = "figure"


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Keep a line for the end of the run: what a test measured, for whoever reads the output.

    It travels with the test's report, and so from the processes of pytest-xdist as well.
    """
    return lambda line: request.node.user_properties.append((_FIGURE, line))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    ended = [
        report
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "teardown"
    ]
    lines = [line for it in ended for name, line in it.user_properties if name == _FIGURE]
    if lines:
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(map(str, lines)))
