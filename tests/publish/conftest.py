"""The releases that all tests of publishing share."""

from tests.images import releases as releases  # noqa: PLC0414  a fixture, found by its name
