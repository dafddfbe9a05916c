"""The Debian root that an image begins with, and update-agent's own wheels; both kept in a cache.

``mmdebstrap`` installs the recipe's packages from the sources that this machine's own apt knows as
Debian's. The same recipe and the same packages give the same root, byte for byte. It is made once,
and made anew when the recipe or this machine's package lists changed: ``apt-get update`` is how one
asks for today's packages. Images are derived from it with hard links.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from update_agent.errors import HostError
from update_agent.publish.cache import kept
from update_agent.publish.progress import Tell
from update_agent.publish.recipe import Recipe
from update_agent.run import run

SUITE = "bookworm"

EPOCH = "1750000000"
"""SOURCE_DATE_EPOCH of everything we make: in the past, and the same for ever."""


def base_root(recipe: Recipe, cache: Path, tell: Tell) -> Path:
    """Return the folder with the recipe's packages installed. Raises HostError."""
    lists = run([
        "apt-get", "indextargets", "--format", "$(FILENAME)",
        "Created-By: Packages", "Origin: Debian",
    ]).split()  # fmt: skip
    key = _digest(
        repr((recipe.packages, recipe.purge, recipe.exclude, SUITE, EPOCH)),
        Path(__file__).read_text(),
        *map(_list_digest, sorted(lists)),
    )
    return kept(
        cache / f"debian-{key}",
        lambda folder: _install(recipe, folder),
        tell,
        "installing Debian packages, about a minute",
    )


def wheels(recipe: Recipe, cache: Path, tell: Tell) -> Path:
    """Return the folder with the wheels that update-agent needs on a host. Raises HostError."""
    key = _digest(recipe.requirements.read_text(), Path(__file__).read_text())
    return kept(
        cache / f"wheels-{key}",
        lambda folder: _fetch_wheels(recipe, folder),
        tell,
        "fetching update-agent's wheels",
    )


def _install(recipe: Recipe, root: Path) -> None:
    if os.geteuid() != 0:
        raise HostError("making a Debian root needs root", hint="run it with sudo")
    with tempfile.TemporaryDirectory(prefix="update-agent-apt-") as scratch:
        sources, settings = Path(scratch, "sources.list"), Path(scratch, "apt.conf")
        sources.write_text(_sources())
        settings.write_text(_settings())
        run([
            "mmdebstrap",
            "--mode=root",
            "--variant=essential",
            "--skip=check/empty",
            f"--aptopt={settings}",
            '--aptopt=APT::Install-Recommends "false"',
            *(f"--dpkgopt=path-exclude={path}" for path in recipe.exclude),
            "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
            f"--include={','.join(recipe.packages)}",
            f'--customize-hook=chroot "$1" dpkg --purge --force-depends {" ".join(recipe.purge)}',
            '--customize-hook=chroot "$1" dpkg-query -W > "$1/usr/lib/update-agent-packages"',
            SUITE, root, sources,
        ], timeout=1800, environment={"SOURCE_DATE_EPOCH": EPOCH})  # fmt: skip
    for compiled in list(root.glob("usr/**/__pycache__")):
        shutil.rmtree(compiled)
    run([
        "chroot", root, "python3", "-m", "compileall", "-q",
        "--invalidation-mode", "unchecked-hash",
        "/usr/lib/python3.11", "/usr/lib/python3",
    ], environment={"SOURCE_DATE_EPOCH": EPOCH, "PYTHONHASHSEED": "0"})  # fmt: skip


def _sources() -> str:
    """Return the sources that this machine's apt has from Debian, as one-line entries."""
    lines = run([
        "apt-get", "indextargets", "--format", "deb $(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Created-By: Packages", "Origin: Debian",
    ]).splitlines()  # fmt: skip
    ours = sorted({line for line in lines if f" {SUITE}" in line})
    if not ours:
        raise HostError(
            f"this machine's apt knows no Debian {SUITE}", hint="run 'apt-get update' first"
        )
    return "".join(f"{line}\n" for line in ours)


def _settings() -> str:
    """Return how this machine's apt reaches its sources: proxies, checks, credentials."""
    lines = run(["apt-config", "dump", "--no-empty", "--format", '%F "%v";%n', "Acquire"])
    return "".join(
        f"{line}\n" for line in lines.splitlines() if not line.startswith("Acquire::Index")
    )


def _fetch_wheels(recipe: Recipe, folder: Path) -> None:
    run([
        sys.executable, "-m", "pip", "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-compile",
        "--require-hashes",
        "--only-binary", ":all:",
        "--platform", "manylinux2014_x86_64",
        "--platform", "manylinux_2_28_x86_64",
        "--implementation", "cp",
        "--python-version", "3.11",
        "--target", folder,
        "--requirement", recipe.requirements,
    ], environment={"HOME": str(Path.home())})  # fmt: skip
    shutil.rmtree(folder / "bin", ignore_errors=True)
    for record in folder.glob("*.dist-info/RECORD"):  # tells where pip's temporary folder was
        record.unlink()


def _list_digest(name: str) -> str:
    """Return the hash of a package list, as it stands or under the name that apt compressed it."""
    for path in (Path(name), *Path(name).parent.glob(f"{Path(name).name}.*")):
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    return name


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
