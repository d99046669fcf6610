"""What a user sees of a run in the terminal: the network's layers, a bar, and a line for each epoch."""

import sys
import time
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.model_summary import ModelSummary as Summary
from torch import Tensor

from mnist_lightning import console
from mnist_lightning.classifier import DigitClassifier

METRICS = ("train/loss", "train/acc", "val/loss", "val/acc")


class Bar(TQDMProgressBar):
    """Lightning's progress bar with `train/loss` and `val/acc`, drawn every 50 steps and only in a terminal.

    Lightning would read a metric of each step from the device (PL#21232), and prefer a slower bar if `rich` is
    installed (PL#20896).
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=50 if sys.stdout.isatty() else 0)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = trainer.callback_metrics
        return {name: f"{metrics[name]:.4f}" for name in ("train/loss", "val/acc") if name in metrics}


class EpochLines(Callback):
    """Prints one line after each epoch: its metrics, and how long it took. `train/loss` is the mean of its steps."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin()  # a run that continues within an epoch does not start that epoch again

    def _begin(self) -> None:
        self._start, self._losses, self._steps = time.perf_counter(), 0.0, 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        # Lightning divides the loss by the number of batches that share a step. The sum stays on the device.
        self._losses = self._losses + loss.detach() * trainer.accumulate_grad_batches
        self._steps += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics: dict[str, Tensor | float] = {**trainer.callback_metrics}
        if self._steps:
            metrics["train/loss"] = float(self._losses / self._steps)
        metrics["train/acc"] = cast(DigitClassifier, pl_module).train_accuracy.compute()  # is logged after this
        shown = "  ".join(f"{name} {metrics[name]:.4f}" for name in METRICS if name in metrics)
        line = f"epoch {trainer.current_epoch + 1:3}  {shown}  {time.perf_counter() - self._start:.1f} s"
        self._print(trainer, line)

    @rank_zero_only
    def _print(self, trainer: Trainer, line: str) -> None:
        bar = trainer.progress_bar_callback
        if isinstance(bar, TQDMProgressBar) and bar.is_enabled:
            bar.print(line)  # above the bar
        else:
            print(line, flush=True)


class NetworkSummary(ModelSummary):
    """Prints the network's layers with the shapes of their inputs and outputs, and their parameters.

    Lightning's own summary also lists metrics, counts "0 FLOPs", and finds no shapes if the data module has hooks.
    """

    def _summary(self, trainer: Trainer, pl_module: LightningModule) -> Summary:
        alone = LightningModule()
        alone.network = cast(DigitClassifier, pl_module).network
        alone.forward = alone.network.forward  # type: ignore[method-assign]
        dtype = next((parameter.dtype for parameter in alone.parameters()), torch.float32)
        alone.example_input_array = torch.zeros(1, 1, 28, 28, dtype=dtype)
        return Summary(alone.to(pl_module.device), max_depth=-1)

    @staticmethod
    def summarize(summary_data: list[tuple[str, list[str]]], total_parameters: int, *_: Any, **__: Any) -> None:
        table = dict(summary_data)
        columns = [table[title] for title in ("Name", "Type", "In sizes", "Out sizes", "Params")]
        layers = [row for row in zip(*columns, strict=True) if row[0].startswith("network.")]
        rows = [("layer", "type", "input", "output", "parameters")]
        rows += [(name.removeprefix("network."), *(str(cell) for cell in cells)) for name, *cells in layers]
        print(console.table(rows))
        print(f"{total_parameters:,} parameters")
