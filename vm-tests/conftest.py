"""Figures, as the tests in tests/ have them; printed once, whichever of both is run."""

import pytest

from tests import conftest as shared
from tests.conftest import figure

__all__ = ["figure"]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if not config.pluginmanager.is_registered(shared):
        shared.pytest_terminal_summary(terminalreporter, config)
