"""Files are replaced as a whole, or not at all."""

import os
import threading
from pathlib import Path

import pytest

from update_agent.host.files import alone, locked, replaced, shared


def test_a_file_is_replaced_when_all_went_well(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    with replaced(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"

    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_stays_as_it_was_when_something_failed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with replaced(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_who_comes_second_is_told_so_or_waits(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    came, got = threading.Event(), threading.Event()

    def second() -> None:
        with locked(path, came.set):
            got.set()

    with locked(path):
        with pytest.raises(BlockingIOError):
            locked(path)
        waits = threading.Thread(target=second)
        waits.start()
        assert came.wait(10)
        assert not got.is_set()

    waits.join(10)
    assert got.is_set()
    with locked(path):
        assert path.stat().st_mode & 0o777 == 0o600


def test_nobody_is_alone_in_a_folder_that_others_share(tmp_path: Path) -> None:
    first, second = shared(tmp_path), shared(tmp_path)
    os.close(first)
    with pytest.raises(BlockingIOError), alone(tmp_path):
        pass
    os.close(second)

    with alone(tmp_path), pytest.raises(BlockingIOError), alone(tmp_path):
        pass
    with alone(tmp_path):
        assert list(tmp_path.iterdir()) == []
