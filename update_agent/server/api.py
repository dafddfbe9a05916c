"""The API for operators: each endpoint stands in one table, and so does its description.

JSON in, JSON out; a token in ``Authorization: Bearer``; errors are an object with ``error`` and
perhaps ``hint``. ``GET /v1/openapi.json`` describes it all (OpenAPI 3.1).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from update_agent import __version__
from update_agent.core import document
from update_agent.core.budget import Budget, Tally
from update_agent.core.channel import Channel
from update_agent.core.report import Batch, Receipt
from update_agent.core.version import Version
from update_agent.publish import channels
from update_agent.server import desk, figures, guard
from update_agent.server.desk import Halt, Pause, Promote, Replan, Resume, SetBudget
from update_agent.server.site import Site
from update_agent.server.tables import seconds
from update_agent.server.tokens import Role, Token

_BODY = 64 * 1024
"""Bytes of a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Who asks, and for what."""

    holder: Token
    path: Mapping[str, str] = field(default_factory=dict)
    query: object = None
    body: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """No question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Since:
    """From when on, in seconds since 1970."""

    since: Annotated[int, Meta(ge=0, le=2**53)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A channel, and how its hosts stand. ``open``: of 1,000,000 places."""

    channel: Channel
    open: int
    budget: Budget
    tally: Tally | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How many hosts of a channel have what, and do what."""

    versions: tuple[figures.Share, ...]
    waiting: tuple[figures.Waiting, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One host, and what happened to it, the newest first."""

    host: figures.Host
    events: tuple[figures.Event, ...]
    attempts: tuple[figures.Attempt, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """Why something was refused."""

    error: str
    hint: str | None = None


Answer = Callable[[Site, Call], object]


# Looks -------------------------------------------------------------------------------------------


def view(site: Site, it: Channel) -> View:
    """Return a channel with its figures."""
    kept = desk.current(site, it)
    opened = it.rollout.share(site.now()) if it.rollout else 0
    return View(channel=it, open=opened, budget=kept.budget, tally=desk.tally(site, it, kept))


def shares(it: Channel) -> tuple[int, ...]:
    """Return up to which share of all hosts each wave of the rollout goes, if there is one."""
    return tuple(wave.share for wave in it.rollout.waves) if it.rollout else ()


def list_channels(site: Site, _: Call) -> tuple[View, ...]:
    """All channels."""
    repository = site.repository()
    repository.want()
    return tuple(view(site, it) for it in channels.listed(repository))


def show_channel(site: Site, call: Call) -> View:
    """One channel."""
    return view(site, found(site, call.path["channel"]))


def show_standing(site: Site, call: Call) -> Standing:
    """How many of a channel's hosts run what, and why they wait."""
    it, now = found(site, call.path["channel"]), seconds(site.now())
    with site.database.read() as connection:
        return Standing(
            versions=tuple(figures.versions(connection, it.channel, now)),
            waiting=tuple(figures.waiting(connection, it.channel, now, shares(it))),
        )


def show_failures(site: Site, call: Call) -> tuple[figures.Failure, ...]:
    """Count what failed in a channel, by cause."""
    since = cast("Since", call.query).since
    with site.database.read() as connection:
        return tuple(figures.failures(connection, call.path["channel"], since))


def list_hosts(site: Site, call: Call) -> figures.Page:
    """Hosts by name, in pages."""
    with site.database.read() as connection:
        wanted = cast("figures.Wanted", call.query)
        return figures.page(connection, wanted, seconds(site.now()))


def show_host(site: Site, call: Call) -> Story:
    """One host and its story."""
    name = call.path["host"]
    with site.database.read() as connection:
        host = figures.host(connection, name)
        if host is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"no host {name[:64]} ever reported")
        return Story(
            host=host,
            events=tuple(figures.timeline(connection, name)),
            attempts=tuple(figures.attempts_of(connection, name)),
        )


def list_deeds(site: Site, _: Call) -> tuple[figures.Deed, ...]:
    """Tell what was done to channels, by whom and why."""
    with site.database.read() as connection:
        return tuple(figures.deeds(connection))


def found(site: Site, name: str) -> Channel:
    """Return the channel ``name``. Raises HTTPException 404, HostError without a repository."""
    repository = site.repository()
    repository.want()
    known = {it.channel: it for it in channels.listed(repository)}
    if name not in known:
        listed = ", ".join(known) or "none"
        raise HTTPException(HTTPStatus.NOT_FOUND, f"there is no such channel; known: {listed}")
    return known[name]


# Deeds -------------------------------------------------------------------------------------------


def act(site: Site, call: Call) -> View:
    """Change a channel."""
    name = found(site, call.path["channel"]).channel
    edited = desk.act(site, name, cast("desk.Deed", call.body), call.holder.name)
    return view(site, edited.channel)


def set_budget(site: Site, call: Call) -> View:
    """Say what a channel's rollouts may cost."""
    it = found(site, call.path["channel"])
    desk.set_budget(site, it.channel, cast("SetBudget", call.body), call.holder.name)
    return view(site, it)


# The table ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One path and method: who may, what is asked, what is answered."""

    method: str
    path: str
    role: Role
    about: str
    answer: Answer
    returns: Any
    query: type = Nothing
    body: type | None = None


def _get(path: str, about: str, answer: Answer, returns: object, query: type = Nothing) -> Endpoint:
    return Endpoint(
        method="GET", path=path, role=Role.VIEWER, about=about, answer=answer, returns=returns,
        query=query,
    )  # fmt: skip


def _post(verb: str, about: str, body: type, answer: Answer = act) -> Endpoint:
    return Endpoint(
        method="POST", path=f"/v1/channels/{{channel}}/{verb}", role=Role.OPERATOR, about=about,
        answer=answer, returns=View, body=body,
    )  # fmt: skip


ENDPOINTS = (
    _get("/v1/channels", "All channels, and how their hosts stand", list_channels,
         tuple[View, ...]),
    _get("/v1/channels/{channel}", "One channel, and how its hosts stand", show_channel, View),
    _get("/v1/channels/{channel}/standing", "How many hosts run what, and why they wait",
         show_standing, Standing),
    _get("/v1/channels/{channel}/failures", "What failed, by cause", show_failures,
         tuple[figures.Failure, ...], Since),
    _get("/v1/hosts", "Hosts by name, in pages", list_hosts, figures.Page, figures.Wanted),
    _get("/v1/hosts/{host}", "One host, and what happened to it", show_host, Story),
    _get("/v1/audit", "What was done to channels, by whom and why", list_deeds,
         tuple[figures.Deed, ...]),
    _post("promote", "Offer a release, in waves such as 1%:1h 10%:4h@+3h 100%:1d", Promote),
    _post("waves", "Give the running rollout other waves", Replan),
    _post("pause", "Offer the release to no further host", Pause),
    _post("resume", "Go on after a pause or a halt", Resume),
    _post("halt", "Let no host install the release, nor boot what it installed", Halt),
    _post("budget", "Say what rollouts may cost", SetBudget, set_budget),
)  # fmt: skip


def routes() -> list[Route]:
    """Return what the server answers of all this."""
    return [
        *(Route(it.path, _handler(it), methods=[it.method]) for it in ENDPOINTS),
        Route("/v1/openapi.json", _described),
    ]


def _handler(it: Endpoint) -> Callable[[Request], Any]:
    async def handle(request: Request) -> Response:
        site: Site = request.app.state.site
        holder = await guard.want(site.tokens, guard.bearer(request), it.role)
        body: object = None
        if it.body:
            data = await guard.body(request, _BODY)
            body = document.decode(data, it.body, "request", max_size=_BODY)
        call = Call(
            holder=holder, path=request.path_params, query=query(request, it.query), body=body
        )
        answered = await run_in_threadpool(it.answer, site, call)
        return Response(
            document.encode(answered), media_type="application/json",
            headers={"cache-control": "no-store"},
        )  # fmt: skip

    return handle


def query(request: Request, kind: Any) -> Any:  # noqa: ANN401  an instance of ``kind``
    """Return the words after the ``?`` of a URL as a ``kind``. Raises HTTPException 400."""
    words = {name: value for name, value in request.query_params.items() if value}
    unknown = set(words) - set(kind.__dataclass_fields__)
    if unknown:
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"query: {min(unknown)!a} is not known")
    try:
        return msgspec.convert(words, kind, strict=False)
    except msgspec.ValidationError as error:
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"query: {error}") from error


# The description ---------------------------------------------------------------------------------

_REPORTS = Endpoint(
    method="POST", path="/v1/reports", role=Role.FLEET,
    about="Take what hosts report; kept, durably, when it is answered", answer=act,
    returns=Receipt, body=Batch,
)  # fmt: skip


async def _described(_: Request) -> Response:
    return Response(json.dumps(openapi(), indent=1), media_type="application/json")


def openapi() -> dict[str, Any]:
    """Return the description of all endpoints, OpenAPI 3.1."""
    listed = (*ENDPOINTS, _REPORTS)
    kinds = [kind for it in listed for kind in (it.returns, it.body, it.query) if kind]
    schemas, components = msgspec.json.schema_components(
        [*kinds, Error], schema_hook=_schema, ref_template="#/components/schemas/{name}"
    )
    known = {str(kind): schema for kind, schema in zip(kinds, schemas, strict=False)}
    paths: dict[str, Any] = {}
    for it in listed:
        fields = components.get(it.query.__name__, {}).get("properties", {})
        paths.setdefault(it.path, {})[it.method.lower()] = _operation(it, known, fields)
    return {
        "openapi": "3.1.0",
        "info": {"title": "update-server", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _operation(it: Endpoint, known: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    names = [part[1:-1] for part in it.path.split("/") if part.startswith("{")]
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]
    parameters += [{"name": name, "in": "query", "schema": fields[name]} for name in fields]
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    codes = {
        "400": "It is not understood", "401": "No valid token", "403": f"Not a {it.role}",
        "404": "There is no such thing", "409": "Its state forbids it",
        "413": "Too large", "422": "The release cannot be used", "429": "Too fast",
        "503": "Come again later",
    }  # fmt: skip
    made: dict[str, Any] = {
        "summary": it.about,
        "description": f"For: {it.role}.",
        "operationId": f"{it.method.lower()}{it.path.replace('/v1', '').replace('/', '_')}"
        .replace("{", "").replace("}", ""),
        "parameters": parameters,
        "responses": {
            "200": {
                "description": "Done",
                "content": {"application/json": {"schema": known[str(it.returns)]}},
            },
            **{code: {"description": what, "content": error} for code, what in codes.items()},
        },
    }  # fmt: skip
    if it.body:
        made["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": known[str(it.body)]}},
        }
    return made


def _schema(kind: type) -> dict[str, Any]:
    if kind is not Version:
        raise NotImplementedError
    return {"type": "string", "description": "SemVer 2.0, without build metadata"}
