"""The initramfs: an archive that others can read, with modules in the order they need."""

import io
import subprocess
from pathlib import Path

import pytest
import zstandard

from update_agent.errors import HostError
from update_agent.publish import initramfs


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A folder of modules: a needs b and c, b needs c, d is built in."""
    for name in ("a", "b", "c"):
        path = tmp_path / f"kernel/{name}_x.ko"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"module {name}")
    (tmp_path / "modules.dep").write_text(
        "kernel/a_x.ko: kernel/b_x.ko kernel/c_x.ko\nkernel/b_x.ko: kernel/c_x.ko\nkernel/c_x.ko:\n"
    )
    (tmp_path / "modules.builtin").write_text("kernel/d-x.ko\n")
    return tmp_path


def test_modules_stand_behind_what_they_need_and_once(modules: Path) -> None:
    order = initramfs.modules_in_order(modules, ["d_x", "b-x", "a-x"])

    assert [path.name for path in order] == ["c_x.ko", "b_x.ko", "a_x.ko"]


def test_an_unknown_module_is_named(modules: Path) -> None:
    with pytest.raises(HostError, match=r"has no module floppy$"):
        initramfs.modules_in_order(modules, ["floppy"])


def test_cpio_unpacks_it(modules: Path, tmp_path: Path) -> None:
    packed = initramfs.make(b"the program", initramfs.modules_in_order(modules, ["b-x"]))
    archive = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)).read()

    target = tmp_path / "unpacked"
    target.mkdir()
    subprocess.run(["cpio", "-i", "--quiet", "-D", str(target)], input=archive, check=True)

    assert (target / "init").read_bytes() == b"the program"
    assert (target / "init").stat().st_mode == 0o100755
    listed = (target / "modules/list").read_text().splitlines()
    assert [(target / name[1:]).read_text() for name in listed] == ["module c", "module b"]


def test_the_same_files_give_the_same_bytes(modules: Path) -> None:
    order = initramfs.modules_in_order(modules, ["a-x"])

    assert initramfs.make(b"init", order) == initramfs.make(b"init", order)
