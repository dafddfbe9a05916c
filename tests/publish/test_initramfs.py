"""The initramfs: an archive that others can read, with modules in the order they need."""

import io
import subprocess
from pathlib import Path

import pytest
import zstandard

from update_agent.errors import HostError
from update_agent.publish import initramfs, recipe


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


# What it waits for -------------------------------------------------------------------------------

WAITS = """
#define main initramfs
#include "init.c"
#undef main

int main(int count, char **words)
{
	sigset_t blocked;
	int status, left = count > 1 ? atoi(words[1]) : 0;
	char end;

	sigemptyset(&blocked);
	sigaddset(&blocked, SIGCHLD);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	pid_t child = fork();
	if (child == 0)
		_exit(read(STDIN_FILENO, &end, 1) == 0 ? 7 : 1);
	bool ended = ends(child, &status, left);
	kill(child, SIGKILL);
	printf("%s\\n", !ended ? "late" : WEXITSTATUS(status) == 7 ? "ended" : "wrong");
}
"""


@pytest.mark.parametrize(("seconds", "said"), [("60", "ended"), ("1", "late")])
def test_a_check_of_the_disk_has_its_time_and_no_more(
    seconds: str, said: str, tmp_path: Path
) -> None:
    program = tmp_path / "waits"
    source = recipe.data("partition-layout") / "image"
    subprocess.run(
        ["gcc", "-x", "c", "-", "-I", str(source), "-o", str(program)],
        input=WAITS.encode(), check=True,
    )  # fmt: skip
    with subprocess.Popen(
        [program, seconds], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        if said == "ended":
            process.stdin.close()
        assert process.stdout.readline() == f"{said}\n"
