"""A/B atomic OS updates for large fleets of Linux servers."""

__version__ = "0.1.0"
