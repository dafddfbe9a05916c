"""Two real Debian roots a point release apart, and the slot images made from them.

``v1`` is the archive's ``main`` suite alone, ``v2`` the same packages from main, updates and
security. Suites, mirror and keyring are those of the machine, read from its apt sources when a
root is built, so no host name stands here. Each is built once and kept in a cache folder:

    NAME.erofs      uncompressed root file system; fixed UUID and time
    NAME.kernel     initramfs followed by its vmlinuz, in place of a unified kernel image
    NAME.packages   what is installed, one ``package version`` a line
    NAME.KIND.img   the slot image; KIND is ``sealed-`` with its hash, or ``standin``

For who has no time: ``small``, two images of made-up files. All functions return values; only
``main`` prints.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.bench import ours
from tests.bench.measure import BenchError, sha256
from tests.images import Tree, noise, program, write_tree

DEFAULT_CACHE = Path("/var/cache/update-agent/bench")
BLOCK = 4096
EPOCH = 1_700_000_000
"""Every file's time in both roots: a rebuild must not differ by when it ran."""
UUID = "c0ffee00-0000-4000-8000-000000000001"
SALT = "00" * 32

PACKAGES = (
    "linux-image-cloud-amd64",
    "systemd-sysv",
    "systemd-timesyncd",
    "systemd-resolved",
    "dbus",
    "udev",
    "openssh-server",
    "docker.io",
    "etcd-server",
    "etcd-client",
    "python3",
    "python3-requests",
    "python3-dbus",
    "iproute2",
    "iptables",
    "ca-certificates",
    "curl",
    "e2fsprogs",
    "xfsprogs",
    "perl",
    "efibootmgr",
    "gdisk",
    "tcpdump",
    "strace",
    "lvm2",
    "nfs-common",
    "rsync",
)
"""What a container host carries, with the tools people log in for."""

_NO_DOCUMENTATION = (
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/info/*",
)

_SPARE = (
    "boot/*",
    "var/lib/apt/lists/*",
    "var/cache/*",
    "var/log/*",
    "etc/machine-id",
    "etc/ssh/ssh_host_*",
    "tmp/*",
)
"""Not part of a read-only root: made at run time, or different at each build."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One stanza of apt sources, reduced to what a root needs."""

    uris: str
    suites: tuple[str, ...]
    components: str
    signed_by: str

    def narrowed(self, wanted: frozenset[str]) -> Source:
        """Return the same source with only ``wanted`` suites."""
        return Source(
            uris=self.uris,
            suites=tuple(suite for suite in self.suites if suite in wanted),
            components=self.components,
            signed_by=self.signed_by,
        )

    def stanza(self) -> str:
        lines = [
            "Types: deb",
            f"URIs: {self.uris}",
            f"Suites: {' '.join(self.suites)}",
            f"Components: {self.components}",
        ]
        if self.signed_by:
            lines.append(f"Signed-By: {self.signed_by}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One built root and everything made from it."""

    name: str
    root: Path
    kernel: Path
    image: Path
    kind: str
    packages: frozenset[str]


def build(cache: Path) -> tuple[Release, Release]:
    """Return v1 and v2, building whatever the cache does not hold yet."""
    codename = os_codename()
    v1 = _release(cache, "v1", frozenset({codename}))
    suites = frozenset({codename, f"{codename}-updates", f"{codename}-security"})
    v2 = _release(cache, "v2", suites)
    if v1.packages == v2.packages:
        raise BenchError(
            "updates and security hold nothing newer than main; no point release to measure"
        )
    return v1, v2


def small(cache: Path, megabytes: int) -> tuple[Release, Release]:
    """Return two images of ``megabytes``, made up; nothing about their content is like a system."""
    old, new = trees(megabytes)
    return _small(cache, f"small{megabytes}-v1", old), _small(cache, f"small{megabytes}-v2", new)


def trees(megabytes: int) -> tuple[Tree, Tree]:
    """Return two trees, half noise and half text, a fifth of the files of another content."""
    mebi = 1 << 20
    old = {f"lib/{n}": program(mebi, f"file {n}") for n in range(megabytes // 2)}
    for n in range(megabytes // 2):
        lines = (
            b"line %d of text %d, which compresses well\n" % (line, n) for line in range(24_000)
        )
        old[f"share/{n}"] = b"".join(lines)
    changed = [name for number, name in enumerate(old) if number % 5 == 0]
    return old, old | {name: noise(1000, name) + old[name] for name in changed}


def _small(cache: Path, name: str, tree: Tree) -> Release:
    root, kernel = cache / f"{name}.erofs", cache / f"{name}.kernel"
    if not root.exists():
        cache.mkdir(parents=True, exist_ok=True)
        kernel.write_bytes(noise(1 << 20, name))
        folder = cache / f"{name}.tree"
        try:
            make_erofs(write_tree(tree, folder), root)
        finally:
            _remove(folder)
    image, kind = slot_image(name, root, kernel)
    packages = frozenset[str]()
    return Release(name=name, root=root, kernel=kernel, image=image, kind=kind, packages=packages)


def os_codename() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    raise BenchError("/etc/os-release names no VERSION_CODENAME")


def slot_image(release: str, root: Path, kernel: Path) -> tuple[Path, str]:
    """Return the slot image of a root and kernel, and how it was made.

    Ours when the command is there, made anew each time because the command may have changed, and
    named by its content so that nothing made from another one is taken for it. Else a stand-in:
    root, hash tree and kernel without our two headers, about equal work for who installs it.
    """
    partial = root.with_name(f"{release}.img.partial")
    if not ours.can_seal():
        image = root.with_name(f"{release}.standin.img")
        if not image.exists():
            _stand_in(root, kernel, partial)
            partial.rename(image)
        return image, "standin"
    ours.seal(root, kernel, partial)
    image = root.with_name(f"{release}.sealed-{sha256(partial)[:12]}.img")
    for stale in root.parent.glob(f"{release}.sealed-*.img"):
        stale.unlink()
    return partial.rename(image), "sealed"


def synthetic_image(cache: Path, size: int, *, seed: int = 1) -> Path:
    """Return a slot image over one file of ``size`` bytes: holes, old noise, new noise by turns.

    For memory only: nothing about its content resembles a release.
    """
    root, kernel = cache / f"synthetic-{size}.erofs", cache / "synthetic.kernel"
    if not root.exists():
        noise = random.Random(seed)  # noqa: S311  # the same bytes every time are the point
        kernel.write_bytes(noise.randbytes(BLOCK * 1024))
        tree = cache / "synthetic.tree"
        tree.mkdir(exist_ok=True)
        try:
            _fill(tree / "file", size, noise)
            make_erofs(tree, root)
        finally:
            _remove(tree)
    image, _ = slot_image(root.stem, root, kernel)
    return image


def changed_bytes(old: Path, new: Path) -> int:
    """Count the bytes in 4 KiB blocks of ``new`` that stand nowhere in ``old``."""
    known = {hash(block) for block in _blocks(old)}
    return sum(len(block) for block in _blocks(new) if hash(block) not in known)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(lambda: file.read(BLOCK), b"")


def _fill(path: Path, size: int, noise: random.Random) -> None:
    mebi = 1 << 20
    repeated = [noise.randbytes(mebi) for _ in range(16)]
    with path.open("wb") as file:
        for number in range(size // mebi):
            match number % 3:
                case 0:
                    file.seek(mebi, 1)
                case 1:
                    file.write(repeated[noise.randrange(len(repeated))])
                case _:
                    file.write(noise.randbytes(mebi))
        file.truncate(size)


def _release(cache: Path, name: str, suites: frozenset[str]) -> Release:
    root, kernel, packages = (cache / f"{name}.{part}" for part in ("erofs", "kernel", "packages"))
    if not packages.exists():
        _bootstrap(cache, name, suites)
    image, kind = slot_image(name, root, kernel)
    return Release(
        name=name,
        root=root,
        kernel=kernel,
        image=image,
        kind=kind,
        packages=frozenset(packages.read_text().splitlines()),
    )


def _bootstrap(cache: Path, name: str, suites: frozenset[str]) -> None:
    """Build a root and its three files; the list of packages comes last and says it is complete."""
    cache.mkdir(parents=True, exist_ok=True)
    tree, sources = cache / f"{name}.tree", cache / f"{name}.sources"
    _remove(tree)
    sources.write_text("\n".join(source.stanza() for source in apt_sources(suites)))
    try:
        subprocess.run(
            [
                "mmdebstrap",
                "--mode=root",
                "--format=directory",
                "--variant=important",
                *_NO_DOCUMENTATION,
                "--include",
                ",".join(PACKAGES),
                os_codename(),
                str(tree),
                str(sources),
            ],
            check=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SOURCE_DATE_EPOCH": str(EPOCH)},
        )
        installed = _installed(tree)
        _take_kernel(tree, cache / f"{name}.kernel")
        _strip(tree)
        make_erofs(tree, cache / f"{name}.erofs")
        (cache / f"{name}.packages").write_text(installed)
    finally:
        _remove(tree)


def apt_sources(suites: frozenset[str]) -> list[Source]:
    """Return the machine's own sources, narrowed to ``suites`` of Debian's main."""
    folder = Path("/etc/apt")
    found = [
        source
        for path in sorted(folder.glob("sources.list.d/*.sources"))
        for source in _deb822(path)
    ]
    lists = [folder / "sources.list", *sorted(folder.glob("sources.list.d/*.list"))]
    found += [source for path in lists if path.exists() for source in _one_line(path)]
    narrowed = [source.narrowed(suites) for source in found]
    usable = [
        source for source in narrowed if source.suites and "main" in source.components.split()
    ]
    missing = suites - {suite for source in usable for suite in source.suites}
    if missing:
        raise BenchError(f"apt sources of this machine lack {', '.join(sorted(missing))}")
    return usable


def _deb822(path: Path) -> list[Source]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    stanzas = "\n".join(lines).split("\n\n")
    fields = [_fields(stanza) for stanza in stanzas if stanza.strip()]
    return [
        Source(
            uris=stanza["uris"],
            suites=tuple(stanza["suites"].split()),
            components=stanza.get("components", ""),
            signed_by=stanza.get("signed-by", ""),
        )
        for stanza in fields
        if "deb" in stanza.get("types", "").split()
    ]


def _fields(stanza: str) -> dict[str, str]:
    pairs = [line.partition(":") for line in stanza.splitlines() if not line.startswith(" ")]
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _one_line(path: Path) -> list[Source]:
    sources = []
    for line in path.read_text().splitlines():
        words = [
            word
            for word in line.split()
            if not word.startswith(("[", "signed-by=")) and word != "]"
        ]
        if words[:1] == ["deb"] and len(words) > 3:  # deb URI SUITE COMPONENT...
            keys = [
                word.strip("[]").removeprefix("signed-by=")
                for word in line.split()
                if "signed-by=" in word
            ]
            sources.append(
                Source(
                    uris=words[1],
                    suites=(words[2],),
                    components=" ".join(words[3:]),
                    signed_by="".join(keys),
                )
            )
    return sources


def _installed(tree: Path) -> str:
    done = subprocess.run(
        ["dpkg-query", "--admindir", str(tree / "var/lib/dpkg"), "--show"],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def _take_kernel(tree: Path, kernel: Path) -> None:
    """Join the newest initramfs and its kernel; both are in ``boot`` under the kernel's version.

    The kernel alone is a program of the firmware, of which sealing wants a command line.
    """
    vmlinuz = max((tree / "boot").glob("vmlinuz-*"))
    initramfs = tree / "boot" / vmlinuz.name.replace("vmlinuz-", "initrd.img-")
    kernel.write_bytes(initramfs.read_bytes() + vmlinuz.read_bytes())


def _strip(tree: Path) -> None:
    for pattern in _SPARE:
        for path in tree.glob(pattern):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError):
            path.unlink()


def make_erofs(tree: Path, root: Path) -> None:
    """Make the root file system: not compressed, so equal files are equal blocks everywhere."""
    partial = root.with_suffix(".partial")
    subprocess.run(
        ["mkfs.erofs", "--quiet", f"-U{UUID}", f"-T{EPOCH}", str(partial), str(tree)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    partial.rename(root)


def _stand_in(root: Path, kernel: Path, image: Path) -> None:
    shutil.copyfile(root, image)
    _pad(image)
    end = image.stat().st_size
    subprocess.run(
        [
            "veritysetup",
            "format",
            "--data-blocks",
            str(end // BLOCK),
            "--hash-offset",
            str(end),
            "--salt",
            SALT,
            "--uuid",
            UUID,
            str(image),
            str(image),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    _pad(image)
    with image.open("ab") as target, kernel.open("rb") as source:
        shutil.copyfileobj(source, target, 1 << 20)
    _pad(image)


def _pad(path: Path) -> None:
    """Lengthen ``path`` with zeros to a whole number of blocks."""
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // BLOCK) * BLOCK)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Build the two Debian roots that the benchmarks install."
    )
    parser.add_argument(
        "--cache", type=Path, default=DEFAULT_CACHE, help="where built images are kept"
    )
    v1, v2 = build(parser.parse_args().cache)
    for release in (v1, v2):
        for path in (release.root, release.kernel, release.image):
            print(f"{path}\t{path.stat().st_size:,} bytes")
    new = len(v2.packages - v1.packages)
    print(f"packages: {len(v1.packages)} and {len(v2.packages)}, of another version in v2: {new}")
    print(f"blocks of v2 that v1 does not hold: {changed_bytes(v1.image, v2.image):,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
