"""``update-agentctl config``."""

import json
from pathlib import Path

import pytest

from update_agent.ctl.main import main


def test_every_setting_is_shown_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.toml").write_text('[reboot]\nstrategy = "immediate"\n')

    assert main(["config", "--settings", str(tmp_path)]) == 0

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["reboot.strategy", "immediate", f"{tmp_path}/a.toml"] in lines
    assert ["update.channel", "stable", "default"] in lines


def test_json_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--json", "--settings", str(tmp_path)]) == 0

    said = json.loads(capsys.readouterr().out)
    assert said["update.channel"] == {"value": "stable", "origin": "default"}


def test_a_setting_that_cannot_be_used_ends_with_its_file_and_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.toml").write_text("[limits]\nflor = 1\n")

    assert main(["config", "--settings", str(tmp_path)]) == 4

    said = capsys.readouterr().err
    assert f"{tmp_path}/a.toml: there is no limits.flor" in said
    assert "did you mean floor?" in said
