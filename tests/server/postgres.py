"""A PostgreSQL of its own, on a socket in a folder, that nobody else can see."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BIN = Path("/usr/lib/postgresql/15/bin")


@contextmanager
def postgres(folder: Path, *, durable: bool = False) -> Iterator[str]:
    """Yield the URL of an empty database; ``durable`` waits for the disk at each commit."""
    data = folder / "postgres"
    data.mkdir()
    user: list[str] = []
    if os.geteuid() == 0:  # it refuses to run as root
        shutil.chown(data, "postgres")
        user = ["runuser", "-u", "postgres", "--"]
    initdb = [str(BIN / "initdb"), "--pgdata", str(data), "--auth", "trust", "--no-sync"]
    subprocess.run(
        [*user, *initdb, "--username", "postgres"], check=True, capture_output=True, cwd="/"
    )
    fsync = "on" if durable else "off"
    options = f"-c listen_addresses='' -c unix_socket_directories={data} -c fsync={fsync}"
    control = [
        *user,
        str(BIN / "pg_ctl"),
        "--pgdata",
        str(data),
        "--wait",
        "--log",
        str(data / "log"),
    ]
    subprocess.run(
        [*control, "--options", options, "start"], check=True, capture_output=True, cwd="/"
    )
    try:
        yield f"postgresql://postgres@/postgres?host={data}"
    finally:
        subprocess.run(
            [*control, "--mode", "immediate", "stop"], check=True, capture_output=True, cwd="/"
        )
