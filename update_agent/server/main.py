"""``update-server``: serve, and tokens for those who may talk to it."""

import json
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import uvicorn

from update_agent import cli
from update_agent.core import document
from update_agent.errors import HostError
from update_agent.host import files
from update_agent.host.systemd import passed_socket, passes_socket
from update_agent.publish.keys import KEYS, named_folders
from update_agent.server import api, figures, pages, tables
from update_agent.server.app import application
from update_agent.server.gauges import Gauges
from update_agent.server.guard import Impatient, Rates
from update_agent.server.intake import Intake
from update_agent.server.site import LONG_AGO, REPORT_RATE, Site
from update_agent.server.tables import Database
from update_agent.server.tokens import Role, Token, Tokens
from update_agent.server.watch import watch, webhook

PROGRAM = "update-server"
DATABASE = "UPDATE_SERVER_DATABASE"
"""The environment variable that stands for --database, as ``KEYS`` stands for --keys."""

_ENDS = (signal.SIGTERM, signal.SIGINT)
_PATIENCE = 10
"""Seconds for requests under way when the server is to end."""
_KEEP_ALIVE = 75
"""Seconds; longer than proxies keep theirs, who would else find it closed."""
_MAX_CONNECTIONS = 4000
_OTHER_FILES = 200
"""Open at one time, beside connections: of the repository, the database, the threads."""

_EPILOG = """\
from nothing to a working server:
  update-publish init --repository www --keys offline --online-keys online
  update-server serve --repository www --keys online
It prints two tokens, once: one for operators, who log in at http://localhost:8080, and one
for hosts, who post their reports with it (reports.url and reports.token_file in their settings)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return cli.run(command(), argv)


def command() -> ArgumentParser:
    """Return what the program can be told."""
    made = cli.parser(PROGRAM, "Serve releases, take reports, steer rollouts.", _EPILOG)
    verbs = made.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_serve(
        verbs.add_parser(
            "serve",
            help="run the server",
            description="Serve the repository to hosts, take their reports, show the rollouts at /,"
            " answer programs at /v1 (described by /v1/openapi.json), and halt what exceeds its"
            " budget of failures. The first run makes the database and prints two tokens. SIGTERM"
            " ends it when what is under way is answered.",
        )
    )
    backup = verbs.add_parser(
        "backup",
        help="copy the SQLite database, also while it is used",
        description="Copy the SQLite database, also while a server uses it; 'restore' takes the"
        " copy. PostgreSQL has pg_dump.",
    )
    backup.add_argument("file", type=Path, metavar="FILE", help="which must not be there yet")
    restore = verbs.add_parser(
        "restore",
        help="let the SQLite database be what a backup holds",
        description="Put a copy that 'backup' made in the place of the SQLite database in --state."
        " Refused while a server uses that; one that is started meanwhile waits. A mere cp would"
        " leave the old database's log beside the new one, which destroys it. PostgreSQL has"
        " pg_restore.",
    )
    restore.add_argument("file", type=Path, metavar="FILE", help="which 'backup' made")
    for verb, run in ((backup, run_backup), (restore, run_restore)):
        _add_database(verb)
        _add_json(verb)
        verb.set_defaults(run=run)
    token = verbs.add_parser(
        "token",
        help="add, list, revoke tokens",
        description="Say who may look (viewer), steer (operator), and report (fleet). Of a token"
        " only a hash is kept.",
    )
    _add_tokens(token)
    return made


def _add_database(verb: ArgumentParser) -> None:
    verb.add_argument("--state", type=Path, metavar="FOLDER", default=_state_folder(),
                      help="where the SQLite database is (default: $STATE_DIRECTORY, or"
                      f" ~/.local/state/{PROGRAM})")  # fmt: skip
    verb.add_argument("--database", metavar="URL", default=os.environ.get(DATABASE),
                      help="another database, such as postgresql://USER@HOST/NAME"
                      f" (default: ${DATABASE}, or SQLite in --state)")  # fmt: skip


def _add_serve(verb: ArgumentParser) -> None:
    _add_database(verb)
    verb.add_argument("--repository", type=Path, required=True, metavar="FOLDER",
                      help="what update-publish writes")  # fmt: skip
    verb.add_argument("--keys", type=Path, action="append", metavar="FOLDER",
                      help="a ring with the online keys; may be repeated. Without one, this server"
                      f" steers nothing (default: ${KEYS})")  # fmt: skip
    verb.add_argument("--host", default="127.0.0.1", metavar="ADDRESS",
                      help="to listen at (default: %(default)s)")  # fmt: skip
    verb.add_argument("--port", type=int, default=8080, help="(default: %(default)s)")
    verb.add_argument("--cert", type=Path, metavar="FILE", help="TLS certificate, PEM")
    verb.add_argument("--key", type=Path, metavar="FILE", help="its key, PEM")
    verb.add_argument("--client-ca", type=Path, metavar="FILE",
                      help="hosts with a certificate of this one need no token; PEM")  # fmt: skip
    verb.add_argument("--report-rate", type=float, default=REPORT_RATE, metavar="NUMBER",
                      help="reports a second from one address; 0 is no limit"
                      " (default: %(default)s)")  # fmt: skip
    verb.add_argument("--webhook", metavar="URL",
                      help="gets a POST when this server halts or holds a rollout, or"
                      " cannot")  # fmt: skip
    verb.add_argument("--behind-proxy", metavar="ADDRESSES",
                      help="proxies whose X-Forwarded-For is believed")  # fmt: skip
    verb.set_defaults(run=run_serve)


def _add_tokens(verb: ArgumentParser) -> None:
    actions = verb.add_subparsers(title="verbs", metavar="VERB", required=True)
    add = actions.add_parser("add", help="make a token and print it, once")
    add.add_argument("name", type=_name, metavar="NAME", help="of who will have it")
    add.add_argument("--role", type=Role, required=True, choices=list(Role),
                     metavar="|".join(Role), help="what its holder may do")  # fmt: skip
    add.set_defaults(run=run_add)
    listed = actions.add_parser("list", help="show who has a token")
    listed.set_defaults(run=run_list)
    revoke = actions.add_parser("revoke", help="let nobody in by a token any more")
    revoke.add_argument("name", metavar="NAME", help="as 'token list' shows it")
    revoke.set_defaults(run=run_revoke)
    for each in (add, listed, revoke):
        _add_database(each)
        _add_json(each)


def _add_json(verb: ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="print JSON")


def _show(options: Namespace, plain: object, text: str) -> None:
    print(json.dumps(plain) if options.json else text)


def _name(text: str) -> str:
    if not text.isprintable() or not 0 < len(text) <= 100 or text.startswith(PROGRAM):  # noqa: PLR2004
        raise ArgumentTypeError(f"{text!a} is no name for a token, wanted printable text")
    return text


def _state_folder() -> Path:
    if systemds := os.environ.get("STATE_DIRECTORY"):
        return Path(systemds.partition(":")[0])
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(home) / PROGRAM


def database_of(options: Namespace) -> Database:
    """Return the database that the options name. Raises DatabaseError, HostError."""
    if options.database:
        return tables.opened(options.database)
    _make_state(options.state)
    return tables.opened(f"sqlite:///{_sqlite(options.state).absolute()}")


def _make_state(folder: Path) -> None:
    try:
        files.make_folders(folder)
        folder.chmod(0o700)
    except OSError as error:
        raise HostError(
            f"cannot use {folder}: {error.strerror}", hint="--state FOLDER names another"
        ) from error


def _sqlite(folder: Path) -> Path:
    return folder / "server.sqlite"


# serve -------------------------------------------------------------------------------------------


def run_serve(options: Namespace) -> int:
    """Serve until told to end. Raises HostError when it cannot begin."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    if not options.repository.is_dir():
        raise HostError(
            f"{options.repository} is no folder",
            hint="update-publish init --repository FOLDER makes a repository",
        )
    if bool(options.cert) != bool(options.key):
        raise HostError("--cert and --key belong together", hint="name both, or neither")
    if options.client_ca and not options.cert:
        raise HostError(
            "--client-ca wants --cert and --key: without TLS nobody shows a certificate",
            hint="behind a proxy that ends TLS, hosts have tokens",
        )
    database = database_of(options)
    tokens = Tokens(database)
    _print_first_tokens(tokens)
    now = partial(datetime.now, UTC)
    site = Site(
        folder=options.repository, keys=tuple(options.keys or named_folders()),
        database=database, tokens=tokens,
        intake=Intake(database, now), now=now, began=_began(database, now()),
        rates=Rates(options.report_rate or float("inf")),
    )  # fmt: skip
    site.meters.registry.register(Gauges(site))
    try:
        return _listen(options, site)
    finally:
        database.close()


def _began(database: Database, now: datetime) -> datetime:
    """Return since when hosts are listened to, by this server or by others before and beside it."""
    with database.read() as connection:
        last = figures.listened(connection)
    gap = now.timestamp() - last if last else float("inf")
    return LONG_AGO if gap < 3 * figures.SAMPLED else now


def _listen(options: Namespace, site: Site) -> int:
    connections = min(_MAX_CONNECTIONS, _may_open() - _OTHER_FILES)
    with _listener(options) as listener:
        config = uvicorn.Config(
            application(
                site, [*api.routes(), *pages.routes()],
                [partial(watch, tell=webhook(options.webhook))], pages.error_page,
            ),
            http=Impatient, ws="none", loop="asyncio", lifespan="on",
            log_config=None, access_log=False, server_header=False,
            proxy_headers=bool(options.behind_proxy),
            forwarded_allow_ips=options.behind_proxy or "",
            timeout_keep_alive=_KEEP_ALIVE, timeout_graceful_shutdown=_PATIENCE,
            limit_concurrency=connections, backlog=2048,
            ssl_certfile=options.cert, ssl_keyfile=options.key,
            ssl_ca_certs=options.client_ca and str(options.client_ca),
            ssl_cert_reqs=ssl.CERT_OPTIONAL if options.client_ca else ssl.CERT_NONE,
        )  # fmt: skip
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            named = ", ".join(str(it) for it in (options.cert, options.client_ca) if it)
            raise HostError(f"cannot use the certificates {named}: {error}") from error
        host, port = listener.getsockname()[:2]
        scheme = "https" if options.cert else "http"
        shown = f"[{host}]" if ":" in host else host
        print(f"serving {options.repository} at {scheme}://{shown}:{port}", flush=True)
        _Server(config).run(sockets=[listener])
    return 0


def _may_open() -> int:
    """Return how many files this process may have open, which is as many as it is allowed."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


class _Server(uvicorn.Server):
    """A server that ends well when it is told to, and does not die of that signal afterwards."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that end it."""
        before = {it: signal.signal(it, self.handle_exit) for it in _ENDS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _listener(options: Namespace) -> socket.socket:
    """Return the socket that systemd holds while this server is restarted, or one of our own."""
    made = passed_socket() if passes_socket() else _socket(options.host, options.port)
    # asyncio sets it for sockets that were made as TCP's own, which this one was not. Without
    # it the second part of an answer waits 40 ms for the first to be acknowledged.
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.settimeout(0)
    return made


def _socket(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise HostError(
            f"cannot listen at {host} port {port}: {error.strerror}", hint="--host, --port"
        ) from error


def _print_first_tokens(tokens: Tokens) -> None:
    """Make what nobody could make otherwise: the first tokens of their kind."""
    now = datetime.now(UTC)
    for role, what in ((Role.OPERATOR, "operators"), (Role.FLEET, "hosts")):
        if not any(it.role is role for it in tokens.listed()):
            made = tokens.add(f"first {role}", role, now)
            print(f"token for {what}, shown only now: {made}", flush=True)


# backup ------------------------------------------------------------------------------------------


def run_backup(options: Namespace) -> int:
    """Copy the database as it is at one moment; started with the copy, all is as it was then."""
    if options.database:
        raise HostError("only SQLite is copied so", hint="pg_dump copies PostgreSQL")
    if not _sqlite(options.state).exists():
        raise HostError(f"there is no {_sqlite(options.state)}", hint="--state FOLDER")
    with closing(database_of(options)) as database:
        tables.copy(database, options.file)
    original = _sqlite(options.state)
    _show(
        options,
        {"copy": str(options.file), "of": str(original)},
        f"{options.file} is a whole copy; update-server restore {options.file} goes back to it",
    )
    return 0


def run_restore(options: Namespace) -> int:
    """Put a copy in the place of the database; a server that is started then goes on from it."""
    if options.database:
        raise HostError("only SQLite is restored so", hint="pg_restore restores PostgreSQL")
    database = _sqlite(options.state)
    _make_state(options.state)
    tables.restore(options.file, database)
    _show(
        options,
        {"restored": str(database), "from": str(options.file)},
        f"{database} is what {options.file} holds; start the server",
    )
    return 0


# token -------------------------------------------------------------------------------------------


def run_add(options: Namespace) -> int:
    """Make a token."""
    with closing(database_of(options)) as database:
        made = Tokens(database).add(options.name, options.role, datetime.now(UTC))
    _show(options, {"name": options.name, "role": options.role, "token": made}, made)
    return 0


def run_list(options: Namespace) -> int:
    """Show who has a token."""
    with closing(database_of(options)) as database:
        found = Tokens(database).listed()
    plain = {"tokens": [json.loads(document.encode(it)) for it in found]}
    _show(options, plain, "\n".join(map(_line, found)) or "no tokens yet")
    return 0


def run_revoke(options: Namespace) -> int:
    """Let nobody in by a token any more."""
    with closing(database_of(options)) as database:
        Tokens(database).revoke(options.name, datetime.now(UTC))
    said = f"{options.name} is revoked; running servers know within seconds"
    _show(options, {"revoked": options.name}, said)
    return 0


def _line(it: Token) -> str:
    ended = f"  revoked {it.revoked:%Y-%m-%d %H:%M}" if it.revoked else ""
    return f"{it.role:8}  {it.created:%Y-%m-%d %H:%M}  {it.name}{ended}"


if __name__ == "__main__":
    sys.exit(main())
