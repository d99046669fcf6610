"""Each command that the program prints works as it is printed."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run
from helpers import FIRST, LAST, ROOT, curves, load

from mnist_lightning.cli import VERBS, main

PRINTED = re.compile(r"(?:python -m mnist_lightning|mnist-lightning) ((?:{})(?![\w:]).*)".format("|".join(VERBS)))


@pytest.fixture(autouse=True)
def photo(workplace: Path) -> None:
    """The photo that the printed commands name."""
    shutil.copy(ROOT / "docs/digits/seven.png", "digit.png")


def commands(text: str) -> list[list[str]]:
    """The commands of this program in a text: the verb and its arguments."""
    return [shlex.split(command) for command in PRINTED.findall(text)]


def type_all(text: str) -> list[str]:
    """Type each command of a text, also those of TensorBoard. Return the verbs."""
    for folder in re.findall(r"tensorboard --logdir (.*)", text):
        assert Path(*shlex.split(folder)).is_dir()
    found = commands(text)
    for command in found:
        main(command)
    return [verb for verb, *_ in found]


def test_after_a_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit")
    assert type_all(capsys.readouterr().out) == ["test", "predict", "fit"]
    assert "test/acc" in curves(FIRST)
    assert load(LAST)["epoch"] == 4


def test_after_an_older_run_in_another_folder_has_continued(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    logs = Path("my runs/lightning_logs")
    root = "--trainer.default_root_dir=my runs"
    run("fit", root)
    run("fit", root, "--trainer.max_epochs=1")
    capsys.readouterr()
    run("fit", root, f"--ckpt_path={logs / 'version_0'}", "--trainer.max_epochs=3")
    out = capsys.readouterr().out
    assert f"tensorboard --logdir '{logs}'\n" in out
    assert type_all(out) == ["test", "predict", "fit"]
    assert "test/acc" in curves(logs / "version_0")
    assert load(logs / "version_0/checkpoints/last.ckpt")["epoch"] == 6
    assert f"Checkpoint: {logs / 'version_0/checkpoints/best.ckpt'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        (["--trainer.max_steps=7", "--trainer.max_epochs=9"], 14),
        (["--trainer.max_steps=3", "--trainer.max_epochs=-1"], 6),
        (["--trainer.max_time=00:00:10:00"], 20),
    ],
)
def test_after_a_run_with_a_limit(
    arguments: list[str], steps: int, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit", *arguments)
    assert type_all(capsys.readouterr().out) == ["test", "predict", "fit"]
    assert load(LAST)["global_step"] == steps


def test_after_a_run_that_has_used_its_time(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "--trainer.max_time=00:00:00:01", "--trainer.max_epochs=500", "--data.batch_size=4", "--figures=false")
    steps = load(LAST)["global_step"]
    assert type_all(capsys.readouterr().out) == ["test", "predict", "fit"]
    assert load(LAST)["global_step"] > steps  # without the limit, or there would be no time left


def test_a_run_without_a_step_proposes_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "--trainer.max_epochs=0")
    assert "python -m" not in capsys.readouterr().out


def test_after_a_run_without_validation(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "--data.val_size=0")
    assert type_all(capsys.readouterr().out) == ["test", "predict", "fit"]


def test_after_a_run_with_another_logger(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=my logs")
    out = capsys.readouterr().out
    assert "tensorboard" not in out
    assert type_all(out) == ["test", "predict", "fit"]


@pytest.mark.parametrize("limit", [["--trainer.max_epochs=2"], ["--trainer.max_steps=10"]])
def test_for_a_run_that_is_finished(limit: list[str], run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit")
    with pytest.raises(SystemExit) as stop:
        run("fit", "--ckpt_path=last", *limit)
    assert type_all(str(stop.value)) == ["fit"]
    assert load(LAST)["global_step"] == 20


@pytest.mark.parametrize("verb", VERBS)
def test_for_wrong_flags(verb: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    if verb in ("validate", "test"):  # they read a checkpoint first
        run("fit", "--trainer.max_epochs=1")
        capsys.readouterr()
    with pytest.raises(SystemExit, match=r"^2$"):
        main([verb, "--no_such_flag"])
    assert commands(capsys.readouterr().err) == [[verb, "--help"]]
    with pytest.raises(SystemExit, match=r"^0$"):
        main([verb, "--help"])


def test_in_the_help(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit")
    shutil.copy("digit.png", "photo.jpg")
    capsys.readouterr()
    main(["--help"])
    printed = commands(capsys.readouterr().out)
    assert {verb for verb, *_ in printed} == {"fit", "test", "predict"}
    for verb, *arguments in printed:
        if "--help" in arguments:
            with pytest.raises(SystemExit, match=r"^0$"):
                main([verb, *arguments])
        else:
            run(verb, *arguments)


def test_the_console_script_prints_its_own_name(workplace: Path) -> None:
    script = Path(sys.executable).with_name("mnist-lightning")
    shown = subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    assert "python -m" not in shown
    assert commands(shown)
