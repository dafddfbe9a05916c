"""Where channels are changed: by people, and by the server itself; each change with its reason.

A change is signed with the online keys and published at once, under the repository's own lock; so
two at a time, here or by update-publish, come one after the other. What was done, by whom, why and
with what result is written down, also when it failed.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import sqlalchemy as sql
from msgspec import Meta
from tuf.api.metadata import Snapshot, Timestamp

from update_agent.core import document, plan
from update_agent.core.budget import Budget, Tally
from update_agent.core.channel import BY_WAVES, RESUMED, Change, Channel
from update_agent.core.document import MAX_TEXT, DocumentError, Text, Time
from update_agent.core.rollout import RING
from update_agent.core.trust import CHANNELS
from update_agent.core.version import Version
from update_agent.errors import HostError, UpdateAgentError
from update_agent.publish import channels
from update_agent.publish.repository import Repository
from update_agent.server import figures
from update_agent.server.site import Site
from update_agent.server.tables import audit, rollouts, seconds

Because = Annotated[Text, Meta(min_length=1)]
"""Why somebody does something."""
Plan = Annotated[str, Meta(max_length=2000)]
"""Waves, such as ``1%:1h 10%:4h@+3h 100%:1d``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """Offer a release."""

    reason: Because
    version: Version
    waves: Plan = ""
    """None: everyone at once."""
    deadline: Time | None = None

    @property
    def what(self) -> str:
        """In the words of ``update-publish``."""
        return f"promoted {self.version}"

    def edit(self, repository: Repository, it: Channel, change: Change) -> Channel:
        """Return the channel that offers it."""
        channels.want_release(repository, it.product, self.version)
        return it.promote(self.version, change, waves=plan.read(self.waves), deadline=self.deadline)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replan:
    """Give the running rollout other waves."""

    reason: Because
    waves: Plan

    @property
    def what(self) -> str:
        """In the words of ``update-publish``."""
        return "changed waves"

    def edit(self, _: Repository, it: Channel, change: Change) -> Channel:
        """Return the channel with other waves."""
        deadline = it.rollout.deadline if it.rollout else None
        return it.reschedule(change, waves=plan.read(self.waves), deadline=deadline)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Offer the release to no further host."""

    reason: Because
    what = "paused"

    def edit(self, _: Repository, it: Channel, change: Change) -> Channel:
        """Return the channel with a pause."""
        return it.pause(change)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Go on after a pause or a halt."""

    reason: Because
    what = RESUMED

    def edit(self, _: Repository, it: Channel, change: Change) -> Channel:
        """Return the channel without a pause."""
        return it.go_on(change)


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Let the next wave open: end the pause that waited for hosts, if it is still that."""

    reason: Because
    what = "opened for the next wave"

    def edit(self, _: Repository, it: Channel, change: Change) -> Channel:
        """Return the channel without that pause."""
        return it.resume(change) if it.paused and it.paused.author == BY_WAVES else it


@dataclass(frozen=True, slots=True, kw_only=True)
class Halt:
    """Let no host install the release any more, nor boot what it installed."""

    reason: Because
    version: Version | None = None
    """What was looked at: another one, offered since, is not halted for it."""
    what = "halted"

    def edit(self, _: Repository, it: Channel, change: Change) -> Channel:
        """Return the channel with a pause, and the version in quarantine. Raises HostError."""
        if self.version not in (None, it.version):
            raise HostError(
                f"channel {it.channel} offers {it.version}, and {self.version} was to be halted",
                hint="look again, and halt what it offers now",
            )
        return it.halt(change)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetBudget:
    """Say what a channel's rollouts may cost."""

    reason: Because
    budget: Budget


Deed = Promote | Replan | Pause | Resume | Open | Halt


def act(
    site: Site, name: str, deed: Deed, author: str, *, judged: Channel | None = None
) -> channels.Edited:
    """Change the channel ``name`` and publish it. Raises HostError, ReleaseError.

    What follows from a channel that was ``judged`` is done to that one alone: who changed it
    meanwhile is not overruled, and what they offer is to be judged itself. It is tried again and
    again, so what failed of it is the caller's to write down.
    """
    action = type(deed).__name__.lower()
    try:
        edited = _published(site, name, deed, author, judged)
    except UpdateAgentError as error:
        if judged is None:
            note(site, name, author=author, action=action, reason=deed.reason, result=str(error))
        raise
    result = deed.what if edited.changed else "it was so before"
    if not edited.public:
        result = "it waits for signatures"
    if edited.changed or judged is None:
        note(site, name, author=author, action=action, reason=deed.reason, result=result)
    if not edited.public:
        raise HostError(
            f"channel {name} waits for signatures", hint="update-publish status says whose"
        )
    return edited


def _published(
    site: Site, name: str, deed: Deed, author: str, judged: Channel | None
) -> channels.Edited:
    if not site.keys:
        raise HostError(
            "this server has no keys, so it cannot change channels",
            hint="update-server serve --keys FOLDER, with the online keys",
        )
    repository = site.repository()
    repository.want()
    repository.want_keys(CHANNELS, Snapshot.type, Timestamp.type)
    change = Change(time=repository.now, author=author, what=deed.what, reason=deed.reason)

    def edit(it: Channel) -> Channel:
        return deed.edit(repository, it, change) if judged in (None, it) else it

    return channels.edit(repository, name, edit)


def note(site: Site, channel: str, *, author: str, action: str, reason: str, result: str) -> None:
    """Write down what was done."""
    row = {
        "time": seconds(site.now()), "author": author, "channel": channel, "action": action,
        "reason": reason, "result": result[:MAX_TEXT],
    }  # fmt: skip
    with site.database.begin() as connection:
        connection.execute(sql.insert(audit).values(row))


# Budgets -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a channel's rollouts may cost, and what the running one is held to."""

    budget: Budget
    version: str | None = None
    counted_from: int = 0
    promoted: int = 0
    resumed: int = 0
    """When that was last done, by the clocks of those who did it: to know it again."""
    unheard: int = 0
    """When too few of the channel's hosts were last heard."""
    deaf: int = 0
    """Since when that is so, with no long time between."""

    @property
    def is_used_to_it(self) -> bool:
        """Whether too few were heard for so long that it is no failure, but how its hosts are."""
        return self.unheard - self.deaf > DEAF


_COUNT = ("version", "counted_from", "promoted", "resumed", "unheard", "deaf")
DEAF = 6 * 3600
"""Seconds for which nobody is taken for lost because too few hosts are heard: by then somebody has
mended what failed, or these hosts report seldom, or most of them are always off."""


def account(site: Site, name: str) -> Account:
    """Return a channel's account, with the default budget where none was set."""
    with site.database.read() as connection:
        row = connection.execute(sql.select(rollouts).where(rollouts.c.channel == name)).first()
    if row is None:
        return Account(budget=Budget())
    try:
        budget = document.decode(row.budget.encode(), Budget, f"budget of {name}")
    except DocumentError as error:
        raise HostError(str(error), hint="set the budget anew") from error
    return Account(budget=budget, **{name: getattr(row, name) for name in _COUNT})


def keep_count(site: Site, name: str, kept: Account) -> None:
    """Store what a channel's rollout is held to; its budget is whoever sets it's to change."""
    _keep(site, name, kept, **{it: getattr(kept, it) for it in _COUNT})


def set_budget(site: Site, name: str, wanted: SetBudget, author: str) -> None:
    """Say what the rollouts of the channel ``name`` may cost. Raises HostError."""
    channels.find(site.repository(), name)
    first = Account(budget=wanted.budget)  # for what was kept before is not looked at
    _keep(site, name, first, budget=_written(wanted.budget))
    note(
        site, name, author=author, action="budget", reason=wanted.reason,
        result=document.encode(wanted.budget).decode().replace("\n", ""),
    )  # fmt: skip


def _keep(site: Site, name: str, kept: Account, **changed: object) -> None:
    """Store what ``changed``, and all of ``kept`` where nothing is.

    People and the look of every few seconds change different columns at the same time: who stored
    a whole row would undo what the other did since it was read.
    """
    row = {"channel": name, "budget": _written(kept.budget)}
    row |= {it: getattr(kept, it) for it in _COUNT}
    insert = site.database.insert(rollouts).values(row)
    with site.database.begin() as connection:
        connection.execute(
            insert.on_conflict_do_update(index_elements=[rollouts.c.channel], set_=changed)
        )


def _written(budget: Budget) -> str:
    return document.encode(budget).decode()


def tally(site: Site, it: Channel, kept: Account) -> Tally | None:
    """Return how hosts stand with what the channel ``it`` offers, if it offers something.

    Nobody is lost before this server has listened for a while, after it began and after it heard
    too few: they may have come back when nobody listened. For some hours, that is: then who is lost
    is counted again, and it hears well if half of the hosts are heard in as many hours. A person
    who resumed the rollout since then has looked, and goes on with what is heard.
    """
    if it.version is None or it.rollout is None:
        return None
    now, begun = seconds(site.now()), it.rollout.begun(site.now())
    with site.database.read() as connection:
        found = figures.tally(
            connection, it.channel, it.version.text, kept.budget, since=kept.counted_from, now=now
        )
        if begun < RING:
            reached = figures.placed(connection, it.channel, begun, kept.promoted, now)
            found = replace(found, placed=reached)
    while_ago = now - max(kept.budget.silence, figures.HEARD_AGAIN)
    deaf = kept.unheard > while_ago and not _is_accepted(it, kept)
    if seconds(site.began) > while_ago or (deaf and not kept.is_used_to_it):
        return replace(found, silent=0, stuck=0, deaf=deaf)
    return replace(found, deaf=deaf and not _hears(site, it, now - DEAF))


def _is_accepted(it: Channel, kept: Account) -> bool:
    """Return whether the last that people did is to resume it, since too few are heard."""
    people = (each.what for each in reversed(it.changes) if each.author != BY_WAVES)
    return next(people, "") == RESUMED and kept.counted_from >= kept.deaf


def listening(site: Site, it: Channel, kept: Account) -> Account:
    """Return the account as of now: whether too few hosts of the channel are heard."""
    now = seconds(site.now())
    if _hears(site, it, now - figures.SIGN_OF_LIFE):
        return kept
    goes_on = kept.unheard > now - figures.HEARD_AGAIN
    return replace(kept, unheard=now, deaf=kept.deaf if goes_on else now)


def _hears(site: Site, it: Channel, since: int) -> bool:
    with site.database.read() as connection:
        return figures.hears(connection, it.channel, since, seconds(site.now()))


def current(site: Site, it: Channel) -> Account:
    """Return the account of what the channel ``it`` offers now, as of its newest promotion.

    Whoever resumed it since has looked: counting begins anew when that is seen here. Hosts are
    counted by this server's clock, and those of who publishes may be wrong.
    """
    kept = account(site, it.channel)
    if it.version is None or it.rollout is None:
        return kept
    now, promoted = seconds(site.now()), seconds(it.rollout.started)
    resumptions = (seconds(each.time) for each in it.changes if each.what == RESUMED)
    resumed = max(resumptions, default=kept.resumed)
    if (kept.version, kept.promoted) != (it.version.text, promoted):
        since = min(promoted, now)
    elif kept.resumed != resumed:
        since = now
    else:
        return kept
    return replace(
        kept, version=it.version.text, counted_from=since, promoted=promoted, resumed=resumed
    )
