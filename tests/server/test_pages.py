"""The dashboard: who sees what, what its forms do, and what hosts cannot do to it."""

import re
from collections.abc import Iterator
from contextlib import closing
from html import unescape

import pytest
import requests

from tests.publisher import Team
from tests.server.process import NOON, PATIENCE, Server, host_named, report, serving
from tests.server.test_api import EVIL, WAVE
from tests.server.town import NEW, OLD
from update_agent.core.report import Ended
from update_agent.server import tables
from update_agent.server.intake import store
from update_agent.server.tokens import Role, Tokens


@pytest.fixture
def server(team: Team) -> Iterator[Server]:
    with serving(team.folder) as started:
        yield started


class Person:
    """Somebody with a browser of no scripts, logged in."""

    def __init__(self, server: Server, token: str) -> None:
        self.url = server.url
        self.browser = requests.Session()
        self.browser.headers["Accept"] = "text/html"
        answer = self.browser.post(
            f"{self.url}/login?next=/hosts", {"token": token},
            timeout=PATIENCE, allow_redirects=False,
        )  # fmt: skip
        assert (answer.status_code, answer.headers["location"]) == (303, "/hosts")
        self.cookie = answer.headers["set-cookie"]

    def look(self, path: str) -> str:
        answer = self.browser.get(self.url + path, timeout=PATIENCE)
        assert answer.status_code == 200, answer.text
        return answer.text

    def send(self, path: str, **words: str) -> requests.Response:
        key = re.search(r'name="key" value="(\w+)"', self.look("/channels/stable"))
        known = {"key": key[1]} if key else {}
        return self.browser.post(self.url + path, known | words, timeout=PATIENCE)


@pytest.fixture
def ann(server: Server) -> Person:
    return Person(server, server.tokens["operators"])


def text_of(page: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page)).split())


# Who ---------------------------------------------------------------------------------------------


def test_who_is_not_logged_in_is_sent_to_log_in_and_comes_back(server: Server) -> None:
    first = requests.get(f"{server.url}/hosts?state=trial", timeout=PATIENCE, allow_redirects=False)

    assert first.status_code == 303
    assert first.headers["location"] == "/login?next=%2Fhosts%3Fstate%3Dtrial"


@pytest.mark.case(99)
@pytest.mark.parametrize("token", ["", "x", "hosts"])
def test_nobody_logs_in_but_viewers_and_operators(server: Server, token: str) -> None:
    given = {"token": server.tokens.get(token, token)}

    answer = requests.post(f"{server.url}/login", given, timeout=PATIENCE)

    assert answer.status_code == 403
    assert "no viewer or operator has this token" in answer.text
    assert "set-cookie" not in answer.headers


@pytest.mark.case(99)
@pytest.mark.parametrize("after", ["//evil.example", "https://evil.example", "/\\evil.example"])
def test_logging_in_leads_to_no_other_site(server: Server, after: str) -> None:
    answer = requests.post(
        f"{server.url}/login", {"token": server.tokens["operators"]}, params={"next": after},
        timeout=PATIENCE, allow_redirects=False,
    )  # fmt: skip

    assert answer.headers["location"] == "/"


def test_the_cookie_is_for_no_script_and_no_other_site(ann: Person) -> None:
    assert "HttpOnly" in ann.cookie
    assert "SameSite=strict" in ann.cookie
    ann.browser.post(ann.url + "/logout", timeout=PATIENCE)
    assert "Log in" in ann.browser.get(ann.url + "/", timeout=PATIENCE).text


def test_a_viewer_sees_everything_and_steers_nothing(server: Server, team: Team) -> None:
    database = tables.opened(f"sqlite:///{team.folder / 'state/server.sqlite'}")
    eve = Person(server, Tokens(database).add("eve", Role.VIEWER, NOON))
    database.close()

    assert 'action="/channels' not in eve.look("/channels/stable")
    answer = eve.send("/channels/stable/pause", reason="x")
    assert answer.status_code == 403
    assert "eve is a viewer, and this is for operators" in text_of(answer.text)


# What --------------------------------------------------------------------------------------------


def test_the_channels_are_shown_with_their_rollouts(server: Server, ann: Person) -> None:
    server.post(report(1, version=OLD), report(2, channel="gone"))

    page = text_of(ann.look("/"))

    assert "stable offered to all os 1.0.0, 1 hosts 100.0 % run it: 1 of 1 open for 100 %" in page
    assert "1 hosts follow gone , which is no channel here" in page


def test_a_channel_tells_its_plan_its_hosts_and_why_they_wait(server: Server, ann: Person) -> None:
    server.act(
        "/v1/channels/stable/promote", version="1.1.0", waves="1%:1h 100%:4h@+3h", reason="fix"
    )
    past = Ended(
        attempt="d" * 32, running=OLD, version=NEW, began=NOON, ended=NOON, outcome="fell-back",
        why="nginx.service failed",
    )  # fmt: skip
    places = [*range(1, 61), *range(500_061, 500_100)]
    server.post(
        *(report(it % 500_000, place=it, version=OLD, state="waiting", wait=WAVE) for it in places)
    )
    server.post(report(200, version=NEW), report(201, ended=past))

    page = ann.look("/channels/stable")
    words = text_of(page)

    assert "60 wait for wave 1, which is under way 39 wait for wave 2" in words
    assert "1 nginx.service failed fell-back 1.1.0" in words
    assert "run it, of 101 hosts 1.0 % run it 1 tried it 1" in words
    assert 'class="plan" points="0.0,200' in page
    assert "1% of the hosts run it" in page
    assert len(page) < 200_000


def test_a_host_tells_its_story(server: Server, ann: Person) -> None:
    past = Ended(
        attempt="d" * 32, running=OLD, version=NEW, began=NOON, ended=NOON, outcome="fell-back",
        why="nginx.service failed", log="line 1\nline 2", fetched=33_000_000,
    )  # fmt: skip
    server.post(report(1, 1, state="rebooting", target=NEW), report(1, 2, ended=past, place=12_345))

    words = text_of(ann.look(f"/hosts/{host_named(1)}"))

    assert "rebooting → 1.1.0" in words
    assert "fell-back nginx.service failed Journal line 1 line 2 0s 33.0 MB" in words
    assert "place in the rollout 1.2345 %" in words


def test_hosts_are_searched_and_come_in_pages(server: Server, ann: Person) -> None:
    server.post(*(report(it) for it in range(1, 61)))

    first = ann.look("/hosts")
    more = re.search(r'href="(/hosts\?[^"]*)" rel="next"', first)
    assert more
    second = ann.look(unescape(more[1]))

    assert first.count('<th scope="row">') == 50
    assert second.count('<th scope="row">') == 10
    assert "60 hosts" in text_of(second)
    assert ann.look("/hosts?search=web-60").count('<th scope="row">') == 1
    assert "No such host" in ann.look("/hosts?heard=no")


def test_a_number_leads_to_as_many_hosts(server: Server, team: Team, ann: Person) -> None:
    server.post(*(report(it) for it in range(1, 6)))
    path = team.folder / "state/server.sqlite"
    with closing(tables.opened(f"sqlite:///{path}")) as database, database.begin() as connection:
        store(database, connection, [report(6), report(7)], NOON)

    links = re.findall(r'<a[^>]* href="(/hosts\?[^"]*)">([^<]*)</a>', ann.look("/channels/stable"))

    assert [text for _, text in links] == ["5", "2 more", "1.0.0"]
    shown = [ann.look(unescape(link)).count('<th scope="row">') for link, _ in links]
    assert shown == [5, 2, 5]


def test_an_error_is_a_page_for_people_and_json_for_programs(server: Server, ann: Person) -> None:
    page = ann.browser.get(f"{server.url}/channels/none", timeout=PATIENCE)

    assert page.status_code == 404
    assert "there is no such channel; known: stable" in text_of(page.text)
    assert ann.browser.get(f"{server.url}/none", timeout=PATIENCE).status_code == 404


# Forms -------------------------------------------------------------------------------------------


def test_a_form_changes_a_channel_with_its_reason(server: Server, ann: Person) -> None:
    promoted = ann.send(
        "/channels/stable/promote", version="1.1.0", waves="1%:1h 100%", reason="a fix"
    )
    halted = ann.send("/channels/stable/halt", reason="rack 7 is gone")

    assert "os 1.1.0, open for" in text_of(promoted.text)
    assert "halted" in text_of(halted.text)
    channel = server.api("/v1/channels/stable")["channel"]
    assert channel["quarantined"] == ["1.1.0"]
    assert [it["reason"] for it in channel["changes"][-2:]] == ["a fix", "rack 7 is gone"]
    assert "first operator" in text_of(ann.look("/audit"))


def test_a_page_that_is_behind_halts_no_other_release(server: Server, ann: Person) -> None:
    seen = re.search(r'name="version" value="([^"]*)"', ann.look("/channels/stable"))
    assert seen
    server.act("/v1/channels/stable/promote", version="1.1.0", reason="a fix")

    late = ann.send("/channels/stable/halt", version=seen[1], reason="it fails")

    assert late.status_code == 409
    assert "channel stable offers 1.1.0, and 1.0.0 was to be halted" in late.text
    assert 'name="version" value="1.1.0"' in late.text
    assert server.api("/v1/channels/stable")["channel"]["quarantined"] == []


def test_what_is_in_quarantine_says_so_and_can_be_resumed(
    server: Server, ann: Person, team: Team
) -> None:
    team.do("channel", "quarantine", "stable", "1.0.0", "--reason", "loses the clock")
    seen = ann.look("/channels/stable")

    resumed = ann.send("/channels/stable/resume", reason="it was the battery")

    assert "quarantined" in text_of(seen)
    assert "offered to all" in text_of(resumed.text)
    assert server.api("/v1/channels/stable")["channel"]["quarantined"] == []


def test_a_halt_is_undone_from_the_command_line_as_well(
    server: Server, ann: Person, team: Team
) -> None:
    ann.send("/channels/stable/halt", reason="rack 7 is gone")

    team.do("channel", "resume", "stable", "--reason", "rack 7 is back")

    channel = server.api("/v1/channels/stable")["channel"]
    assert (channel["rollout"]["paused"], channel["quarantined"]) == (None, [])


def test_a_form_that_cannot_be_done_keeps_what_was_typed(server: Server, ann: Person) -> None:
    answer = ann.send(
        "/channels/stable/promote", version="1.1.0", waves="10% 5%", reason='my "reason"'
    )

    assert answer.status_code == 409
    assert "name the waves in their order" in answer.text
    assert 'value="10% 5%"' in answer.text
    assert 'value="my &#34;reason&#34;"' in answer.text
    assert server.api("/v1/channels/stable")["channel"]["version"] == "1.0.0"


@pytest.mark.parametrize("verb", ["promote", "waves", "pause", "resume", "halt"])
def test_a_form_that_lacks_something_says_what(ann: Person, verb: str) -> None:
    answer = ann.send(f"/channels/stable/{verb}")

    assert answer.status_code == 409
    assert "missing required field" in text_of(answer.text)


@pytest.mark.case(99)
def test_a_form_of_another_site_does_nothing(server: Server, ann: Person) -> None:
    for key in ("", "x", "0" * 64):
        answer = ann.send("/channels/stable/pause", reason="x", key=key)
        assert answer.status_code == 403

    assert server.api("/v1/channels/stable")["channel"]["rollout"]["paused"] is None


@pytest.mark.case(99)
@pytest.mark.parametrize("verb", ["budget", "..", "<script>"])
def test_a_verb_that_is_none_does_nothing(ann: Person, verb: str) -> None:
    assert ann.send(f"/channels/stable/{verb}", reason="x").status_code in (404, 405)


# Bad hosts ---------------------------------------------------------------------------------------


@pytest.mark.case(99)
def test_what_hosts_say_is_text_on_every_page(server: Server, ann: Person) -> None:
    evil = WAVE.__class__(reason="wave", sentence=EVIL)
    past = Ended(
        attempt="d" * 32, running=OLD, version=NEW, began=NOON, ended=NOON, outcome="fell-back",
        why=EVIL, log=EVIL,
    )  # fmt: skip
    server.act("/v1/channels/stable/promote", version="1.1.0", reason=EVIL)
    server.act("/v1/channels/stable/pause", reason=EVIL)
    server.post(report(1, name=EVIL, agent=EVIL[:60], wait=evil, ended=past))

    for path in ("/", "/channels/stable", "/hosts", f"/hosts/{host_named(1)}", "/audit"):
        page = ann.look(path)
        assert "<script" not in page
        assert EVIL in unescape(page), path


@pytest.mark.case(99)
def test_a_page_may_load_and_run_nothing_of_others(ann: Person) -> None:
    headers = ann.browser.get(ann.url + "/", timeout=PATIENCE).headers

    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'self'")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"
