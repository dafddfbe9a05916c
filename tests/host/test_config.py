"""Which files count, in which order, and what their errors say."""

from datetime import timedelta
from pathlib import Path

import pytest

from update_agent.core.settings import SettingError
from update_agent.host import config


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "usr", tmp_path / "etc", tmp_path / "run"]
    for folder in made[:2]:
        folder.mkdir()
    return made


def test_files_are_read_by_name_whatever_their_folder(folders: list[Path]) -> None:
    (folders[0] / "90-vendor.toml").write_text('[update]\ninterval = "1h"\nchannel = "beta"\n')
    (folders[1] / "50-host.toml").write_text('[update]\ninterval = "2h"\nautomatic = false\n')

    found = config.settings(folders)

    assert found.update.interval == timedelta(hours=1)
    assert found.update.channel == "beta"
    assert not found.update.automatic


def test_a_file_of_the_host_hides_the_one_of_the_image(folders: list[Path]) -> None:
    (folders[0] / "50-site.toml").write_text('[update]\nchannel = "beta"\n')
    (folders[1] / "50-site.toml").write_text("[update]\nautomatic = false\n")

    assert config.settings(folders).update.channel == "stable"


def test_other_files_and_missing_folders_are_nothing(folders: list[Path]) -> None:
    (folders[1] / "README").write_text("no TOML at all")
    (folders[1] / "50-host.toml.dpkg-old").write_text("nor this")

    assert config.settings(folders) == config.settings([])


def test_a_file_that_is_no_toml_is_named_with_the_line(folders: list[Path]) -> None:
    (folders[1] / "50-host.toml").write_text("[update]\nchannel = stable\n")

    with pytest.raises(SettingError, match=r"50-host\.toml is no TOML: .*line 2") as refused:
        config.settings(folders)

    assert str(folders[1]) in str(refused.value)


def test_a_file_that_cannot_be_read_is_an_error_and_not_a_default(folders: list[Path]) -> None:
    (folders[1] / "50-host.toml").mkdir()

    with pytest.raises(SettingError, match=r"cannot read .*50-host\.toml: Is a directory"):
        config.settings(folders)


def test_a_file_in_another_encoding_is_named(folders: list[Path]) -> None:
    (folders[1] / "50-host.toml").write_bytes(b'[update]\nchannel = "\xff"\n')

    with pytest.raises(SettingError, match=r"50-host\.toml is no TOML"):
        config.settings(folders)
