"""The repository behind real web servers: any static one, and a caching proxy as a CDN is one."""

import contextlib
import functools
import http.server
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.ngclient import Updater

from tests.images import Releases, releases
from tests.publish.published import publish_first
from update_agent.core.version import Version
from update_agent.host.http import Network
from update_agent.host.trust import TrustedRepository

__all__ = ["releases"]

CONFIG = """\
user root; daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    log_format path '$request_method $uri $status';
    proxy_cache_path {folder}/cache keys_zone=cdn:1m;

    # The origin: this is all that a repository needs of a web server.
    server {{
        listen 127.0.0.1:{origin};
        root {www};
        access_log {folder}/origin.log path;
        location / {{ add_header Cache-Control "public, max-age=31536000, immutable"; }}
        location = /metadata/timestamp.json {{ add_header Cache-Control "public, max-age=60"; }}
        location ~ \\.root\\.json$ {{
            error_page 404 = @missing;
            add_header Cache-Control "public, max-age=31536000, immutable";
        }}
        location @missing {{ add_header Cache-Control "public, max-age=60" always; return 404; }}
        location ~ /\\. {{ return 404; }}
    }}

    # What a CDN does.
    server {{
        listen 127.0.0.1:{edge};
        location / {{
            proxy_pass http://127.0.0.1:{origin};
            proxy_cache cdn;
            proxy_cache_lock on;
            add_header X-Cache $upstream_cache_status always;
        }}
    }}
}}
"""


@pytest.fixture(scope="module")
def published(releases: Releases, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_first(tmp_path_factory.mktemp("static"), releases.v1.image)


class Nginx:
    """A running nginx: the origin and, before it, a cache."""

    def __init__(self, folder: Path, origin: int, edge: int) -> None:
        self.folder = folder
        self.origin = f"http://127.0.0.1:{origin}"
        self.edge = f"http://127.0.0.1:{edge}"

    def asked(self, path: str) -> int:
        """Return how often the origin was asked for ``path``."""
        lines = (self.folder / "origin.log").read_text().splitlines()
        return sum(line.split()[1] == path for line in lines)


@pytest.fixture
def nginx(published: Path, tmp_path: Path) -> Iterator[Nginx]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    origin, edge = (it.getsockname()[1] for it in sockets)
    config = tmp_path / "nginx.conf"
    config.write_text(
        CONFIG.format(folder=tmp_path, www=published / "www", origin=origin, edge=edge)
    )
    for it in sockets:
        it.close()
    with subprocess.Popen(["nginx", "-c", str(config), "-p", str(tmp_path)]) as process:
        try:
            _wait_for(edge, process)
            yield Nginx(tmp_path, origin, edge)
        finally:
            process.terminate()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until somebody listens on ``port``, or the process has ended."""
    while process.poll() is None:
        with (
            contextlib.suppress(ConnectionRefusedError),
            socket.create_connection(("127.0.0.1", port)),
        ):
            return
    raise AssertionError(f"nginx ended with {process.returncode}")


def repository(url: str, published: Path, state: Path) -> TrustedRepository:
    return TrustedRepository(
        [url],
        trusted_root=published / "www/metadata/1.root.json",
        state=state,
        network=Network(),
        now=datetime.now(UTC),
    )


def test_a_host_learns_everything_through_a_cache(
    nginx: Nginx, published: Path, tmp_path: Path
) -> None:
    with repository(nginx.edge, published, tmp_path / "state") as found:
        found.refresh()
        channel = found.channel("stable")
        release = found.release("os", Version("1.0.0"))

        assert channel
        assert channel.version == Version("1.0.0")
        assert release
        assert len(found.index(release, release.full)) == release.full.index_size


def test_a_hundred_hosts_cost_the_origin_one_request_for_each_file(
    nginx: Nginx, published: Path, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    network = Network()
    for number in range(100):
        with TrustedRepository(
            [nginx.edge], trusted_root=published / "www/metadata/1.root.json",
            state=tmp_path / f"host{number}", network=network, now=datetime.now(UTC),
        ) as found:  # fmt: skip
            found.refresh()

    for path in ("timestamp.json", "2.root.json", "4.snapshot.json", "1.targets.json"):
        assert nginx.asked(f"/metadata/{path}") == 1, path
    figure(
        "100 hosts that know nothing, through a caching proxy: each file asked of the origin once"
    )


def test_nothing_new_is_two_small_requests_which_a_cache_answers(
    nginx: Nginx, published: Path, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    with repository(nginx.edge, published, tmp_path / "state") as found:
        found.refresh()
    sizes = {}
    for path in ("2.root.json", "timestamp.json"):
        answer = requests.get(f"{nginx.edge}/metadata/{path}", timeout=10)
        assert answer.headers["X-Cache"] == "HIT"
        assert answer.headers["Cache-Control"] == "public, max-age=60"
        sizes[path] = len(answer.content)

    again = repository(nginx.edge, published, tmp_path / "state")
    with again:
        again.refresh()

    assert sum(sizes.values()) < 2000
    figure(
        f"nothing new: {sizes['timestamp.json']} bytes of timestamp and"
        f" {sizes['2.root.json']} of nginx's 404, besides headers; both from the cache"
    )


def test_ranges_of_a_blob_come_through_a_cache(nginx: Nginx, published: Path) -> None:
    blob = next((published / "www/payloads").rglob("*.blob"))
    url = f"{nginx.edge}/{blob.relative_to(published / 'www')}"

    answer = requests.get(url, headers={"Range": "bytes=1000-1999"}, timeout=10)

    assert answer.status_code == 206
    assert answer.content == blob.read_bytes()[1000:2000]
    assert "immutable" in answer.headers["Cache-Control"]


def test_what_is_staged_is_not_served(nginx: Nginx) -> None:
    assert requests.get(f"{nginx.origin}/.lock", timeout=10).status_code == 404


def test_the_stock_client_with_its_stock_fetcher_accepts_the_repository(
    nginx: Nginx, published: Path, tmp_path: Path
) -> None:
    os.environ.pop("http_proxy", None)
    updater = Updater(
        str(tmp_path), f"{nginx.origin}/metadata/", str(tmp_path), f"{nginx.origin}/targets/",
        bootstrap=(published / "www/metadata/1.root.json").read_bytes(),
    )  # fmt: skip

    updater.refresh()
    info = updater.get_targetinfo("releases/os/1.0.0/release.json")

    assert info
    assert b'"version": "1.0.0"' in Path(updater.download_target(info)).read_bytes()
    assert updater.get_targetinfo("releases/os/9.9.9/release.json") is None


def test_by_the_metadata_alone_everyone_signed_what_is_theirs(published: Path) -> None:
    metadata = published / "www/metadata"
    root = Metadata[Root].from_file(str(metadata / "1.root.json"))
    timestamp = Metadata[Timestamp].from_file(str(metadata / "timestamp.json"))
    snapshot_meta = timestamp.signed.snapshot_meta
    data = (metadata / f"{snapshot_meta.version}.snapshot.json").read_bytes()
    snapshot = Metadata[Snapshot].from_bytes(data)
    roles: dict[str, Metadata[Targets]] = {
        name: Metadata[Targets].from_file(
            str(metadata / f"{snapshot.signed.meta[f'{name}.json'].version}.{name}.json")
        )
        for name in ("targets", "releases", "channels")
    }

    root.verify_delegate("root", root)
    root.verify_delegate("timestamp", timestamp)
    root.verify_delegate("snapshot", snapshot)
    root.verify_delegate("targets", roles["targets"])
    roles["targets"].verify_delegate("releases", roles["releases"])
    roles["targets"].verify_delegate("channels", roles["channels"])
    snapshot_meta.verify_length_and_hashes(data)
    assert root.signed.roles["root"].threshold == 2
    assert root.signed.consistent_snapshot
    assert list(roles["targets"].signed.targets) == []
    assert set(roles["releases"].signed.targets) == {"releases/os/1.0.0/release.json"}


def test_python_s_own_web_server_will_do(published: Path, tmp_path: Path) -> None:
    handler = functools.partial(Quiet, directory=str(published / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            with repository(url, published, tmp_path / "state") as found:
                found.refresh()
                assert found.channel("stable")
        finally:
            server.shutdown()
            thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass
