"""update-agentctl against a daemon of fakes on a real bus: text, JSON, exit codes, waiting."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.agent.fakes import B_CONFIRMED, OFFER, START, A, Fakes, waiting
from tests.agent.stage import PATIENCE, Stage, fakes, on_stage, stage
from tests.bus import OUTSIDER, ROOT, Bus, bus
from update_agent.agent.ports import Progress
from update_agent.core.lifecycle import State
from update_agent.core.reason import Reason, Wait
from update_agent.core.trust import UntrustedError
from update_agent.ctl import status
from update_agent.ctl.main import VERBS, main
from update_agent.ctl.words import length, row
from update_agent.errors import HostError
from update_agent.host import identity

__all__ = ["bus", "fakes", "stage"]

Say = pytest.CaptureFixture[str]
CLOSED = Wait(
    reason=Reason.WINDOW,
    sentence="no reboot window is open; the next opens on Tue 2026-11-24 02:00 UTC",
    ends="the window opens, or 'update-agentctl reboot'",
    until=START + timedelta(hours=18),
)


def json_of(capsys: Say) -> Any:  # noqa: ANN401
    return json.loads(capsys.readouterr().out)


# Looking -----------------------------------------------------------------------------------------


def test_status_is_a_page_that_answers_everything(stage: Stage, fakes: Fakes, capsys: Say) -> None:
    fakes.answers, fakes.permission = [OFFER], CLOSED
    assert main(["install"]) == 0
    stage.until(State.WAITING_TO_REBOOT)
    capsys.readouterr()

    assert main(["status"]) == 0

    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert [line.split()[0] for line in said.splitlines() if not line.startswith(" ")] == [
        "state", "reason", "ends", "running", "target", "slots", "channel", "checked", "attempt",
    ]  # fmt: skip
    for wanted in (
        "installed, waiting to reboot for ",
        "no reboot window is open; the next opens on Tue 2026-11-24 02:00",
        "(window, for ",
        "the window opens, or 'update-agentctl reboot'",
        "os 1.0.0",
        "os 1.1.0",
        "A  successful, running, boots next",
        "stable; this host stands at 0.00 % of the rollout",
        "1" + "0" * 31,
    ):
        assert wanted in said, wanted


def test_status_as_json_has_a_name_for_everything(stage: Stage, fakes: Fakes, capsys: Say) -> None:
    fakes.answers = [waiting(Reason.WAVE, START)]
    assert main(["install", "--no-wait"]) == 0
    stage.until(State.WAITING)
    capsys.readouterr()

    assert main(["status", "--json"]) == 0

    said = json_of(capsys)
    assert said["state"] == "waiting"
    assert said["reason"] == {
        "code": "wave", "sentence": "because wave", "ends": "time",
        "since": "2026-11-23T08:00:00Z", "until": "2026-11-23T08:00:00Z",
    }  # fmt: skip
    assert (said["running"], said["target"], said["place"]) == ("1.0.0", None, 1)
    assert said["slots"][0] == {
        "slot": "A", "state": "successful", "priority": 1, "tries": 0, "successful": True,
        "booted": True, "next": True,
    }  # fmt: skip


def test_why_is_the_reason_alone(stage: Stage, fakes: Fakes, capsys: Say) -> None:
    assert main(["why"]) == 0
    assert "the repository was not asked yet" in capsys.readouterr().out
    fakes.answers = [HostError("no route to host", hint="see to the network")]
    assert main(["check"]) == 4
    stage.until(State.WAITING)
    capsys.readouterr()

    assert main(["why"]) == 0

    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"reason      no route to host \(unreachable, for .*\)", said[1])
    assert said[2] == "ends with   see to the network"
    assert main(["why", "--json"]) == 0
    assert json_of(capsys)["reason"]["code"] == "unreachable"


def test_history_tells_how_every_attempt_ended(stage: Stage, fakes: Fakes, capsys: Say) -> None:
    assert main(["history"]) == 0
    assert capsys.readouterr().out == "no update was attempted on this host yet\n"
    fakes.answers, fakes.trouble = [OFFER], {"installed": UntrustedError("not what was signed")}
    assert main(["install"]) == 3
    stage.until(State.FAILED)
    capsys.readouterr()

    assert main(["history"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2026-11-23T08:00:00Z  1.0.0 -> 1.1.0  refused after 0 s",
        "  not what was signed",
        "  attempt 1" + "0" * 31,
    ]
    assert main(["history", "--json"]) == 0
    assert json_of(capsys)[0]["outcome"] == "refused"


def test_watching_ends_when_the_daemon_does(bus: Bus, fakes: Fakes, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with on_stage(bus, fakes) as played, log.open("w") as out:
        fakes.answers = [waiting(Reason.UP_TO_DATE)]
        watching = _ctl("status", "--watch", "--json", stderr=out.fileno())
        assert watching.stdout
        assert json.loads(watching.stdout.readline())["state"] == "idle"
        assert main(["check"]) == 0
        assert json.loads(watching.stdout.readline())["state"] == "checking"
        played.until(State.IDLE)
    watching.communicate(timeout=PATIENCE)

    assert watching.returncode == 4
    assert log.read_text() == (
        "update-agentctl: update-agentd ended\n(systemctl status update-agentd)\n"
    )


# Changing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "trouble", "code", "said"),
    [
        pytest.param(OFFER, {}, 0, "1.1.0 is installed; rebooting into it", id="installed"),
        pytest.param(waiting(Reason.UP_TO_DATE), {}, 0, "because up-to-date", id="newest"),
        pytest.param(waiting(Reason.WAVE), {}, 4, "not installed: because wave", id="held"),
        pytest.param(
            HostError("no route"), {}, 4, "not installed: no route", id="unreachable"
        ),
        pytest.param(UntrustedError("bad"), {}, 3, "not installed: bad", id="untrusted"),
        pytest.param(
            OFFER, {"installed": UntrustedError("not signed")}, 3,
            "1.1.0 was refused: not signed", id="refused",
        ),
        pytest.param(
            OFFER, {"installed": HostError("no space", hint="make room")}, 4,
            "not installed: the installation of 1.1.0 stopped: no space\n(make room)",
            id="interrupted",
        ),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("stage")
def test_install_ends_with_what_became_of_it(
    answer: Any, trouble: dict[str, Any], code: int, said: str, fakes: Fakes, capsys: Say  # noqa: ANN401
) -> None:  # fmt: skip
    fakes.answers, fakes.trouble = [answer], trouble

    assert main(["install"]) == code

    told = capsys.readouterr()
    assert said in (told.err if code else told.out)


@pytest.mark.usefixtures("stage")
def test_a_failed_install_prints_json_and_fails_as_well(fakes: Fakes, capsys: Say) -> None:
    fakes.answers, fakes.trouble = [OFFER], {"installed": UntrustedError("not signed")}

    assert main(["install", "--json"]) == 3

    assert json_of(capsys)["history"][0]["why"] == "not signed"


def test_a_reboot_that_is_held_back_fails(stage: Stage, fakes: Fakes, capsys: Say) -> None:
    fakes.answers, fakes.permission = [OFFER], CLOSED
    assert main(["install"]) == 0
    stage.until(State.WAITING_TO_REBOOT)
    fakes.trouble = {"reboot": HostError("a reboot is blocked by backup", hint="wait for it")}

    assert main(["reboot"]) == 4

    assert "not rebooted: a reboot is blocked by backup\n(wait for it)" in capsys.readouterr().err


def test_a_reboot_that_ends_the_daemon_is_a_success(bus: Bus, fakes: Fakes) -> None:
    fakes.answers, fakes.permission = [OFFER], CLOSED
    with on_stage(bus, fakes) as played:
        assert main(["install"]) == 0
        played.until(State.WAITING_TO_REBOOT)
        rebooting = _ctl("reboot", stderr=subprocess.PIPE)
        assert rebooting.stderr
        assert "rebooting 1.1.0" in rebooting.stderr.readline()
    rebooting.communicate(timeout=PATIENCE)

    assert rebooting.returncode == 0


def test_no_wait_is_no_wait(stage: Stage, fakes: Fakes, capsys: Say) -> None:
    fakes.answers, fakes.gate = [OFFER], threading.Event()

    assert main(["install", "--no-wait"]) == 0

    assert "status --watch" in capsys.readouterr().out
    assert fakes.installing.wait(PATIENCE)
    assert main(["cancel"]) == 0
    stage.until(State.IDLE)


def test_pause_and_resume_are_shown(stage: Stage, capsys: Say) -> None:
    del stage
    assert main(["pause", "until the fair is over"]) == 0
    assert main(["status"]) == 0
    assert "paused      until the fair is over (ends: " in capsys.readouterr().out
    assert main(["resume", "--json"]) == 0
    assert json_of(capsys)["paused"] is None


@pytest.mark.usefixtures("stage")
def test_what_makes_no_sense_now_is_refused(capsys: Say) -> None:
    assert main(["cancel"]) == 4
    assert capsys.readouterr().err == "update-agentctl: cannot cancel while idle\n"


def test_force_reaches_the_daemon(stage: Stage, fakes: Fakes) -> None:
    fakes.answers = [OFFER]
    assert main(["force"]) == 0
    assert fakes.asked_for[0].forced
    stage.until(State.REBOOTING)


def test_rollback_reaches_the_daemon(stage: Stage, fakes: Fakes) -> None:
    del stage
    fakes.seen = A, B_CONFIRMED

    assert main(["rollback"]) == 0
    assert fakes.did == ["rollback", "reboot"]


@pytest.mark.usefixtures("stage")
def test_who_may_not_is_told_who_may() -> None:
    done = OUTSIDER.types("pause")

    assert done.returncode == 4
    assert "does not let you do this" in done.stderr


# While it waits ----------------------------------------------------------------------------------


def test_progress_is_told_in_lines_where_no_line_can_be_rewritten(
    stage: Stage, fakes: Fakes
) -> None:
    fakes.answers, fakes.gate = [OFFER], threading.Event()
    installing = _ctl("install", stderr=subprocess.PIPE)
    assert fakes.installing.wait(PATIENCE)
    told: list[str] = []

    def show(done: int) -> None:
        progress = Progress(
            step="write", done=done * 1_000_000, size=100_000_000, rate=5e6,
            throttled_by="the host's work",
        )  # fmt: skip
        stage.loop.call_soon_threadsafe(stage.daemon._show, progress)

    def hear(wanted: str) -> None:
        assert installing.stderr
        while not told or wanted not in told[-1]:
            told.append(installing.stderr.readline())
            assert told[-1], f"it ended without {wanted!r}: {told}"

    show(30)
    hear("write  30 %  30.0 MB of 100.0 MB  5.0 MB/s  14 s left  held back by the host's work")
    show(32)
    show(60)
    hear("write  60 %")
    fakes.gate.set()
    installing.communicate(timeout=PATIENCE)
    assert installing.returncode == 0
    assert "32 %" not in "".join(told), "a line for each tenth is enough"


def test_progress_is_one_line_on_a_terminal(stage: Stage, fakes: Fakes) -> None:
    fakes.answers, fakes.gate = [OFFER], threading.Event()
    ours, theirs = pty.openpty()
    installing = _ctl("install", stderr=theirs)
    os.close(theirs)
    assert fakes.installing.wait(PATIENCE)
    seen = b""
    while b"write" not in seen:
        seen += os.read(ours, 4096)
    fakes.gate.set()
    stage.until(State.REBOOTING)
    installing.communicate(timeout=PATIENCE)
    os.close(ours)

    assert seen.startswith(b"\r")
    assert b"\n" not in seen.rstrip()


def test_ctrl_c_ends_the_waiting_and_nothing_else(stage: Stage, fakes: Fakes) -> None:
    fakes.answers, fakes.gate = [OFFER], threading.Event()
    installing = _ctl("install", stderr=subprocess.PIPE)
    assert fakes.installing.wait(PATIENCE)
    assert installing.stderr
    installing.stderr.readline()  # it waits

    installing.send_signal(signal.SIGINT)
    _, said = installing.communicate(timeout=PATIENCE)

    assert installing.returncode == 130
    assert "it goes on without you; 'update-agentctl cancel' stops it" in said
    assert stage.daemon.record.state is State.INSTALLING


def test_a_daemon_that_dies_while_it_installs_is_a_failure(bus: Bus, fakes: Fakes) -> None:
    fakes.answers, fakes.gate = [OFFER], threading.Event()
    with on_stage(bus, fakes):
        installing = _ctl("install", stderr=subprocess.PIPE)
        assert fakes.installing.wait(PATIENCE)
        assert installing.stderr
        installing.stderr.readline()  # it waits
    _, said = installing.communicate(timeout=PATIENCE)

    assert installing.returncode == 4
    assert "update-agentd ended while this host was installing" in said
    assert "(systemctl status update-agentd)" in said


def test_a_bus_that_dies_while_it_installs_is_a_failure(
    stage: Stage, bus: Bus, fakes: Fakes
) -> None:
    del stage
    fakes.answers, fakes.gate = [OFFER], threading.Event()
    installing = _ctl("install", stderr=subprocess.PIPE)
    assert fakes.installing.wait(PATIENCE)
    assert installing.stderr
    installing.stderr.readline()  # it waits
    bus.stop()
    installing.communicate(timeout=PATIENCE)
    bus.start()

    assert installing.returncode == 4


def _ctl(*words: str, stderr: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(  # who runs the tests may ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,  # noqa: PLW1509
        args=[sys.executable, "-c",
         f"import sys; from update_agent.ctl.main import main; sys.exit(main({[*words]!r}))"],
        stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=ROOT,
    )  # fmt: skip


# Without a daemon --------------------------------------------------------------------------------


def test_without_a_daemon_it_says_what_it_knows_and_where_to_look(
    bus: Bus, capsys: Say, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    del bus
    kept = tmp_path / "record.json"
    kept.write_text('{"state": "waiting", "since": "2026-11-23T08:00:00Z"}')
    monkeypatch.setattr(status, "RECORD", kept)
    monkeypatch.setattr(
        identity, "os_release", lambda: {"IMAGE_ID": "os", "IMAGE_VERSION": "1.0.0"}
    )

    assert main(["status"]) == 4

    told = capsys.readouterr()
    assert told.out.splitlines() == [
        "state       not known: update-agentd does not run",
        "last        waiting, since 2026-11-23T08:00:00Z",
        "running     os 1.0.0",
    ]
    assert told.err == (
        "update-agentctl: update-agentd does not run\n(systemctl status update-agentd)\n"
    )
    assert main(["status", "--json"]) == 4
    assert json_of(capsys)["running"] == "1.0.0"


@pytest.mark.usefixtures("bus")
@pytest.mark.parametrize("verb", ["why", "history", "check", "install", "pause", "rollback"])
def test_without_a_daemon_nothing_else_is_done(verb: str, capsys: Say) -> None:
    assert main([verb]) == 4
    assert "update-agentd does not run" in capsys.readouterr().err


def test_without_a_bus_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: Say, tmp_path: Path
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/nothing")

    assert main(["status"]) == 4
    told = capsys.readouterr()
    assert "cannot connect to the system bus" in told.err
    assert "state       not known" in told.out


# How fast ----------------------------------------------------------------------------------------

_SPLIT = """
import sys, time

def clocks():
    return [time.perf_counter(), time.process_time()]

begun = clocks()
from update_agent.ctl.main import main
import update_agent.ctl.status
loaded = clocks()
code = main(["status"])
done = clocks()
print(*(b - a for a, b in zip(begun + loaded, loaded + done)), file=sys.stderr)
print(*sorted(sys.modules), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.usefixtures("stage")
def test_status_answers_at_once(figure: Callable[[str], None]) -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", _SPLIT],
            capture_output=True, text=True, check=True, cwd=ROOT,
        ).stderr.splitlines()
        for _ in range(5)
    ]  # fmt: skip
    times = [[float(word) for word in run[0].split()] for run in runs]
    wall = min(it[0] + it[2] for it in times)
    imports, asking = min(([it[1], it[3]] for it in times), key=sum)
    loaded = set(runs[0][1].split())

    figure(
        f"update-agentctl status beyond interpreter start: {wall * 1000:.0f} ms (goal 200),"
        f" CPU {(imports + asking) * 1000:.0f} ms: imports {imports * 1000:.0f},"
        f" asking and printing {asking * 1000:.0f}"
    )
    assert not loaded & {"requests", "tuf", "zstandard", "cryptography", "msgspec", "pyudev"}
    assert imports + asking < 0.2, "CPU alone, for this machine may be busy"


# Words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"), (0.4, "0 s"), (59, "59 s"), (60, "1 min"), (61, "1 min 1 s"),
        (3600, "1 h"), (3661, "1 h 1 min"), (86400, "1 d"), (90000, "1 d 1 h"), (-5, "0 s"),
        (86400 * 400 + 7, "400 d"),
    ],
)  # fmt: skip
def test_lengths_have_two_units(seconds: float, said: str) -> None:
    assert length(seconds) == said


def test_long_sentences_stay_beside_their_label() -> None:
    lines = row("reason", "word " * 40)

    assert all(len(line) <= 80 for line in lines)
    assert lines[0].startswith("reason      word")
    assert all(line.startswith(" " * 12) for line in lines[1:])


# Completion --------------------------------------------------------------------------------------


@pytest.fixture
def complete(capsys: Say) -> Callable[[str], list[str]]:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out

    def completed(line: str) -> list[str]:
        words = line.split(" ")
        asked = f'{script}\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _update_agentctl\n'
        asked += 'printf "%s\\n" "${COMPREPLY[@]}"'
        done = subprocess.run(
            ["bash", "-c", asked, "bash", *words],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.split()

    return completed


def test_bash_completes_verbs_and_their_options(complete: Callable[[str], list[str]]) -> None:
    assert set(VERBS) <= set(complete("update-agentctl "))
    assert complete("update-agentctl re") == ["reboot", "resume"]
    assert complete("update-agentctl install --no") == ["--no-wait"]
    assert complete("update-agentctl completion b") == ["bash"]


def test_bash_completes_files_where_files_belong(complete: Callable[[str], list[str]]) -> None:
    assert f"{ROOT}/README.md" in complete(f"update-agentctl slots --disk {ROOT}/READ")


def test_every_verb_has_a_help_that_fits(capsys: Say) -> None:
    for verb in VERBS:
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        assert ended.value.code == 0
    assert "exit codes" not in capsys.readouterr().err


def test_the_help_says_what_exit_codes_mean(capsys: Say) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "exit codes:\n  0  done" in capsys.readouterr().out
