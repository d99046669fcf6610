"""Checkpoints: when they are written, and how they are read without running anything that they contain."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau


class CheckpointError(Exception):
    """A checkpoint is missing, can't be read, or belongs to something else."""


def read(path: Path) -> dict[str, Any]:
    """Return what a checkpoint of Lightning's holds, its tensors on the CPU.

    Raises:
        CheckpointError: there is no such file, it is not a checkpoint, it is damaged, or it holds more than plain data.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} (--ckpt_path) is not a file; expected a checkpoint, best or last")
    if not zipfile.is_zipfile(path):  # torch would take it for a pickle of its old format
        raise CheckpointError(f"{path} (--ckpt_path) is not a checkpoint, or only a part of one")
    try:
        with zipfile.ZipFile(path) as records:
            damaged = records.testzip()  # by the CRC-32 of each: torch loads most flipped bits without a word
        # Explicitly safe: only so does torch ignore TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD.
        content: Any = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make its readers fail in any way
        reason = (str(error) or repr(error)).splitlines()[0]
        raise CheckpointError(f"{path} (--ckpt_path) can't be read as a checkpoint: {reason}") from error
    if damaged:
        raise CheckpointError(f"{path} (--ckpt_path) is damaged: the checksum of its record {damaged} is wrong")
    for key in ("state_dict", "pytorch-lightning_version"):  # without which Lightning fails
        if not isinstance(content, dict) or key not in content:
            raise CheckpointError(f"{path} (--ckpt_path) is no checkpoint of Lightning's: it has no {key}")
    return content


def check_network(path: Path, content: dict[str, Any], model: nn.Module) -> None:
    """Make sure that the weights of a checkpoint fit a model, before Lightning would fail on them.

    Args:
        path: where the content is from, for the message.
        content: what `read` returned.
        model: what the weights are to be loaded into.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    stored = {name: tuple(tensor.shape) for name, tensor in content["state_dict"].items()}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in stored | expected:
        if stored.get(name) != expected.get(name):
            raise CheckpointError(
                f"{path} (--ckpt_path) is of another network: {name} is {stored.get(name, 'missing')} there and "
                f"{expected.get(name, 'missing')} here; name its network with --model.network"
            )


def epochs_done(content: dict[str, Any]) -> int:
    """Return how many whole epochs a checkpoint of `fit` has behind it."""
    last_batch = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]
    return int(content["epoch"] + last_batch)


def carry_over(
    content: dict[str, Any], optimizer: Optimizer, scheduler: LRScheduler | None, position: int, same_class: bool
) -> None:
    """Make a checkpoint restore the settings of this optimizer and schedule in place of its own.

    torch restores every setting along with the state: a new learning rate would be forgotten without a word.

    Args:
        content: what `read` returned, or Lightning loaded; changed in place.
        optimizer: as it was made.
        scheduler: as it was made, for this optimizer. It is brought to its position, but for `ReduceLROnPlateau`,
            which would have to see the metrics again: that starts afresh.
        position: steps of the schedule that lie behind.
        same_class: the checkpoint's optimizer is of the same class, so that its state (momentum) can be kept.
    """
    if scheduler and not isinstance(scheduler, ReduceLROnPlateau):
        optimizer.step()  # without gradients it does nothing, and without it torch warns of the wrong order
        for _ in range(position):
            scheduler.step()
    settings = optimizer.state_dict()
    if same_class:
        settings["state"] = content["optimizer_states"][0]["state"]
    content["optimizer_states"] = [settings]
    content["lr_schedulers"] = [scheduler.state_dict()] if scheduler else []


def writers(validates: bool) -> list[ModelCheckpoint]:
    """Return what writes a run's `best` checkpoint, after a validation, and its `last`, after every epoch.

    One with `save_last` would leave `last` at the best epoch once its metric stops improving. Without validation the
    newest epoch counts as the best.
    """
    monitor = "val/acc" if validates else "epoch"
    return [
        ModelCheckpoint(filename="best", monitor=monitor, mode="max", enable_version_counter=False),
        ModelCheckpoint(filename="last", save_on_train_epoch_end=True, enable_version_counter=False),
    ]
