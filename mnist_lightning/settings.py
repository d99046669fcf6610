"""The settings in a checkpoint: plain data that names only classes of networks, optimizers and schedules."""

import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mnist_lightning.errors import CheckpointError, SettingError, in_a_line

KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "network": ("a network class", (nn.Module,)),
    "optimizer": ("an optimizer class", (Optimizer,)),
    "lr_scheduler": ("a schedule class", (LRScheduler, ReduceLROnPlateau)),
}
# Lightning calls the function of this name to build a class from its stored settings.
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"


def leaves(value: Any) -> Iterator[Any]:
    """Yield the values in nested dictionaries and lists.

    Raises:
        ValueError: They are nested too deeply, or too many. A list can hold itself, or the same list many times.
    """
    waiting, seen = [(value, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if seen > 1_000_000 or depth > 50:
            raise ValueError("its values are too many, or nested too deeply")
        if isinstance(value, dict):
            waiting += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list | tuple):
            waiting += [(item, depth + 1) for item in value]
        else:
            yield value


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
    # Lightning would also build a classifier from settings in other places, and from a class that the settings name.
    elsewhere = {"hparams", "module_arguments"} & content.keys() or content.get("hparams_name") in [*KINDS]
    if settings.get("_instantiator", INSTANTIATOR) != INSTANTIATOR or "_class_path" in settings or elsewhere:
        raise CheckpointError(f"{path} is of another program: its settings are unknown")
    checked = {name: settings.get(name) for name in names}
    check_plain(checked, path)
    try:
        check_settings(checked)
    except SettingError as error:
        raise CheckpointError(f"{path} can't be used: its {error}") from error
    return dict(settings)


def check_plain(settings: Any, path: str | Path) -> None:
    """Make sure that the settings in a checkpoint hold only text and numbers, as a YAML file would.

    Raises:
        CheckpointError: They hold anything else.
    """
    try:
        plain = all(isinstance(value, str | int | float | None) for value in leaves(settings))
    except ValueError:
        plain = False
    if not plain:
        raise CheckpointError(f"{path} can't be used: its settings are not text and numbers")


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
            except Exception as error:  # the module is imported
                if not is_class:  # plain text
                    continue
                expected = f"{expected} that can be imported ({in_a_line(error)})"
                raise SettingError(name, import_path, expected) from error
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
