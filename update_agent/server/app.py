"""All that the server answers, by path: the repository, reports, health; more is added to it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import sqlalchemy as sql
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from update_agent.core import document, report
from update_agent.core.report import Receipt
from update_agent.errors import ReleaseError, UpdateAgentError
from update_agent.server import guard, static
from update_agent.server.intake import BusyError
from update_agent.server.site import Site
from update_agent.server.tables import DatabaseError
from update_agent.server.tokens import Role

logger = logging.getLogger(__name__)

Work = Callable[[Site], Awaitable[None]]
"""What a server does by itself, until it is cancelled."""

_TREE = ("metadata", "targets", "payloads")
_RETRY = {"retry-after": "30"}


def application(
    site: Site, routes: Sequence[BaseRoute], work: Sequence[Work], shown: "Shown"
) -> Starlette:
    """Return the server as an ASGI application, with more ``routes`` and ``work``."""

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(each(site)) for each in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await run_in_threadpool(site.intake.close)

    made = Starlette(
        routes=[
            Route("/v1/reports", take_reports, methods=["POST"]),
            *(Route(f"/{top}/{{rest:path}}", repository_file) for top in _TREE),
            Route("/healthz", healthy),
            Route("/readyz", ready),
            Route("/metrics", metrics),
            *routes,
        ],
        middleware=[Middleware(Measured, site=site)],
        lifespan=life,
        exception_handlers=_failures(shown),
    )
    made.state.site = site
    return made


def site_of(request: Request) -> Site:
    """Return the server that a request is for."""
    site: Site = request.app.state.site
    return site


# What hosts ask for ------------------------------------------------------------------------------


async def take_reports(request: Request) -> Response:
    """Keep the reports of a host, and say so when they are durable."""
    site = site_of(request)
    if not guard.certified(request):
        await guard.want(site.tokens, guard.bearer(request), Role.FLEET)
    data = await guard.body(request, report.MAX_SIZE)
    reports, refused_ones = report.read(data)
    site.rates.check(request.client.host if request.client else "", len(reports))
    await site.intake.take(reports)
    site.meters.reports.labels("taken").inc(len(reports))
    site.meters.reports.labels("refused").inc(len(refused_ones))
    return _json(Receipt(taken=len(reports), refused=refused_ones))


async def repository_file(request: Request) -> Response:
    """Serve a file of the repository."""
    path = request.scope["path"].removeprefix("/")
    return await static.answer(site_of(request).folder, path, request)


# Health ------------------------------------------------------------------------------------------


async def healthy(_: Request) -> Response:
    """Say that the process lives."""
    return PlainTextResponse("ok\n")


async def ready(request: Request) -> Response:
    """Say whether reports can be taken."""
    site = site_of(request)
    try:
        await run_in_threadpool(_look, site)
    except UpdateAgentError as error:
        return PlainTextResponse(f"{error}\n", HTTPStatus.SERVICE_UNAVAILABLE)
    if not site.intake.alive:
        return PlainTextResponse("nobody writes reports\n", HTTPStatus.SERVICE_UNAVAILABLE)
    return PlainTextResponse("ok\n")


def _look(site: Site) -> None:
    with site.database.read() as connection:
        connection.execute(sql.text("SELECT 1"))


async def metrics(request: Request) -> Response:
    """Show what Prometheus collects."""
    site = site_of(request)
    data = await run_in_threadpool(generate_latest, site.meters.registry)
    return Response(data, media_type=CONTENT_TYPE_LATEST)


class Measured:
    """Counts requests and their time, by the first word of what was asked for."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self._app = app
        self._requests = site.meters.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        first = scope["path"].split("/", 2)[1]
        what = first if first in _KNOWN else "other"

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_SAFE]
            await send(message)

        try:
            await self._app(scope, receive, guarded)
        finally:
            self._requests.labels(what).observe(time.perf_counter() - began)


_KNOWN = frozenset({*_TREE, "v1", "healthz", "readyz", "metrics", "", "channels", "hosts"})
_POLICY = (
    b"default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self';"
    b" frame-ancestors 'none'; base-uri 'none'"
)
"""Whatever a page shows, it loads and runs nothing of anybody else."""
_SAFE = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"content-security-policy", _POLICY),
]


# Failures ----------------------------------------------------------------------------------------

Shown = Callable[[Request, str, str | None, int], Response | None]
"""Makes a page of an error and its hint, for whoever looks at pages; None for programs."""


def _failures(shown: Shown) -> dict[Any, Any]:
    """Return how each kind of failure is answered."""

    def said(request: Request, error: str, code: int, *, hint: str | None = None,
             headers: Mapping[str, str] | None = None) -> Response:  # fmt: skip
        page = shown(request, error, hint, code)
        if page:
            page.headers.update(headers or {})
            return page
        plain = {"error": error} | ({"hint": hint} if hint else {})
        return _json(plain, code, dict(headers or {}))

    async def refused(request: Request, error: HTTPException) -> Response:
        return said(request, error.detail, error.status_code, headers=error.headers)

    async def failed(request: Request, error: UpdateAgentError) -> Response:
        code, headers = _status(error)
        return said(request, str(error), code, hint=error.hint, headers=headers)

    async def defect(request: Request, error: Exception) -> Response:
        logger.error("a defect at %s", request.url.path, exc_info=error)
        return said(request, "a defect of the server; its log says more", 500)

    return {HTTPException: refused, UpdateAgentError: failed, Exception: defect}


def _status(error: UpdateAgentError) -> tuple[int, Mapping[str, str]]:
    """Return by which status and headers a program knows what to do about ``error``."""
    match error:
        case BusyError() | DatabaseError():
            return HTTPStatus.SERVICE_UNAVAILABLE, _RETRY
        case document.DocumentError():
            return HTTPStatus.BAD_REQUEST, {}
        case ReleaseError():
            return HTTPStatus.UNPROCESSABLE_ENTITY, {}
        case _:
            return HTTPStatus.CONFLICT, {}


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(document.encode(value), status, headers, "application/json")
