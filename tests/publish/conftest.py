"""The releases that all tests of publishing share."""

from tests.images import releases as releases  # noqa: PLC0414  a fixture, found by its name
from tests.publisher import memory as memory  # noqa: PLC0414
from tests.publisher import stock as stock  # noqa: PLC0414
from tests.publisher import team as team  # noqa: PLC0414
