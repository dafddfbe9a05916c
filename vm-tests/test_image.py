"""The image as bytes: the same every time, and not too many of them."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import zstandard
from releases import Workshop

from update_agent.core import slot_image
from update_agent.publish import debian
from update_agent.publish.build import build
from update_agent.publish.progress import silent
from update_agent.publish.recipe import Recipe
from update_agent.publish.tree import Release

SLOT_LIMIT = 700e6
STORED_LIMIT = 230e6


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_built_twice_from_nothing_it_has_the_same_bytes(
    workshop: Workshop, figure: Callable[[str], None]
) -> None:
    first = digest(workshop.release("1.0.0"))
    again = from_nothing(workshop.folder / "again")
    if packages(workshop.folder / "again") != packages(workshop.cache):  # Debian has newer ones
        first = from_nothing(workshop.folder / "once-more")

    assert again == first
    figure(f"image: built twice, packages installed anew: SHA-256 {first[:16]}... both times")


def from_nothing(cache: Path) -> str:
    """Build with a cache that is empty; return what comes of it, as a SHA-256."""
    image = cache.with_suffix(".img")
    build(Release(version="1.0.0"), image, cache=cache, tell=silent)
    found = digest(image)
    image.unlink()
    return found


def packages(cache: Path) -> str:
    """Return the packages, with their versions, of the root that a cache has for us."""
    root = debian.base_root(Recipe.load(), cache, silent)
    return (root / "usr/lib/update-agent-packages").read_text()


def test_it_is_small_enough(workshop: Workshop, figure: Callable[[str], None]) -> None:
    image = workshop.release("1.0.0")
    with image.open("rb") as file:
        file.seek(slot_image.HEADER_OFFSET)
        parts = slot_image.parse_header(file.read(slot_image.HEADER_SIZE))
        file.seek(0)
        pieces = zstandard.ZstdCompressor(level=3, threads=2).read_to_iter(file)
        stored = sum(len(piece) for piece in pieces)
    figure(
        f"image: slot image {parts.image_size / 1e6:.0f} MB (root {parts.fs_size / 1e6:.0f}, verity"
        f" {parts.verity_size / 1e6:.0f}, kernel and initramfs"
        f" {parts.kernel_region_size / 1e6:.0f}); as zstd level 3: {stored / 1e6:.0f} MB"
    )
    assert parts.image_size < SLOT_LIMIT
    assert stored < STORED_LIMIT


def test_only_the_version_tells_two_releases_of_the_same_packages_apart(workshop: Workshop) -> None:
    first, second = workshop.release("1.0.0"), workshop.release("1.1.0")

    assert digest(first) != digest(second)
    assert first.stat().st_size == second.stat().st_size
