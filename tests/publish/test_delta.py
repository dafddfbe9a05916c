"""What is found in common between two images, whatever they hold."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.images import BLOCK
from update_agent.host.device import open_device
from update_agent.publish.delta import Piece, pieces

KINDS = [bytes([number]) * BLOCK for number in range(6)]


def image(folder: Path, name: str, kinds: list[int]) -> Path:
    path = folder / name
    path.write_bytes(b"".join(KINDS[kind] for kind in kinds))
    return path


def found(new: list[int], old: list[int]) -> list[Piece]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            open_device(image(folder, "new", new)) as target,
            open_device(image(folder, "old", old)) as source,
        ):
            return list(pieces(target, source, target.size, source.size))


runs = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30)), max_size=12).map(
    lambda them: [kind for kind, count in them for _ in range(count)]
)


@settings(max_examples=150, deadline=None)
@given(new=runs, old=runs.filter(bool))
def test_pieces_are_the_whole_image_in_order_and_copies_are_copies(
    new: list[int], old: list[int]
) -> None:
    old_bytes = b"".join(KINDS[kind] for kind in old)

    them = found(new, old)

    assert b"".join(piece.data for piece in them) == b"".join(KINDS[kind] for kind in new)
    ends = [piece.offset + len(piece.data) for piece in them]
    assert [piece.offset for piece in them] == [0, *ends][: len(them)]
    for piece in them:
        source = old_bytes[piece.source_offset :]
        assert len(piece.data) <= 2**20
        if piece.copied:
            assert source[: len(piece.data)] == piece.data
        else:
            assert piece.source == source[: len(piece.source)]
            assert 0 < len(piece.source) <= 1024 * BLOCK


def test_an_inserted_file_is_the_only_piece_that_is_not_copied() -> None:
    """Twenty distinct blocks, and three others in their middle."""
    old = [number.to_bytes(2, "big") * (BLOCK // 2) for number in range(20)]
    new = [*old[:10], *[b"new!" * (BLOCK // 4)] * 3, *old[10:]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "old").write_bytes(b"".join(old))
        (folder / "new").write_bytes(b"".join(new))
        with open_device(folder / "new") as target, open_device(folder / "old") as source:
            them = list(pieces(target, source, target.size, source.size))

    assert [(it.offset // BLOCK, len(it.data) // BLOCK, it.copied) for it in them] == [
        (0, 10, True), (10, 3, False), (13, 10, True),
    ]  # fmt: skip
    assert [it.source_offset // BLOCK for it in them if it.copied] == [0, 10]


def test_blocks_behind_the_end_of_the_old_image_are_not_there() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image(folder, "new", [1] * 10 + [2] * 10)
        image(folder, "old", [1] * 10 + [2] * 10)
        with open_device(folder / "new") as target, open_device(folder / "old") as source:
            them = list(pieces(target, source, target.size, 10 * BLOCK))

    assert [(len(it.data) // BLOCK, it.copied) for it in them] == [(10, True), (10, False)]
    assert all(it.source_offset + len(it.source) <= 10 * BLOCK for it in them)
