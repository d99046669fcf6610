"""Ctrl-C, SIGTERM and a closed terminal, for real processes."""

import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Self

import pytest
import torch
from conftest import Program, Run
from helpers import DATA, LAST
from processes import fit, start, wait_for

SLOW = pytest.mark.slow

# The console script has these two lines, too.
SCRIPT = "import sys; from mnist_lightning.cli import main; sys.argv[0] = 'mnist-lightning'; sys.exit(main())"


@pytest.mark.parametrize(
    ("name", "code"),
    [("SIGINT", 130), pytest.param("SIGTERM", 143, marks=SLOW), pytest.param("SIGHUP", 129, marks=SLOW)],
)
def test_a_run_saves_itself_and_says_how_to_go_on(name: str, code: int, program: Program) -> None:
    process = program("fit", f"--data.root={DATA}", "--trainer.accelerator=cpu", "--checkpoint.every_n_steps=1000000")
    wait_for(LAST.exists)
    time.sleep(0.5)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert out.splitlines()[-2:] == [
        f"Stopped by {name}; the run is saved.",
        f"Continue:   python -m mnist_lightning fit --ckpt_path {LAST}",
    ]
    step = torch.load(LAST, weights_only=True)["global_step"]
    assert 0 < step < 430  # saved because of the signal

    continued = program(*shlex.split(out.splitlines()[-1])[4:], f"--trainer.max_steps={step + 1}")
    assert continued.wait(timeout=60) == 0
    assert torch.load(LAST, weights_only=True)["global_step"] == step + 1


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_a_second_signal_ends_the_process_in_the_middle_of_a_step(name: str, small_data: str, workplace: Path) -> None:
    arguments = [f"--data.root={small_data}", "--data.val_size=100", "--trainer.max_epochs=1"]
    process = start(arguments, ("sleep", "training_step", 1))
    wait_for(LAST.exists)
    time.sleep(0.3)
    signum = getattr(signal, name)
    os.kill(process.pid, signum)
    process.join(timeout=1)
    assert process.is_alive()  # the step is not done
    os.kill(process.pid, signum)
    process.join(timeout=5)
    assert process.exitcode == -signum
    assert torch.load(LAST, weights_only=True)["global_step"] == 0


def test_a_second_hangup_leaves_the_time_to_save(small_data: str, workplace: Path) -> None:
    """The terminal and its shell both send SIGHUP, and the SIGTERM of a logout can follow."""
    arguments = [f"--data.root={small_data}", "--data.val_size=100", "--trainer.max_epochs=1"]
    process = start(arguments, ("sleep", "training_step", 1))
    wait_for(LAST.exists)
    time.sleep(0.3)
    for signum in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
        os.kill(process.pid, signum)
        process.join(timeout=0.3)
        assert process.is_alive()  # the step is not done
    os.kill(process.pid, signal.SIGTERM)
    process.join(timeout=5)
    assert process.exitcode == -signal.SIGTERM


class Terminal:
    """A terminal in which a command runs. When it closes, the command gets SIGHUP, and its output fails with EIO.

    Args:
        command: What is typed.
        before: A line of Python that runs before the command.
    """

    def __init__(self, command: list[str], before: str = "pass") -> None:
        self.screen, inside = pty.openpty()
        termios.tcsetwinsize(inside, (24, 80))  # or the bar is empty
        # Only a process that owns the terminal gets SIGHUP.
        own = f"import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); {before}; "
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{own} os.execvp(sys.argv[1], sys.argv[1:])", *command],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
        )
        os.close(inside)

    def close_when(self, shown: str) -> None:
        """Close the terminal when it shows a text."""
        text = ""
        while shown not in text:
            text += os.read(self.screen, 1000).decode(errors="replace")
        os.close(self.screen)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@SLOW
@pytest.mark.parametrize(
    ("shown", "steps", "words"),
    [
        ("Epoch 0:  23%", 100, []),
        ("epoch   1 ", 430, ["--trainer.enable_progress_bar=false"]),
    ],
)
def test_a_run_saves_itself_when_its_terminal_closes(shown: str, steps: int, words: list[str], workplace: Path) -> None:
    arguments = [f"--data.root={DATA}", "--trainer.accelerator=cpu", "--checkpoint.every_n_steps=1000000", *words]
    with Terminal([sys.executable, "-m", "mnist_lightning", "fit", *arguments]) as terminal:
        terminal.close_when(shown)
        assert terminal.process.wait(timeout=180) == 129
    assert steps <= torch.load(LAST, weights_only=True)["global_step"] < 20 * 430
    assert list(LAST.parent.glob("*.partial")) == []


@SLOW
def test_nohup_keeps_a_run_going_when_the_terminal_closes(workplace: Path) -> None:
    command = [sys.executable, "-m", "mnist_lightning", "fit", f"--data.root={DATA}", "--trainer.max_epochs=1"]
    with Terminal(["nohup", *command]) as terminal:
        wait_for(LAST.exists)
        terminal.close_when("nohup.out")
        assert terminal.process.wait(timeout=180) == 0
    assert torch.load(LAST, weights_only=True)["global_step"] == 430
    assert "Continue:   python -m mnist_lightning fit" in Path("nohup.out").read_text()


@SLOW
def test_a_run_that_ignores_sighup_goes_on_without_its_terminal(workplace: Path) -> None:
    command = [sys.executable, "-m", "mnist_lightning", "fit", f"--data.root={DATA}", "--trainer.max_epochs=2"]
    with Terminal(command, "signal.signal(signal.SIGHUP, signal.SIG_IGN)") as terminal:
        terminal.close_when("Epoch 0:  23%")
        assert terminal.process.wait(timeout=180) == 0
    assert torch.load(LAST, weights_only=True)["global_step"] == 2 * 430


def catches_signals(process: subprocess.Popen[str]) -> bool:
    """Whether a process has replaced the system's handler of SIGTERM. Python itself replaces only that of SIGINT."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return bool(caught and int(caught[1], 16) & 1 << signal.SIGTERM - 1)


STARTS = ["", SCRIPT]
MOMENTS = [number / 2 for number in range(12)]  # seconds: the imports take 2 to 4, and the first epoch follows


@pytest.mark.parametrize(
    ("python", "name", "seconds"),
    [("", "SIGINT", 0), ("", "SIGINT", 0.5), (SCRIPT, "SIGINT", 1), ("", "SIGTERM", 0.7), ("", "SIGHUP", 0.3)]
    + [
        pytest.param(python, name, seconds, marks=SLOW)
        for python in STARTS
        for name in ("SIGINT", "SIGTERM", "SIGHUP")
        for seconds in MOMENTS
    ],
)
def test_a_signal_while_the_program_starts_ends_it_without_a_traceback(
    python: str, name: str, seconds: float, program: Program
) -> None:
    process = program("fit", f"--data.root={DATA}", "--trainer.accelerator=cpu", python=python)
    wait_for(lambda: catches_signals(process), pause=0.001)
    time.sleep(seconds)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + getattr(signal, name)
    for sign in ("Traceback", "ignored", "KeyboardInterrupt", "SystemExit"):
        assert sign not in err
    if seconds <= 0.5:  # it imports
        assert out + err == ""


def test_an_imported_module_can_not_swallow_a_signal(small_data: str, workplace: Path) -> None:
    Path("mine.py").write_text(
        "import pathlib, time\n"
        "pathlib.Path('imported').touch()\n"
        "try:\n"
        "    time.sleep(60)\n"
        "except BaseException:\n"
        "    time.sleep(60)\n"
    )
    process = start([f"--data.root={small_data}", "--model.network=mine.Network"])
    wait_for(Path("imported").exists)
    os.kill(process.pid, signal.SIGINT)
    process.join(timeout=10)
    assert process.exitcode == 130


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "name", "code"), [("fit", "SIGTERM", 143), ("test", "SIGINT", 130), ("test", "SIGHUP", 129)]
)
def test_where_there_is_nothing_to_save_a_signal_ends_the_process(
    verb: str, name: str, code: int, run: Run, program: Program
) -> None:
    """Before the first step, while a mirror does not answer, with the exit code of the shell and no traceback."""
    if verb == "test":
        run("fit")
    command = "import sys, socket; from torchvision.datasets import MNIST; from mnist_lightning.cli import main; "
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mirror = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        process = program(verb, "--data.root=nowhere", python=f"{command} MNIST.mirrors = ['{mirror}']; main()")
        with silent.accept()[0]:
            process.send_signal(getattr(signal, name))
            _, err = process.communicate(timeout=10)
    assert process.returncode == code
    assert "Traceback" not in err
    assert list(Path("nowhere").rglob("*.gz*")) == []


def test_a_signal_in_the_last_validation_ends_the_process_too(small_data: str, workplace: Path) -> None:
    arguments = [f"--data.root={small_data}", "--data.val_size=100", "--trainer.max_epochs=1"]
    fit(arguments, ("SIGINT", "validation_step", 1))
    assert torch.load(LAST, weights_only=True)["global_step"] == 5
