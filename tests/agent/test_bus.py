"""The daemon's interface on a real bus: who may what, what is announced, and that it answers."""

import asyncio
import re
import subprocess
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.agent.fakes import B_CONFIRMED, HOST, IMMEDIATE, OFFER, START, A, Fakes, waiting
from tests.agent.stage import PATIENCE, Stage, fakes, on_stage, stage, world
from tests.bus import MEMBER, OUTSIDER, ROOT_USER, Bus, Caller, bus, private_bus
from update_agent.agent import view
from update_agent.agent.bus import METHODS, Service, TakenError
from update_agent.agent.daemon import Daemon
from update_agent.agent.ports import Progress
from update_agent.core.lifecycle import Boot, State
from update_agent.core.reason import Reason
from update_agent.ctl.agent import Agent
from update_agent.errors import HostError, UpdateAgentError
from update_agent.host import bus as names
from update_agent.host.bus import Connection, DeniedError, NotNowError, NotThereError

__all__ = ["bus", "fakes", "stage"]

CALL = """
from update_agent.host.bus import Connection, NAME, PATH, INTERFACE
async def call():
    async with Connection() as connection:
        try:
            await connection.call(NAME, PATH, INTERFACE, {method!r}, {signature!r}, {body!r})
        except Exception as error:
            print(type(error).__name__, error)
        else:
            print("done")
asyncio.run(call())
"""


def call(caller: Caller, method: str, bus: Bus) -> str:
    """Return what became of calling ``method``."""
    signature = "s" if METHODS[method].argument else ""
    code = CALL.format(method=method, signature=signature, body=["why"] if signature else [])
    done = caller.runs(code, {"DBUS_SYSTEM_BUS_ADDRESS": bus.address})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


async def ask(method: str, *texts: str) -> None:
    async with Agent() as agent:
        await agent.call(method, *texts)


async def look() -> dict[str, Any]:
    async with Agent() as agent:
        return await agent.properties()


# Who may what ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stage")
@pytest.mark.parametrize("caller", [ROOT_USER, MEMBER, OUTSIDER], ids=["root", "member", "other"])
def test_reading_is_for_everyone(caller: Caller) -> None:
    done = caller.types("status", "--json")

    assert done.returncode == 0, done.stderr
    assert '"state": "idle"' in done.stdout


@pytest.mark.usefixtures("stage")
@pytest.mark.parametrize("method", METHODS)
def test_an_outsider_changes_nothing(method: str, bus: Bus) -> None:
    assert call(OUTSIDER, method, bus).startswith("DeniedError the system bus does not let you")


@pytest.mark.parametrize("method", METHODS)
def test_a_policy_that_lets_everybody_in_is_no_hole(method: str, fakes: Fakes) -> None:
    with private_bus(lax=True) as lax, on_stage(lax, fakes) as played:
        before = played.daemon.record

        said = call(OUTSIDER, method, lax)

        assert said.startswith(f"DeniedError {method} is for root")
        assert said.endswith("not for uid 65534")
        assert (played.daemon.record, fakes.did) == (before, [])


def test_a_member_of_the_group_says_nothing_in_the_name_of_confirm(fakes: Fakes) -> None:
    with private_bus(lax=True) as lax, on_stage(lax, fakes):
        assert call(MEMBER, "Confirmed", lax).startswith("DeniedError Confirmed is for root, and")


@pytest.mark.parametrize("caller", [ROOT_USER, MEMBER], ids=["root", "member"])
def test_root_and_the_group_change_what_they_like(
    caller: Caller, stage: Stage, bus: Bus, fakes: Fakes
) -> None:
    fakes.answers, fakes.seen = [waiting(Reason.UP_TO_DATE)], (A, B_CONFIRMED)

    assert call(caller, "Pause", bus) == "done"
    assert asyncio.run(look())["Paused"] == "why"
    assert call(caller, "Resume", bus) == "done"
    assert asyncio.run(look())["Paused"] == ""
    assert call(caller, "Check", bus) == "done"
    assert call(caller, "Cancel", bus).startswith("NotNowError cannot cancel while ")
    stage.until(State.IDLE)
    assert call(caller, "Rollback", bus) == "done"
    assert fakes.did == ["rollback", "reboot"]


def test_only_the_daemon_may_have_the_name(bus: Bus) -> None:
    async def take() -> list[Any]:
        async with Connection() as connection:
            return await connection.ask_bus("RequestName", "su", names.NAME, 0)

    done = OUTSIDER.runs(
        "from update_agent.host.bus import Connection, NAME\n"
        "async def take():\n"
        "    async with Connection() as connection:\n"
        "        await connection.ask_bus('RequestName', 'su', NAME, 0)\n"
        "asyncio.run(take())",
        {"DBUS_SYSTEM_BUS_ADDRESS": bus.address},
    )

    assert "is not allowed to own the service" in done.stderr
    assert asyncio.run(take()) == [1]  # root


# What is shown -----------------------------------------------------------------------------------


def test_introspection_tells_everything_that_there_is(stage: Stage, bus: Bus) -> None:
    del stage
    told = subprocess.run(
        ["busctl", f"--address={bus.address}", "introspect", "--xml-interface",
         names.NAME, names.PATH],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    ours = ET.fromstring(told.stdout).find(f"interface[@name='{names.INTERFACE}']")  # noqa: S314

    assert ours is not None
    assert {it.get("name") for it in ours.iter("method")} == set(METHODS)
    assert {it.get("name"): it.get("type") for it in ours.iter("property")} == view.SIGNATURES


@pytest.mark.parametrize("path", ["/", "/org", "/org/updateagent"])
def test_the_object_is_found_from_the_root(path: str, stage: Stage, bus: Bus) -> None:
    del stage
    told = subprocess.run(
        ["busctl", f"--address={bus.address}", "tree", "--list", names.NAME],
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert path in told.stdout.split()
    assert names.PATH in told.stdout.split()


@pytest.mark.parametrize(
    ("member", "signature", "body", "error"),
    [
        ("Get", "ss", [names.INTERFACE, "Nonsense"], "there is no property Nonsense"),
        ("GetAll", "s", ["org.example"], "ask GetAll or Get"),
        ("Nonsense", "", [], "ask GetAll or Get"),
    ],
)
def test_nonsense_is_answered_as_such(
    member: str, signature: str, body: list[Any], error: str, stage: Stage
) -> None:
    async def nonsense() -> None:
        async with Connection() as connection:
            await connection.call(names.NAME, names.PATH, names.PROPERTIES, member, signature, body)

    with pytest.raises(UpdateAgentError, match=error):
        asyncio.run(nonsense())
    assert stage.errors == []


def test_wrong_arguments_are_refused(stage: Stage) -> None:
    with pytest.raises(HostError, match="wrong arguments for Check"):
        asyncio.run(ask("Check", "please"))
    assert stage.daemon.record.state is State.IDLE


def test_a_whole_update_is_told_by_signals(stage: Stage, fakes: Fakes) -> None:
    fakes.answers = [OFFER]
    states: list[str] = []

    async def watch() -> dict[str, Any]:
        async with Agent() as agent:
            await agent.call("Install")
            async for found in agent.changes():
                states.append(found["State"])
                if found["State"] == "rebooting":
                    return found
        raise AssertionError

    found = asyncio.run(watch())

    assert [it for n, it in enumerate(states) if states[n - 1 : n] != [it]][-3:] == [
        "installing", "staged", "rebooting",
    ]  # fmt: skip
    assert (found["TargetVersion"], found["AttemptId"]) == ("1.1.0", "1" + "0" * 31)
    stage.until(State.REBOOTING)
    assert asyncio.run(look()) == names.plain(view.properties(stage.daemon))


@pytest.mark.usefixtures("stage")
def test_signals_say_what_the_properties_say(fakes: Fakes) -> None:
    fakes.answers = [waiting(Reason.WAVE, START)]

    async def watch() -> tuple[dict[str, Any], dict[str, Any]]:
        async with Agent() as agent:
            changes = agent.changes()
            await anext(changes)
            await agent.call("Check")
            async for found in changes:
                if found["State"] == "waiting" and found["NextCheck"] and found["Slots"]:
                    return found, await agent.properties()
        raise AssertionError

    told, asked = asyncio.run(watch())

    assert told == asked
    assert asked["Reason"] == "wave"
    assert asked["ReasonUntil"] == view.microseconds(START)


def test_progress_is_announced_a_few_times_a_second(stage: Stage) -> None:
    async def hasten() -> tuple[int, bool]:
        sent: list[Any] = []
        assert stage.service._bus
        stage.service._bus.send = sent.append  # type: ignore[assignment,method-assign]
        for done in range(1000):
            stage.daemon._show(Progress(step="write", done=done, size=1000))
        del stage.service._bus.send
        return len(sent), stage.service._later is not None

    assert stage.do(hasten) == (1, True)  # that there is any; the rest comes together, later


# It answers --------------------------------------------------------------------------------------


def test_it_answers_at_once_while_the_network_is_slow(
    stage: Stage, fakes: Fakes, figure: Callable[[str], None]
) -> None:
    gate, asked = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        asked.set()
        assert gate.wait(PATIENCE)

    fakes.answers = [waiting(Reason.UP_TO_DATE)]
    stage.fakes.ask = _before(slow, fakes.ask)  # type: ignore[method-assign]
    asyncio.run(ask("Check"))
    assert asked.wait(PATIENCE)

    async def often() -> float:
        async with Agent() as agent:
            began = asyncio.get_running_loop().time()
            for _ in range(20):
                assert (await agent.properties())["State"] == "checking"
            return (asyncio.get_running_loop().time() - began) / 20

    seconds = asyncio.run(often())
    gate.set()
    stage.until(State.IDLE)
    figure(f"all properties over D-Bus, while the network is slow: {seconds * 1000:.1f} ms")
    assert seconds < 1


@pytest.mark.usefixtures("stage")
def test_it_answers_at_once_while_the_disk_is_slow(fakes: Fakes) -> None:
    gate, saving = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        saving.set()
        assert gate.wait(PATIENCE)

    fakes.save = _before(slow, fakes.save)  # type: ignore[method-assign]

    async def both() -> str:
        async with Agent() as agent:
            pausing = asyncio.ensure_future(agent.call("Pause", "slow"))
            assert await asyncio.to_thread(saving.wait, PATIENCE)
            found = await agent.properties()
            assert not pausing.done()
            gate.set()
            await pausing
            return str(found["Paused"])

    assert asyncio.run(both()) == "", "what is not on the disk is not shown"
    assert asyncio.run(look())["Paused"] == "slow"


def test_who_floods_it_keeps_nobody_from_an_answer(stage: Stage, bus: Bus) -> None:
    flood = (
        "from dbus_next.message import Message\n"
        "from dbus_next.constants import MessageFlag\n"
        "from update_agent.host.bus import Connection, NAME, PATH, PROPERTIES, INTERFACE\n"
        "async def flood():\n"
        "    async with Connection() as connection:\n"
        "        for _ in range(3000):\n"
        "            connection.send(Message(destination=NAME, path=PATH, interface=PROPERTIES,\n"
        "                member='GetAll', signature='s', body=[INTERFACE],\n"
        "                flags=MessageFlag.NO_REPLY_EXPECTED))\n"
        "        print('sent', flush=True)\n"
        "        await connection.ask_bus('GetId')\n"
        "asyncio.run(flood())"
    )
    flooding = threading.Thread(
        target=lambda: OUTSIDER.runs(flood, {"DBUS_SYSTEM_BUS_ADDRESS": bus.address})
    )
    flooding.start()
    while flooding.is_alive():
        assert asyncio.run(look())["State"] == "idle"
    assert stage.errors == []


def test_too_many_calls_at_once_are_refused(stage: Stage, fakes: Fakes) -> None:
    gate = threading.Event()
    fakes.save = _before(lambda *_: gate.wait(PATIENCE), fakes.save)  # type: ignore[method-assign]

    async def many() -> list[object]:
        async with Agent() as agent:
            calls = [asyncio.ensure_future(agent.call("Pause", str(n))) for n in range(80)]
            done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
            gate.set()
            await asyncio.wait(calls)
            return [it.exception() for it in done]

    refused = [it for it in asyncio.run(many()) if it]

    assert refused
    assert all("too many calls at once" in str(it) for it in refused)
    assert stage.errors == []


def _before(first: Callable[..., object], then: Callable[..., Any]) -> Callable[..., Any]:
    def both(*words: Any, **options: Any) -> Any:  # noqa: ANN401
        first(*words)
        return then(*words, **options)

    return both


# Methods -----------------------------------------------------------------------------------------


def test_what_cannot_be_done_now_is_refused_with_the_state(stage: Stage) -> None:
    del stage
    with pytest.raises(NotNowError, match="cannot reboot into the new release while idle"):
        asyncio.run(ask("Reboot"))


def test_cancel_stops_an_installation(stage: Stage, fakes: Fakes) -> None:
    fakes.answers, fakes.gate = [OFFER], threading.Event()

    asyncio.run(ask("Install"))
    assert fakes.installing.wait(PATIENCE)
    assert asyncio.run(look())["Progress"]["Done"] == 1
    asyncio.run(ask("Cancel"))
    stage.until(State.IDLE)

    found = asyncio.run(look())
    assert found["Progress"] == {}
    assert found["History"][-1]["Outcome"] == "dropped"


def test_force_goes_past_waves_and_windows(stage: Stage, fakes: Fakes) -> None:
    fakes.answers = [OFFER]

    asyncio.run(ask("Force"))
    stage.until(State.REBOOTING)

    assert fakes.asked_for[0].forced
    assert fakes.hurried


def test_confirm_is_heard(bus: Bus, fakes: Fakes) -> None:
    fakes.booted = Boot(boot_id="b2", root_hash="1" * 64, successful=False)
    with on_stage(bus, fakes) as played:
        assert played.daemon.record.state is State.TRIAL
        fakes.booted = replace(fakes.booted, successful=True)

        asyncio.run(ask("Confirmed"))

        played.until(State.IDLE)


def test_rollback_is_refused_where_the_other_slot_is_in_use(stage: Stage, fakes: Fakes) -> None:
    fakes.answers, fakes.gate, fakes.seen = [OFFER], threading.Event(), (A, B_CONFIRMED)
    asyncio.run(ask("Install"))
    assert fakes.installing.wait(PATIENCE)

    with pytest.raises(NotNowError, match="cannot roll back while installing"):
        asyncio.run(ask("Rollback"))

    asyncio.run(ask("Cancel"))
    stage.until(State.IDLE)
    asyncio.run(ask("Rollback"))
    assert fakes.did[-2:] == ["rollback", "reboot"]


def test_a_rollback_avoids_what_was_rolled_back_from(stage: Stage) -> None:
    stage.fakes.seen = A, B_CONFIRMED

    asyncio.run(ask("Rollback"))

    assert asyncio.run(look())["FailedVersions"] == ["1.0.0"]
    assert stage.fakes.did == ["rollback", "reboot"]


# The bus comes and goes --------------------------------------------------------------------------


@pytest.mark.case(49)
def test_a_second_daemon_is_told_that_there_is_one(stage: Stage, bus: Bus) -> None:
    second = Service(stage.daemon, group=None, address=bus.address)

    with pytest.raises(TakenError, match=r"another update-agentd has the name org\.updateagent"):
        asyncio.run(second.serve())


def test_it_comes_back_when_the_bus_does(stage: Stage, bus: Bus) -> None:
    before = stage.service._bus
    bus.stop()

    async def lost() -> None:
        assert before
        await before.lost()

    stage.do(lost)
    bus.start()
    stage.do(stage.service.on_bus.wait)

    assert asyncio.run(look())["State"] == "idle"


@pytest.mark.parametrize("there", [True, False])
def test_it_ends_whatever_it_is_at(bus: Bus, fakes: Fakes, *, there: bool) -> None:
    if not there:
        bus.stop()
    daemon = Daemon(HOST, IMMEDIATE, world(fakes, lambda _: None))
    service = Service(daemon, group=None, address=bus.address, delays=(0,))

    async def ended(turns: int) -> bool:
        serving = asyncio.create_task(service.serve())
        for _ in range(turns):
            await asyncio.sleep(0)
        serving.cancel()
        done, _ = await asyncio.wait({serving}, timeout=PATIENCE)
        return bool(done)

    assert all(asyncio.run(ended(turns)) for turns in range(60))
    if not there:
        bus.start()


def test_nobody_there_is_said_as_such(bus: Bus) -> None:
    del bus

    async def nobody() -> None:
        async with Connection() as connection:
            await connection.properties(names.NAME, names.PATH, names.INTERFACE)

    with pytest.raises(NotThereError, match=re.escape(names.NAME)):
        asyncio.run(nobody())


def test_an_error_keeps_its_kind_and_its_way_out(stage: Stage, fakes: Fakes) -> None:
    fakes.seen = A, B_CONFIRMED
    fakes.trouble = {"rollback": HostError("slot B was never confirmed", hint="install it")}

    with pytest.raises(HostError, match="slot B was never confirmed") as caught:
        asyncio.run(ask("Rollback"))

    assert caught.value.hint == "install it"
    assert not isinstance(caught.value, (DeniedError, NotNowError))
    assert stage.errors == []
