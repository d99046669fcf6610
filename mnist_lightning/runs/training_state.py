"""Checks the counters, optimizers and schedules in a checkpoint. torch and Lightning load them unchecked."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer

from mnist_lightning.errors import CheckpointError, in_a_line


def check(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Compare the counters, optimizers and schedules in a checkpoint with the trainer's own.

    The trainer must not have restored the checkpoint yet: its new values show which types and shapes are expected.

    Raises:
        CheckpointError: A value has another type, or a tensor another shape.
    """
    new = {
        "loops": trainer._checkpoint_connector._get_loops_state_dict(),
        "optimizer_states": [{"param_groups": opt.state_dict()["param_groups"]} for opt in trainer.optimizers],
        "lr_schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
    }
    _check_types(checkpoint, new, "the checkpoint")
    for optimizer, state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=True):
        _check_momentum(optimizer, state)


def _check_types(found: Any, new: Any, name: str) -> None:
    is_number = isinstance(new, int | float) and not isinstance(new, bool)
    expected = int | float if is_number else type(new)
    if new is not None and (not isinstance(found, expected) or (is_number and isinstance(found, bool))):
        types = f"{type(found).__name__}; expected {type(new).__name__}"
        raise CheckpointError(f"{in_a_line(name)} in the checkpoint is of the type {types}")
    if isinstance(new, dict):
        for key in new.keys() & found.keys():
            _check_types(found[key], new[key], key)
    if isinstance(new, list):
        for value, other in zip(found, new, strict=False):
            _check_types(value, other, name)


def _check_momentum(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Check the shape of the momentum, and store it in the memory layout of its parameter.

    torch's fused step does not check the layout. With another layout, it reads and writes outside of the tensor.

    Raises:
        CheckpointError: The momentum has another shape than its parameter.
    """
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for parameter, key in zip(group["params"], saved["params"], strict=True):
            values = state["state"].get(key, {}) if saved.get("fused") else {}
            for name, value in values.items():
                if isinstance(value, Tensor):
                    expected = torch.zeros(()) if name == "step" else parameter
                    if value.shape != expected.shape:
                        shapes = f"{tuple(value.shape)}, and its parameter {tuple(expected.shape)}"
                        raise CheckpointError(f"the {in_a_line(name)} in the checkpoint has the shape {shapes}")
                    values[name] = torch.empty_like(expected, dtype=value.dtype).copy_(value)
