"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from mnist_lightning.files import PARTIAL, written_whole


def test_two_that_are_written_at_once_in_one_folder_are_both_there(tmp_path: Path) -> None:
    with written_whole(tmp_path / "a") as one, written_whole(tmp_path / "b") as other:
        one.write_text("a")
        other.write_text("b")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "a", "b": "b"}


def test_nothing_else_in_the_folder_is_touched(tmp_path: Path) -> None:
    mine = tmp_path / f"half{PARTIAL}"
    mine.write_text("mine")
    (tmp_path / "there").write_text("before")
    with pytest.raises(RuntimeError), written_whole(tmp_path / "there") as partial:
        partial.write_text("half")
        raise RuntimeError
    with written_whole(tmp_path / "new") as partial:
        partial.write_text("whole")
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {mine.name: "mine", "there": "before", "new": "whole"}
