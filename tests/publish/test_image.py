"""``update-agent-image`` from its command line, on files and loop devices, local and over HTTP."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.disks import loop, tool
from tests.images import BLOCK, MARKER, Releases, flip_bit, install, medium, noise, source_of
from tests.web import Web
from update_agent.core.payload import Operation, decode
from update_agent.host.device import open_device
from update_agent.publish import image, main
from update_agent.publish.payload import make

both_sector_sizes = pytest.mark.parametrize("sector_size", [512, 4096])


class Program:
    """Calls ``update-agent-image`` and keeps what it said."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str | Path, code: int = 0) -> str:
        """Return what it printed, or what it complained about."""
        try:
            ended = image.main([str(word) for word in words])
        except SystemExit as end:
            ended = int(end.code or 0)
        said = self._capsys.readouterr()
        assert ended == code, said.err
        return said.err if code else said.out

    def json(self, *words: str | Path) -> dict[str, Any]:
        found = json.loads(self(*words, "--json"))
        assert isinstance(found, dict)
        return found


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slot"


# apply -------------------------------------------------------------------------------------------


def test_an_image_file_is_made_of_a_payload(
    program: Program, releases: Releases, path: Path
) -> None:
    said = program("apply", "--index", releases.v2.full.index, "--slot", path)

    size = f"{len(releases.v2.content) / 1e6:.1f} MB"
    assert said.startswith(
        f"the slot holds the whole image, read back and verified: {size} written"
    )
    assert path.read_bytes() == releases.v2.content


def test_what_will_be_done_is_told_before_the_first_byte(
    releases: Releases, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = releases.v2.full.index
    blob = decode(index.read_bytes()).stored_size / 1e6
    write = len(releases.v2.content) / 1e6

    assert image.main(["apply", "--index", str(index), "--slot", str(path)]) == 0
    assert capsys.readouterr().err.startswith(
        f"{index}: fetch {blob:.1f} MB of {blob:.1f}, copy 0.0, keep 0.0, write {write:.1f}; about"
    )


def test_an_index_comes_from_the_first_mirror_that_gives_it(
    program: Program, releases: Releases, path: Path
) -> None:
    files = {f"/v2.{kind}": Path(getattr(releases.v2.full, kind)).read_bytes()
             for kind in ("index", "blob")}  # fmt: skip
    with Web({}) as empty, Web(files) as good:
        wanted: list[str | Path] = [
            "apply",
            "--index",
            empty.url("/v2.index"),
            "--slot",
            path,
            "--mirror",
        ]
        program.json(*wanted, good.url("/v2.index"))
        message = program(*wanted, empty.url("/v2.index"), code=4)

    assert path.read_bytes() == releases.v2.content
    assert message.startswith("update-agent-image: no mirror is left: http://")


def test_json_says_what_was_done(program: Program, releases: Releases, path: Path) -> None:
    first = program.json(
        "apply", "--index", releases.v2.full.index, "--slot", path,
        "--source", releases.v1.image, "--source-index", releases.v1.full.index,
    )  # fmt: skip
    again = program.json("apply", "--index", releases.v2.full.index, "--slot", path)

    assert set(first) == {
        "payload", "fetched_bytes", "saved_bytes", "copied_bytes", "kept_bytes", "zero_bytes",
        "written_bytes", "seconds", "seconds_by_step", "expected_seconds", "peak_memory_bytes",
    }  # fmt: skip
    whole = decode(releases.v2.full.index.read_bytes()).stored_size
    assert first["fetched_bytes"] + first["saved_bytes"] == again["saved_bytes"] == whole
    assert first["payload"] == str(releases.v2.full.index)
    assert first["written_bytes"] == again["kept_bytes"] == len(releases.v2.content)
    assert first["copied_bytes"] > 1_000_000
    assert first["kept_bytes"] == again["written_bytes"] == again["copied_bytes"] == 0
    assert set(first["seconds_by_step"]) == {"look", "write", "read back", "finish"}
    assert 2**24 < first["peak_memory_bytes"] < 2**30


@pytest.mark.case(43)
@both_sector_sizes
@pytest.mark.parametrize("payload", ["full", "full-with-source", "delta"])
def test_a_loop_device_takes_any_payload(
    sector_size: int, payload: str, program: Program, releases: Releases, tmp_path: Path
) -> None:
    size = 8 * 2**20
    for name, content in (("a", releases.v1.content), ("b", noise(size, "b"))):
        (tmp_path / name).write_bytes(content)
        os.truncate(tmp_path / name, size)
    index = releases.delta.index if payload == "delta" else releases.v2.full.index
    with loop(tmp_path / "a", sector_size) as a, loop(tmp_path / "b", sector_size) as b:
        source: list[str | Path] = [] if payload == "full" else ["--source", a]

        done = program.json("apply", "--index", index, "--slot", b, *source)
        with open_device(b) as device:
            assert device.read(0, len(releases.v2.content)) == releases.v2.content
        again = program.json("apply", "--index", index, "--slot", b, *source)

    assert (done["kept_bytes"], again["written_bytes"]) == (0, 0)
    assert (done["copied_bytes"] > 0) is (payload != "full")
    assert (tmp_path / "b").read_bytes() == (
        releases.v2.content + noise(size, "b")[len(releases.v2.content) :]
    )


@pytest.mark.case(48)
def test_an_interrupted_installation_goes_on(
    program: Program, releases: Releases, path: Path
) -> None:
    half = len(releases.v2.content) // 2
    path.write_bytes(MARKER.ljust(BLOCK, b"\0") + releases.v2.content[BLOCK:half])

    done = program.json("apply", "--index", releases.v2.full.index, "--slot", path)

    assert path.read_bytes() == releases.v2.content
    assert done["kept_bytes"] > half - 2 * 2**20


def test_a_delta_gives_way_to_the_full_payload(
    program: Program, releases: Releases, path: Path, tmp_path: Path
) -> None:
    booted = tmp_path / "booted"
    booted.write_bytes(releases.v1.content)
    copied = next(it for it in releases.delta_index if it.operation == Operation.COPY)
    flip_bit(booted, copied.source_offset)

    refused = program(
        "apply", "--index", releases.delta.index, "--slot", path, "--source", booted, code=3
    )
    done = program.json(
        "apply", "--index", releases.delta.index, "--full", releases.v2.full.index,
        "--slot", path, "--source", booted,
    )  # fmt: skip

    assert "the booted slot does not hold what chunk" in refused
    assert "(take the full payload; what is right in the other slot is kept)" in refused
    assert path.read_bytes() == releases.v2.content
    assert done["payload"] == str(releases.v2.full.index)
    assert done["kept_bytes"] > 0


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.case(42)
def test_a_mounted_slot_is_named_and_left_alone(
    program: Program, releases: Releases, tmp_path: Path
) -> None:
    disk, mount = tmp_path / "disk", tmp_path / "mount"
    disk.write_bytes(releases.v1.content)
    mount.mkdir()
    with loop(disk) as device, ExitStack() as stack:
        tool("mount", "-t", "erofs", "-o", "ro", device, mount)
        stack.callback(tool, "umount", mount)

        said = program("apply", "--index", releases.v2.full.index, "--slot", device, code=4)

    assert f"cannot open {device}: Device or resource busy\n(it is mounted or in use" in said
    assert disk.read_bytes() == releases.v1.content


@pytest.mark.case(42)
@pytest.mark.parametrize("kind", ["file", "link", "device"])
def test_the_source_is_never_written(
    kind: str, program: Program, releases: Releases, tmp_path: Path
) -> None:
    disk, link = tmp_path / "disk", tmp_path / "link"
    disk.write_bytes(releases.v1.content)
    os.truncate(disk, len(releases.v2.content) + BLOCK)
    before = disk.read_bytes()
    link.symlink_to(disk)
    with loop(disk) as device:
        slot, source = {"file": (disk, disk), "link": (link, disk), "device": (device, device)}[
            kind
        ]
        said = program(
            "apply", "--index", releases.v2.full.index, "--slot", slot, "--source", source, code=4
        )

    assert f"{slot} is the source as well\n(name the slot that is to be written)" in said
    assert disk.read_bytes() == before


@pytest.mark.case(36)
@pytest.mark.parametrize("less", [512, BLOCK])
def test_a_device_that_is_too_small_is_left_alone(
    less: int, program: Program, releases: Releases, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(noise(len(releases.v2.content) - less, "old"))
    before = disk.read_bytes()
    with loop(disk) as device:
        said = program("apply", "--index", releases.v2.full.index, "--slot", device, code=4)

    assert f"the image has {len(before) + less} bytes, {device} only {len(before)}" in said
    assert "(the slot is too small for this release)" in said
    assert disk.read_bytes() == before


def test_a_mistyped_device_is_not_made_as_a_file(program: Program, releases: Releases) -> None:
    said = program(
        "apply", "--index", releases.v2.full.index, "--slot", "/dev/no-such-disk3", code=4
    )

    assert "there is no device /dev/no-such-disk3" in said
    assert not Path("/dev/no-such-disk3").exists()


def test_the_hash_of_an_index_is_held_against_what_was_told(
    program: Program, releases: Releases, path: Path
) -> None:
    index = releases.v2.full.index
    right = hashlib.sha256(index.read_bytes()).hexdigest()
    wrong = right[:-1] + ("0" if right[-1] != "0" else "1")

    said = program("apply", "--index", index, "--sha256", wrong, "--slot", path, code=3)
    assert f"{index} has the SHA-256 {right}, wanted {wrong}" in said
    assert not path.exists()

    program("apply", "--index", index, "--sha256", right.upper(), "--slot", path)
    assert path.read_bytes() == releases.v2.content


def test_the_full_payload_is_held_against_its_own_hash(
    program: Program, releases: Releases, path: Path
) -> None:
    delta, full = releases.delta.index, releases.v2.full.index
    told = hashlib.sha256(delta.read_bytes()).hexdigest()
    words = (
        "apply", "--index", delta, "--full", full, "--slot", path, "--source", releases.v1.image,
        "--sha256", told,
    )  # fmt: skip

    assert "--full with --sha256 needs --full-sha256" in program(*words, code=2)
    assert f"{full} has the SHA-256" in program(*words, "--full-sha256", "0" * 64, code=3)
    right = hashlib.sha256(full.read_bytes()).hexdigest()
    program(*words, "--full-sha256", right)


def test_a_full_payload_of_another_image_is_refused(
    program: Program, releases: Releases, path: Path
) -> None:
    said = program(
        "apply", "--index", releases.delta.index, "--full", releases.v1.full.index,
        "--slot", path, code=3,
    )  # fmt: skip

    assert f"makes the image with root hash {releases.v2.root_hash}" in said
    assert not path.exists()


@pytest.mark.parametrize(
    ("spoil", "code", "message"),
    [
        ("no-index", 4, "cannot read {folder}/v2.index: No such file or directory"),
        ("no-blob", 4, "cannot open {folder}/v2.blob: No such file or directory"),
        ("html", 3, "{folder}/v2.index: index: magic is b'<html>lo', wanted b'UAPAYL"),
        ("cut-index", 3, "{folder}/v2.index: index: bytes is "),
        ("cut-blob", 3, "{folder}/v2.blob has {cut} bytes, its index says {size}"),
        ("garbled-blob", 3, "chunks have a wrong hash after 3 tries"),
    ],
)
def test_a_payload_that_is_not_whole_is_named(
    spoil: str, code: int, message: str, program: Program, releases: Releases, tmp_path: Path
) -> None:
    folder = tmp_path / "payload"
    shutil.copytree(releases.v2.full.index.parent, folder)
    index, blob = folder / "v2.index", folder / "v2.blob"
    match spoil:
        case "no-index":
            index.unlink()
        case "no-blob":
            blob.unlink()
        case "html":
            index.write_bytes(b"<html>log in to the hotel</html>" * 9)
        case "cut-index":
            os.truncate(index, index.stat().st_size - 1)
        case "cut-blob":
            os.truncate(blob, blob.stat().st_size - 1)
        case "garbled-blob":
            flip_bit(blob, 1000)

    said = program("apply", "--index", index, "--slot", tmp_path / "slot", code=code)

    size = releases.v2.index.blob_size
    assert message.format(folder=folder, size=size, cut=size - 1) in said


def test_a_source_without_an_image_costs_bandwidth_only(
    program: Program, releases: Releases, path: Path, tmp_path: Path
) -> None:
    (tmp_path / "noise").write_bytes(noise(2**20, "no image"))
    words = ("apply", "--slot", path, "--source", tmp_path / "noise")

    said = program(*words, "--index", releases.delta.index, code=3)
    done = program.json(*words, "--index", releases.v2.full.index)

    assert f"no delta payload can be made from {tmp_path}/noise: " in said
    assert "(take the full payload)" in said
    assert done["copied_bytes"] == 0
    assert path.read_bytes() == releases.v2.content


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--source", "none"], 4, "cannot open none: No such file or directory"),
        (["--source", "/"], 4, "/ is neither a block device nor a file"),
        (["--source-index", "none"], 4, "cannot read none: No such file or directory"),
        (["--slot", "none/slot"], 4, "cannot make none/slot: No such file or directory"),
        (["--slot", "/"], 4, "/ is neither a block device nor a file"),
        (["--index", "v2.img"], 4, "cannot read v2.img"),
        (["--sha256", "abc"], 2, "'abc' is no SHA-256, wanted 64 hexadecimal digits"),
        (["--rate", "0"], 2, "'0' is no number above 0"),
        (["--rate", "nan"], 2, "'nan' is no number above 0"),
        (["--rate", "fast"], 2, "'fast' is no number above 0"),
        (["--deadline", "-1"], 2, "'-1' is no number above 0"),
        (["--connections", "0"], 2, "'0' is no whole number from 1 to 9999"),
        (["--ind", "x"], 2, "unrecognized arguments: --ind x"),
    ],
)
def test_wrong_options_are_named(
    options: list[str],
    code: int,
    message: str,
    program: Program,
    releases: Releases,
    path: Path,
) -> None:
    said = program("apply", "--index", releases.v2.full.index, "--slot", path, *options, code=code)

    assert message in said


@pytest.mark.parametrize("words", [[], ["apply"], ["seal"], ["apply", "--slot", "x"], ["destroy"]])
def test_half_a_command_is_wrong_usage(words: list[str], program: Program) -> None:
    assert "usage: update-agent-image" in program(*words, code=2)


def test_an_index_without_its_ending_has_no_blob(
    program: Program, releases: Releases, path: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "index.bin"
    odd.write_bytes(releases.v2.full.index.read_bytes())

    said = program("apply", "--index", odd, "--slot", path, code=4)

    assert f"{odd} does not end in .index, so its blob can't be named" in said


def test_a_file_that_another_update_writes_is_left_alone(
    program: Program, releases: Releases, path: Path
) -> None:
    path.write_bytes(releases.v2.content)
    with open_device(path, writable=True, exclusive=True):
        said = program("apply", "--index", releases.v2.full.index, "--slot", path, code=4)

    assert f"{path} is in use by another update" in said


@pytest.mark.case(51)
def test_an_image_that_is_not_what_it_says_is_the_releases_fault(
    program: Program, releases: Releases, path: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.img"
    bad.write_bytes(releases.v2.content)
    flip_bit(bad, len(releases.v2.content) - BLOCK - 1)  # in the kernel
    made = make(bad, tmp_path, level=1)

    said = program("apply", "--index", made.index, "--slot", path, code=3)

    assert "the kernel does not have the hash in its kernel region" in said
    assert path.read_bytes().startswith(MARKER)


# Over HTTP ---------------------------------------------------------------------------------------


@pytest.fixture
def server(releases: Releases) -> Iterator[str]:
    """Serve the published files; ranges too. Yields the base URL."""
    folder = releases.v2.full.index.parent

    class Files(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            data = (folder / self.path.lstrip("/")).read_bytes()
            status, first, end = 200, 0, len(data)
            if asked := self.headers.get("Range"):
                status = 206
                low, high = asked.removeprefix("bytes=").split("-")
                first, end = int(low), int(high) + 1
            self.send_response(status)
            self.send_header("Content-Length", str(end - first))
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(data)}")
            self.end_headers()
            self.wfile.write(data[first:end])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as serving:
        thread = Thread(target=serving.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{serving.server_address[1]}"
        finally:
            serving.shutdown()
            thread.join()


@pytest.mark.parametrize("name", ["v2.index", "v2.from.v1.index"])
def test_a_payload_is_fetched(
    name: str, server: str, program: Program, releases: Releases, path: Path
) -> None:
    done = program.json(
        "apply", "--index", f"{server}/{name}", "--mirror", f"{server}/{name}",
        "--slot", path, "--source", releases.v1.image,
    )  # fmt: skip

    assert path.read_bytes() == releases.v2.content
    index = (releases.v2.full.index.parent / name).stat().st_size
    blob = (releases.v2.full.index.parent / name.replace(".index", ".blob")).stat().st_size
    assert index < done["fetched_bytes"] <= index + blob + 64 * 1024


# seal --------------------------------------------------------------------------------------------


def test_seal_prints_the_root_hash(program: Program, releases: Releases, tmp_path: Path) -> None:
    folder = releases.v1.image.parent
    words = ("seal", "--root", folder / "v1.tree", "--kernel", folder / "v1.kernel", "--output",
             tmp_path / "again.img")  # fmt: skip

    said = program(*words)
    told = program.json(*words)

    assert said.endswith(f"root hash {releases.v1.root_hash}\n")
    assert told == {
        "image": str(tmp_path / "again.img"),
        "bytes": len(releases.v1.content),
        "root_hash": releases.v1.root_hash,
    }
    assert (tmp_path / "again.img").read_bytes() == releases.v1.content


def test_seal_complains_of_a_missing_kernel(
    program: Program, releases: Releases, tmp_path: Path
) -> None:
    said = program(
        "seal", "--root", releases.v1.image.parent / "v1.tree", "--kernel", tmp_path / "none",
        "--output", tmp_path / "out.img", code=4,
    )  # fmt: skip

    assert f"{tmp_path}/none: No such file or directory" in said


# update-publish ----------------------------------------------------------------------------------


def test_publishing_says_what_was_made(
    releases: Releases, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["payload", str(releases.v2.image), "--from", str(releases.v1.image),
             "--output", str(tmp_path), "--level", "3"]  # fmt: skip

    assert main.main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main.main(words) == 0
    said = capsys.readouterr().out

    assert told == {
        "index": str(tmp_path / "v2.from.v1.index"),
        "index_bytes": releases.delta.index.stat().st_size,
        "blob": str(tmp_path / "v2.from.v1.blob"),
        "blob_bytes": releases.delta.blob.stat().st_size,
        "chunks": releases.delta.chunks,
    }
    assert f"v2.from.v1.index: {releases.delta.chunks} chunks, " in said


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["none.img"], 4, "cannot open none.img: No such file or directory"),
        (["none.img", "--level", "0"], 2, "invalid choice: 0"),
        (["none.img", "--level", "23"], 2, "invalid choice: 23"),
    ],
)
def test_publishing_complains_of_what_is_wrong(
    words: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        ended = main.main(["payload", *words, "--output", str(tmp_path / "out")])
    except SystemExit as end:
        ended = int(end.code or 0)

    assert ended == code
    assert message in capsys.readouterr().err


def test_a_slot_that_was_written_is_a_source_for_the_next(
    program: Program, releases: Releases, path: Path, tmp_path: Path
) -> None:
    """v1 to A, v2 to B from A, v1 to A again from B: nothing is fetched that either holds."""
    with medium(path, size=8 * 2**20) as a:
        install(a, source_of(releases.v1.full))
    b = tmp_path / "b"
    program("apply", "--index", releases.delta.index, "--slot", b, "--source", path)

    back = program.json("apply", "--index", releases.v1.full.index, "--slot", path, "--source", b)

    assert back["written_bytes"] == 0
    assert path.read_bytes()[: len(releases.v1.content)] == releases.v1.content
