"""Two small releases of a host, sealed and published, and devices and blobs that misbehave.

``v2`` differs from ``v1`` as releases do: a file edited in its middle, one more, one less, another
kernel. Both hold noise, text, zeros and a file twice. An image has about 6 MB.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from update_agent.core import payload
from update_agent.core.payload import Batch, Index, Totals
from update_agent.host.device import Device
from update_agent.host.install import Done, Source
from update_agent.host.install import install as apply_install
from update_agent.publish.payload import Made, make
from update_agent.publish.seal import seal

BLOCK = 4096
MARKER = b"UAPART\0\1"

Tree = dict[str, bytes]
"""Files of a root by their path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A slot image and its full payload."""

    image: Path
    root_hash: str
    full: Made

    @property
    def content(self) -> bytes:
        return self.image.read_bytes()

    @property
    def index(self) -> Index:
        return payload.decode(self.full.index.read_bytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class Releases:
    """What hosts have, what they shall have, and the delta payload between both."""

    v1: Release
    v2: Release
    delta: Made

    @property
    def delta_index(self) -> Index:
        return payload.decode(self.delta.index.read_bytes())


def noise(size: int, seed: str) -> bytes:
    """Return bytes that no compressor makes smaller, and that are the same every time."""
    return Random(seed).randbytes(size)  # noqa: S311  must repeat, need not be secret


def program(size: int, seed: str) -> bytes:
    """Return a file of noise that begins as programs do."""
    return b"\x7fELF" + noise(size - 4, seed)


def first_tree() -> Tree:
    text = b"".join(b"line %d of a text that compresses well\n" % n for n in range(12_000))
    many = {f"lib/many/{n:02}": program(3_000 + 2_500 * n, f"many {n}") for n in range(30)}
    return {
        "bin/agent": program(500_000, "agent"),
        "bin/shell": program(500_000, "shell"),
        "lib/text": text,
        "lib/twin": program(300_000, "twin"),
        "lib/twin-of-it": program(300_000, "twin"),
        "lib/zeros": bytes(2_500_000),
        "etc/release": b"v1\n",
    } | many


def second_tree() -> Tree:
    tree = first_tree()
    shell = bytearray(tree["bin/shell"])
    shell[200_000:200_300] = noise(300, "edit")
    tree |= {"bin/shell": bytes(shell), "bin/new": program(200_000, "new"), "etc/release": b"v2\n"}
    tree["lib/text"] = tree["lib/text"].replace(b"line 7", b"row 7")
    del tree["lib/many/10"]
    return tree


def write_tree(tree: Tree, folder: Path) -> Path:
    for name, content in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def release(folder: Path, name: str, tree: Tree, kernel: bytes) -> Release:
    """Seal and publish a release in ``folder``."""
    root = write_tree(tree, folder / f"{name}.tree")
    (folder / f"{name}.kernel").write_bytes(kernel)
    image = folder / f"{name}.img"
    root_hash = seal(root, folder / f"{name}.kernel", image)
    return Release(image=image, root_hash=root_hash, full=make(image, folder / "out", level=3))


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Releases:
    """Both releases, made once and never written to."""
    return make_releases(tmp_path_factory.mktemp("releases"))


def make_releases(folder: Path) -> Releases:
    """Return both releases, made in ``folder``."""
    old = noise(250_000, "kernel 1")
    v1 = release(folder, "v1", first_tree(), old)
    v2 = release(folder, "v2", second_tree(), old[:200_000] + noise(70_001, "kernel 2"))
    delta = make(v2.image, folder / "out", source=v1.image, level=3)
    return Releases(v1=v1, v2=v2, delta=delta)


# A blob that may lie -----------------------------------------------------------------------------


Spoil = Callable[[bytearray, int, int], None]
"""May change stored bytes, given their offset in the blob and the number of the try, from 1."""


def _as_it_is(_data: bytearray, _offset: int, _try: int) -> None:
    pass


@dataclass
class MemoryBlob:
    """A blob in memory, as ``Blob``."""

    data: bytes
    spoil: Spoil = _as_it_is
    given: list[Batch] = field(default_factory=list)
    distrusted: list[Batch] = field(default_factory=list)
    tries: int = 0

    def fetch(self, spans: Sequence[Batch], deliver: Callable[[Batch, bytearray], None]) -> None:
        self.tries += 1
        for span in spans:
            self.given.append(span)
            data = bytearray(self.data[span.blob_offset : span.blob_offset + span.blob_length])
            self.spoil(data, span.blob_offset, self.tries)
            deliver(span, data)

    def distrust(self, spans: Sequence[Batch]) -> None:
        self.distrusted.extend(spans)

    @property
    def bytes_given(self) -> int:
        return sum(span.blob_length for span in self.given)


def source_of(made: Made, spoil: Spoil = _as_it_is) -> Source:
    """Return a published payload with its blob in memory."""
    index = payload.decode(made.index.read_bytes())
    blob = MemoryBlob(made.blob.read_bytes(), spoil)
    return Source(name=made.index.name, index=index, blob=blob)


def blob_of(source: Source) -> MemoryBlob:
    assert isinstance(source.blob, MemoryBlob)
    return source.blob


class Silence:
    """Wants to know nothing of progress."""

    def planned(self, source: Source, totals: Totals) -> None:
        pass

    def show(self, step: str, done: int, size: int) -> None:
        pass


def install(
    target: Device,
    *sources: Source,
    booted: Device | None = None,
    booted_index: Index | None = None,
) -> Done:
    """Install as ``update-agent-image apply`` does."""
    return apply_install(
        target, sources, booted=booted, booted_index=booted_index, progress=Silence()
    )


# A device that may fail --------------------------------------------------------------------------


def _nothing(*_: int) -> None:
    pass


@dataclass
class Faults:
    """What happens before and after each access; a hook raises OSError, or changes the medium.

    Hooks get the number of the access, from 1, and its offset and length.
    """

    before_write: Callable[[int, int, int], None] = _nothing
    after_write: Callable[[int, int, int], None] = _nothing
    before_read: Callable[[int, int, int], None] = _nothing
    before_flush: Callable[[int], None] = _nothing


class Medium(Device):
    """A real file or device that keeps a journal, and fails when it is told to."""

    def __init__(self, fd: int, path: Path, faults: Faults) -> None:
        super().__init__(fd, path)
        self.faults = faults
        self.journal: list[tuple[int, bytes] | None] = []
        """Each write as (offset, bytes), each flush as None, in order."""
        self.reads: list[tuple[int, int]] = []
        self._order = threading.Lock()

    @property
    def writes(self) -> list[tuple[int, bytes]]:
        return [it for it in self.journal if it is not None]

    def read_into(self, buffer: memoryview, offset: int) -> int:
        with self._order:
            self.reads.append((offset, len(buffer)))
            self.faults.before_read(len(self.reads), offset, len(buffer))
        return super().read_into(buffer, offset)

    def write(self, buffer: memoryview, offset: int) -> None:
        with self._order:
            self.journal.append((offset, bytes(buffer)))
            number = len(self.writes)
            self.faults.before_write(number, offset, len(buffer))
            super().write(buffer, offset)
            self.faults.after_write(number, offset, len(buffer))

    def flush(self) -> None:
        with self._order:
            self.journal.append(None)
            self.faults.before_flush(self.journal.count(None))
            super().flush()


@contextmanager
def medium(path: Path, faults: Faults | None = None, size: int = 0) -> Iterator[Medium]:
    """Open ``path``, made or grown to ``size``."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        if size > os.fstat(fd).st_size:
            os.truncate(fd, size)
        yield Medium(fd, path, faults or Faults())
    finally:
        os.close(fd)


def flip_bit(path: Path, offset: int) -> None:
    """Change one bit of a file, as a disk does that rots."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
