"""What builds keep: made once, whole or not there, also when several want it at once."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from update_agent.errors import HostError
from update_agent.publish.cache import kept
from update_agent.publish.progress import silent


def test_who_comes_while_it_is_made_waits_and_takes_it(tmp_path: Path) -> None:
    folder = tmp_path / "cache/root"
    waits = threading.Event()
    made: list[Path] = []

    def make(place: Path) -> None:
        made.append(place)
        if len(made) == 1:
            assert waits.wait(30), "the second made it as well, or did not come"
        place.mkdir()

    def tell(line: str) -> None:
        if "waiting for another build" in line:
            waits.set()

    with ThreadPoolExecutor(2) as both:
        found = [both.submit(kept, folder, make, tell, "making") for _ in range(2)]

    assert [it.result() for it in found] == [folder, folder]
    assert len(made) == 1
    assert sorted(it.name for it in folder.parent.iterdir()) == ["lock", "root"]


def test_what_was_not_made_to_its_end_is_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "root"

    def make(place: Path) -> None:
        place.mkdir()
        raise HostError("the network is gone")

    with pytest.raises(HostError, match="the network is gone"):
        kept(folder, make, silent, "making")

    assert [it.name for it in tmp_path.iterdir()] == ["lock"]


def test_what_is_there_after_a_power_cut_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content is on the disk before the name, and the name before it is said to be there."""
    folder, sync, fsync = tmp_path / "root", os.sync, os.fsync
    flushed: list[str] = []

    def look(what: str) -> None:
        (content,) = [*tmp_path.glob("root/file"), *tmp_path.glob(".making-*/root/file")]
        flushed.append(f"{what}: {content.parent.name} in {content.parent.parent.name[:8]}")

    def whole_disk() -> None:
        look("all")
        sync()

    def one(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink() == tmp_path and folder.exists():
            look("names")
        fsync(fd)

    def make(place: Path) -> None:
        place.mkdir()
        (place / "file").write_text("content")

    monkeypatch.setattr(os, "sync", whole_disk)
    monkeypatch.setattr(os, "fsync", one)
    kept(folder, make, silent, "making")

    assert flushed == ["all: root in .making-", f"names: root in {tmp_path.name[:8]}"]


def test_a_place_where_nothing_can_be_kept_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(HostError, match=r"cannot write to .*/file/cache: Not a directory"):
        kept(tmp_path / "file/cache/root", Path.mkdir, silent, "making")
