"""A log that is appended to and synced as etcd's is; prints how long each sync took.

Standalone: nothing but Python's own library, so that it can be copied into a machine.

    python3 latency.py --seconds 60 /var/lib/latency.log

prints JSON: syncs, seconds, and p50, p99 and max in milliseconds. An entry follows ``--rate`` times
a second; one that had to wait for the sync before it is counted in ``late``, and shifts the rest.
The file's blocks are written beforehand, as etcd does, so a sync is of data and not of metadata.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence

ENTRY = 8 * 1024
"""Bytes appended at once."""

FILE = 64 * 1024 * 1024
"""Bytes of the file, which is begun anew when it is full."""


def prepare(path: str) -> int:
    """Make the file, all of it written, and return it open."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for at in range(0, FILE, 1024 * 1024):
        os.pwrite(fd, bytes(1024 * 1024), at)
    os.fsync(fd)
    return fd


def work(fd: int, rate: float, seconds: float) -> tuple[list[float], int]:
    """Append and sync for ``seconds``; return how long each sync took, and how many began late."""
    entry = os.urandom(ENTRY)
    took: list[float] = []
    late = 0
    began = time.monotonic()
    while (now := time.monotonic()) < began + seconds:
        due = began + (len(took) + 1) / rate
        if now < due:
            time.sleep(due - now)
        else:
            late += 1
            began += now - due  # the next one has its whole pause again
        begin = time.monotonic()
        os.pwrite(fd, entry, len(took) * ENTRY % FILE)
        os.fdatasync(fd)
        took.append(time.monotonic() - begin)
    return took, late


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` of them are."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> int:
    parser = argparse.ArgumentParser(description="Append and sync like etcd; print the times.")
    parser.add_argument("path", help="the file to append to; made, and left behind")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long (default 30)")
    parser.add_argument("--rate", type=float, default=100.0, help="syncs a second (default 100)")
    options = parser.parse_args()
    fd = prepare(options.path)
    took, late = work(fd, options.rate, options.seconds)
    os.close(fd)
    milliseconds = [1000 * it for it in took]
    print(json.dumps({
        "syncs": len(took),
        "seconds": options.seconds,
        "late": late,
        "p50_ms": round(quantile(milliseconds, 0.5), 3),
        "p99_ms": round(quantile(milliseconds, 0.99), 3),
        "max_ms": round(max(milliseconds), 3),
    }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
