"""What a new image has in common with an old one, and how the rest is compressed against it.

Both images hold files in the same order, so that what changed between two of them stands between
neighbours that did not:

    old   | a a a |  b b  | c c c c |
    new   | a a a | x x x x | c c c c |
            copy    patch     copy

Blocks are compared by a fast hash; what is then copied is compared byte by byte. A patch is a zstd
frame whose dictionary is the part of the old image between the same neighbours, widened a little,
because things move. The rule kept here: nothing grows with the size of the images but eight bytes
for each block of them, twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import xxhash
import zstandard
from numpy.typing import NDArray

from update_agent.core.chunking import BLOCK, MAX_BLOCKS, MAX_CHUNK
from update_agent.host.device import Device

_MIN_COPY = 4
"""Blocks: a shorter copy costs more as a record than as a part of the patch around it."""

_MARGIN = 16
"""Blocks by which a patch's source is widened on both sides."""

_MAX_SOURCE = 1024
"""Blocks in a patch's source, of the 4096 that hosts allow: four times as many gain 0.3 % of the
size, and cost ten times the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of the new image that becomes one chunk."""

    offset: int
    data: bytes = field(repr=False)
    copied: bool = False
    """Whether the old image has the same bytes at ``source_offset``."""
    source_offset: int = 0
    source: bytes = field(default=b"", repr=False)
    """What to compress against."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Blocks ``first`` to ``end`` of the new image; in the old one from ``old``, or changed."""

    first: int
    end: int
    old: int | None


def pieces(image: Device, source: Device, size: int, source_size: int) -> Iterator[Piece]:
    """Yield the new ``image`` of ``size`` bytes in pieces, each with what ``source`` offers it.

    Of the source only ``source_size`` bytes count: what stands behind the old image in its file is
    on no host.
    """
    runs = _runs(_match(_hashes(image, size), _hashes(source, source_size)))
    for number, run in enumerate(runs):
        below = runs[number - 1] if number else None
        above = runs[number + 1] if number + 1 < len(runs) else None
        for first in range(run.first, run.end, MAX_BLOCKS):
            end = min(first + MAX_BLOCKS, run.end)
            data = image.read(first * BLOCK, (end - first) * BLOCK)
            if run.old is not None:
                offset = (run.old + first - run.first) * BLOCK
                if source.read(offset, len(data)) == data:
                    yield Piece(offset=first * BLOCK, data=data, copied=True, source_offset=offset)
                    continue
            start, stop = _window(run, below, above, (first + end) // 2, source_size // BLOCK)
            yield Piece(
                offset=first * BLOCK,
                data=data,
                source_offset=start * BLOCK,
                source=source.read(start * BLOCK, (stop - start) * BLOCK),
            )


def compressor(level: int, source: bytes) -> zstandard.ZstdCompressor:
    """Return a compressor that finds what it can in ``source``."""
    window = max((len(source) + MAX_CHUNK).bit_length(), 10)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, window_log=window, write_content_size=True, write_dict_id=False
    )
    dictionary = zstandard.ZstdCompressionDict(source, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary)


def _hashes(device: Device, size: int) -> NDArray[np.uint64]:
    """Return a hash of each block in the first ``size`` bytes."""
    found = np.empty(size // BLOCK, np.uint64)
    for offset in range(0, size, MAX_CHUNK):
        data = memoryview(device.read(offset, min(MAX_CHUNK, size - offset)))
        for at in range(0, len(data) - BLOCK + 1, BLOCK):
            found[(offset + at) // BLOCK] = xxhash.xxh3_64_intdigest(data[at : at + BLOCK])
    return found


def _match(new: NDArray[np.uint64], old: NDArray[np.uint64]) -> list[int]:
    """Return for each new block an old block with the same hash, or -1.

    What follows a match is matched with what follows it in the old image, if it can; else the
    nearest place behind the last match is taken, because both images are in the same order.
    """
    order = np.argsort(old, kind="stable")
    ranked = old[order]
    low = np.searchsorted(ranked, new, "left")
    high = np.searchsorted(ranked, new, "right")
    matches: list[int] = []
    last = -1
    for number, value in enumerate(new):
        if 0 <= last + 1 < len(old) and old[last + 1] == value:
            last += 1
        elif low[number] < high[number]:
            places = order[low[number] : high[number]]
            at = int(np.searchsorted(places, last))
            last = int(places[min(at, len(places) - 1)])
        else:
            matches.append(-1)
            continue
        matches.append(last)
    return matches


def _runs(matches: list[int]) -> list[_Run]:
    """Return the image as runs, short copies counted as changed."""
    raw: list[_Run] = []
    for number, old in enumerate(matches):
        if raw and _continues(raw[-1], number, old):
            raw[-1] = _Run(raw[-1].first, number + 1, raw[-1].old)
        else:
            raw.append(_Run(number, number + 1, None if old < 0 else old))
    runs: list[_Run] = []
    for run in raw:
        changed = run.old is None or run.end - run.first < _MIN_COPY
        if changed and runs and runs[-1].old is None:
            runs[-1] = _Run(runs[-1].first, run.end, None)
        else:
            runs.append(_Run(run.first, run.end, None if changed else run.old))
    return runs


def _continues(run: _Run, number: int, old: int) -> bool:
    if run.old is None:
        return old < 0
    return old == run.old + number - run.first


def _window(
    run: _Run, below: _Run | None, above: _Run | None, middle: int, blocks: int
) -> tuple[int, int]:
    """Return the blocks of the old image to compress the part around ``middle`` of ``run`` with."""
    start = below.old + below.end - below.first if below and below.old is not None else 0
    stop = above.old if above and above.old is not None else blocks
    stop = max(stop, start)  # the neighbours may have changed places
    share = (middle - run.first) / (run.end - run.first)
    centre = int(start + (stop - start) * share)
    low = max(start - _MARGIN, centre - _MAX_SOURCE // 2, 0)
    high = min(stop + _MARGIN, low + _MAX_SOURCE, blocks)
    return low, max(high, low + 1)
