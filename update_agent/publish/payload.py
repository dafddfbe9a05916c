"""Making payloads: the chunks of an image, stored once each, in the order of the image.

A full payload needs nothing but itself. A delta payload is made for hosts that run one certain
image: ``delta.py`` finds what they have already, here it is compressed against that.

Images are read in pieces and never held in memory; a few chunks for each core are under way.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO

import zstandard

from update_agent.core.payload import NO_HASH, Chunk, Index, Operation
from update_agent.errors import HostError
from update_agent.host import slot
from update_agent.host.device import Device, open_device
from update_agent.host.files import replaced
from update_agent.publish import delta
from update_agent.publish.delta import Piece

LEVEL = 15
"""zstd's level of a full payload when none is asked for: 1.7 % above the size of level 19, in a
third of its time."""

DELTA_LEVEL = 19
"""The same of a delta payload, where there is less to compress and 6 % to gain."""

Progress = Callable[[int], None]
"""Called with the number of image bytes that were dealt with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The files of a payload."""

    index: Path
    blob: Path
    chunks: int


def make(
    image: Path,
    folder: Path,
    *,
    source: Path | None = None,
    level: int | None = None,
    progress: Progress = lambda _: None,
) -> Made:
    """Write the payload of ``image`` to ``folder``, full or made from ``source``.

    The files are named after the images; the index is written last, so that an index is never
    without its blob. Raises ImageError, HostError.
    """
    name = f"{image.stem}.from.{source.stem}" if source else image.stem
    made = Made(index=folder / f"{name}.index", blob=folder / f"{name}.blob", chunks=0)
    level = level or (DELTA_LEVEL if source else LEVEL)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            open_device(image) as target,
            replaced(made.index) as file,
            replaced(made.blob) as blob,
            slot.Workers() as workers,
        ):
            if source is None:
                index = _write(target, None, blob, workers, level, progress)
            else:
                with open_device(source) as old:
                    index = _write(target, old, blob, workers, level, progress)
            file.write(index.encode())
    except OSError as error:
        raise HostError(f"cannot make {made.blob}: {error.strerror}") from error
    return Made(index=made.index, blob=made.blob, chunks=len(index))


def _write(
    image: Device,
    source: Device | None,
    blob: IO[bytes],
    workers: slot.Workers,
    level: int,
    progress: Progress,
) -> Index:
    """Write the blob, return the index of it."""
    size = slot.layout(image).image_size
    root_hash = slot.root_hash(image)
    source_root_hash = slot.root_hash(source) if source else NO_HASH
    pieces = (
        delta.pieces(image, source, size, slot.layout(source).image_size)
        if source
        else _whole(image, size)
    )
    stored: dict[bytes, Chunk] = {}
    chunks: list[Chunk] = []
    end = 0
    for made, data in workers.map(lambda piece: _store(piece, level), pieces):
        known = stored.get(made.digest) if made.stored_length else None
        if known and known.operation != Operation.PATCH:
            chunk = known._replace(offset=made.offset)
        else:
            chunk = made._replace(blob_offset=end if data else 0)
            stored[made.digest] = chunk
            end += blob.write(data)
        chunks.append(chunk)
        progress(chunk.length)
    return Index.of(
        chunks,
        image_size=size,
        blob_size=end,
        root_hash=root_hash,
        source_root_hash=source_root_hash,
    )


def _whole(image: Device, size: int) -> Iterator[Piece]:
    for offset, data in slot.chunks_of(image, size):
        yield Piece(offset=offset, data=data)


def _store(piece: Piece, level: int) -> tuple[Chunk, bytes]:
    """Return the record of a piece of the image, and its stored bytes; runs in a worker."""
    length = len(piece.data)
    chunk = Chunk(Operation.ZERO, length, piece.offset, sha256(piece.data).digest())
    if piece.copied:
        copied = chunk._replace(
            operation=Operation.COPY, source_offset=piece.source_offset, source_length=length
        )
        return copied, b""
    if piece.data == bytes(length):
        return chunk, b""
    operation, data = _smallest(piece, level)
    if operation is Operation.PATCH:
        chunk = chunk._replace(source_offset=piece.source_offset, source_length=len(piece.source))
    return chunk._replace(
        operation=operation, stored_length=len(data), stored_digest=sha256(data).digest()
    ), data


def _smallest(piece: Piece, level: int) -> tuple[Operation, bytes]:
    """Return the stored bytes of a piece, made in the way that makes fewest of them.

    A patch that halves the piece is taken without a look at the other ways.
    """
    found = [(Operation.STORE, piece.data)]
    if piece.source:
        found.append((Operation.PATCH, delta.compressor(level, piece.source).compress(piece.data)))
    if 2 * len(found[-1][1]) > len(piece.data):
        found.append((Operation.ZSTD, _compressor(level).compress(piece.data)))
    return min(found, key=lambda made: len(made[1]))


_kept = threading.local()


def _compressor(level: int) -> zstandard.ZstdCompressor:
    """Return a compressor of this thread."""
    kept: zstandard.ZstdCompressor | None = getattr(_kept, "compressor", None)
    if kept is None or _kept.level != level:
        kept = zstandard.ZstdCompressor(level=level, write_content_size=True)
        _kept.compressor, _kept.level = kept, level
    return kept
