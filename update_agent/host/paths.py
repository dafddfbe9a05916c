"""Where the daemon keeps things, for other programs that look there."""

from pathlib import Path

FOLDER = Path("/var/lib/update-agent")
"""The daemon's own, which alone writes there."""
RECORD = "record.json"
"""Within it: what the daemon writes down, ``core/record.py``."""
TRUST = "trust"
"""Within it: what is remembered of the repository, ``trust.py``."""
