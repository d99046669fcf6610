"""Checkpoints as files: written whole or not at all, and read without running anything that they contain."""

import io
import pkgutil
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mnist_lightning.files import written_whole

SCHEDULES = (LRScheduler, ReduceLROnPlateau)
LOOPS = dict.fromkeys(["fit_loop", "validate_loop", "test_loop", "predict_loop"])


class CheckpointError(Exception):
    """A checkpoint is missing, can't be read or written, or belongs to something else."""


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the one it replaces, and renames it when it is on the disk.

    Lightning's own way stages in `$TMPDIR`: a kill or a full disk can leave half a file there, or under the name of
    the checkpoint, and the old one gone.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; when this returns, a power cut leaves it whole.

        Raises:
            CheckpointError: the disk is full, or the folder can't be written. What `path` held before, it holds still.
        """
        path = Path(path)
        content = io.BytesIO()  # torch's own writer makes a RuntimeError of a full disk
        torch.save(checkpoint, content)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as partial:
                partial.write_bytes(content.getbuffer())
        except OSError as error:
            before = "; what it held before, it holds still" if path.is_file() else ""
            raise CheckpointError(f"{path} can't be written: {error.strerror}{before}") from error

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Read a checkpoint, safely whatever is asked for. Tensors come to be on the CPU; Lightning moves them.

        Raises:
            CheckpointError: as `read`.
        """
        return read(path)


def read(path: str | Path) -> dict[str, Any]:
    """Return what a checkpoint of Lightning's holds, its tensors on the CPU.

    Raises:
        CheckpointError: there is no such file, it is not a checkpoint, it is damaged, or it holds more than plain data.
    """
    path = Path(path)
    if re.match(r"\w\w+:/", str(path)):
        url = str(path).replace(":/", "://")  # Path has taken one away
        raise CheckpointError(f"{url} (--ckpt_path) is a URL; expected a file, which you have downloaded yourself")
    if not path.is_file():
        raise CheckpointError(f"{path} (--ckpt_path) is not a file; expected a checkpoint, best or last")
    try:
        file = io.BytesIO(path.read_bytes())  # what is checked is what is used
    except OSError as error:
        raise CheckpointError(f"{path} (--ckpt_path) can't be read: {error.strerror}") from error
    if not zipfile.is_zipfile(file):  # torch would take it for a pickle of its old format
        raise CheckpointError(f"{path} (--ckpt_path) is not a checkpoint, or only a part of one")
    try:
        with zipfile.ZipFile(file) as records:
            damaged = records.testzip()  # by the CRC-32 of each: torch loads most flipped bits without a word
        file.seek(0)
        # Explicitly safe: only so does torch ignore TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD.
        content: Any = None if damaged else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make its readers fail in any way
        reason = (str(error) or repr(error)).splitlines()[0]
        raise CheckpointError(f"{path} (--ckpt_path) can't be read as a checkpoint: {reason}") from error
    if damaged:
        raise CheckpointError(f"{path} (--ckpt_path) is damaged: the checksum of its record {damaged} is wrong")
    for key in ("state_dict", "pytorch-lightning_version"):  # without which Lightning fails
        if not isinstance(content, dict) or key not in content:
            raise CheckpointError(f"{path} (--ckpt_path) is no checkpoint of Lightning's: it has no {key}")
    try:
        check_settings(content.get("hyper_parameters", {}))
        if content.get("loops", LOOPS).keys() != LOOPS.keys():
            raise ValueError("loops are not those of Lightning")
    except Exception as error:  # what is in there can be anything
        raise CheckpointError(f"{path} (--ckpt_path) can't be used: its {error}") from error
    return content


def check_settings(settings: Mapping[str, Any]) -> None:
    """Make sure that all that a model's settings name is a class of networks, optimizers or schedules.

    jsonargparse also takes functions for these, and for their arguments: those that a checkpoint names would be called.

    Raises:
        ValueError: something else is named.
    """
    kinds: dict[str, Any] = {"network": nn.Module, "optimizer": Optimizer, "lr_scheduler": SCHEDULES}
    for name, kind in kinds.items():
        for path, is_class in _names(settings.get(name)):
            try:
                found = pkgutil.resolve_name(path)
            except (AttributeError, ImportError, TypeError, ValueError) as error:
                if not is_class:  # some text
                    continue
                raise ValueError(f"{name} (--model.{name}) is {path}, which can't be imported: {error}") from error
            if not (isinstance(found, type) and issubclass(found, kind)):
                raise ValueError(f"{name} (--model.{name}) names {path}; expected a class of its kind, no function")


def _names(setting: Any, is_class: bool = True) -> Iterator[tuple[str, bool]]:
    """Yield what jsonargparse could import of a setting, and whether it has to be a class."""
    if isinstance(setting, Mapping):
        for key, value in setting.items():
            yield from _names(value, is_class=key == "class_path")
    elif isinstance(setting, list | tuple):
        for value in setting:
            yield from _names(value, is_class=False)
    elif setting is not None and (is_class or re.fullmatch(r"\w+([.:]\w+)+", str(setting))):
        yield setting, is_class


def is_whole(path: Path) -> bool:
    """Return whether a checkpoint can be read."""
    try:
        read(path)
    except CheckpointError:
        return False
    return True


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
    loops = content["loops"]["fit_loop"]
    epochs = loops["epoch_progress"]["current"]
    # Lightning's ModelCheckpoint writes when the last batch is done, before the epoch counts as completed.
    at_its_end = loops["epoch_loop.batch_progress"]["is_last_batch"] and epochs["started"] > epochs["completed"]
    return int(epochs["completed"] + at_its_end)


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
