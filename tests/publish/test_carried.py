"""A release that is made where the releases key is, and published where the online key is."""

import shutil
from pathlib import Path

from tests.images import Releases, releases
from tests.publish.published import learn
from update_agent.publish.main import main

__all__ = ["releases"]

RELEASE = "releases/os/1.0.0/release.json"


def test_a_release_that_was_carried_to_the_server_is_published_there(
    releases: Releases, tmp_path: Path
) -> None:
    desk, server = tmp_path / "desk", tmp_path / "server"
    offline, online = (["--keys", str(tmp_path / it)] for it in ("offline", "online"))
    here, there = (["--repository", str(it)] for it in (desk, server))
    init = ["init", *here, *offline, "--online-keys", online[1]]
    assert main(init) == 0
    assert main(["channel", "create", "stable", "--product", "os", *here, *online]) == 0
    shutil.copytree(desk, server)

    add = ["release", "add", str(releases.v1.image), "--product", "os", "--version", "1.0.0"]
    assert main([*add, "--level", "1", *here, *offline]) == 0
    assert main(["channel", "create", "beta", "--product", "os", *there, *online]) == 0
    carry(desk, server)

    assert main(["refresh", *there, *online]) == 0
    assert learn(server, tmp_path / "host", RELEASE)
    assert learn(server, tmp_path / "host", "channels/beta.json")
    assert main(["verify", *there]) == 0


def carry(source: Path, target: Path) -> None:
    """Copy what is not there yet, as 'rsync --ignore-existing' does."""
    for path in source.rglob("*"):
        copy = target / path.relative_to(source)
        if path.is_file() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
