"""Kernel images: sections as objdump reads them, and the root hash in the command line."""

from pathlib import Path

import pytest

from tests.disks import tool
from tests.images import Tree, noise, write_tree
from tests.publish.published import publish
from update_agent.core import slot_image
from update_agent.errors import HostError, ReleaseError
from update_agent.publish import uki
from update_agent.publish.seal import seal

SMALL: Tree = {"bin/tool": noise(30_000, "tool")}
STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
OPEN = f"quiet ua.roothash={'0' * 64} gpt".encode() + b"\0"


def kernel(line: bytes = OPEN) -> bytes:
    return uki.make(STUB.read_bytes(), {".cmdline": line, ".linux": b"L" * 5000, ".initrd": b"I"})


def test_objdump_finds_every_section_with_its_content(tmp_path: Path) -> None:
    path = tmp_path / "linux.efi"
    path.write_bytes(kernel())

    headers = tool("objdump", "-h", path)
    for name, content in {".cmdline": OPEN, ".linux": b"L" * 5000, ".initrd": b"I"}.items():
        assert f" {name} " in headers
        part = tmp_path / name
        tool("objcopy", "-O", "binary", "--only-section", name, path, part)
        assert part.read_bytes().rstrip(b"\0") == content.rstrip(b"\0")


def test_sections_lie_apart_in_memory_and_inside_the_image(tmp_path: Path) -> None:
    path = tmp_path / "linux.efi"
    path.write_bytes(kernel())

    lines = [it.split() for it in tool("objdump", "-h", "-w", path).splitlines()]
    spans = sorted((int(it[3], 16), int(it[2], 16)) for it in lines if it and it[0].isdigit())
    said = tool("objdump", "-p", path)
    base = int(said.split("ImageBase")[1].split()[0], 16)
    size = int(said.split("SizeOfImage")[1].split()[0], 16)
    ends = [start + length for start, length in spans]
    assert all(end <= start for end, (start, _) in zip(ends, spans[1:], strict=False))
    assert ends[-1] <= base + size


def test_the_same_parts_give_the_same_bytes() -> None:
    assert kernel() == kernel()


def test_what_is_no_stub_is_refused() -> None:
    with pytest.raises(HostError, match=r"^the stub is no PE file$"):
        uki.make(b"MZ" + bytes(5000), {".linux": b"L"})
    with pytest.raises(HostError, match=r"^the stub's headers have no room for 40 sections$"):
        uki.make(STUB.read_bytes(), {f".{n}": b"" for n in range(40)})


# The root hash -----------------------------------------------------------------------------------


def sealed(line: bytes, folder: Path) -> tuple[str, bytes]:
    """Seal a root with a kernel of this command line; return root hash and kernel."""
    (folder / "linux.efi").write_bytes(kernel(line))
    image = folder / "slot.img"
    root_hash = seal(write_tree(SMALL, folder / "root"), folder / "linux.efi", image)
    content = image.read_bytes()
    parts = slot_image.parse_header(content[512:1024])
    region = content[parts.kernel_offset :]
    described = slot_image.parse_kernel(region[:4096], region_size=len(region))
    return root_hash, region[4096 : 4096 + described.size]


@pytest.mark.case(51)
def test_sealing_fills_in_a_root_hash_that_was_left_open(tmp_path: Path) -> None:
    root_hash, inside = sealed(OPEN, tmp_path)

    assert f"quiet ua.roothash={root_hash} gpt\0".encode() in inside
    assert inside == kernel(OPEN.replace(b"0" * 64, root_hash.encode()))


@pytest.mark.case(51)
def test_a_kernel_that_names_this_root_is_taken_as_it_is(tmp_path: Path) -> None:
    root_hash, _ = sealed(OPEN, tmp_path)
    line = OPEN.replace(b"0" * 64, root_hash.encode())

    assert sealed(line, tmp_path)[1] == kernel(line)


@pytest.mark.case(51)
@pytest.mark.parametrize(
    ("line", "named"),
    [
        pytest.param(OPEN.replace(b"0" * 64, b"12" * 32), "12(12)*", id="another-root"),
        pytest.param(b"quiet\0", "nowhere", id="none"),
        pytest.param(OPEN[:-1] + b" " + OPEN, "0{64} and 0{64}", id="twice"),
        pytest.param(b"ua.roothash=00\0", "00", id="too-short"),
    ],
)
def test_a_kernel_that_names_another_root_is_refused(
    line: bytes, named: str, tmp_path: Path
) -> None:
    with pytest.raises(ReleaseError, match=rf"^the kernel's command line has ua.roothash={named}"):
        sealed(line, tmp_path)
    assert not (tmp_path / "slot.img").exists()


# Signatures --------------------------------------------------------------------------------------


def signed(line: bytes, folder: Path) -> bytes:
    """Return a kernel with this command line, signed as for Secure Boot."""
    plain, path = folder / "plain.efi", folder / "signed.efi"
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    plain.write_bytes(kernel(line))
    tool("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test",
         "-keyout", key, "-out", certificate)  # fmt: skip
    tool("sbsign", "--key", key, "--cert", certificate, "--output", path, plain)
    return path.read_bytes()


def test_a_signed_kernel_is_not_changed_behind_its_signature(tmp_path: Path) -> None:
    """Secure Boot would refuse it on every host, and sealing would have said nothing."""
    linux, image = tmp_path / "linux.efi", tmp_path / "slot.img"
    linux.write_bytes(signed(OPEN, tmp_path))

    with pytest.raises(ReleaseError, match=r"^the kernel is signed, and filling the root") as it:
        seal(write_tree(SMALL, tmp_path / "root"), linux, image)

    assert it.value.hint == "seal the kernel before it is signed, and sign what came of it"
    assert not image.exists()


def test_a_signed_kernel_that_names_the_root_is_taken_with_its_signature(tmp_path: Path) -> None:
    root_hash = "12" * 32
    ready = signed(OPEN.replace(b"0" * 64, root_hash.encode()), tmp_path)

    assert uki.name_root(ready, root_hash) == ready


# What the system calls itself --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("IMAGE_ID=os\nIMAGE_VERSION=1.0.0\n", None),
        ("", None),
        ("IMAGE_ID=os\nIMAGE_VERSION=1.0.1\n", "says IMAGE_VERSION=1.0.1, wanted 1.0.0"),
        ("IMAGE_ID=other\nIMAGE_VERSION=1.0.0\n", "says IMAGE_ID=other, wanted os"),
        ("ID=debian\n", "says IMAGE_ID=None, wanted os"),
    ],
)
def test_an_image_that_calls_itself_otherwise_is_not_published(
    said: str, message: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hosts would install it, see that they run something older, and install it again."""
    linux = tmp_path / "linux.efi"
    linux.write_bytes(
        uki.make(STUB.read_bytes(), {".osrel": said.encode(), ".cmdline": OPEN, ".linux": b"L"})
    )
    seal(write_tree(SMALL, tmp_path / "root"), linux, tmp_path / "os.img")
    assert publish(tmp_path, "init", "--json") == 0

    words = ["--product", "os", "--version", "1.0.0", "--json"]
    code = publish(tmp_path, "release", "add", str(tmp_path / "os.img"), *words)

    assert code == (4 if message else 0)
    assert (message or "") in capsys.readouterr().err
