"""Where an image is cut into chunks: by its content, so that equal content is cut alike anywhere.

A chunk ends behind a block whose CRC-32 says so, which depends on that block alone. Insert a file
into an image, and everything behind it is cut as before: a host finds the chunks that it already
has by their hash, from any release, and at any place.
"""

from collections.abc import Iterable, Iterator
from zlib import crc32

BLOCK = 4096
"""Bytes in a block: of erofs, of dm-verity, and of every chunk boundary."""

MIN_BLOCKS = 4
"""A chunk is no shorter (but the last): each costs a record of the index and a frame of zstd."""

MEAN_BLOCKS = 16
"""64 KiB: shorter chunks find more to reuse, longer ones compress better."""

MAX_BLOCKS = 256
"""A chunk is no longer, so that a host knows how much memory one can need."""

MAX_CHUNK = MAX_BLOCKS * BLOCK
"""Bytes in the longest chunk."""


def cut(blocks: Iterable[bytes | memoryview]) -> Iterator[int]:
    """Yield the length in blocks of each chunk of an image, given all its blocks in order."""
    length = 0
    for block in blocks:
        length += 1
        if length < MIN_BLOCKS:
            continue
        if length == MAX_BLOCKS or crc32(block) % (MEAN_BLOCKS - MIN_BLOCKS) == 0:
            yield length
            length = 0
    if length:
        yield length
