"""The dashboard: pages for people, made on the server; no script, one style sheet.

Whoever wants to see one logs in with a token, which the browser keeps in a cookie that no script
and no other site can use. A form says that it is from such a page by a key made of the token.
"""

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import jinja2
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from update_agent.core import document, plan
from update_agent.core.channel import BY_WAVES, Channel
from update_agent.core.reason import Reason
from update_agent.core.rollout import RING, Wave, percent
from update_agent.errors import UpdateAgentError
from update_agent.publish import channels
from update_agent.server import api, chart, desk, figures, guard, words
from update_agent.server.site import Site
from update_agent.server.tables import seconds
from update_agent.server.tokens import Role, Token

_HERE = Path(__file__).parent
_FORM = 16 * 1024
"""Bytes of a form."""
_WEEK = 7 * 86400
_SHOWN = 6
"""Versions with a colour of their own."""
_REASONS = 4
"""Of a channel, among all channels."""
_FILTERS = ("search", "channel", "version", "state", "reason", "group", "heard")


def _templates() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "when": words.when, "size": words.size, "length": words.length, "percent": percent,
        "share": words.share, "number": words.number, "part": words.part, "does": words.does,
        "waves": plan.text, "urlquery": urlencode,
    }  # fmt: skip
    return made


TEMPLATES = _templates()


# Pages -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """Who looks, at what."""

    site: Site
    request: Request
    holder: Token
    token: str

    @property
    def steers(self) -> bool:
        """Whether they may change something."""
        return self.holder.role is Role.OPERATOR


Page = Callable[[Visit], tuple[str, dict[str, Any]]]
"""Returns the name of a template and what stands in it."""


def overview(visit: Visit) -> tuple[str, dict[str, Any]]:
    """Show all channels."""
    site, trouble = visit.site, None
    cards: tuple[dict[str, Any], ...] = ()
    repository = site.repository()
    try:
        repository.want()
        cards = tuple(_card(site, it) for it in channels.listed(repository))
    except UpdateAgentError as error:
        trouble = error
    with site.database.read() as connection:
        hosts = figures.by_channel(connection)
    unknown = sorted(set(hosts) - {it["view"].channel.channel for it in cards})
    return "overview.html", {
        "cards": cards, "hosts": hosts, "trouble": trouble, "unknown": unknown
    }  # fmt: skip


def _card(site: Site, it: Channel) -> dict[str, Any]:
    """Return what stands of a channel among all of them."""
    seen, now = api.view(site, it), seconds(site.now())
    with site.database.read() as connection:
        waiting = figures.waiting(connection, it.channel, now, api.shares(it))
    others = [one for one in waiting if one.reason != Reason.UP_TO_DATE]
    return {
        "view": seen, "status": status(seen), "waiting": others[:_REASONS], "bar": _bar(seen),
    }  # fmt: skip


def _bar(seen: api.View) -> Markup:
    """Return how a channel's hosts stand with its release, as a bar."""
    it = seen.tally
    if it is None or not it.hosts:
        return Markup()
    share = it.running / it.hosts
    parts = (("ran", share), ("lost", it.failed / it.hosts))
    label = f"{share:.1%} of the hosts run {seen.channel.version}"
    return Markup(chart.bar(parts, label, offered=seen.open / RING))  # noqa: S704  escaped


def channel(visit: Visit) -> tuple[str, dict[str, Any]]:
    """Show one channel: its rollout, its hosts, what failed, and what can be done."""
    return "channel.html", channel_content(visit, visit.request.path_params["channel"])


def channel_content(visit: Visit, name: str) -> dict[str, Any]:
    """Return what stands on a channel's page."""
    site = visit.site
    it = api.found(site, name)
    seen, now = api.view(site, it), seconds(site.now())
    kept = desk.current(site, it)
    with site.database.read() as connection:
        known = figures.by_channel(connection).get(name, 0)
        shares = figures.versions(connection, name, now)
        waiting = figures.waiting(connection, name, now, api.shares(it))
        failures = figures.failures(connection, name, kept.counted_from)
        history = figures.history(connection, name, now - _WEEK)
    names = [share.version for share in shares[:_SHOWN]]
    return {
        "view": seen, "channel": it, "shares": shares, "names": names, "waiting": waiting,
        "failures": failures,
        "total": sum(share.hosts for share in shares) or 1,
        "unheard": known - sum(share.hosts for share in shares),
        "status": status(seen), "schedule": _schedule(it, site.now()),
        "curve": _curve(seen, history, now),
        "versions_chart": Markup(chart.versions(history, names)),  # noqa: S704  escaped
        "offerable": channels.offerable(site.repository(), it.product) if visit.steers else [],
        "error": None, "given": _given({}),
    }  # fmt: skip


def status(seen: api.View) -> str:
    """Return how a channel stands, in a word or two."""
    it = seen.channel
    if it.rollout is None:
        return "offers nothing yet"
    if it.version in it.quarantined:
        return "halted" if it.paused else "quarantined"
    if it.paused is None:
        return "rolling out" if seen.open < RING else "offered to all"
    return "waiting for hosts" if it.paused.author == BY_WAVES else "paused"


def _curve(seen: api.View, history: list[tuple[int, str, int]], now: int) -> Markup:
    it = seen.channel
    if it.rollout is None or it.version is None or seen.tally is None:
        return Markup()
    totals: dict[int, int] = {}
    for time, _, hosts in history:
        totals[time] = totals.get(time, 0) + hosts
    started = it.rollout.started.timestamp()
    ran = [
        (float(time), hosts / (totals[time] or 1))
        for time, version, hosts in history
        if version == it.version.text and time >= started
    ]
    ran = [(started, ran[0][1] if ran else 0.0), *ran]
    if seen.tally.hosts:
        ran.append((float(now), seen.tally.running / seen.tally.hosts))
    return Markup(chart.rollout(chart.planned(it.rollout, now), ran, now))  # noqa: S704


def _schedule(it: Channel, now: datetime) -> list[dict[str, object]]:
    """Return each wave with its times, if nothing else happens."""
    if it.rollout is None:
        return []
    start = it.rollout.zero(now)
    return [
        {
            "share": wave.share,
            "opens": start + timedelta(seconds=wave.opens),
            "ends": start + timedelta(seconds=wave.opens + wave.length),
            "state": _state(wave, it.rollout.clock(now)),
        }
        for wave in it.rollout.waves
    ]


def _state(wave: Wave, clock: float) -> str:
    if clock < wave.opens:
        return "to come"
    return "open" if clock >= wave.opens + wave.length else "under way"


def hosts(visit: Visit) -> tuple[str, dict[str, Any]]:
    """Show hosts, some at a time."""
    wanted = api.query(visit.request, figures.Wanted)
    with visit.site.database.read() as connection:
        page = figures.page(connection, wanted, seconds(visit.site.now()))
    given = {it: getattr(wanted, it) for it in _FILTERS}
    asked = {name: value for name, value in given.items() if value}
    more = urlencode(asked | {"after": page.next}) if page.next else None
    return "hosts.html", {"page": page, "wanted": given, "asked": asked, "more": more}


def host(visit: Visit) -> tuple[str, dict[str, Any]]:
    """Show one host and its story."""
    call = api.Call(holder=visit.holder, path=visit.request.path_params)
    return "host.html", {"story": api.show_host(visit.site, call)}


def audit(visit: Visit) -> tuple[str, dict[str, Any]]:
    """Show what was done to channels."""
    with visit.site.database.read() as connection:
        return "audit.html", {"deeds": figures.deeds(connection)}


# Forms -------------------------------------------------------------------------------------------

_DEEDS: Mapping[str, Any] = {
    "promote": desk.Promote, "waves": desk.Replan, "pause": desk.Pause, "resume": desk.Resume,
    "halt": desk.Halt,
}  # fmt: skip


async def act(request: Request) -> Response:
    """Do what a form says, and show the channel again; with an error beside what was typed."""
    visit = await _visit(request, Role.OPERATOR)
    if isinstance(visit, Response):
        return visit
    form = await _form(request)
    given = form.pop("key", "")
    if not hmac.compare_digest(given.encode(), guard.form_key(visit.token).encode()):
        raise HTTPException(HTTPStatus.FORBIDDEN, "this form is not from a page of yours")
    name, verb = request.path_params["channel"], request.path_params["verb"]
    try:
        await run_in_threadpool(_act, visit, name, verb, form)
    except UpdateAgentError as error:
        content = await run_in_threadpool(channel_content, visit, name)
        content |= {"error": error, "given": _given(form | {"verb": verb})}
        return _rendered(visit, "channel.html", content, HTTPStatus.CONFLICT)
    return RedirectResponse(f"/channels/{quote(name)}", HTTPStatus.SEE_OTHER)


def _act(visit: Visit, name: str, verb: str, form: Mapping[str, str]) -> None:
    it = api.found(visit.site, name)
    if verb not in _DEEDS:
        raise HTTPException(HTTPStatus.NOT_FOUND, f"nobody can {verb[:20]} a channel")
    deed: desk.Deed = document.shaped(dict(form), _DEEDS[verb], verb)
    desk.act(visit.site, it.channel, deed, visit.holder.name)


def _given(form: Mapping[str, str]) -> dict[str, str]:
    """Return what was typed into a form; nothing where nothing was."""
    return {"verb": "", "reason": "", "waves": "", "version": ""} | dict(form)


async def _form(request: Request) -> dict[str, str]:
    data = await guard.body(request, _FORM)
    try:
        found = parse_qs(data.decode("ascii"), keep_blank_values=True, max_num_fields=20)
    except ValueError as error:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "this is no form") from error
    return {name: values[-1].strip() for name, values in found.items()}


# Logging in --------------------------------------------------------------------------------------


async def login(request: Request) -> Response:
    """Take a token, and keep it in a cookie."""
    site: Site = request.app.state.site
    path = request.query_params.get("next", "/")
    after = path if path.startswith("/") and not path.startswith(("//", "/\\")) else "/"
    if request.method == "GET":
        return _login_page(after, None)
    token = (await _form(request)).get("token", "")
    holder = await site.tokens.holder(token)
    if holder is None or not holder.role.allows(Role.VIEWER):
        return _login_page(after, "no viewer or operator has this token", HTTPStatus.FORBIDDEN)
    answer = RedirectResponse(after, HTTPStatus.SEE_OTHER)
    answer.set_cookie(
        guard.COOKIE, token, max_age=_WEEK, httponly=True, samesite="strict",
        secure=request.url.scheme == "https",
    )  # fmt: skip
    return answer


async def logout(_: Request) -> Response:
    """Forget the cookie."""
    answer = RedirectResponse("/login", HTTPStatus.SEE_OTHER)
    answer.delete_cookie(guard.COOKIE)
    return answer


def _login_page(after: str, error: str | None, code: int = 200) -> Response:
    text = TEMPLATES.get_template("login.html").render(after=after, error=error, visit=None)
    return HTMLResponse(text, code, {"cache-control": "no-store"})


async def _visit(request: Request, role: Role) -> "Visit | Response":
    """Return who it is, or the way to log in."""
    site: Site = request.app.state.site
    token = request.cookies.get(guard.COOKIE, "")
    holder = await site.tokens.holder(token) if token else None
    if holder is None:
        if request.method != "GET":
            return RedirectResponse("/login", HTTPStatus.SEE_OTHER)
        url = urlsplit(str(request.url))
        after = url.path + (f"?{url.query}" if url.query else "")
        return RedirectResponse(f"/login?next={quote(after, safe='')}", HTTPStatus.SEE_OTHER)
    if not holder.role.allows(role):
        raise HTTPException(
            HTTPStatus.FORBIDDEN, f"{holder.name} is a {holder.role}, and this is for {role}s"
        )
    return Visit(site=site, request=request, holder=holder, token=token)


def _shown(page: Page) -> Callable[[Request], Any]:
    async def show(request: Request) -> Response:
        visit = await _visit(request, Role.VIEWER)
        if isinstance(visit, Response):
            return visit
        name, content = await run_in_threadpool(page, visit)
        return await run_in_threadpool(_rendered, visit, name, content)

    return show


def _rendered(visit: Visit, name: str, content: Mapping[str, Any], code: int = 200) -> Response:
    text = TEMPLATES.get_template(name).render(
        content, visit=visit, key=guard.form_key(visit.token), RING=RING,
        now=int(visit.site.now().timestamp()),
    )  # fmt: skip
    return HTMLResponse(text, code, {"cache-control": "no-store"})


def error_page(request: Request, error: str, hint: str | None, code: int) -> Response | None:
    """Return an error as a page, for whoever looks at pages."""
    if "text/html" not in request.headers.get("accept", ""):
        return None
    text = TEMPLATES.get_template("error.html").render(
        visit=None, code=f"{code} {HTTPStatus(code).phrase}", error=error, hint=hint
    )
    return HTMLResponse(text, code, {"cache-control": "no-store"})


async def style(_: Request) -> Response:
    """Serve the style sheet."""
    return FileResponse(
        _HERE / "style.css", media_type="text/css", headers={"cache-control": "max-age=300"}
    )


def routes() -> list[Route]:
    """Return all pages."""
    return [
        Route("/", _shown(overview)),
        Route("/channels/{channel}", _shown(channel)),
        Route("/channels/{channel}/{verb}", act, methods=["POST"]),
        Route("/hosts", _shown(hosts)),
        Route("/hosts/{host}", _shown(host)),
        Route("/audit", _shown(audit)),
        Route("/login", login, methods=["GET", "POST"]),
        Route("/logout", logout, methods=["POST"]),
        Route("/style.css", style),
    ]
