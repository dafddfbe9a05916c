"""A publisher that is killed before any of its file operations: the repository stays whole.

Each command is run in a child process that ends before its n-th operation that changes a file, for
every n. Then a client that knows nothing and one that knows the old state must both find a whole
repository, old or new; and the same command again must end what was begun, with nothing left over.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.images import Releases, releases
from tests.publish.published import copied, learn, publish
from update_agent.publish.keys import Keyring
from update_agent.publish.repository import Repository
from update_agent.publish.verify import verify

__all__ = ["releases"]

KILLED = 86
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory: what is durable is not the subject here, and thousands of flushes are."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def base(releases: Releases, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One release, one channel."""
    folder = tmp_path_factory.mktemp("base")
    assert publish(folder, "init", "--threshold", "root=1") == 0
    words = ["--product", "os", "--version", "1.0.0", "--json"]
    assert publish(folder, "release", "add", str(releases.v1.image), *words) == 0
    assert publish(folder, "channel", "create", "stable", "--product", "os", "--json") == 0
    assert publish(folder, "channel", "promote", "stable", "1.0.0", "--json") == 0
    return folder


COMMANDS = {
    "release add": ["release", "add", "{v2}", "--product", "os", "--version", "1.1.0",
                    "--level", "1"],
    "release withdraw": ["release", "withdraw", "--product", "os", "--version", "1.0.0",
                         "--reason", "bad"],
    "channel create": ["channel", "create", "beta", "--product", "os"],
    "channel promote": ["channel", "promote", "stable", "1.0.0", "--wave", "10%:1h"],
    "channel pause": ["channel", "pause", "stable", "--reason", "bad"],
    "refresh": ["refresh"],
    "rotate the online key": ["keys", "rotate", "online", "online-2"],
    "rotate the key of releases": ["keys", "rotate", "releases", "releases-2"],
    "rotate the key of targets": ["keys", "rotate", "targets", "targets-2"],
    "rotate a key of the root": ["keys", "rotate", "root-1", "root-4"],
    "add a key": ["keys", "add", "second", "--role", "releases"],
    "revoke a key": ["keys", "revoke", "root-2"],
}  # fmt: skip
PATHS = ("channels/stable.json", "channels/beta.json",
         "releases/os/1.0.0/release.json", "releases/os/1.1.0/release.json")  # fmt: skip


def killed_before(operation: int, work: Callable[[], int]) -> bool:
    """Run ``work`` in a child that ends before so many operations; return whether it ended so."""
    child = os.fork()
    if child == 0:
        try:
            _count_down(operation)
            sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  until the end
            code = work()
        except BaseException:  # noqa: BLE001  nothing may come out of a child
            code = 99
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED), f"the command failed with {code}"
    return code == KILLED


def _count_down(operation: int) -> None:
    left = operation

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if event in _CHANGING or (writes and str(arguments[0]) != os.devnull):
            if left == 0:
                os._exit(KILLED)
            left -= 1

    sys.addaudithook(hook)


def state(folder: Path, cache: Path) -> dict[str, bytes | None]:
    """Return what a client with this cache sees."""
    return {path: learn(folder / "www", cache, path) for path in PATHS}


def problems(folder: Path) -> list[str]:
    return verify(Repository(folder / "www", Keyring([]))).problems


@pytest.mark.case(94)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_publisher_leaves_the_old_state_or_the_new(
    name: str, base: Path, releases: Releases, memory: Path, figure: Callable[[str], None]
) -> None:
    words = [word.replace("{v2}", str(releases.v2.image)) for word in COMMANDS[name]]
    known = memory / "known"
    old = state(base, known)
    operation = 0
    while True:
        folder = copied(base, memory / "now")
        if not killed_before(operation, lambda folder=folder: publish(folder, *words)):  # type: ignore[misc]
            break
        cache = copied(known, memory / "cache")
        seen = state(folder, memory / "fresh")
        assert state(folder, cache) == seen, f"clients disagree after operation {operation}"
        assert publish(folder, *words) == 0
        after = state(folder, cache)
        assert seen in (old, after), f"half of it after operation {operation}"
        assert problems(folder) == []
        for part in ("now", "cache", "fresh"):
            shutil.rmtree(memory / part)
        operation += 1
    assert operation > 0
    figure(f"update-publish {name}, killed before each of {operation} operations: 0 broken")
