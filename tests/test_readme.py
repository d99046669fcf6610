"""What the README tells its readers to type."""

import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Run
from lightning.pytorch import Trainer

README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


def test_is_short_and_starts_with_the_two_commands() -> None:
    assert len(README.splitlines()) <= 150
    assert COMMANDS[:2] == [
        "pip install -e . && python -m mnist_lightning fit",
        "pip install -e '.[dev]' && pytest",
    ]


def test_ci_runs_the_test_command() -> None:
    assert f'bash -c "{COMMANDS[1]}"' in (ROOT / ".ci/run").read_text()


def test_every_command_runs_in_the_order_of_the_readme(run: Run) -> None:
    """On small data, each run with a limit on its epochs."""
    for folder in ("configs", "docs"):
        Path(folder).symlink_to(ROOT / folder)
    lines = [line.rpartition(" && ")[2] for line in COMMANDS]
    lines = [line for line in lines[2:] if line.startswith("python -m mnist_lightning")]
    assert len(lines) >= 15
    for line in lines:
        verb, *arguments = shlex.split(line)[3:]
        if "gpu" in arguments and not torch.accelerator.is_available():
            with pytest.raises(SystemExit):
                run(verb, *arguments)
        elif "val_size" in line:  # the small data have 640 images in all
            run(verb, *arguments, "--data.val_size=100")
        elif "max_epochs" in line or verb != "fit":
            run(verb, *arguments)
        else:
            run(verb, *arguments, "--trainer.max_epochs=1")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_notebook_runs(
    code: str,
    small_data: str,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("data").symlink_to(small_data)
    original = Trainer.__init__
    monkeypatch.setattr(Trainer, "__init__", lambda self, **options: original(self, log_every_n_steps=1, **options))
    code = code.replace("MNISTDataModule()", "MNISTDataModule(val_size=100)")
    exec(code, {})
    assert "tensor([7, 2, 1, 0])" in capsys.readouterr().out  # the labels


def test_tensorboard_shows_the_runs(run: Run) -> None:
    run("fit")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "lightning_logs", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        tags = b""
        while b"val/acc" not in tags:
            assert time.monotonic() < deadline, f"TensorBoard knows of {tags!r}"
            time.sleep(0.2)
            try:
                url = f"http://127.0.0.1:{port}/data/plugin/scalars/tags"
                tags = urllib.request.urlopen(url, timeout=5).read()
            except OSError:
                continue
        assert b"version_0" in tags
    finally:
        server.kill()
        server.wait()
