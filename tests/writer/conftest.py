"""The host and the repository that tests of the writer share."""

from tests.hosts import fleet as fleet  # noqa: PLC0414  a fixture, found by its name
from tests.hosts import releases as releases  # noqa: PLC0414
from tests.hosts import world as world  # noqa: PLC0414
