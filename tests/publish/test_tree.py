"""Images out of a small Debian root: the same bytes whoever builds, and errors that name the path.

The root holds what the tools need: accounts, units, and a ``python3`` that leaves behind what
``compileall`` does.
"""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.disks import tool
from tests.images import Releases, noise, write_tree
from update_agent.errors import HostError
from update_agent.publish import build, image, tree
from update_agent.publish.build import Built
from update_agent.publish.progress import silent
from update_agent.publish.recipe import Recipe
from update_agent.publish.tree import Release

UNIT = b"[Unit]\nDescription=A unit\n\n[Install]\nWantedBy=multi-user.target\n"
DEBIAN = {
    "boot/vmlinuz-6.1": noise(20_000, "linux"),
    "etc/group": b"root:x:0:\nshadow:x:42:\ndocker:x:101:\nsudo:x:27:\nsystemd-journal:x:102:\n",
    "etc/passwd": b"root:x:0:0:root:/root:/bin/bash\n",
    "etc/shadow": b"root:*:20000:0:99999:7:::\n",
    "usr/lib/modules/6.1/modules.builtin": b"",
    "usr/lib/modules/6.1/modules.dep": b"",
    "usr/lib/os-release": b'PRETTY_NAME="Debian"\nID=debian\n',
    "usr/lib/systemd/system/systemd-networkd.service": UNIT,
    "usr/lib/systemd/system/systemd-resolved.service": UNIT,
}
PYTHON = """\
#include <fcntl.h>
#include <sys/stat.h>

#define COMPILED "/usr/lib/update-agent/python/__pycache__"

int main(void)
{
    return mkdir(COMPILED, 0777) || creat(COMPILED "/six.pyc", 0666) < 0;
}
"""
WHEELS = {"six.py": b"# six\n", "tuf/__init__.py": b"", "tuf/native.so": noise(5_000, "native")}
OVERLAY = {"etc/motd": b"hello\n", "opt/site/run": b"#!/bin/sh\n", "usr/lib/new/unit": UNIT}


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


class World:
    """What a release is made of, in a folder of its own."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        self.base = folder / "debian"
        shutil.copytree(base, self.base, symlinks=True)
        self.wheels = write_tree(WHEELS, folder / "wheels")
        self.overlay = write_tree(OVERLAY, folder / "overlay")
        (self.overlay / "opt/site/run").chmod(0o755)
        loaded = Recipe.load()
        shutil.copytree(loaded.folder, folder / "image")
        self.recipe = replace(loaded, folder=folder / "image", modules=())

    @property
    def release(self) -> Release:
        return Release(version="1.0.0", overlays=(self.overlay,))

    def assemble(self) -> Path:
        root = self.folder / "root"
        tree.assemble(self.recipe, self.release, self.base, self.wheels, root)
        return root

    def build(self) -> Built:
        return build.derive(
            self.recipe, self.release, self.folder / "os.img", base=self.base,
            wheels=self.wheels, init=b"init", tell=silent,
        )  # fmt: skip


@pytest.fixture(scope="session")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    with umask(0o022):
        base = write_tree(DEBIAN, folder / "debian")
        base.chmod(0o755)
        (folder / "python.c").write_text(PYTHON)
        (base / "usr/bin").mkdir()
        tool("gcc", "-static", "-Os", "-o", base / "usr/bin/python3", folder / "python.c")
        for name in ("bin", "lib"):
            (base / name).symlink_to(f"usr/{name}")
    return base


@pytest.fixture
def world(debian: Path, tmp_path: Path) -> World:
    return World(tmp_path, debian)


def modes(root: Path) -> dict[str, str]:
    """Return the mode of everything in ``root`` that is no link."""
    return {
        str(path.relative_to(root)): f"{path.stat().st_mode & 0o7777:o}"
        for path in (root, *root.rglob("*"))
        if not path.is_symlink()
    }


# The same bytes ----------------------------------------------------------------------------------


def close(folder: Path) -> None:
    """Take from others what a checkout of somebody careful does not give them."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & 0o700)


def open_up(folder: Path) -> None:
    """Give the group what a checkout of a team gives it."""
    for path in (folder, *folder.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | (mode & 0o700) >> 3 | (0o2000 if path.is_dir() else 0))


@pytest.mark.parametrize("mask", [0o077, 0o002, 0o000], ids=["077", "002", "000"])
@pytest.mark.parametrize("change", [close, open_up])
def test_neither_umask_nor_the_modes_of_a_checkout_count(
    change: Callable[[Path], None], mask: int, world: World, debian: Path, tmp_path: Path
) -> None:
    """Else a daemon that is not root can't read itself, and hosts fall back from the release."""
    with umask(0o022):
        usual = world.build()
        root = world.assemble()
        (tmp_path / "other").mkdir()
        other = World(tmp_path / "other", debian)
    for folder in (other.wheels, other.overlay, other.recipe.folder):
        change(folder)

    with umask(mask):
        assert modes(other.assemble()) == modes(root)
        built = other.build()

    assert built.root_hash == usual.root_hash
    assert built.image.read_bytes() == usual.image.read_bytes()


def test_everyone_may_read_it_and_run_its_programs(world: World) -> None:
    with umask(0o077):
        found = modes(world.assemble())

    library = "usr/lib/update-agent/python"
    assert found["."] == found["opt/site"] == found["usr/lib/new"] == "755"
    assert found[library] == found[f"{library}/tuf"] == found[f"{library}/update_agent"] == "755"
    assert found[f"{library}/six.py"] == found[f"{library}/update_agent/cli.py"] == "644"
    assert found[f"{library}/__pycache__"] == "755"
    assert found[f"{library}/__pycache__/six.pyc"] == found["etc/motd"] == "644"
    assert found["opt/site/run"] == found["usr/bin/update-agentd"] == "755"
    assert found["usr/lib/update-agent/local-enable"] == "755"
    assert found["etc/systemd/system/multi-user.target.wants"] == "755"
    assert found["etc/shadow"] == "640"


def test_publishing_is_no_part_of_a_host(world: World) -> None:
    root = world.assemble()
    library = root / "usr/lib/update-agent/python"

    assert (library / "update_agent/agent").is_dir()
    for name in ("publish", "server", "data"):
        assert not (library / "update_agent" / name).exists()
    assert not list(root.rglob("update-server*"))


def test_the_cache_is_left_as_it_was(world: World) -> None:
    before = modes(world.base)
    content = (world.base / "usr/lib/os-release").read_bytes()

    world.build()

    assert modes(world.base) == before
    assert (world.base / "usr/lib/os-release").read_bytes() == content
    assert [it.name for it in world.folder.glob(".building-*")] == []


def test_an_image_is_for_everyone_whatever_the_umask(releases: Releases, tmp_path: Path) -> None:
    path = tmp_path / "slot"
    with umask(0o077):
        assert image.main(
            ["apply", "--index", str(releases.v1.full.index), "--slot", str(path), "--json"]
        ) == 0  # fmt: skip

    assert path.stat().st_mode & 0o777 == 0o644


# What cannot be laid out -------------------------------------------------------------------------


def fifo(world: World) -> None:
    os.mkfifo(world.overlay / "etc/pipe")


def device(world: World) -> None:
    (world.overlay / "etc/pipe").symlink_to("nowhere")
    os.mknod(world.overlay / "etc/null", 0o20666, os.makedev(1, 3))


def listener(world: World) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(world.overlay / "etc/socket"))


def link_over_a_folder(world: World) -> None:
    (world.overlay / "usr/lib/systemd").symlink_to("elsewhere")


def file_over_a_folder(world: World) -> None:
    (world.overlay / "usr/lib/systemd").write_bytes(b"")


def folder_over_a_file(world: World) -> None:
    (world.overlay / "etc/passwd").mkdir()


def below_a_file(world: World) -> None:
    write_tree({"etc/passwd/root": b""}, world.overlay)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (fifo, r"overlay/etc/pipe is neither a file nor a folder nor a link$"),
        (device, r"overlay/etc/null is neither a file nor a folder nor a link$"),
        (listener, r"overlay/etc/socket is neither a file nor a folder nor a link$"),
        (link_over_a_folder, r"overlay/usr/lib/systemd over .*: that is a folder$"),
        (file_over_a_folder, r"overlay/usr/lib/systemd over .*: that is a folder$"),
        (folder_over_a_file, r"overlay/etc/passwd over .*/root/etc/passwd: File exists$"),
        (below_a_file, r"overlay/etc/passwd over .*/root/etc/passwd: File exists$"),
    ],
)
def test_what_cannot_be_laid_over_the_root_is_named(
    spoil: Callable[[World], None], message: str, world: World
) -> None:
    spoil(world)

    with pytest.raises(HostError, match=message):
        world.build()

    assert not (world.folder / "os.img").exists()
    assert [it.name for it in world.folder.glob(".building-*")] == []


def test_a_link_and_a_folder_over_a_link_to_one_are_laid(world: World) -> None:
    (world.overlay / "etc/localtime").symlink_to("/usr/share/zoneinfo/UTC")
    write_tree({"bin/tool": b"#!/bin/sh\n"}, world.overlay)

    root = world.assemble()

    assert (root / "etc/localtime").readlink() == Path("/usr/share/zoneinfo/UTC")
    assert (root / "usr/bin/tool").read_bytes() == b"#!/bin/sh\n"


def test_no_link_in_the_root_leads_an_overlay_onto_this_machine(
    world: World, tmp_path: Path
) -> None:
    (outside := tmp_path / "outside").mkdir()
    (world.base / "srv").symlink_to(outside)
    write_tree({"srv/site/file": b"ours"}, world.overlay)

    with pytest.raises(HostError, match=r"/srv is a link out of the root, to .*/outside$"):
        world.build()

    assert list(outside.iterdir()) == []


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    folder.mkdir()
    tool("mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", folder)
    try:
        yield folder
    finally:
        tool("umount", folder)


def test_a_file_that_does_not_fit_is_named(debian: Path, tmp_path: Path) -> None:
    large = write_tree({"etc/large": noise(4_000_000, "large")}, tmp_path / "large")
    with small_disk(tmp_path / "full", 4096) as disk:
        world = World(disk, debian)
        world.overlay = large

        with pytest.raises(HostError, match=r"/etc/large over .*: No space left on device$"):
            world.build()
        assert [it.name for it in disk.glob(".building-*")] == []


def test_a_kernel_that_does_not_fit_names_the_folder_that_is_full(
    debian: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "full", 10 * 1024) as disk:
        world = World(disk, debian)
        (world.base / "boot/vmlinuz-6.1").write_bytes(noise(6_000_000, "linux"))

        with pytest.raises(HostError, match=r"os.img: .*/full: No space left on device$"):
            world.build()
        assert [it.name for it in disk.glob(".building-*")] == []
