"""SIGTERM and Ctrl-C, sent to real processes from outside."""

import os
import shlex
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from conftest import Program, Run
from helpers import DATA, LAST
from processes import fit, start, wait_for


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), pytest.param("SIGTERM", 143, marks=pytest.mark.slow)])
def test_a_run_saves_itself_and_says_how_to_go_on(name: str, code: int, program: Program) -> None:
    process = program("fit", f"--data.root={DATA}", "--trainer.accelerator=cpu", "--checkpoint.every_n_steps=1000000")
    wait_for(LAST.exists)
    time.sleep(0.5)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=15)
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


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "name", "code"), [("fit", "SIGTERM", 143), ("test", "SIGINT", 130)])
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
