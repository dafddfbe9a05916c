"""What systemd itself says of a unit."""

import re
import subprocess
from pathlib import Path


def exposure(unit: Path) -> float:
    """Return how much of its host is open to a service, from 0 to 10, as systemd-analyze says."""
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", unit],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.search(rf"exposure level for {re.escape(unit.name)}: ([0-9.]+)", judged.stdout)
    assert found, judged.stderr
    return float(found[1])
