"""The releases that tests of slots share."""

from tests.images import releases as releases  # noqa: PLC0414  a fixture, found by its name
