"""What the server does by itself: halt what fails, hold waves back, sign freshness, tell people.

Every few seconds each rollout is counted and judged (``core/budget.py``). What follows is done to
the channel as it was judged: one that was changed meanwhile, by people or by another server, is
judged anew by the next look. So nobody is overruled, and people are told once.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import requests
from starlette.concurrency import run_in_threadpool

from update_agent.core import trust
from update_agent.core.budget import Course, Verdict, judge
from update_agent.core.channel import BY_WAVES, Channel
from update_agent.core.document import MAX_TEXT
from update_agent.core.rollout import RING, Pause
from update_agent.core.trust import SIGNED_AT
from update_agent.errors import UpdateAgentError
from update_agent.publish import channels
from update_agent.server import desk, figures, tables
from update_agent.server.site import Site
from update_agent.server.tables import samples, seconds

logger = logging.getLogger(__name__)

BY_BUDGET = "update-server: budget"
"""Author of halts."""

TICK = 15.0
"""Seconds between two looks."""
_LEAD = timedelta(minutes=2)
"""Before a wave opens: some looks, and the time for which caches keep a timestamp."""
_REFRESH = timedelta(hours=6)
"""After which the timestamp is signed again."""
REMEMBERED = 90 * 86400
"""Seconds for which changes and attempts are kept."""
_AT_ONCE = 5000
"""Of each removed in one commit, so that reports never wait long."""
_HOUR = 3600
"""Seconds; in its first sample of an hour a server also forgets: to look what is old takes time."""
_UNHEARD = (
    f"fewer than half of the hosts were heard at any time of {desk.DEAF // _HOUR} hours; who does"
    " not come back is counted as lost again"
)
"""What people are told once."""
_WEBHOOK = 10.0
"""Seconds for one try to tell people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What people are told."""

    channel: str
    version: str
    action: str
    reason: str

    @property
    def text(self) -> str:
        """For chats."""
        return f"channel {self.channel}: {self.version} {self.action}: {self.reason}"


Tell = Callable[[News], None]


async def watch(site: Site, tell: Tell) -> None:
    """Look again and again, until cancelled."""
    while True:
        with _going_on("watch rollouts"):
            await run_in_threadpool(look, site, tell)
        await asyncio.sleep(TICK)


def look(site: Site, tell: Tell) -> None:
    """Count and judge every rollout, and do what follows. Raises UpdateAgentError."""
    with site.database.begin() as connection:
        insert = site.database.insert(samples)
        now = seconds(site.now())
        sampled = figures.sample(connection, insert, now)
    if sampled and now % _HOUR < figures.SAMPLED:
        _forget(site, now - REMEMBERED)
    repository = site.repository()
    if not repository.exists or not site.keys:
        return
    with _going_on("sign the timestamp anew"):
        refresh(site)
    for name in channels.names(repository):
        with _going_on(f"judge the rollout of channel {name}"):
            _judge(site, channels.find(repository, name), tell)


def _forget(site: Site, before: int) -> None:
    removed = _AT_ONCE
    while removed >= _AT_ONCE:
        with site.database.begin() as connection:
            removed = tables.forget(connection, before, _AT_ONCE)


@contextmanager
def _going_on(what: str) -> Iterator[None]:
    """Log what fails within, and go on: with other channels, and with the next look."""
    try:
        yield
    except UpdateAgentError as error:
        logger.warning("cannot %s: %s", what, error)
    except Exception:
        logger.exception("a defect: cannot %s", what)


def _judge(site: Site, it: Channel, tell: Tell) -> None:
    if it.version is None or it.rollout is None:
        return
    kept = _kept(site, it, tell)
    if it.paused and it.version in it.quarantined:
        return  # it is halted
    tally = desk.tally(site, it, kept)
    if tally is None:
        return
    verdict = judge(kept.budget, it.version, it.rollout, tally, site.now(), lead=_LEAD)
    deed = _deed(verdict, it.paused)
    if deed is None:
        return
    author = BY_BUDGET if isinstance(deed, desk.Halt) else BY_WAVES
    news = News(channel=it.channel, version=it.version.text, action=deed.what, reason=deed.reason)
    try:
        edited = desk.act(site, it.channel, deed, author, judged=it)
    except UpdateAgentError as error:
        failed = replace(news, action=f"could not be {deed.what}", reason=str(error))
        if _is_first(site, failed, deed, author):
            tell(failed)
        raise
    if not edited.changed:
        return
    if isinstance(deed, desk.Halt):
        site.meters.halts.inc()
    logger.warning("%s", news.text)
    tell(news)


def _kept(site: Site, it: Channel, tell: Tell) -> desk.Account:
    """Return what the rollout is held to as of now, and store it.

    People are told what follows while waves are to come: a fleet may be off every night.
    """
    before = desk.account(site, it.channel)
    kept = desk.listening(site, it, desk.current(site, it))
    if kept != before:
        desk.keep_count(site, it.channel, kept)
    opens = it.rollout is not None and it.rollout.begun(site.now()) < RING
    if opens and kept.is_used_to_it and not before.is_used_to_it:
        tell(News(channel=it.channel, version=str(it.version), action="goes on", reason=_UNHEARD))
    return kept


def _is_first(site: Site, failed: News, deed: desk.Deed, author: str) -> bool:
    """Write down what could not be done, and return whether that is new.

    The next look tries it again, with other numbers in its reason and the same result.
    """
    result = failed.reason[:MAX_TEXT]
    with site.database.read() as connection:
        before = figures.deeds(connection, failed.channel, limit=1)
    if before and (before[0].author, before[0].result) == (author, result):
        return False
    action = type(deed).__name__.lower()
    desk.note(site, failed.channel, author=author, action=action, reason=deed.reason, result=result)
    return True


def _deed(verdict: Verdict, pause: Pause | None) -> desk.Deed | None:
    """Return what follows for a rollout, which may be paused.

    In a pause hosts that were offered the release go on with it, so it can fail as before: nobody's
    pause keeps it from being halted. People's pauses end by people.
    """
    match verdict.course:
        case Course.HALT:
            return desk.Halt(reason=verdict.why)
        case Course.HOLD:
            return None if pause else desk.Pause(reason=verdict.why)
        case Course.GO:
            waits = pause is not None and pause.author == BY_WAVES
            return desk.Open(reason="enough hosts run it") if waits else None


def refresh(site: Site) -> None:
    """Sign the timestamp anew once it is some hours old, so that hosts know that it is fresh."""
    repository = site.repository()
    data = repository.published("timestamp")
    if data is None:
        return
    text = str(trust.metadata(data).signed.unrecognized_fields.get(SIGNED_AT, ""))
    with suppress(ValueError):
        if site.now() - datetime.fromisoformat(text) < _REFRESH:
            return
    with repository.locked():
        repository.commit(refresh=True)


def webhook(url: str | None) -> Tell:
    """Return how people are told: by a POST of JSON with a ``text``, as chats take it."""

    def tell(news: News) -> None:
        if url is None:
            return
        body = {
            "text": news.text, "channel": news.channel, "version": news.version,
            "action": news.action, "reason": news.reason,
        }  # fmt: skip
        for left in (2, 1, 0):
            try:
                requests.post(url, json=body, timeout=_WEBHOOK).raise_for_status()
            except requests.RequestException as error:
                level = logging.WARNING if left else logging.ERROR
                logger.log(level, "cannot tell the webhook: %s", error)
            else:
                return

    return tell
