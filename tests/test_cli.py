"""The table of verbs, and what every verb has in common."""

import errno
import gc
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest
from conftest import Program, Run
from helpers import DATA, FIRST, LAST, ROOT, SECOND, load

from mnist_lightning.cli import VERBS, imported, main
from mnist_lightning.runs import folders


def test_every_verb_has_a_function_and_a_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: python -m mnist_lightning VERB [FLAGS]"
    for name, verb in VERBS.items():
        assert any(line.split() == [name, *verb.summary.split()] for line in lines)


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize("verb", ["predict", "export", "compare", "runs"])
def test_the_help_of_a_verb_has_at_most_25_lines(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: python -m mnist_lightning {verb} ")
    assert len(lines) <= 25


def test_an_unknown_verb_is_named_with_all_verbs() -> None:
    with pytest.raises(SystemExit, match="error: train is not a verb; expected one of fit, validate, test, predict,"):
        main(["train"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "--ckpt", "best"], "unrecognized arguments: --ckpt; did you mean --ckpt_path?"),
        (["predict", "--out", "x.csv"], "unrecognized arguments: --out; did you mean --output?"),
        (["compare", "best", "last", "--root", "x"], "unrecognized arguments: --root x; did you mean --data.root?"),
    ],
)
def test_an_abbreviated_flag_is_refused_with_its_full_name(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"python -m mnist_lightning {arguments[0]}: error: {message}\n"
        f"See python -m mnist_lightning {arguments[0]} --help\n"
    )


def test_a_console_script_is_called_by_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/mnist-lightning"])
    main(["--help"])
    assert capsys.readouterr().out.startswith("usage: mnist-lightning VERB")


def test_runs_are_listed_with_what_is_known_of_them(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("runs")
    assert capsys.readouterr().out == "There are no runs in lightning_logs.\n"
    run("fit", "--model.optimizer.lr=0.1", "--trainer.max_epochs=3")
    run("fit", "--model.network=ConvNet", "--trainer.max_epochs=1", "--figures=false")
    run("test", "--ckpt_path=version_0")
    capsys.readouterr()
    run("runs")
    heading, first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert heading == ["run", "started", "network", "epochs", "val/acc", "test/acc", "size", "state"]
    status = json.loads((FIRST / "status.json").read_text())
    assert [first[0], *first[3:5]] == ["version_0", "LeNet", "3"]
    assert f"{first[1]} {first[2]}" == status["started"]
    assert [float(value) for value in first[5:7]] == pytest.approx(
        [status["best_val_acc"], status["test_acc"]], abs=1e-4
    )
    assert first[-1] == second[-1] == "stopped"
    assert [second[0], *second[3:5]] == ["version_1", "ConvNet", "1"]

    held = folders.lock(SECOND)
    run("runs", "--sort=val/acc")
    lines = capsys.readouterr().out.splitlines()[1:]
    held.release()
    assert [line.split()[0] for line in lines] == ["version_1", "version_0"]  # the best comes last
    assert [line.split()[-1] for line in lines] == ["running", "stopped"]


def test_a_damaged_status_hides_no_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "--trainer.max_epochs=1")
    (FIRST / "status.json").write_text('{"best_val_acc": "x", "epochs": [1]}')
    capsys.readouterr()
    run("runs", "--sort=epochs")
    assert capsys.readouterr().out.splitlines()[1].startswith("version_0")
    with pytest.raises(SystemExit):
        run("runs", "nowhere")
    assert "there is no folder nowhere" in capsys.readouterr().err


def test_the_garbage_collector_leaves_out_imported_objects_while_a_verb_runs() -> None:
    assert gc.get_freeze_count() == 0
    with imported("json:dumps") as function:
        assert function is json.dumps
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0


def test_the_garbage_collector_is_on_after_a_failed_import() -> None:
    with pytest.raises(ModuleNotFoundError), imported("nowhere:fit"):
        pass
    assert gc.isenabled()


def test_200_runs_are_listed_in_a_second_without_torch(run: Run) -> None:
    run("fit", "--trainer.max_epochs=1", "--figures=false")
    for number in range(1, 200):
        shutil.copytree(FIRST, FIRST.with_name(f"version_{number}"))
    code = "import sys; from mnist_lightning.cli import main; main(['runs']); assert 'torch' not in sys.modules"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    assert len(done.stdout.splitlines()) == 201
    assert seconds < 2  # about 0.3 s; the machine may be busy


NO_SPACE = os.strerror(errno.ENOSPC)
COMMANDS = [["--help"], ["predict", "--help"], ["runs"], pytest.param(["fit", "--help"], marks=pytest.mark.slow)]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_reader_that_has_read_enough_is_no_error(arguments: list[str], program: Program) -> None:
    process = program(*arguments)
    assert process.stdout
    process.stdout.close()  # as `| head -0` does
    assert process.wait(timeout=180) == 0
    assert process.stderr
    assert process.stderr.read() == ""


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("buffered", [True, False])
def test_output_that_can_not_be_written_is_an_error_of_one_line(
    arguments: list[str], buffered: bool, workplace: Path
) -> None:
    environment = os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"}
    command = [sys.executable, "-m", "mnist_lightning", *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 1
    assert (
        done.stderr == f"python -m mnist_lightning: error: the output can't be written: {os.strerror(errno.ENOSPC)}\n"
    )


def test_a_message_is_not_lost_with_the_output(workplace: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "mnist_lightning", "runs", "nowhere"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "there is no folder nowhere" in done.stderr


SHORT = [f"--data.root={DATA}", "--trainer.max_epochs=2", "--trainer.limit_train_batches=5", "--figures=false"]


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_run_whose_reader_has_gone_trains_to_its_end(closed: str, program: Program) -> None:
    process = program("fit", *SHORT)
    stream = getattr(process, closed)
    stream.readline()  # as `| head -1` does
    stream.close()
    other = process.stderr if closed == "stdout" else process.stdout
    assert other
    assert "Traceback" not in other.read()
    assert process.wait(timeout=180) == 0
    assert load(LAST)["global_step"] == 10


@pytest.mark.slow
def test_a_run_whose_output_can_not_be_written_trains_to_its_end_and_says_so(workplace: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "mnist_lightning", "fit", *SHORT]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.count("error") == done.stderr.count("the output can't be written") == 1
    assert "Traceback" not in done.stderr
    assert load(LAST)["global_step"] == 10


@pytest.mark.slow
def test_a_program_without_any_streams_works(workplace: Path) -> None:
    """A service may start it so. Python then has no `sys.stdout`."""
    command = shlex.join([sys.executable, "-m", "mnist_lightning", "fit", *SHORT])
    assert subprocess.run(f"{command} <&- >&- 2>&-", shell=True).returncode == 0
    assert load(LAST)["global_step"] == 10


@pytest.mark.slow
def test_a_wheel_works_in_an_environment_of_its_own(tmp_path: Path, trained: Path) -> None:
    """The environment has nothing but the wheel. It borrows the libraries of this one, which take 5 GB."""
    project = tmp_path / "project"  # a copy, because setuptools leaves files in it
    shutil.copytree(ROOT / "mnist_lightning", project / "mnist_lightning")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, project], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "environment", with_pip=True)
    bin_folder = tmp_path / "environment/bin"
    subprocess.run([bin_folder / "pip", "install", "-q", "--no-deps", wheel], check=True)
    (packages,) = (tmp_path / "environment/lib").glob("python*/site-packages")
    libraries = Path(pytest.__file__).parent.parent
    (packages / "borrowed.pth").write_text(f"{libraries}\n")
    empty = tmp_path / "empty"
    empty.mkdir()

    def start(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [bin_folder / program, *arguments]
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)

    def script(*arguments: str) -> subprocess.CompletedProcess[str]:
        return start("mnist-lightning", *arguments)

    found = start("python", "-c", "import mnist_lightning; print(mnist_lightning.__file__)")
    assert found.stdout.startswith(str(packages))
    assert script("--help").stdout.startswith("usage: mnist-lightning VERB [FLAGS]")

    photo = str(ROOT / "docs/digits/seven.png")
    read = script("predict", photo, "--ckpt_path", str(trained / "version_0"))
    assert (read.returncode, read.stderr) == (0, "")
    assert read.stdout.splitlines()[2].startswith(photo)

    missing = script("fit", "--trainer.fast_dev_run=true")
    assert missing.returncode == 1
    assert "Traceback" not in missing.stderr
    assert missing.stderr.splitlines()[-1].startswith("mnist-lightning fit: error: --data.root: data/MNIST/raw/train-")

    trained_there = script("fit", f"--data.root={DATA}", "--trainer.max_epochs=1", "--trainer.limit_train_batches=20")
    assert trained_there.returncode == 0
    assert "mnist-lightning test --ckpt_path lightning_logs/version_0" in trained_there.stdout
    assert "version_0" in script("runs").stdout
