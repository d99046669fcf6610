"""Reads checkpoints safely: a file is checked before it is used, and none of its content is run.

This file belongs to the core because `DigitClassifier.load_from_checkpoint` needs it. `runs/` writes checkpoints.
"""

import io
import os
import pickle
import pkgutil
import re
import textwrap
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mnist_lightning.errors import CheckpointError, SettingError

KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "network": ("a network class", (nn.Module,)),
    "optimizer": ("an optimizer class", (Optimizer,)),
    "lr_scheduler": ("a schedule class", (LRScheduler, ReduceLROnPlateau)),
}
LOOPS = {"fit_loop", "validate_loop", "test_loop", "predict_loop"}
# Lightning calls the function of this name to build a class from its stored settings.
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"


def read(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint that Lightning wrote, with all tensors on the CPU.

    Raises:
        CheckpointError: The file is missing, is not a checkpoint, is damaged, or holds more than plain data.
    """
    path = Path(path)
    if re.match(r"\w\w+:/", str(path)):
        url = str(path).replace(":/", "://")  # Path removes one slash
        raise CheckpointError(f"{url} is a URL; expected a file. Download it first, if you trust its source")
    if not os.path.isfile(path):  # unlike `path.is_file()`, it takes a name of any length
        raise CheckpointError(f"{path} is not a file; expected best, last, a run folder, version_N or a checkpoint")
    try:
        file = io.BytesIO(path.read_bytes())  # the bytes that are checked are the bytes that are used
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
    if not zipfile.is_zipfile(file):  # torch would read it as a pickle in its old format
        raise CheckpointError(f"{path} is not a checkpoint, or only a part of one")
    try:
        with zipfile.ZipFile(file) as records:
            damaged = records.testzip()  # compares each CRC-32; torch loads most flipped bits without an error
        file.seek(0)
        # With this argument, torch ignores TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD.
        content: Any = None if damaged else torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds more than plain data, and could run code; it was not loaded") from error
    except Exception as error:  # a damaged file can fail in any way
        reason = (str(error) or repr(error)).splitlines()[0]
        raise CheckpointError(f"{path} can't be read as a checkpoint: {reason}") from error
    if damaged:
        raise CheckpointError(f"{path} is damaged: the checksum of its record {damaged} is wrong")
    for key in ("state_dict", "pytorch-lightning_version"):  # Lightning needs both
        if not isinstance(content, dict) or key not in content:
            raise CheckpointError(f"{path} is not a checkpoint of Lightning: it has no {key}")
    for key in ("state_dict", "loops", "hyper_parameters", "datamodule_hyper_parameters"):
        if not isinstance(content.get(key, {}), Mapping):
            raise CheckpointError(f"{path} is not a checkpoint of Lightning: its {key} is not a mapping")
    if content.get("loops", dict.fromkeys(LOOPS)).keys() != LOOPS:
        raise CheckpointError(f"{path} is not a checkpoint of Lightning: its loops are unknown")
    return content


def load_weights(model: nn.Module, weights: Mapping[str, Any], path: str | Path) -> None:
    """Load weights into a network or a classifier.

    Args:
        model: Receives the weights.
        weights: The tensor of each name.
        path: The checkpoint that the weights come from, for the message.

    Raises:
        CheckpointError: The weights belong to another network, or are not finite.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()  # below a heading, one line for each kind of difference
        reason = textwrap.shorten(reason, 160, placeholder=" ...")
        raise CheckpointError(f"the weights in {path} don't fit the network: {reason}") from error
    if name := not_finite(model):
        raise CheckpointError(f"{path} can't be used: its weights {name} are not finite")


def not_finite(model: nn.Module) -> str | None:
    """Return the name of weights that hold NaN or infinity, None if there are none.

    Logits can hide such weights: a ReLU turns minus infinity into 0. A buffer may hold infinity, as masks do.
    """
    wrong = [(name, weights.isfinite().logical_not()) for name, weights in model.named_parameters()]
    wrong += [(name, buffer.isnan()) for name, buffer in model.named_buffers()]
    return next((name for name, found in wrong if found.any()), None)


def settings_of(content: Mapping[str, Any], path: str | Path, names: Iterable[str] = KINDS) -> dict[str, Any]:
    """Return the arguments of the classifier that a checkpoint holds. A notebook's checkpoint holds no network.

    Args:
        content: What `read` returned.
        path: The file, for the message.
        names: The arguments to check. The caller must not build the others.

    Raises:
        CheckpointError: The settings name something other than classes of networks, optimizers and schedules.
    """
    settings = content.get("hyper_parameters", {})
    if settings.get("_instantiator", INSTANTIATOR) != INSTANTIATOR:
        raise CheckpointError(f"{path} is of another program: its settings are unknown")
    try:
        check_settings({name: settings.get(name) for name in names})
    except SettingError as error:
        raise CheckpointError(f"{path} can't be used: its {error}") from error
    return dict(settings)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Make sure that the arguments of the classifier name only classes of networks, optimizers and schedules.

    jsonargparse would also import and call any function that is named there.

    Raises:
        SettingError: Something else is named.
    """
    for name, (expected, kinds) in KINDS.items():
        for import_path, is_class in _import_paths(settings.get(name)):
            try:
                found = pkgutil.resolve_name(import_path)
            except (AttributeError, ImportError, TypeError, ValueError) as error:
                if not is_class:  # plain text
                    continue
                raise SettingError(name, import_path, f"{expected} that can be imported ({error})") from error
            if not (isinstance(found, type) and issubclass(found, kinds)):
                raise SettingError(name, import_path, expected)


def _import_paths(setting: Any, is_class: bool = True) -> Iterator[tuple[str, bool]]:
    """Yield each text of a setting that jsonargparse could import, and whether it must be a class."""
    if isinstance(setting, Mapping):
        for key, value in setting.items():
            yield from _import_paths(value, is_class=key == "class_path")
    elif isinstance(setting, list | tuple):
        for value in setting:
            yield from _import_paths(value, is_class=False)
    elif setting is not None and (is_class or re.fullmatch(r"\w+([.:]\w+)+", str(setting))):
        yield setting, is_class
