"""Making a slot image: a root file system and a kernel, laid out and hashed.

The same input gives the same bytes: no time, no chance, no path enters the image. The layout is in
``core/slot_image.py``; the root is an erofs, made here by ``mkfs.erofs`` or before; ``veritysetup``
makes the hash tree.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path
from struct import Struct

from update_agent.core import slot_image
from update_agent.core.chunking import BLOCK
from update_agent.core.slot_image import Kernel, Layout
from update_agent.errors import HostError
from update_agent.host.files import replaced
from update_agent.publish import uki
from update_agent.run import run

_UUID = "5c7cbd39-6a3e-4d39-a49c-26a1b3a0c1a5"
"""Of every file system and hash tree we make: found by place, never by UUID."""

_COPY = 2**20

_EROFS_MAGIC = bytes.fromhex("e2e1f5e0")
_EROFS_SUPERBLOCK = 1024
_EROFS_HEAD = Struct("<4s8xB")
"""erofs_fs.h: the magic, and the logarithm of the block size."""


def seal(root: Path, kernel: Path, output: Path) -> str:
    """Write the slot image of ``root``, an erofs or a folder, and ``kernel``; return its root hash.

    The root hash is in hexadecimal. It is filled into a command line that leaves it open, and one
    that names another root is refused. ``output`` is replaced as a whole, or not at all. Raises
    HostError, ReleaseError.
    """
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".seal-") as scratch:
            fs = _erofs(root, Path(scratch)) if root.is_dir() else root
            _check_erofs(fs)
            with replaced(output) as image:
                return _seal(fs, kernel, Path(image.name))
    except OSError as error:
        raise HostError(
            f"cannot make {output}: {error.filename or output}: {error.strerror}"
        ) from error


def _seal(fs: Path, kernel: Path, work: Path) -> str:
    content = kernel.read_bytes()
    if not content:
        raise HostError(f"{kernel} is empty, wanted a unified kernel image")
    parts = _layout(_append(fs, work), len(content))
    _put(work, slot_image.HEADER_OFFSET, parts.encode())
    root_hash = _hash_tree(work, parts)
    content = uki.name_root(content, root_hash)
    described = Kernel(size=len(content), digest=hashlib.sha256(content).digest())
    region = (described.encode() + content).ljust(parts.kernel_region_size, b"\0")
    _put(work, parts.kernel_offset, region)
    return root_hash


def _check_erofs(fs: Path) -> None:
    with fs.open("rb") as file:
        file.seek(_EROFS_SUPERBLOCK)
        magic, bits = _EROFS_HEAD.unpack(file.read(_EROFS_HEAD.size).ljust(_EROFS_HEAD.size, b"\0"))
    if magic != _EROFS_MAGIC:
        raise HostError(f"{fs} is neither a folder nor an erofs")
    if 1 << bits != BLOCK:
        raise HostError(f"{fs} has blocks of {1 << bits} bytes, wanted {BLOCK}")


def _erofs(tree: Path, scratch: Path) -> Path:
    made = scratch / "root.erofs"
    run([
        "mkfs.erofs",
        "--quiet",
        "-U", _UUID,
        "-T", "0",
        made, tree,
    ])  # fmt: skip
    return made


def _layout(fs_size: int, kernel_size: int) -> Layout:
    """Return where everything goes; known before hashing, for the tree covers the header."""
    kernel_offset = fs_size + BLOCK * (1 + sum(slot_image.level_sizes(fs_size // BLOCK)))
    kernel_region_size = BLOCK + _rounded(kernel_size)
    return Layout(
        fs_size=fs_size,
        verity_offset=fs_size,
        kernel_offset=kernel_offset,
        kernel_region_size=kernel_region_size,
        image_size=kernel_offset + kernel_region_size,
    )


def _hash_tree(image: Path, parts: Layout) -> str:
    """Append the dm-verity superblock and tree; return the root hash."""
    said = run([
        "veritysetup", "format",
        "--data-block-size", str(BLOCK),
        "--hash-block-size", str(BLOCK),
        "--data-blocks", str(parts.fs_size // BLOCK),
        "--hash-offset", str(parts.verity_offset),
        "--salt", "-",
        "--uuid", _UUID,
        image, image,
    ])  # fmt: skip
    return said.partition("Root hash:")[2].split()[0]


def _append(part: Path, image: Path) -> int:
    """Append ``part``, filled up to a whole block; return the size of ``image`` then."""
    with part.open("rb") as source, image.open("ab") as target:
        shutil.copyfileobj(source, target, _COPY)
        target.truncate(_rounded(target.tell()))
    return image.stat().st_size


def _put(image: Path, offset: int, content: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def _rounded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
