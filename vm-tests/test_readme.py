"""What the README says to type where it takes a machine, or minutes: from top to bottom."""

import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.readme import HOST, PATH, README, WORKSTATION, Command, commands

ROOT = README.parent

PATIENCE = 1200
"""Seconds for one command; the longest builds two images and updates a machine."""

SECURE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Debian's, where sudo looks for programs whatever the caller's PATH."""

CLUSTER = '[cluster]\nendpoints = ["http://127.0.0.1:2379"]\n'
"""Of one host: its own etcd."""


def run(
    words: list[str], folder: Path = ROOT, *, path: str = PATH, variables: Mapping[str, str] = {}
) -> str:
    """Run a command to its end; return what it printed."""
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, **variables, "PATH": path},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}"
    return done.stdout


def as_root(command: Command, folder: Path = ROOT) -> str:
    """Run a command as sudo does."""
    return run(shlex.split(command.text)[1:], folder, path=SECURE_PATH)


def on_host(line: str) -> str:
    return run(["vm-tests/vm", "ssh", "host1", "--", line])


def typed_as_root() -> list[Command]:
    return [it for it in commands() if it.as_root]


def test_the_newcomers_way_and_all_that_is_typed_on_a_host() -> None:
    told = [it for it in typed_as_root() if "vm-tests/" in it.text]
    first, *others = told
    assert first.text == "sudo vm-tests/try"

    try:
        said = as_root(first)
        assert "1.0.0 -> 1.1.0, confirmed" in said
        on_host(f"echo '{CLUSTER}' | sudo tee /etc/update-agent/60-cluster.toml")
        for command in commands():
            if command.where == HOST:
                on_host(command.text)
        for command in others:
            as_root(command)
    finally:
        run(["vm-tests/vm", "down", "--remove"])


def test_an_image_and_a_disk_are_made_as_told(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    build, disk = (it for it in typed_as_root() if "vm-tests/" not in it.text)

    as_root(build, tmp_path)
    sign(tmp_path)
    as_root(disk, tmp_path)

    made = {"v1.img", "www", "offline", "online", "disk.img"}
    assert {it.name for it in tmp_path.iterdir()} == {".venv", *made}


def sign(folder: Path) -> None:
    """Type what step 2 says, until the image of step 1 is a release; compress it quickly."""
    typed = [it for it in commands() if it.where == WORKSTATION]
    begin = next(at for at, it in enumerate(typed) if "UPDATE_PUBLISH_KEYS" in it.exports)
    variables = typed[begin].exports
    for command in typed[begin + 1 :]:
        words = shlex.split(command.text)
        last = words[:4] == ["update-publish", "release", "add", "v1.img"]
        run([*words, "--level", "1"] if last else words, folder, variables=variables)
        if last:
            return
    raise AssertionError("README.md makes no release of v1.img")
