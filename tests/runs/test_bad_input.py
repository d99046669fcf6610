"""What can't be done ends in a line that says why, before anything on disk has changed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Run
from helpers import DATA
from torch import nn
from torchvision.datasets import MNIST


class OtherNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 7, 3)


@pytest.fixture
def files(workplace: Path) -> Path:
    """The files that the arguments below name."""
    Path("wrong_type.yaml").write_text("trainer:\n  max_epochs: many\n")
    Path("wrong_key.yaml").write_text("trainer:\n  max_epoch: 3\n")
    Path("no_yaml.yaml").write_text("trainer: [")
    weights = {"network.conv1.weight": torch.zeros(7, 1, 3, 3)}
    lightning = {"state_dict": weights, "pytorch-lightning_version": "2.6.6"}
    torch.save(lightning | {"hyper_parameters": {}}, "other.ckpt")
    torch.save(weights, "weights.pth")
    torch.save(lightning | {"hyper_parameters": {"width": 7}}, "foreign.ckpt")
    torch.save(lightning | {"hyper_parameters": {"network": {"class_path": "no.Such"}}}, "nowhere.ckpt")
    Path("truncated.ckpt").write_bytes(Path("other.ckpt").read_bytes()[:500])
    Path("text.ckpt").write_text("no checkpoint")
    Path("a_file").touch()
    return workplace


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("--no_such_flag 1", "unrecognized arguments: --no_such_flag"),
        ("--trainer.max_ep 1", "--trainer.max_ep 1; did you mean --trainer.max_epochs?"),  # no abbreviations
        ("--lr 0.1", "--lr 0.1; did you mean --model.optimizer.lr?"),
        ("--model.lr 0.1", "--model.lr 0.1; did you mean --model.optimizer.lr?"),
        ("--epochs 3", "--epochs 3; did you mean --trainer.max_epochs?"),
        ("--config missing.yaml", "--config: File does not exist: 'WORKPLACE/missing.yaml'"),
        ("--config wrong_type.yaml", "--trainer.max_epochs: expected int Given value: many"),
        ("--config wrong_key.yaml", "unknown key: --trainer.max_epoch; did you mean --trainer.max_epochs?"),
        ("--config no_yaml.yaml", "--config: no_yaml.yaml, line 1: expected the node content"),
        ("--data.batch_size 0", "--data.batch_size: batch_size is 0; expected at least 1"),
        ("--data.batch_size -1", "--data.batch_size: batch_size is -1; expected at least 1"),
        ("--data.batch_size abc", "--data.batch_size: expected int. Got value: abc"),
        ("--data.val_size 60000", "--data.val_size: val_size is 60000; expected 0..59999"),
        ("--data.val_size -1", "--data.val_size: val_size is -1; expected 0..59999"),
        ("--model.optimizer Adamant", "--model.optimizer: expected a class, and found Adamant"),
        ("--model.optimizer.lr abc", "--model.optimizer.lr: expected float Given value: abc"),
        ("--model.optimizer.foo 1", "--model.optimizer: it has no argument foo"),
        ("--config text.ckpt", "--config: text.ckpt is not a YAML file of settings"),
        ("--ckpt_path=", "--ckpt_path: the name of the checkpoint is empty"),
        ("--ckpt_path version_99", "--ckpt_path: there is no run lightning_logs/version_99"),
        ("--model.optimizer.lr -1", "--model.optimizer: Invalid learning rate: -1.0"),
        (
            "--ckpt_path missing.ckpt",
            "--ckpt_path: missing.ckpt is not a file; expected best, last, a run folder, version_N or a checkpoint",
        ),
        ("--ckpt_path last", "no run in lightning_logs has a checkpoints/last.ckpt"),
        (
            "--ckpt_path truncated.ckpt",
            "--ckpt_path: truncated.ckpt is not a checkpoint, or only a part of one",
        ),
        ("--ckpt_path text.ckpt", "--ckpt_path: text.ckpt is not a checkpoint, or only a part of one"),
        (
            "--ckpt_path weights.pth",
            "--ckpt_path: weights.pth holds only the weights of a network; expected a checkpoint of `fit`",
        ),
        (
            "--ckpt_path foreign.ckpt",
            "--ckpt_path: foreign.ckpt is of another program or version: unknown settings width",
        ),
        (
            "--ckpt_path nowhere.ckpt",
            "--ckpt_path: nowhere.ckpt can't be used: its network is no.Such; expected a network class that can be "
            "imported (No module named 'no')",
        ),
        ("--data.std .nan", "--data.std: std is nan; expected more than 0"),
        ("--trainer.devices abc", "--trainer: `devices` selected with `CPUAccelerator` should be an int > 0"),
        ("--model.lr_scheduler OneCycleLR", "--model.lr_scheduler: the following arguments are required: max_lr"),
        ("--model.lr_scheduler ReduceLROnPlateau", "lightning.pytorch.cli.ReduceLROnPlateau"),
        (
            "--ckpt_path other.ckpt",
            "--ckpt_path: the weights in other.ckpt don't fit the network: Missing key(s) in state_dict",
        ),
        (
            "--trainer.default_root_dir a_file",
            "--trainer.default_root_dir: no run can be written to a_file/lightning_logs: Not a directory",
        ),
        (
            "--trainer.default_root_dir /proc",
            "--trainer.default_root_dir: no run can be written to /proc/lightning_logs: No such file or directory",
        ),
    ],
)
def test_fit_says_what_is_wrong(
    arguments: str, found: str, run: Run, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as caught:
        run("fit", *arguments.split())
    message = error_message(caught.value, capsys)
    assert found.replace("WORKPLACE", str(files)) in message
    assert len(message.splitlines()) <= 2
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before
    assert list(Path("lightning_logs").glob("*")) == []


def error_message(stop: SystemExit, capsys: pytest.CaptureFixture[str]) -> str:
    """The lines that a shell would show from `python -m mnist_lightning VERB: error` on."""
    assert stop.code not in (0, None)
    printed = capsys.readouterr().err + (f"{stop.code}\n" if isinstance(stop.code, str) else "")
    return printed[re.search(r"python -m mnist_lightning \w+: error:", printed).start() :]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="has an accelerator")
def test_gpu_on_a_machine_without_one(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("fit", "--trainer.accelerator", "gpu")
    assert "--trainer.accelerator is gpu, but torch finds none here" in error_message(caught.value, capsys)


@pytest.mark.parametrize("verb", ["test", "validate"])
def test_random_weights_are_never_evaluated(verb: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(verb)
    assert "no run in lightning_logs has a checkpoints/best.ckpt" in error_message(caught.value, capsys)


def test_validation_without_a_split(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "--data.val_size=0")
    with pytest.raises(SystemExit) as caught:
        run("validate")
    assert "there are no validation images: --data.val_size is 0" in error_message(caught.value, capsys)


def test_a_finished_run_says_so(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit")
    with pytest.raises(SystemExit) as caught:
        run("fit", "--ckpt_path=last")
    last = "lightning_logs/version_0/checkpoints/last.ckpt"
    message = error_message(caught.value, capsys)
    assert f"--ckpt_path: {last} belongs to a finished run: max_epochs is 2.\n" in message
    assert f"To continue: python -m mnist_lightning fit --ckpt_path {last} --trainer.max_epochs 4\n" in message
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    assert not Path("lightning_logs/version_0/config_2.yaml").exists()


def test_weights_alone_are_no_run_to_go_on_from(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit")
    content = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    del content["optimizer_states"]
    torch.save(content, "weights.ckpt")
    with pytest.raises(SystemExit) as caught:
        run("fit", "--ckpt_path=weights.ckpt")
    assert "--ckpt_path: weights.ckpt holds only weights" in error_message(caught.value, capsys)
    run("test", "--ckpt_path=weights.ckpt")


def test_a_schedule_that_follows_no_metric(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = ["--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau", "--model.lr_scheduler.monitor=val/nope"]
    with pytest.raises(SystemExit) as caught:
        run("fit", *schedule)
    assert "val/nope" in error_message(caught.value, capsys)


def test_missing_archives_without_a_network(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(SystemExit) as caught:
        run("fit", "--data.root=elsewhere")
    message = error_message(caught.value, capsys)
    assert "--data.root: elsewhere/MNIST/raw/train-images-idx3-ubyte.gz is missing, and can't be downloaded" in message
    assert len(message.splitlines()) == 1
    assert list(Path("lightning_logs").glob("*")) == []


def test_the_process_ends_with_the_message_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mnist_lightning", "fit", "--data.root", DATA, "--data.batch_size", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "Seed set to 42",
        "python -m mnist_lightning fit: error: --data.batch_size: batch_size is 0; expected at least 1",
    ]
    assert list(tmp_path.iterdir()) == []
