"""Two real processes, started by Lightning or as two nodes of torchrun's, on the real archives."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import DATA, FIRST, LAST, curves, load, right_answers
from lightning.pytorch import Callback, LightningModule, Trainer
from processes import Outcome, enter, wait_for

pytestmark = pytest.mark.slow

PROGRAM = ["-m", "mnist_lightning"]
CPU = [
    f"--data.root={DATA}",
    "--trainer.accelerator=cpu",
    "--trainer.strategy=ddp",
    "--trainer.enable_progress_bar=false",
]


class ShardRecorder(Callback):
    """Leaves a file for each process and epoch: the MD5 of each image that it trained on."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen: list[str] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen += [hashlib.md5(image.numpy().tobytes()).hexdigest() for image in batch[0]]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        Path(f"epoch_{trainer.current_epoch}_rank_{trainer.global_rank}").write_text("\n".join(self.seen))


class Poison(Callback):
    """Makes the images of one process NaN at step 30."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == 30:
            batch[0].fill_(torch.nan)


def launch(*arguments: str) -> list[subprocess.Popen[bytes]]:
    """Two processes on one machine."""
    return [popen([*PROGRAM, *arguments, *CPU, "--trainer.devices=2"])]


def torchrun(*arguments: str) -> list[subprocess.Popen[bytes]]:
    """Two nodes with a process each, on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    nodes = ["-m", "torch.distributed.run", "--nnodes=2", "--master_addr=127.0.0.1", f"--master_port={port}"]
    program = [*PROGRAM, *arguments, *CPU, "--trainer.devices=1", "--trainer.num_nodes=2"]
    return [popen([*nodes, f"--node_rank={rank}", *program]) for rank in (0, 1)]


def popen(arguments: list[str]) -> subprocess.Popen[bytes]:
    folders = [str(folder) for folder in Path(__file__).parents[:3]]  # for its callbacks, and the package
    # A core for each process: with two threads each on two cores, an epoch can take a hundred times as long.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    with Path("log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *arguments], stdout=log, stderr=log, env=environment, start_new_session=True
        )


def run(processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait until all processes have ended well. If one hangs, show the log, and leave no process behind."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(0.1)
    codes = [process.poll() for process in processes]
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert codes == [0] * len(processes), Path("log.txt").read_text()


@pytest.mark.parametrize("start", [launch, torchrun])
def test_two_processes_share_the_images(start: Callable[..., list[subprocess.Popen[bytes]]], workplace: Path) -> None:
    run(start("fit", "--trainer.max_epochs=2", "--trainer.callbacks=test_distributed.ShardRecorder"))

    assert load(LAST)["global_step"] == 2 * 215  # 55,000 images, 2 x 128 a step
    shards = [[Path(f"epoch_{e}_rank_{r}").read_text().split() for r in (0, 1)] for e in (0, 1)]
    for epoch in shards:
        assert [len(shard) for shard in epoch] == [27_500, 27_500]
        assert len({*epoch[0], *epoch[1]}) == 55_000  # no two images are alike, and none comes twice
    assert {*shards[0][0]} != {*shards[1][0]}

    run(start("test", "--ckpt_path=last"))
    logged = curves()["test/acc"]
    assert [(step, round(value * 10_000, 2)) for step, value in logged] == [(429, right_answers(LAST))]


SHORT = [
    "--trainer.limit_train_batches=60",
    "--trainer.limit_val_batches=5",
    "--trainer.max_epochs=3",
    "--trainer.log_every_n_steps=1",
    "--checkpoint.every_n_steps=20",
]


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if b"mnist_lightning" in Path(f"/proc/{child}/cmdline").read_bytes()]


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        enter(tmp_path_factory.mktemp("distributed") / "whole", patch)
        run(launch("fit", *SHORT))
        return Outcome()


@pytest.mark.parametrize(
    ("receivers", "signum", "code"),
    [("first", signal.SIGTERM, 143), ("second", signal.SIGTERM, 143), ("both", signal.SIGINT, 130)],
)
def test_a_signal_to_either_or_both_ends_both(
    receivers: str, signum: signal.Signals, code: int, whole: Outcome, workplace: Path
) -> None:
    (process,) = launch("fit", *SHORT)
    wait_for(lambda: LAST.exists() and load(LAST)["global_step"] >= 20)
    (other,) = children(process.pid)
    sent = time.monotonic()
    for pid in {"first": [process.pid], "second": [other], "both": [process.pid, other]}[receivers]:
        os.kill(pid, signum)
    assert process.wait(timeout=15) == code
    wait_for(lambda: has_ended(other), seconds=15 - (time.monotonic() - sent))
    step = load(LAST)["global_step"]
    assert 20 < step < 180
    assert f"fit --ckpt_path {LAST}\n" in Path("log.txt").read_text()

    run([popen([*PROGRAM, "fit", "--ckpt_path=last"])])  # the processes are those of the run's configuration
    assert [path.name for path in FIRST.parent.iterdir()] == ["version_0"]
    Outcome().assert_same(whole)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("start", [launch, torchrun])
def test_a_loss_of_one_process_that_is_not_finite_ends_both(
    start: Callable[..., list[subprocess.Popen[bytes]]], rank: int, workplace: Path
) -> None:
    poison = ["--trainer.callbacks=test_distributed.Poison", f"--trainer.callbacks.rank={rank}"]
    processes = start("fit", *SHORT, *poison)
    wait_for(lambda: all(process.poll() is not None for process in processes), seconds=120)
    assert processes[0].returncode == 1
    log = Path("log.txt").read_text()
    assert log.count("train/loss is not finite at step 30, with the learning rate 0.001.\nContinue: ") == 1
    assert load(LAST)["global_step"] == 20
    assert all(weights.isfinite().all() for weights in load(LAST)["state_dict"].values())
