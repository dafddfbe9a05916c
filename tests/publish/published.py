"""A repository for tests: made once with few keys, copied by whoever changes it."""

import shutil
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

from update_agent.publish.main import main


class Folder(FetcherInterface):
    """Lets python-tuf's client fetch from a folder, as from a web server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _fetch(self, url: str) -> "list[bytes]":  # type: ignore[override]  # an iterable will do
        path = self.folder / url.removeprefix("http://repository/")
        if not path.exists():
            raise DownloadHTTPError(f"{url} is not there", 404)
        return [path.read_bytes()]


def client(www: Path, cache: Path) -> Updater:
    """Return python-tuf's own client, which trusts the first root and keeps what it learns."""
    cache.mkdir(exist_ok=True)
    return Updater(
        str(cache),
        "http://repository/metadata/",
        str(cache),
        "http://repository/targets/",
        fetcher=Folder(www),
        bootstrap=(www / "metadata/1.root.json").read_bytes(),
    )


def learn(www: Path, cache: Path, path: str) -> bytes | None:
    """Return what a client finds at ``path``; None when it is not listed."""
    updater = client(www, cache)
    updater.refresh()
    info = updater.get_targetinfo(path)
    return None if info is None else Path(updater.download_target(info)).read_bytes()


def publish(folder: Path, *words: str) -> int:
    """Run update-publish on the repository and with the keys in ``folder``."""
    return main([*words, "--repository", str(folder / "www"), "--keys", str(folder / "keys")])


def publish_first(folder: Path, image: Path) -> Path:
    """Make a repository in ``folder`` whose channel stable offers ``image`` as os 1.0.0."""
    words = ["--product", "os", "--version", "1.0.0", "--json"]
    for command in (
        ["init", "--json"],
        ["release", "add", str(image), *words],
        ["channel", "create", "stable", "--product", "os", "--json"],
        ["channel", "promote", "stable", "1.0.0", "--json"],
    ):
        assert publish(folder, *command) == 0
    return folder


def copied(source: Path, target: Path) -> Path:
    """Return a copy of a folder made with ``publish``, keys and all."""
    return Path(shutil.copytree(source, target))
