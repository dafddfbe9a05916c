"""A release team with a repository, and hosts that look at it; all in folders, nothing served.

Hosts are python-tuf's own client and ours, each with or without what it remembers.
"""

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

from tests.images import noise, write_tree
from update_agent.core import channel, release
from update_agent.core.version import Version
from update_agent.host import trust
from update_agent.host.http import Network, StatusError
from update_agent.host.trust import TrustedRepository
from update_agent.publish.keys import Keyring
from update_agent.publish.main import main
from update_agent.publish.repository import Repository
from update_agent.publish.seal import seal

URL = "http://updates.example"
ENVIRONMENT = ("UPDATE_PUBLISH_REPOSITORY", "UPDATE_PUBLISH_KEYS", "UPDATE_PUBLISH_PASSPHRASE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401  whatever the verb prints
        return json.loads(self.out)


@dataclass(frozen=True, slots=True)
class Team:
    """Who publishes: ``www`` is the repository, ``offline`` and ``online`` are key rings."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def www(self) -> Path:
        return self.folder / "www"

    @property
    def offline(self) -> Path:
        return self.folder / "offline"

    @property
    def online(self) -> Path:
        return self.folder / "online"

    @property
    def root(self) -> Path:
        return self.www / "metadata" / "1.root.json"

    def run(self, *words: str | Path, keys: list[Path] | None = None) -> Said:
        """Run update-publish, by default with both rings."""
        rings = [self.offline, self.online] if keys is None else keys
        given = {
            "UPDATE_PUBLISH_REPOSITORY": str(self.www),
            "UPDATE_PUBLISH_KEYS": ":".join(map(str, rings)),
            **self.environment,
        }
        out, err = io.StringIO(), io.StringIO()
        before = os.umask(0o022)
        with (
            mock.patch.dict(os.environ, given),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                code = main([str(word) for word in words])
            except SystemExit as end:
                code = int(end.code or 0)
        os.umask(before)
        return Said(code=code, out=out.getvalue(), err=err.getvalue())

    def do(self, *words: str | Path, keys: list[Path] | None = None) -> str:
        """Run update-publish, which must succeed; return what it said."""
        said = self.run(*words, keys=keys)
        assert said.code == 0, f"{words}: {said.err}{said.out}"
        return said.out

    def repository(self, *rings: Path) -> Repository:
        return Repository(self.www, Keyring(list(rings)))

    def copy(self, to: Path) -> "Team":
        shutil.copytree(self.folder, to)
        return Team(to, self.environment)

    def release(self, image: Path, version: str, *words: str | Path) -> tuple[str | Path, ...]:
        """Return the words that add a release."""
        return ("release", "add", image, "--product", "os", "--version", version, *words)


# Images and a repository with all there is -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stock:
    """A team with releases 1.0.0 and 1.1.0 and a channel, which tests copy; and three images."""

    team: Team
    images: list[Path]


def image(folder: Path, number: int) -> Path:
    tree = {
        "etc/release": b"v%d" % number,
        "bin/a": noise(200_000, "a"),
        "bin/b": noise(20_000, f"b{number}"),
    }
    root = write_tree(tree, folder / f"tree-{number}")
    kernel = folder / f"kernel-{number}"
    kernel.write_bytes(noise(20_000, f"kernel {number}"))
    made = folder / f"v{number}.img"
    seal(root, kernel, made)
    return made


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A folder in memory, where flushing costs nothing."""
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  ours alone below
    with tempfile.TemporaryDirectory(dir=place, prefix="publisher-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def stock(memory: Path) -> Stock:
    images = [image(memory, number) for number in (1, 2, 3)]
    team = Team(memory / "stock")
    team.do("init", "--online-keys", team.online, keys=[team.offline])
    team.do(*team.release(images[0], "1.0.0"))
    team.do(*team.release(images[1], "1.1.0"))
    team.do("channel", "create", "stable", "--product", "os")
    team.do("channel", "promote", "stable", "1.0.0", "--author", "ann", "--reason", "first")
    return Stock(team, images)


@pytest.fixture
def team(stock: Stock, memory: Path) -> Iterator[Team]:
    """A copy of the team that a test may do with as it likes."""
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield stock.team.copy(Path(folder) / "team")


# Hosts -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a host sees."""

    root: int
    channel: tuple[str, bool, int] | None
    """Version, whether paused, number of changes."""
    payloads: tuple[tuple[str, int], ...]
    """Payloads of each release."""


RELEASES = ("1.0.0", "1.1.0", "1.2.0")


class _Folder(FetcherInterface):
    def __init__(self, www: Path) -> None:
        self._www = www

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            yield (self._www / url.removeprefix(URL + "/")).read_bytes()
        except FileNotFoundError as error:
            raise DownloadHTTPError("not found", 404) from error


def seen_by_tuf(team: Team, state: Path, fetcher: FetcherInterface | None = None) -> View:
    """Return what python-tuf's client sees, which remembers in ``state``."""
    updater = Updater(
        str(state),
        f"{URL}/metadata/",
        target_dir=str(state),
        target_base_url=f"{URL}/targets/",
        fetcher=fetcher or _Folder(team.www),
        bootstrap=team.root.read_bytes(),
    )
    updater.refresh()

    def target(path: str) -> bytes | None:
        info = updater.get_targetinfo(path)
        return Path(updater.download_target(info)).read_bytes() if info else None

    found = target("channels/stable.json")
    releases = {it: target(release.path("os", Version(it))) for it in RELEASES}
    return _view(
        updater._trusted_set.root.version,
        channel.decode(found, "stable") if found else None,
        {it: release.decode(data, "os", Version(it)) for it, data in releases.items() if data},
    )


def seen_by_us(team: Team, state: Path) -> View:
    """Return what our client sees, which remembers in ``state``."""

    def get(_: Network, url: str, *, max_size: int) -> bytes:
        try:
            data = (team.www / url.removeprefix(URL + "/")).read_bytes()
        except FileNotFoundError as error:
            raise StatusError(f"{url}: 404", status=404) from error
        assert len(data) <= max_size
        return data

    with mock.patch.object(trust, "get", get), TrustedRepository(
        [URL], trusted_root=team.root, state=state, network=cast("Network", None),
        now=datetime.now(UTC),
    ) as repository:  # fmt: skip
        repository.refresh()
        found = {it: repository.release("os", Version(it)) for it in RELEASES}
        return _view(
            len(list((state / "root_history").glob("*"))) + 1,
            repository.channel("stable"),
            {it: made for it, made in found.items() if made},
        )


def _view(root: int, found: channel.Channel | None, releases: dict[str, release.Release]) -> View:
    return View(
        root=root,
        channel=(str(found.version), bool(found.paused), len(found.changes)) if found else None,
        payloads=tuple((it, len(made.payloads)) for it, made in releases.items()),
    )
