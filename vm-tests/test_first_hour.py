"""The first hour of somebody who knows CoreOS: a host boots, and does what he is used to."""

import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import NewMachine
from machine import Machine
from releases import Workshop

BUSYBOX = Path("/bin/busybox")

HELLO = """\
[Unit]
Description=Says hello
After=docker.service
Requires=docker.service

[Service]
ExecStartPre=-/usr/bin/docker rm --force hello
ExecStart=/usr/bin/docker run --rm --init --name hello busybox \\
    sh -c "while true; do echo hello again; sleep 1; done"
Restart=always

[Install]
WantedBy=multi-user.target
"""

TRUSTED_ROOT = json.dumps({"signatures": [], "signed": {"_type": "root", "version": 1}})


@pytest.fixture(scope="module")
def host(workshop: Workshop, new_machine: NewMachine) -> Iterator[Machine]:
    """A host after its first boot: the disk has grown."""
    disk = workshop.disk(workshop.release("1.0.0"))
    machine = new_machine(
        disk,
        "web-1",
        credentials={
            "server": "https://updates.example",
            "channel": "stable",
            "root": TRUSTED_ROOT,
            "etcd": "ETCD_NAME=one\nETCD_INITIAL_CLUSTER=one=http://127.0.0.1:2380\n"
            "ETCD_INITIAL_ADVERTISE_PEER_URLS=http://127.0.0.1:2380",
        },
    )
    subprocess.run(["qemu-img", "resize", "-q", machine.layer, "8G"], check=True)
    machine.boot()
    yield machine
    machine.cut_power()
    workshop.forget(disk)


def busybox_tarball() -> bytes:
    """Return the root of a container: busybox, and sh as a link to it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(BUSYBOX, "bin/busybox")
        for name in ("sh", "echo", "sleep"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return packed.getvalue()


def slots(machine: Machine) -> dict[str, Any]:
    return dict(machine.json("sudo update-agentctl slots --json"))


def units_that_failed(machine: Machine) -> str:
    return machine.run("systemctl --failed --no-legend --plain")


# It boots ----------------------------------------------------------------------------------------


@pytest.mark.case(72)
def test_slot_a_boots_to_the_end_with_no_failed_unit(
    host: Machine, figure: Callable[[str], None]
) -> None:
    figure(
        f"image: first boot {stages(host)}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )

    assert units_that_failed(host) == ""
    assert "ordering cycle" not in host.run("sudo journalctl --boot --no-pager")
    assert slots(host)["booted"] == "A"


def stages(machine: Machine) -> str:
    """Return how long the last boot took, by stage, as the console's lines tell."""
    since = machine.booted_at
    marks = {
        "firmware": machine.said_at("gptprio: slot A", since),
        "selector": machine.said_at("gptprio: slot .: kernel verified", since),
        "kernel": machine.said_at("update-agent-init: start", since),
        "initramfs": machine.said_at("update-agent-init: end", since),
        "user space": machine.said_at(r"multi-user\.target", since),
    }
    begins = [since, *marks.values()]
    parts = [
        f"{name} {end - begin:.1f} s"
        for (name, end), begin in zip(marks.items(), begins, strict=False)
    ]
    return f"{begins[-1] - since:.1f} s: " + ", ".join(parts)


def test_the_root_is_read_only_and_every_block_of_it_is_verified(host: Machine) -> None:
    assert host.run("findmnt -no FSTYPE,OPTIONS /").split()[0] == "erofs"
    assert "ro" in host.run("findmnt -no OPTIONS /").strip().split(",")
    assert host.run("cat /sys/block/dm-0/dm/uuid /sys/block/dm-0/dm/name") == "\nroot\n"
    assert "Read-only file system" in host.fails("sudo touch /usr/new")


@pytest.mark.case(42)
def test_the_slot_it_runs_from_is_found_below_dm_verity_and_refused(host: Machine) -> None:
    said = host.fails("sudo update-agent-slots retire A --disk /dev/vda")

    assert "slot A is the one this host runs from; it is not touched" in said
    assert slots(host)["booted"] == "A"


@pytest.mark.case(42)
def test_a_slot_that_somebody_mapped_is_refused(host: Machine) -> None:
    host.run("sudo dmsetup create user --table '0 2048 linear /dev/vda3 0'")
    try:
        said = host.fails("sudo update-agent-slots retire B --disk /dev/vda")
    finally:
        host.run("sudo dmsetup remove user")

    assert "/dev/vda3 is in use (held by dm-1)" in said


# It is told who it is ----------------------------------------------------------------------------


def test_what_the_machine_was_given_became_files(host: Machine) -> None:
    assert host.run("hostname; cat /etc/hostname") == "web-1\nweb-1\n"
    provided = host.run("cat /etc/update-agent/50-provided.toml")
    assert provided == (
        '[update]\nrepository = ["https://updates.example"]\nchannel = "stable"\n'
        'root = "/etc/update-agent/root.json"\n'
    )
    assert json.loads(host.run("cat /etc/update-agent/root.json")) == json.loads(TRUSTED_ROOT)
    assert "(core)" in host.run("id")
    assert host.run("sudo id -u") == "0\n"


def test_a_file_on_state_has_the_last_word_and_a_wrong_one_is_refused(host: Machine) -> None:
    host.put("beta", "/media/state/config/channel")
    host.put("ftp://there", "/media/state/config/server")

    said = host.fails("sudo update-agent-firstboot")

    assert "setting server is 'ftp://there', wanted an http:// or https:// URL" in said
    assert 'channel = "beta"' in host.run("cat /etc/update-agent/50-provided.toml")
    host.run("sudo rm /media/state/config/channel /media/state/config/server")
    host.run("sudo update-agent-firstboot")


def test_state_filled_the_disk_at_the_first_boot(host: Machine) -> None:
    size = int(host.run("findmnt -bno SIZE /media/state"))

    assert size > 5.4 * 2**30  # of 8 GiB, with two slots of 1 GiB; the image had 6
    assert host.json("sudo update-agentctl slots --json")["tables"]["sound"]


# It does what he is used to ----------------------------------------------------------------------


def test_docker_runs_an_image_made_on_the_spot(host: Machine) -> None:
    host.put(busybox_tarball(), "/media/state/busybox.tar")
    host.run("docker import /media/state/busybox.tar busybox", timeout=300)

    assert host.run("docker run --rm busybox echo hello", timeout=300) == "hello\n"


def test_etcd_answers(host: Machine) -> None:
    said = host.json(
        "python3 -c 'import urllib.request as u; "
        'print(u.urlopen("http://127.0.0.1:2379/health").read().decode())\''
    )

    assert said["health"] == "true"


def says_hello(machine: Machine) -> None:
    """Wait for a new line of the unit in the journal."""
    machine.run(
        "timeout 120 journalctl --follow --lines=0 --output=cat -u hello.service"
        " | grep --max-count=1 'hello again'",
        timeout=150,
    )


def test_a_unit_on_state_runs_and_comes_back_after_a_reboot(
    host: Machine, figure: Callable[[str], None]
) -> None:
    host.put(HELLO, "/media/state/units/hello.service")
    host.run("sudo systemctl restart local-enable.service")
    says_hello(host)
    identity = host.run("cat /etc/machine-id; ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub")
    assert re.match("[0-9a-f]{32}\n", identity)

    host.reboot()
    figure(f"image: second boot {stages(host)}")

    says_hello(host)
    assert units_that_failed(host) == ""
    assert identity == host.run(
        "cat /etc/machine-id; ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"
    )
