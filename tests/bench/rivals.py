"""What people use today, on the same images, over the same nginx, to the same loop device.

Installing:

    pipeline   curl | zstd -d | dd conv=fsync. Checks nothing.
    rauc       RAUC's service, a signed bundle, raw slot. Debian's 1.8 is built without streaming,
               and the ``verity`` format needs dm-verity in the kernel; so the ``plain`` format,
               which it downloads to a file before it installs.
    swupdate   SWUpdate's downloader, a signed .swu, zstd image ``installed-directly`` by the raw
               handler.

From one version to the next: xdelta3 makes a patch; casync and zchunk fetch what the old image
lacks.

A rival that cannot run here is ``NotRun`` with its reason, not an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import (
    BenchError,
    Ended,
    Measured,
    NotRun,
    Outcome,
    Process,
    Server,
    Slot,
    pipeline,
    run,
    running,
    sha256,
    wait_until,
)

LEVEL = 15
"""zstd level for everyone: the default of mksquashfs, and so of a zstd bundle."""
WORKERS = os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One installation: what, from where, to where."""

    image: Path
    published: Path
    server: Server
    slot: Slot
    work: Path
    level: int = LEVEL

    def artifact(self, suffix: str) -> Path:
        return self.published / f"{self.image.stem}.l{self.level}.{suffix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What one way of going from v1 to v2 costs. Zero seconds means that step does not exist."""

    fetched: int
    make_seconds: float
    make_peak: int
    apply_seconds: float
    apply_peak: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A way to install: what must be on the server, and the installation itself."""

    name: str
    command: str
    needs: tuple[str, ...]
    publish: Callable[[Job], Path]
    install: Callable[[Job], Measured]


def missing(tools: tuple[str, ...]) -> NotRun | None:
    absent = [tool for tool in tools if shutil.which(tool) is None]
    return NotRun(reason=f"not installed: {', '.join(absent)}") if absent else None


def attempt(rival: Rival, job: Job) -> Outcome:
    """Install, and hold the slot against the image; what fails, or differs, did not run."""
    if absent := missing(rival.needs):
        return absent
    try:
        rival.publish(job)
        job.slot.fill()
        before = job.server.sent()
        measured = rival.install(job)
        fetched = job.server.sent() - before
    except BenchError as error:
        return NotRun(reason=str(error))
    if job.slot.sha256(job.image.stat().st_size) != sha256(job.image):
        return NotRun(reason="the slot does not hold the image afterwards")
    return Measured(seconds=measured.seconds, peak=measured.peak, fetched=fetched)


def _once(target: Path, make: Callable[[Path], object]) -> Path:
    """Make ``target`` through a partial file, unless it is there."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        partial.unlink(missing_ok=True)
        make(partial)
        partial.rename(target)
    return target


def _tool(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")


def _measured(ended: Ended) -> Measured:
    return Measured(seconds=ended.seconds, peak=ended.peak, fetched=0)


# -- (a) curl | zstd | dd ------------------------------------------------------------------------


def publish_zstd(job: Job) -> Path:
    def make(target: Path) -> None:
        _tool("zstd", "--quiet", f"-{job.level}", f"-T{WORKERS}", str(job.image), "-o", str(target))

    return _once(job.artifact("zst"), make)


def install_pipeline(job: Job) -> Measured:
    return _measured(
        pipeline(
            [
                ["curl", "--silent", "--fail", job.server.url(publish_zstd(job))],
                ["zstd", "--decompress", "--stdout"],
                ["dd", f"of={job.slot.device}", "bs=1M", "iflag=fullblock", "conv=fsync"],
            ],
            job.work,
        )
    )


# -- (b) RAUC ------------------------------------------------------------------------------------

_MANIFEST = """\
[update]
compatible=bench
version=1

[bundle]
format=plain

[image.rootfs]
filename=slot.img
"""

_SYSTEM_CONF = """\
[system]
compatible=bench
bootloader=noop
mountprefix={work}/mnt
statusfile={work}/rauc.status
max-bundle-download-size=8589934592

[keyring]
path={certificate}

[slot.rootfs.0]
device={work}/booted
type=raw
bootname=A

[slot.rootfs.1]
device={device}
type=raw
bootname=B
"""

_BUS = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={work}/bus</listen>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_type="method_return"/>
    <allow send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="signal"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
  </policy>
</busconfig>
"""


def _certificate(folder: Path) -> tuple[Path, Path]:
    """Return a self-made signing certificate and its key, for both RAUC and SWUpdate."""
    certificate, key = folder / "signer.cert.pem", folder / "signer.key.pem"

    def make(target: Path) -> None:
        _tool(
            "openssl", "req", "-x509", "-newkey", "rsa:3072", "-nodes", "-days", "3650",
            "-subj", "/O=bench/CN=bench",
            "-addext", "extendedKeyUsage=emailProtection",
            "-keyout", str(key),
            "-out", str(target),
        )  # fmt: skip

    return _once(certificate, make), key


def _publish_rauc(job: Job, suffix: str, *arguments: str) -> Path:
    certificate, key = _certificate(job.published.parent)

    def make(target: Path) -> None:
        content = job.work / "bundle"
        content.mkdir()
        (content / "manifest.raucm").write_text(_MANIFEST)
        os.link(job.image, content / "slot.img")
        try:
            _tool(
                "rauc",
                "bundle",
                f"--cert={certificate}",
                f"--key={key}",
                *arguments,
                str(content),
                str(target),
            )
        finally:
            shutil.rmtree(content)

    return _once(job.artifact(suffix), make)


def publish_rauc_gzip(job: Job) -> Path:
    return _publish_rauc(job, "gzip.raucb")


def publish_rauc_zstd(job: Job) -> Path:
    return _publish_rauc(job, "zstd.raucb", *_squashfs(job.level))


def _squashfs(level: int) -> tuple[str, ...]:
    """Return the options that were fastest here; blocks of 128 KiB cost RAUC another tenth."""
    return (f"--mksquashfs-args=-comp zstd -Xcompression-level {level} -b 1M",)


@contextmanager
def _rauc_service(job: Job) -> Iterator[tuple[Process, dict[str, str]]]:
    """Hold a bus of our own with RAUC's service on it, ready to be asked."""
    certificate, _ = _certificate(job.published.parent)
    config, bus = job.work / "rauc.conf", job.work / "bus.conf"
    (job.work / "rauc.status").unlink(missing_ok=True)
    (job.work / "booted").write_bytes(b"")
    (job.work / "mnt").mkdir(exist_ok=True)
    config.write_text(
        _SYSTEM_CONF.format(work=job.work, certificate=certificate, device=job.slot.device)
    )
    bus.write_text(_BUS.format(work=job.work))
    env = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={job.work}/bus", "TMPDIR": str(job.work)}
    service = ["rauc", f"--conf={config}", "service", "--override-boot-slot=A"]
    (job.work / "bus").unlink(missing_ok=True)
    with running(["dbus-daemon", f"--config-file={bus}", "--nofork", "--nopidfile"], job.work):
        wait_until("the private bus", (job.work / "bus").exists)
        with running(service, job.work, env=env) as rauc:
            wait_until(
                "RAUC's name on the bus", lambda: _has_rauc(env) or rauc.popen.poll() is not None
            )
            if rauc.popen.poll() is not None:
                raise BenchError(f"rauc service ended: {rauc.words()[-2000:]}")
            yield rauc, env


def _has_rauc(env: dict[str, str]) -> bool:
    asked = subprocess.run(
        [
            "dbus-send",
            "--system",
            "--print-reply",
            "--dest=org.freedesktop.DBus",
            "/",
            "org.freedesktop.DBus.GetNameOwner",
            "string:de.pengutronix.rauc",
        ],
        env={**os.environ, **env},
        capture_output=True,
        check=False,
    )
    return asked.returncode == 0


def _install_rauc(job: Job, bundle: Path) -> Measured:
    """Let RAUC download and install; its service is up before the clock starts, as on a host."""
    with _rauc_service(job) as (service, env):
        ended = run(["rauc", "install", job.server.url(bundle)], job.work, env=env)
        service.stop()
        return Measured(seconds=ended.seconds, peak=ended.peak + service.peak(), fetched=0)


def install_rauc_gzip(job: Job) -> Measured:
    return _install_rauc(job, publish_rauc_gzip(job))


def install_rauc_zstd(job: Job) -> Measured:
    return _install_rauc(job, publish_rauc_zstd(job))


# -- (c) SWUpdate --------------------------------------------------------------------------------

_DESCRIPTION = """\
software =
{{
    version = "1";
    hardware-compatibility = [ "1" ];
    images: (
        {{
            filename = "slot.img.zst";
            device = "{device}";
            type = "raw";
            compressed = "zstd";
            installed-directly = true;
            sha256 = "{digest}";
        }}
    );
}}
"""


def publish_swupdate(job: Job) -> Path:
    """Make the .swu anew each time, because it names the device; publishing is not measured."""
    certificate, key = _certificate(job.published.parent)
    image = publish_zstd(job)
    description, signature = job.work / "sw-description", job.work / "sw-description.sig"
    description.write_text(_DESCRIPTION.format(device=job.slot.device, digest=sha256(image)))
    _tool(
        "openssl", "cms", "-sign", "-binary", "-nosmimecap", "-nosigs",
        "-md", "sha256",
        "-outform", "DER",
        "-in", str(description),
        "-out", str(signature),
        "-signer", str(certificate),
        "-inkey", str(key),
    )  # fmt: skip
    target = job.artifact("swu")
    with target.open("wb") as archive:
        for name, path in (
            (description.name, description),
            (signature.name, signature),
            ("slot.img.zst", image),
        ):
            archive.write(_cpio_header(name, path.stat().st_size))
            with path.open("rb") as member:
                shutil.copyfileobj(member, archive, 1 << 20)
            archive.write(bytes(-path.stat().st_size % 4))
        archive.write(_cpio_header("TRAILER!!!", 0))
        archive.write(bytes(-archive.tell() % 512))
    return target


def _cpio_header(name: str, size: int) -> bytes:
    """Return a ``newc`` header: 13 fields of 8 hexadecimal digits, and the padded name."""
    fields = (0, 0o100644, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return header + bytes(-len(header) % 4)


def install_swupdate(job: Job) -> Measured:
    certificate, _ = _certificate(job.published.parent)
    command = [
        "swupdate",
        "-l", "3",
        "-H", "bench:1",
        "-k", str(certificate),
        "-m", "-M",
        "-d", f"-u {job.server.url(job.artifact('swu'))}",
    ]  # fmt: skip
    return _measured(run(command, job.work, env={"TMPDIR": str(job.work)}))


PIPELINE = Rival(
    name="curl | zstd | dd",
    command="curl -sf URL | zstd -dc | dd of=LOOP bs=1M iflag=fullblock conv=fsync",
    needs=("curl", "zstd", "dd"),
    publish=publish_zstd,
    install=install_pipeline,
)
RAUC_GZIP = Rival(
    name="rauc, gzip",
    command="rauc install URL, plain bundle, mksquashfs default (gzip, 128 KiB blocks)",
    needs=("rauc", "dbus-daemon", "dbus-send", "mksquashfs", "openssl"),
    publish=publish_rauc_gzip,
    install=install_rauc_gzip,
)
RAUC_ZSTD = Rival(
    name="rauc, zstd",
    command="rauc install URL, plain bundle, mksquashfs -comp zstd -b 1M",
    needs=RAUC_GZIP.needs,
    publish=publish_rauc_zstd,
    install=install_rauc_zstd,
)
SWUPDATE = Rival(
    name="swupdate",
    command="swupdate -k CERT -d '-u URL', signed .swu, raw handler, zstd, installed-directly",
    needs=("swupdate", "zstd", "openssl"),
    publish=publish_swupdate,
    install=install_swupdate,
)
INSTALLERS = (PIPELINE, RAUC_GZIP, RAUC_ZSTD, SWUPDATE)


# -- (d) from one version to the next ------------------------------------------------------------


def xdelta3(old: Path, new: Path, work: Path, secondary: str) -> Delta | NotRun:
    """Patch the whole image with the whole old image as window, as small as xdelta3 can."""
    if absent := missing(("xdelta3",)):
        return absent
    patch, restored = work / f"patch.{secondary}", work / "restored"
    window = f"-B{max(old.stat().st_size, new.stat().st_size)}"
    try:
        made = run(
            [
                "xdelta3", "-9", "-e", "-f", "-S", secondary, window, f"-W{16 << 20}",
                "-s", str(old), str(new), str(patch),
            ],
            work,
        )  # fmt: skip
        applied = run(
            ["xdelta3", "-d", "-f", window, "-s", str(old), str(patch), str(restored)], work
        )
        return _delta(patch.stat().st_size, made, applied, restored, new)
    except BenchError as error:
        return NotRun(reason=str(error))
    finally:
        restored.unlink(missing_ok=True)


def casync(old: Path, new: Path, work: Path, server: Server) -> Delta | NotRun:
    """Extract with the old image as seed; chunk store over HTTP, zstd, default chunk size."""
    if absent := missing(("casync",)):
        return absent
    folder = server.folder / "casync"
    store, index, restored = folder / "store", folder / "new.caibx", work / "restored"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        make = ["casync", "make", "--compression=zstd", f"--store={store}", str(index), str(new)]
        made = run(make, work)
        extract = [
            "casync", "extract", f"--store={server.url(store)}", f"--seed={old}",
            "--seed-output=no", server.url(index), str(restored),
        ]  # fmt: skip
        before = server.sent()
        applied = run(extract, work)
        return _delta(server.sent() - before, made, applied, restored, new)
    except BenchError as error:
        return NotRun(reason=str(error))
    finally:
        restored.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def zchunk(old: Path, new: Path, work: Path, server: Server) -> Delta | NotRun:
    """Download the new .zck with the old one as source, and unpack it."""
    if absent := missing(("zck", "zckdl", "unzck")):
        return absent
    folder, target = server.folder / "zchunk", work / "zchunk"
    for path in (folder, target):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    source, published = work / "old.zck", folder / "new.zck"
    try:
        run(["zck", "-o", str(source), str(old)], work)
        made = run(["zck", "-o", str(published), str(new)], work)
        before = server.sent()
        fetched = run(["zckdl", "-q", "-s", str(source), server.url(published)], work, cwd=target)
        sent = server.sent() - before
        unpacked = run(["unzck", str(target / "new.zck")], work, cwd=target)
        applied = Ended(
            seconds=fetched.seconds + unpacked.seconds,
            peak=max(fetched.peak, unpacked.peak),
            output="",
        )
        return _delta(sent, made, applied, target / "new", new)
    except BenchError as error:
        return NotRun(reason=str(error))
    finally:
        for path in (folder, target):
            shutil.rmtree(path, ignore_errors=True)
        source.unlink(missing_ok=True)


def _delta(fetched: int, made: Ended, applied: Ended, restored: Path, new: Path) -> Delta:
    if sha256(restored) != sha256(new):
        raise BenchError("what was restored is not the new image")
    return Delta(
        fetched=fetched,
        make_seconds=made.seconds,
        make_peak=made.peak,
        apply_seconds=applied.seconds,
        apply_peak=applied.peak,
    )


def differences(old: Path, new: Path, work: Path, server: Server) -> dict[str, Delta | NotRun]:
    """Measure every way of the rivals from ``old`` to ``new``, once each."""
    measured: dict[str, Delta | NotRun] = {
        f"xdelta3 -9 -S {secondary}": xdelta3(old, new, work, secondary)
        for secondary in ("djw", "lzma")
    }
    measured["casync, seeded"] = casync(old, new, work, server)
    measured["zchunk, from v1.zck"] = zchunk(old, new, work, server)
    return measured
