"""Repositories that all tests of the server share."""

from tests.publisher import memory as memory  # noqa: PLC0414  fixtures, found by their names
from tests.publisher import stock as stock  # noqa: PLC0414
from tests.publisher import team as team  # noqa: PLC0414
