"""Chunks by hand, and what holds for every image."""

from collections.abc import Iterable, Iterator
from itertools import accumulate
from random import Random
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent.core.chunking import BLOCK, MAX_BLOCKS, MAX_CHUNK, MIN_BLOCKS, SPREAD, cut


def found(*, cuts: bool, begin: bytes = b"") -> bytes:
    """Return a full block after which an image is cut for its CRC-32's sake, or is not."""
    blocks = (begin + number.to_bytes(2, "big") + b"." * BLOCK for number in range(2000))
    return next(block[:BLOCK] for block in blocks if (crc32(block[:BLOCK]) % SPREAD == 0) is cuts)


GO_ON, CUT = found(cuts=False), found(cuts=True)
PROGRAM = found(cuts=False, begin=b"\x7fELF")
LAST = GO_ON[:-64] + bytes(64)
"""The last block of a file, filled up with zeros."""
ZEROS = bytes(BLOCK)


def ends(blocks: Iterable[bytes]) -> set[int]:
    return set(accumulate(cut(blocks)))


@pytest.mark.parametrize(
    ("blocks", "lengths"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([CUT], [1], id="the-last-may-be-short"),
        pytest.param([CUT] * 4, [4], id="shortest"),
        pytest.param([CUT] * 9, [4, 4, 1], id="cut-as-soon-as-allowed"),
        pytest.param([GO_ON] * 6 + [CUT] + [GO_ON] * 2, [7, 2], id="where-the-block-says-so"),
        pytest.param([GO_ON] * 300, [256, 44], id="longest"),
        pytest.param([GO_ON] * 255 + [CUT] * 4, [256, 3], id="longest-and-cut-in-one"),
        pytest.param([GO_ON] * 5 + [LAST] + [GO_ON] * 2, [6, 2], id="behind-a-file"),
        pytest.param([GO_ON, LAST] + [GO_ON] * 4, [6], id="not-behind-a-small-file"),
        pytest.param([GO_ON] * 5 + [PROGRAM] + [GO_ON], [5, 2], id="before-a-program"),
        pytest.param([GO_ON, PROGRAM, PROGRAM], [1, 1, 1], id="before-small-programs-too"),
        pytest.param([PROGRAM] + [GO_ON] * 2, [3], id="not-before-the-first-block"),
        pytest.param([GO_ON] * 6 + [ZEROS] * 300, [256, 50], id="zeros-are-not-cut-up"),
    ],
)
def test_an_image_is_cut_where_its_blocks_say_so(blocks: list[bytes], lengths: list[int]) -> None:
    assert list(cut(blocks)) == lengths
    assert list(cut(memoryview(block) for block in blocks)) == lengths


def test_the_limits_are_those_of_the_format() -> None:
    assert (MIN_BLOCKS * BLOCK, MAX_BLOCKS * BLOCK, MAX_CHUNK) == (16384, 2**20, 2**20)


@given(blocks=st.lists(st.sampled_from([GO_ON] * 9 + [CUT, LAST, ZEROS]), max_size=2000))
def test_chunks_cover_every_block_and_keep_the_limits(blocks: list[bytes]) -> None:
    lengths = list(cut(blocks))

    assert sum(lengths) == len(blocks)
    assert all(MIN_BLOCKS <= length <= MAX_BLOCKS for length in lengths[:-1])
    assert all(1 <= length <= MAX_BLOCKS for length in lengths[-1:])


@given(blocks=st.lists(st.sampled_from([GO_ON] * 9 + [CUT, PROGRAM]), max_size=2000))
def test_programs_begin_a_chunk_and_nothing_grows_too_long(blocks: list[bytes]) -> None:
    lengths = list(cut(blocks))

    assert sum(lengths) == len(blocks)
    assert all(1 <= length <= MAX_BLOCKS for length in lengths)
    starts = {0, *accumulate(lengths)}
    assert {number for number, block in enumerate(blocks) if block is PROGRAM} <= starts


def system(chance: Random, count: int) -> Iterator[bytes]:
    """Yield blocks as a root file system has them: files of any length, some of them programs."""
    while count > 0:
        length = min(count, chance.choice((1, 1, 2, 3, 8, 20, 90)))
        for number in range(length):
            begin = b"\x7fELF" if number == 0 and chance.random() < 0.3 else b""
            content = begin + chance.randbytes(96)
            yield content + (bytes(64) if number == length - 1 else b"." * 64)
        count -= length


@given(seed=st.integers(), at=st.integers(0, 300), inserted=st.integers(1, 40))
def test_behind_an_inserted_file_an_image_is_cut_as_before(
    seed: int, at: int, inserted: int
) -> None:
    chance = Random(seed)  # noqa: S311  must repeat, need not be secret
    old = list(system(chance, 1200))
    new = old[:at] + list(system(chance, inserted)) + old[at:]

    before, after = ends(old), ends(new)

    behind = {end + inserted for end in before if end >= at + 2 * MAX_BLOCKS}
    assert behind == {end for end in after if end >= at + inserted + 2 * MAX_BLOCKS}


def test_noise_is_cut_into_about_128_kib() -> None:
    chance = Random(1)  # noqa: S311  must repeat, need not be secret

    lengths = list(cut(chance.randbytes(96) for _ in range(40_000)))

    assert 29 <= 40_000 / len(lengths) <= 33  # 3 blocks that never end it, then 1 chance in 28
