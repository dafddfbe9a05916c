"""Unified kernel images: systemd's stub, with kernel, initramfs and command line as PE sections.

Made without objcopy, which stamps the time; the same parts give the same bytes. The command line
names the root hash of the slot (``ua.roothash=``). A kernel must be ready before the layout of its
slot is, and the root hash is known only after, so it is made with zeros there, and ``name_root``
fills them in. (PE format: learn.microsoft.com/windows/win32/debug/pe-format; sections: systemd's
stub, ``systemd-stub(7)``.)
"""

from dataclasses import dataclass
from struct import Struct

from update_agent.errors import HostError, ReleaseError

ROOT_HASH = "ua.roothash="
"""Begins the word of the command line that names the root hash."""

_UNKNOWN = "0" * 64
_COFF = Struct("<4sHHIIIHH")
_SECTION = Struct("<8sIIIIIIHHI")
_DATA = 0x40000040
"""Initialized data, readable."""

_PAGE = 4096
_IMAGE_SIZE, _HEADERS_SIZE, _CHECKSUM = 56, 60, 64
_DIRECTORIES, _CERTIFICATES = 108, 144
"""Offsets in the optional header of PE32+; of the last two, the number of data directories, and the
one that says where signatures stand."""

_CERTIFICATE_TABLE = 4
"""The number of that one, from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Headers:
    """Where the headers of a PE file stand."""

    coff: int
    optional: int
    sections: int
    count: int

    @property
    def end(self) -> int:
        return self.sections + self.count * _SECTION.size


def make(stub: bytes, sections: dict[str, bytes]) -> bytes:
    """Return ``stub`` with ``sections`` added behind its own. Raises HostError."""
    headers = _headers(stub)
    if headers is None:
        raise HostError("the stub is no PE file", hint="it is in Debian's systemd-boot-efi")
    made = bytearray(stub)
    room = int.from_bytes(made[headers.optional + _HEADERS_SIZE :][:4], "little")
    if headers.end + len(sections) * _SECTION.size > room:
        raise HostError(f"the stub's headers have no room for {len(sections)} sections")
    address = _number(made, headers.optional + _IMAGE_SIZE)
    for number, (name, content) in enumerate(sections.items()):
        address = -(-address // _PAGE) * _PAGE
        made += bytes(-len(made) % _PAGE)
        entry = _SECTION.pack(
            name.encode(), len(content), address, -(-len(content) // 512) * 512, len(made),
            0, 0, 0, 0, _DATA,
        )  # fmt: skip
        at = headers.end + number * _SECTION.size
        made[at : at + _SECTION.size] = entry
        made += content
        made += bytes(-len(made) % 512)
        address += len(content)
    count = headers.count + len(sections)
    made[headers.coff + 6 : headers.coff + 8] = count.to_bytes(2, "little")
    _put(made, headers.optional + _IMAGE_SIZE, -(-address // _PAGE) * _PAGE)
    _put(made, headers.optional + _CHECKSUM, 0)
    return bytes(made)


def name_root(kernel: bytes, root_hash: str) -> bytes:
    """Return ``kernel`` with zeros in its command line's root hash replaced by ``root_hash``.

    What is no PE file has no command line, and stays as it is. Raises ReleaseError when the
    kernel names another root, or none; or when it is signed, and the change would void that.
    """
    place, named = _section(kernel, b".cmdline"), named_roots(kernel)
    if place is None or named is None:
        return kernel
    if named == [_UNKNOWN]:
        if _is_signed(kernel):
            raise ReleaseError(
                "the kernel is signed, and filling the root hash in would break its signature",
                hint="seal the kernel before it is signed, and sign what came of it",
            )
        filled = kernel[place].replace(
            (ROOT_HASH + _UNKNOWN).encode(), (ROOT_HASH + root_hash).encode()
        )
        return kernel[: place.start] + filled + kernel[place.stop :]
    if named != [root_hash]:
        raise ReleaseError(
            f"the kernel's command line has {ROOT_HASH}{' and '.join(named) or 'nowhere'},"
            f" the root is {root_hash}",
            hint=f"build the kernel with {ROOT_HASH} and 64 zeros: sealing fills them in",
        )
    return kernel


def named_roots(kernel: bytes) -> list[str] | None:
    """Return the root hashes in the kernel's command line; None where it is no PE file."""
    place = _section(kernel, b".cmdline")
    if place is None:
        return None
    words = kernel[place].rstrip(b"\0").decode(errors="replace").split()
    return [word.removeprefix(ROOT_HASH) for word in words if word.startswith(ROOT_HASH)]


def os_release(kernel: bytes) -> str:
    """Return the os-release of the system that ``kernel`` starts; empty where it has none."""
    place = _section(kernel, b".osrel")
    return kernel[place].decode(errors="replace") if place else ""


def _section(kernel: bytes, name: bytes) -> slice | None:
    """Return where the content of a section stands; None if this is no PE file."""
    headers = _headers(kernel)
    if headers is None:
        return None
    for number in range(headers.count):
        found, size, _, _, offset, *_ = _SECTION.unpack_from(
            kernel, headers.sections + number * _SECTION.size
        )
        if found.rstrip(b"\0") == name:
            return slice(offset, offset + size)
    return slice(0, 0)


def _is_signed(kernel: bytes) -> bool:
    """Whether a PE file has a certificate table: the fifth of its data directories."""
    headers = _headers(kernel)
    if headers is None or _number(kernel, headers.optional + _DIRECTORIES) <= _CERTIFICATE_TABLE:
        return False
    size = headers.optional + _CERTIFICATES + 4
    return size + 4 <= headers.sections and _number(kernel, size) > 0


def _headers(image: bytes) -> _Headers | None:
    if image[:2] != b"MZ" or len(image) < _PAGE // 4:
        return None
    coff = int.from_bytes(image[0x3C:0x40], "little")
    if coff + _COFF.size > len(image):
        return None
    signature, _, count, _, _, _, optional_size, _ = _COFF.unpack_from(image, coff)
    headers = _Headers(
        coff=coff,
        optional=coff + _COFF.size,
        sections=coff + _COFF.size + optional_size,
        count=count,
    )
    if signature != b"PE\0\0" or headers.end > len(image):
        return None
    return headers


def _number(image: bytes | bytearray, offset: int) -> int:
    return int.from_bytes(image[offset : offset + 4], "little")


def _put(image: bytearray, offset: int, number: int) -> None:
    image[offset : offset + 4] = number.to_bytes(4, "little")
