"""Files that are there whole or not at all."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from helpers import ROOT, files_of_at_most

from mnist_lightning.cli import main
from mnist_lightning.errors import OutputError
from mnist_lightning.files import PARTIAL, written_whole

SLOW = pytest.mark.slow  # torch.export imports much


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


@pytest.fixture(params=["a full disk", "a limit of the size"])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, AbstractContextManager[None]]]:
    """A folder, and the context in which no file of more than 100 bytes can be written to it."""
    folder = tmp_path / "full"
    folder.mkdir()
    if request.param == "a full disk":
        command = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", folder]  # needs root
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this process can't mount a disk")
        (folder / "other").write_bytes(bytes(4096))
        yield folder, nullcontext()
        subprocess.run(["umount", folder], check=True)
    else:
        yield folder, files_of_at_most(100)


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["export", "FULL/digits.pth"], ""),
        pytest.param(["export", "FULL/digits.onnx"], "", marks=SLOW),
        pytest.param(["export", "FULL/digits.pt2"], "", marks=SLOW),
        (["predict", str(ROOT / "docs/digits"), "--output", "FULL/digits.csv"], "--output: "),
        (["predict", str(ROOT / "docs/digits"), "--output", "FULL/digits.json"], "--output: "),
        (["predict", str(ROOT / "docs/digits"), "--show", "FULL/digits"], "--show: "),
    ],
    ids=lambda value: " ".join(value[-2:]).replace("FULL/", "") if isinstance(value, list) else "",
)
def test_a_file_that_does_not_fit_on_the_disk_is_an_error_of_one_line(
    arguments: list[str],
    flag: str,
    full: tuple[Path, AbstractContextManager[None]],
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["mnist_lightning"])
    folder, limited = full
    arguments = [argument.replace("FULL", str(folder)) for argument in arguments]
    with limited, pytest.raises(SystemExit) as stop:
        main([*arguments, "--ckpt_path", str(trained / "version_0")])
    message = str(stop.value)
    assert message.startswith(f"python -m mnist_lightning {arguments[0]}: error: {flag}{folder}/digits")
    assert message.endswith(("can't be written: No space left on device", "can't be written: File too large"))
    assert "\n" not in message
    assert [path for path in folder.rglob("*") if path.is_file() and path.name != "other"] == []


def test_an_error_without_a_reason_of_the_system_is_shown(tmp_path: Path) -> None:
    """Pillow raises such an error."""
    with pytest.raises(OutputError, match="a can't be written: encoder error"), written_whole(tmp_path / "a"):
        raise OSError("encoder error")
