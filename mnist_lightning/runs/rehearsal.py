"""What `fit` and `validate` check before they write anything, so that mistakes are reported before the first step."""

import copy
import difflib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.seed import isolate_rng
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mnist_lightning.archive import TRAIN_SIZE
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data import split
from mnist_lightning.errors import NetworkError, SettingError, UserError
from mnist_lightning.trial import logits_of, named_errors


def rehearse(model: DigitClassifier, trainer: Trainer, schedule: Mapping[str, Any] | None) -> None:
    """Find what would end a run before its first step, or after its first epoch.

    Args:
        model: The classifier.
        trainer: The trainer of the run.
        schedule: Class and arguments of the schedule, as in the configuration of the run.

    Raises:
        UserError: The network, the optimizer, a metric or a number can't be used.
    """
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        value = getattr(trainer, name)
        if value is not None and value < 1:
            raise UserError(f"--trainer.{name} is {value}; expected at least 1")
    _check_monitors(trainer, schedule, model.lr_interval)
    try:
        _try_step(model, torch.device("cpu"))
    except UserError:
        device = trainer.strategy.root_device
        if device.type == "cpu":
            raise
        _try_step(model, device)  # some networks and optimizers work only on a GPU


def _try_step(model: DigitClassifier, device: torch.device) -> None:
    """Try the network and one training step, on a copy. The network and all random states stay as they are."""
    with isolate_rng():
        try:
            network = copy.deepcopy(model.network).to(device)
        except Exception:  # a network that can't be copied can still be trained
            return
        dtype = next((weights.dtype for weights in network.parameters()), torch.float32)
        images = torch.rand(3, 1, 28, 28, device=device, dtype=dtype)
        network.eval()
        with torch.no_grad():
            logits_of(network, images[:1])
            with isolate_rng():  # both batches receive the same random numbers, if the network uses any
                logits = logits_of(network, images[[0, 1]])[0]
            again = logits_of(network, images[[0, 2]])[0]
        if not torch.allclose(logits, again, rtol=1e-3, atol=1e-4, equal_nan=True):
            raise NetworkError("logits of an image depend on the other images of the batch; expected no influence")

        network.train()
        optimizer = model.optimizer(network.parameters())
        if isinstance(optimizer, torch.optim.LBFGS):
            # We tried it with the closure that it needs: on batches of 128 images, the loss is NaN after 30 steps.
            raise SettingError("optimizer", "LBFGS", "one for batches, such as SGD or Adam: LBFGS diverges on batches")
        loss = F.cross_entropy(logits_of(network, images), torch.arange(3, device=device))
        with named_errors():
            loss.backward()
        try:
            optimizer.step()
        except Exception as error:  # users can write optimizers
            raise UserError(f"{type(optimizer).__name__} can't make a step: {error}", "optimizer") from error


def _check_monitors(trainer: Trainer, schedule: Mapping[str, Any] | None, lr_interval: str) -> None:
    """Make sure that callbacks and the schedule follow metrics that exist."""
    callbacks: Iterable[Any] = trainer.callbacks  # type: ignore[attr-defined]
    ours = ("lightning.", "mnist_lightning.")
    if not all(type(callback).__module__.startswith(ours) for callback in callbacks):
        return  # a callback of the user can log metrics
    metrics = ["train/acc", "train/loss"]
    if trainer.limit_val_batches != 0:
        metrics += ["val/acc", "val/loss"]
    for callback in callbacks:
        if isinstance(callback, EarlyStopping) and callback.strict:
            _check_monitor("--trainer.callbacks: EarlyStopping", callback.monitor, metrics)
        elif isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            _check_monitor("--trainer.callbacks: ModelCheckpoint", callback.monitor, [*metrics, "epoch", "step"])
    if schedule and issubclass(pkgutil.resolve_name(schedule["class_path"]), ReduceLROnPlateau):
        monitor = schedule.get("init_args", {}).get("monitor", "val/loss")  # as in `DigitClassifier`
        if lr_interval == "step" and monitor != "train/loss":
            raise UserError(f"--model.lr_interval is step; expected epoch, because {monitor} changes once an epoch")
        _check_monitor("--model.lr_scheduler: ReduceLROnPlateau", monitor, metrics)


def _check_monitor(owner: str, monitor: str, metrics: list[str]) -> None:
    if monitor not in metrics:
        (closest,) = difflib.get_close_matches(monitor, metrics, n=1, cutoff=0)
        raise UserError(
            f"{owner} follows {monitor}, which this run does not measure; did you mean {closest}? "
            f"It measures {', '.join(metrics)}"
        )


def check_split(val_size: int, trained: Any) -> None:
    """Make sure that a network is not validated on images that it was trained on.

    Args:
        val_size: The number of validation images that is asked for.
        trained: `val_size` in training, None if the checkpoint does not say.

    Raises:
        SettingError: Some of the validation images were trained on.
    """
    if val_size == trained or not all(isinstance(size, int) and 0 <= size < TRAIN_SIZE for size in (val_size, trained)):
        return  # `MNISTDataModule` names a `val_size` that is out of range
    labels = torch.zeros(TRAIN_SIZE)  # whether one split contains another does not depend on the labels
    asked, kept = ({*split(labels, size)[1].tolist()} for size in (val_size, trained))
    if not asked <= kept:
        expected = f"{trained}, or a number that divides it" if trained else "0"
        raise SettingError("val_size", val_size, f"{expected}: the checkpoint was trained on the other images")
