"""The dashboard in a real browser: looked at and steered, by mouse and keyboard, in both colours.

What each page looked like is kept in .cache/screenshots.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.bus import ROOT
from tests.publisher import Team
from tests.server import scene
from tests.server.process import Server, host_named, report, serving
from tests.server.town import NEW, OLD
from update_agent.server.guard import COOKIE

HOSTS = 100_000
SHOTS = ROOT / ".cache/screenshots"
PATIENCE = 60_000
"""Milliseconds; expectations wait for what they name."""
MOST = 200_000
"""Bytes of a page."""
CHROMIUM = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
STORY = f"/hosts/{host_named(scene.STORY)}"
PAGES = {
    "login": "/login", "channels": "/", "channel": "/channels/stable",
    "halted": "/channels/canary", "hosts": "/hosts", "found": "/hosts?state=installing",
    "host": STORY, "audit": "/audit", "error": "/channels/none",
}  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def fleet(memory: Path) -> Iterator[Server]:
    """A server with 100,000 hosts in the middle of a rollout."""
    folder = memory / "scene"
    folder.mkdir()
    scene.prepare(folder, HOSTS)
    with serving(folder) as started:
        yield started


@pytest.fixture
def server(team: Team) -> Iterator[Server]:
    """A server with a channel and no host yet."""
    with serving(team.folder) as started:
        yield started


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a page as somebody who is logged in."""
    opened = []

    def visited(server: Server, path: str, *, dark: bool = False, width: int = 1280) -> Page:
        context = browser.new_context(
            base_url=server.url, color_scheme="dark" if dark else "light",
            viewport={"width": width, "height": 900},
        )  # fmt: skip
        opened.append(context)
        context.set_default_timeout(PATIENCE)
        context.add_cookies(
            [{"name": COOKIE, "value": server.tokens["operators"], "url": server.url}]
        )
        page = context.new_page()
        page.goto(path)
        return page

    expect.set_options(timeout=PATIENCE)
    yield visited
    for each in opened:
        each.close()


def keep(page: Page, name: str) -> None:
    """Keep what a page looks like."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def tab_to(page: Page, name: str) -> None:
    """Press Tab until what is called so has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        found: str = page.evaluate(
            "() => { const it = document.activeElement; return (it.labels?.[0] ?? it).innerText }"
        )
        if found.startswith(name):
            return
    pytest.fail(f"Tab never comes to {name}")


# Looking -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dark", "width"),
    [
        pytest.param(False, 1280, id="light"),
        pytest.param(True, 1280, id="dark"),
        pytest.param(True, 390, id="on-a-phone"),
    ],
)
def test_every_page_is_for_everyone(
    fleet: Server, visit: Callable[..., Page], width: int, *, dark: bool
) -> None:
    page = visit(fleet, "/", dark=dark, width=width)
    for name, path in PAGES.items():
        answer = page.goto(path)
        assert answer
        assert answer.status == (404 if name == "error" else 200), name
        keep(page, f"{name}-{'dark' if dark else 'light'}-{width}")

        found = Axe().run(page)

        assert found.violations_count == 0, f"{name}: {found.generate_report()}"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark


def test_a_form_is_for_everyone(fleet: Server, visit: Callable[..., Page]) -> None:
    for dark in (False, True):
        page = visit(fleet, "/channels/stable", dark=dark)
        for name in ("Promote", "Halt"):
            page.get_by_text(name, exact=True).first.click()
            found = Axe().run(page)
            assert found.violations_count == 0, found.generate_report()
        keep(page, f"form-{'dark' if dark else 'light'}")


def test_every_page_is_small_with_100_000_hosts(
    fleet: Server, visit: Callable[..., Page], figure: Callable[[str], None]
) -> None:
    page = visit(fleet, "/")
    for name, path in PAGES.items():
        page.goto(path)
        sizes, first = page.evaluate(
            """() => {
                const it = performance.getEntriesByType("navigation")[0];
                const more = performance.getEntriesByType("resource");
                return [[it, ...more].reduce((sum, one) => sum + one.transferSize, 0),
                        it.responseStart - it.requestStart];
            }"""
        )
        assert 0 < sizes < MOST, name
        figure(f"page {name}, {HOSTS:,} hosts: first byte after {first:.0f} ms, {sizes} bytes")


def test_a_first_look_shows_how_rollouts_stand(fleet: Server, browser: Browser) -> None:
    page = browser.new_page(base_url=fleet.url)
    page.goto("/")
    page.get_by_label("Token").fill(fleet.tokens["operators"])
    page.keyboard.press("Enter")

    stable = page.get_by_role("region", name="stable")
    expect(stable).to_contain_text("rolling out")
    expect(stable).to_contain_text(re.compile(r"[45]\d\.\d %\s+run it: [\d,]+ of 97,750"))
    expect(stable).to_contain_text(re.compile(r"4\d,\d{3} wait for wave 3, "))
    expect(page.get_by_role("region", name="canary")).to_contain_text("31 did not come back")
    page.get_by_role("link", name="stable").click()
    expect(page.get_by_role("img", name="of the hosts run it")).to_be_visible()
    expect(page.get_by_role("region", name="What hosts do")).to_contain_text(
        re.compile(r"\d+ wait for a reboot slot")
    )
    page.close()


def test_hosts_are_filtered_and_one_tells_its_story_across_reboots(
    fleet: Server, visit: Callable[..., Page]
) -> None:
    page = visit(fleet, "/hosts")
    page.get_by_label("Name or id").fill(f"worker-{scene.STORY:05}")
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("1 host")
    page.get_by_role("link", name=f"worker-{scene.STORY:05}").click()

    timeline = page.get_by_role("region", name="Timeline")
    boots = timeline.locator("li.boot").all_inner_texts()
    assert [it.strip() for it in boots] == [
        "booted 1.1.0 from slot B", "booted 1.0.0 from slot A", "booted 1.1.0 from slot B",
    ]  # fmt: skip
    page.get_by_text("Journal").first.click()
    expect(page.get_by_text("nginx.service: Main process exited")).to_be_visible()
    keep(page, "host-journal")


# Steering ----------------------------------------------------------------------------------------


def test_a_release_is_promoted_rolls_and_is_halted(
    server: Server, visit: Callable[..., Page]
) -> None:
    server.post(*(report(it, version=OLD) for it in range(1, 101)))
    page = visit(server, "/channels/stable")

    page.get_by_text("Promote", exact=True).first.click()
    page.get_by_label("Version", exact=True).select_option("1.1.0")
    page.get_by_label("Waves").first.fill("10%:1h 100%:4h@+3h")
    page.get_by_label("Reason").first.fill("the fixes of November")
    keep(page, "promote")
    page.get_by_role("button", name="Promote").click()
    expect(page.get_by_text("rolling out")).to_be_visible()
    rollout = page.get_by_role("region", name="Rollout of 1.1.0")
    expect(rollout).to_contain_text("0.0 %")

    server.post(*(report(it, 2, version=NEW) for it in range(1, 26)))
    page.reload()
    expect(rollout).to_contain_text("25.0 %")
    expect(page.get_by_role("img", name="25% of the hosts run it")).to_be_visible()

    page.get_by_text("Halt", exact=True).first.click()
    page.get_by_label("Reason").filter(visible=True).fill("rack 7 does not come back")
    page.get_by_role("button", name="Halt").click()
    expect(page.get_by_text("halted", exact=True).first).to_be_visible()
    expect(page.locator("p.why")).to_contain_text("rack 7 does not come back")
    assert server.api("/v1/channels/stable")["channel"]["quarantined"] == ["1.1.0"]


def test_what_is_mistyped_is_said_and_kept(server: Server, visit: Callable[..., Page]) -> None:
    page = visit(server, "/channels/stable")

    page.get_by_text("Change waves", exact=True).first.click()
    page.get_by_label("Waves").filter(visible=True).fill("10% 5%")
    page.get_by_label("Reason").filter(visible=True).fill("a try")
    page.get_by_role("button", name="Change waves").click()

    expect(page.get_by_role("alert")).to_contain_text("a wave up to 5 % follows one up to 10 %")
    expect(page.get_by_label("Waves").filter(visible=True)).to_have_value("10% 5%")


def test_a_rollout_is_paused_by_keyboard_alone(server: Server, visit: Callable[..., Page]) -> None:
    page = visit(server, "/")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")

    tab_to(page, "stable")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="stable")).to_be_visible()
    tab_to(page, "Pause")
    page.keyboard.press("Enter")
    tab_to(page, "Reason")
    page.keyboard.type("lunch")
    tab_to(page, "Pause")
    page.keyboard.press("Enter")

    expect(page.locator("p.why")).to_contain_text("lunch")
    assert server.api("/v1/channels/stable")["channel"]["rollout"]["paused"]["reason"] == "lunch"
