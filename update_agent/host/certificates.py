"""Until when certificates are good: those in files, and those that servers show."""

import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509

from update_agent.errors import HostError
from update_agent.host.etcd import Access

_PATIENCE = 10.0
"""Seconds for a server to show its certificate."""


def file_until(path: Path) -> datetime:
    """Return when the first certificate in a PEM file ends to be good. Raises HostError."""
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
        return min(it.not_valid_after_utc for it in found)
    except PermissionError:
        raise
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise HostError(f"{path} holds no certificate in PEM") from error


def server_until(url: str, access: Access) -> datetime:
    """Return when the certificate that a server shows ends to be good. Raises HostError."""
    where = urlsplit(url)
    name = where.hostname or ""
    try:
        context = ssl.create_default_context(cafile=access.ca)
        if access.cert:
            context.load_cert_chain(access.cert, access.key)
        with (
            socket.create_connection((name, where.port or 443), _PATIENCE) as connection,
            context.wrap_socket(connection, server_hostname=name) as secure,
        ):
            found = secure.getpeercert() or {}
    except OSError as error:  # as ssl's errors are
        raise HostError(f"{url} shows no good certificate: {error}") from error
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(found["notAfter"])), UTC)
