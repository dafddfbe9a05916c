"""Settings from outside: each becomes a file, or is refused alone."""

import json
import tomllib

import pytest

from update_agent.core import provision, settings
from update_agent.core.provision import File
from update_agent.core.settings import Fragment

ROOT = json.dumps({"signed": {"_type": "root"}, "signatures": []})
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ core@desk"


def test_every_setting_becomes_a_file() -> None:
    plan = provision.plan(
        {
            "hostname": b"web-1.example.org\n",
            "ssh-keys": f"# desk\n{KEY}\n".encode(),
            "server": b"https://updates.example/os",
            "channel": b"stable",
            "root": ROOT.encode(),
            "settings": b'reboot.strategy = "immediate"',
            "etcd": b"ETCD_NAME=one\nETCD_INITIAL_CLUSTER=one=http://10.0.0.1:2380",
            "report-token": b"ua_secret\n",
        }
    )

    assert plan.refused == ()
    assert set(plan.files) == {
        File(path="/etc/hostname", content="web-1.example.org\n"),
        File(path="/etc/ssh/authorized_keys.d/core", content=f"# desk\n{KEY}\n"),
        File(path="/etc/update-agent/root.json", content=f"{ROOT}\n"),
        File(
            path="/etc/default/etcd",
            content="ETCD_NAME=one\nETCD_INITIAL_CLUSTER=one=http://10.0.0.1:2380\n",
        ),
        File(
            path="/etc/update-agent/50-provided.toml",
            content='[update]\nrepository = ["https://updates.example/os"]\nchannel = "stable"\n'
            'root = "/etc/update-agent/root.json"\n',
        ),
        File(path="/etc/update-agent/60-settings.toml", content='reboot.strategy = "immediate"\n'),
        File(
            path="/etc/update-agent/report-token",
            content="ua_secret\n",
            mode=0o640,
            group="update-agent",
        ),
    }


def test_nothing_given_is_nothing_to_write() -> None:
    assert provision.plan({}) == provision.Plan(files=(), refused=())


def test_all_settings_are_known_to_one_table() -> None:
    names = {"hostname", "ssh-keys", "server", "channel", "root", "settings", "etcd"}
    names |= {"etcd-ca", "etcd-cert", "etcd-key", "report-token"}
    assert set(provision.SETTINGS) == names


@pytest.mark.parametrize("text", ["ua_secret and more", "ua_secret\nmore", "ua_gehe\u00efm"])
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    plan = provision.plan({"report-token": text.encode()})

    assert str(plan.refused[0]) == "setting report-token holds no token: wanted one word of ASCII"
    assert plan.files == ()


CERT = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"
PRIVATE = "-----BEGIN EC PRIVATE KEY-----\nc2VjcmV0\n-----END EC PRIVATE KEY-----"
TLS = {"etcd-ca": CERT.encode(), "etcd-cert": CERT.encode(), "etcd-key": PRIVATE.encode()}


def test_certificates_are_for_etcd_and_for_the_daemon_each_with_a_key_of_its_own() -> None:
    plan = provision.plan(TLS | {"etcd": b"ETCD_NAME=one\nETCD_PEER_CLIENT_CERT_AUTH=false"})

    assert plan.refused == ()
    files = {file.path: file for file in plan.files}
    keys = {path: (it.mode, it.group) for path, it in files.items() if "key" in path}
    assert keys == {
        "/etc/etcd/key.pem": (0o640, "etcd"),
        "/etc/update-agent/etcd-key.pem": (0o640, "update-agent"),
    }
    assert {files[path].content for path in keys} == {f"{PRIVATE}\n"}
    assert files["/etc/etcd/cert.pem"] == File(path="/etc/etcd/cert.pem", content=f"{CERT}\n")
    assert files["/etc/update-agent/50-provided.toml"].content == (
        '[cluster]\nca = "/etc/etcd/ca.pem"\ncert = "/etc/etcd/cert.pem"\n'
        'key = "/etc/update-agent/etcd-key.pem"\n'
    )
    assert files["/etc/default/etcd"].content.splitlines() == [
        "ETCD_NAME=one",
        "ETCD_PEER_CLIENT_CERT_AUTH=false",
        "ETCD_TRUSTED_CA_FILE=/etc/etcd/ca.pem",
        "ETCD_CLIENT_CERT_AUTH=true",
        "ETCD_PEER_TRUSTED_CA_FILE=/etc/etcd/ca.pem",
        "ETCD_CERT_FILE=/etc/etcd/cert.pem",
        "ETCD_PEER_CERT_FILE=/etc/etcd/cert.pem",
        "ETCD_KEY_FILE=/etc/etcd/key.pem",
        "ETCD_PEER_KEY_FILE=/etc/etcd/key.pem",
    ]


def test_a_host_that_only_asks_etcd_gets_no_environment_for_one() -> None:
    assert "/etc/default/etcd" not in {file.path for file in provision.plan(TLS).files}


@pytest.mark.parametrize("alone", ["etcd-cert", "etcd-key"])
def test_a_key_and_its_certificate_come_together(alone: str) -> None:
    plan = provision.plan({alone: TLS[alone]})

    assert plan.files == ()
    assert f"setting {alone} is nothing without" in str(plan.refused[0])


@pytest.mark.parametrize(
    "text", ["secret", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nc2VjcmV0\n", CERT, PRIVATE[:-9]]
)
def test_what_is_no_key_is_refused_and_not_repeated(text: str) -> None:
    plan = provision.plan({"etcd-cert": CERT.encode(), "etcd-key": text.encode()})

    assert str(plan.refused[0]) == "setting etcd-key holds no private key in PEM"
    assert plan.files == ()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hostnames", b"a", "^setting hostnames is not known$"),
        ("hostname", b"", "^setting hostname is empty or has control characters$"),
        ("hostname", b"a\0b", "control characters"),
        ("hostname", b"\xff", "^setting hostname is no UTF-8 text$"),
        ("hostname", b"Web_1", "^setting hostname is 'Web_1', wanted a host name in lower case$"),
        ("hostname", b"-a", "wanted a host name"),
        ("hostname", b"a..b", "wanted a host name"),
        ("hostname", b"a" * 65, "wanted a host name"),
        ("hostname", b"a\nb", "wanted a host name"),
        ("ssh-keys", b"ssh-ed25519", "wanted lines of authorized_keys"),
        ("ssh-keys", b"-----BEGIN OPENSSH PRIVATE KEY-----", "wanted lines of authorized_keys"),
        ("server", b"ftp://a", "^setting server is 'ftp://a', wanted an http:// or https:// URL$"),
        ("server", b'http://a"\nx = 1', "wanted an http"),
        ("server", b"https://" + b"a" * 493, "wanted an http"),
        ("server", "https://\N{GRINNING FACE}.example".encode(), "wanted an http"),
        ("server", b"https://a\x7fb", "wanted an http"),
        ("server", b"https://a\\b", "wanted an http"),
        ("channel", b"../stable", "wanted a channel's name"),
        ("channel", b"stable.eu", "wanted a channel's name"),
        ("channel", b"a" * 64, "wanted a channel's name"),
        ("root", b"{", "^setting root is no JSON"),
        ("root", b"[]", "^setting root is no TUF root metadata$"),
        ("root", b'{"signed": {"_type": "snapshot"}}', "no TUF root metadata"),
        ("settings", b"reboot", "^setting settings is no TOML"),
        ("settings", b"[reboots]", r"^setting settings: there is no section \[reboots\]$"),
        ("settings", b"reboot.strategy = 1", "^setting settings: reboot.strategy: "),
        ("etcd", b"PATH=/tmp", "wanted lines such as ETCD_NAME=one"),
        ("etcd", b"ETCD_NAME=$(reboot)", "wanted lines such as"),
        ("root", b"x" * 600_000, "^setting root has 600000 bytes, wanted at most 524288$"),
    ],
)
def test_a_wrong_setting_is_named_and_keeps_out_no_other(
    name: str, value: bytes, message: str
) -> None:
    given = {"channel" if name != "channel" else "hostname": b"good", name: value}

    plan = provision.plan(given)

    assert len(plan.files) == 1
    (refused,) = plan.refused
    assert refused.exit_code == 4
    with pytest.raises(settings.SettingError, match=message):
        raise refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("server", "https://" + "a" * 492),
        ("server", "https://u:p@[::1]:8443/!#$%&'()*+,-./:;<=>?@[]^_`{|}~"),
        ("channel", "a-b_1" + "c" * 58),
    ],
)
def test_what_is_taken_here_can_be_set(name: str, value: str) -> None:
    (file,) = provision.plan({name: value.encode()}).files

    written = Fragment(origin="here", content=tomllib.loads(file.content))
    update = settings.check(settings.merge([written])).update
    assert value in (*update.repository, update.channel)
