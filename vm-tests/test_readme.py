"""What the README says to type where it takes a machine, or minutes: from top to bottom."""

import os
import shlex
import subprocess
from pathlib import Path

from tests.readme import HOST, PATH, README, Command, commands

ROOT = README.parent

PATIENCE = 1200
"""Seconds for one command; the longest builds two images and updates a machine."""

CLUSTER = '[cluster]\nendpoints = ["http://127.0.0.1:2379"]\n'
"""Of one host: its own etcd."""


def run(words: list[str], folder: Path = ROOT) -> str:
    """Run a command to its end; return what it printed."""
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, "PATH": PATH},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}"
    return done.stdout


def on_host(line: str) -> str:
    return run(["vm-tests/vm", "ssh", "host1", "--", line])


def typed_as_root() -> list[Command]:
    return [it for it in commands() if it.as_root]


def test_the_newcomers_way_and_all_that_is_typed_on_a_host() -> None:
    told = [it for it in typed_as_root() if "vm-tests/" in it.text]
    first, *others = told
    assert first.text == "sudo vm-tests/try"

    try:
        said = run(shlex.split(first.text)[1:])
        assert "1.0.0 -> 1.1.0, confirmed" in said
        on_host(f"echo '{CLUSTER}' | sudo tee /etc/update-agent/60-cluster.toml")
        for command in commands():
            if command.where == HOST:
                on_host(command.text)
        for command in others:
            run(shlex.split(command.text)[1:])
    finally:
        run(["vm-tests/vm", "down", "--remove"])


def test_an_image_and_a_disk_are_made_as_told(tmp_path: Path) -> None:
    told = [it for it in typed_as_root() if "vm-tests/" not in it.text]
    assert len(told) == 2

    for command in told:
        run(shlex.split(command.text)[1:], tmp_path)

    assert {it.name for it in tmp_path.iterdir()} == {"v1.img", "disk.img"}
