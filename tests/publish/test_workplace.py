"""Where payloads are made: two publishers leave each other alone, and clean up after the dead.

A publisher may be in a container or on another machine, so nothing is known of its process.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.disks import tool
from tests.images import Releases
from tests.publish.published import publish
from update_agent.core.version import Version
from update_agent.publish import releases as publishing
from update_agent.publish.keys import Keyring
from update_agent.publish.repository import Repository
from update_agent.publish.verify import verify

CODE = "import sys; from tests.publish.published import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert publish(tmp_path, "init", "--json") == 0
    return tmp_path


def repository(folder: Path) -> Repository:
    return Repository(folder / "www", Keyring([folder / "keys"]))


def add(folder: Path, image: Path, version: str) -> int:
    words = ["--product", "os", "--version", version, "--json"]
    return publish(folder, "release", "add", str(image), *words)


class Meanwhile:
    """Lets something happen while the payload of a release is made."""

    def __init__(self, step: str, work: Callable[[], object]) -> None:
        self._step, self._work = step, work

    def begin(self, what: str, size: int) -> None:
        del size
        if what == self._step:
            self._work()

    def advance(self, size: int) -> None:
        pass


def add_meanwhile(folder: Path, image: Path, work: Callable[[], object]) -> None:
    publishing.add(
        repository(folder), image, product="os", version=Version("1.0.0"), architecture="x86_64",
        progress=Meanwhile("1.0.0", work),
    )  # fmt: skip


def test_a_publisher_in_a_container_leaves_the_work_of_others_alone(
    folder: Path, releases: Releases
) -> None:
    """It sees no process of theirs."""
    words = (
        "release", "add", releases.v2.image, "--product", "os", "--version", "1.1.0", "--json",
        "--from", "none", "--repository", folder / "www", "--keys", folder / "keys",
    )  # fmt: skip

    def in_a_container() -> None:
        (ours,) = [it for it in (folder / "www/.work").iterdir() if it.is_dir()]
        tool("unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", CODE, *words)
        assert ours.is_dir()

    add_meanwhile(folder, releases.v1.image, in_a_container)

    found = publishing.listed(repository(folder))
    assert [str(it.version) for it in found] == ["1.0.0", "1.1.0"]
    assert verify(repository(folder)).problems == []


def test_what_a_killed_publisher_left_is_removed_whoever_has_its_number_now(
    folder: Path, releases: Releases
) -> None:
    for name in ("1-killed", "tmpkilled"):
        (folder / "www/.work" / name).mkdir(parents=True)
        (folder / "www/.work" / name / "1.0.0.img").write_bytes(b"much")
    (folder / "www/.work/tmpkilled/lock").touch()

    assert add(folder, releases.v1.image, "1.0.0") == 0

    assert [it for it in (folder / "www/.work").iterdir() if it.is_dir()] == []


def test_nothing_is_left_of_a_publisher_that_failed(folder: Path, releases: Releases) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_meanwhile(folder, releases.v1.image, fail)

    assert [it for it in (folder / "www/.work").iterdir() if it.is_dir()] == []
