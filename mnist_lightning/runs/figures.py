"""`Figures`: what TensorBoard shows of a run beside its curves."""

import copy
import math
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.transforms.functional import pil_to_tensor

from mnist_lightning.classifier import Batch, DigitClassifier
from mnist_lightning.runs.logger import RunLogger

SHOWN = 144  # images of the first batch, at most
WORST = 15  # mistakes, at most

# Pillow draws the figures. Matplotlib would take 0.5 s to import, and 0.1 s for each matrix.
INK, PAPER, RIGHT, WRONG = (33, 33, 33), (255, 255, 255), (66, 133, 244), (219, 68, 55)


class Figures(Callback):
    """Draws the network's graph, the first batch, the filters of the first layer, the confusion matrix and mistakes.

    It uses no random numbers, so a run with figures equals a run without them, bit for bit.

    Args:
        logger: Receives the figures.
    """

    def __init__(self, logger: RunLogger) -> None:
        self.logger = logger

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Draw the first batch as the network receives it, and the graph of the network."""
        if trainer.global_step or batch_idx or not trainer.is_global_zero:
            return
        images, labels = batch[0][:SHOWN], batch[1][:SHOWN]
        self.logger.log_images(
            {"first_batch": tiles(images[:, 0], [str(label) for label in labels.tolist()], columns=12)}, 0
        )
        try:
            network = copy.deepcopy(cast(DigitClassifier, pl_module).network).eval()  # leaves the trained one unchanged
            self.logger.experiment.add_graph(network, images[:1])
        except Exception as error:  # a network that can't be copied or traced can still be trained
            rank_zero_warn(f"TensorBoard will not show the graph of the network: {error}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the filters of the first convolution, if there is one."""
        layers = cast(DigitClassifier, pl_module).network.modules()
        first = next((layer for layer in layers if isinstance(layer, nn.Conv2d)), None)
        if first is not None and trainer.is_global_zero:
            filters = first.weight.detach().float().mean(1)  # (N, H, W)
            self.logger.log_images({"first_layer": tiles(filters, [], columns=8, enlarged=20)}, last_step(trainer))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = pl_module.device
        self.confusion = MulticlassConfusionMatrix(num_classes=10, validate_args=False).to(device)
        # Each process keeps equally many mistakes, so that `all_gather` works. Confidence 0 means no mistake.
        self.confidences = torch.zeros(WORST, device=device)
        self.images = torch.zeros(WORST, 28, 28, device=device)
        self.labels, self.digits = torch.zeros(2, WORST, dtype=torch.int64, device=device)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        logits, (images, labels) = outputs, batch
        self.confusion.update(logits, labels)
        confidences, digits = logits.float().softmax(1).max(1)
        confidences = confidences.nan_to_num(0).where(digits != labels, 0)
        self.confidences, worst = torch.cat([self.confidences, confidences]).topk(WORST)
        self.images = torch.cat([self.images, images[:, 0].float()])[worst]
        self.labels = torch.cat([self.labels, labels])[worst]
        self.digits = torch.cat([self.digits, digits])[worst]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the confusion matrix, the worst mistakes, and the accuracy of each digit, over all processes."""

        def gather(own: Tensor) -> Tensor:
            return cast(Tensor, pl_module.all_gather(own)).reshape(-1, *own.shape[1:]).cpu()

        counts = self.confusion.compute().cpu()
        confidences, order = gather(self.confidences).sort(descending=True)
        images, labels, digits = (gather(own)[order] for own in (self.images, self.labels, self.digits))
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        stage, step = "test" if trainer.testing else "val", last_step(trainer)
        drawn = {f"{stage}/confusion": matrix(counts)}
        if mistakes := min(WORST, int(confidences.count_nonzero())):
            captions = [
                f"{label}, read as {digit}\n{confidence:.1%} sure"
                for label, digit, confidence in zip(labels[:mistakes], digits, confidences, strict=False)
            ]
            drawn[f"{stage}/worst_mistakes"] = tiles(images[:mistakes], captions, columns=5)
        self.logger.log_images(drawn, step)
        shares = (counts.diag() / counts.sum(1)).tolist()
        names = {f"{stage}_acc_of_digit/{digit}": share for digit, share in enumerate(shares)}
        self.logger.log_metrics({name: share for name, share in names.items() if not math.isnan(share)}, step)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


def last_step(trainer: Trainer) -> int:
    """Return the number of the last step, counted from 0 as in the curves."""
    return max(0, trainer.global_step - 1)


def tiles(images: Tensor, captions: list[str], columns: int, enlarged: int = 3) -> Tensor:
    """Draw images in a grid, each with a caption below.

    Args:
        images: float `(N, H, W)`. The smallest value is black, the largest is white.
        captions: One for each image, all with the same number of lines. An empty list draws none.
        columns: Images in a row.
        enlarged: How many times larger each image is drawn.

    Returns:
        uint8 `(1, height, width)`.
    """
    low, high = images.min(), images.max()
    pixels = (255 * (images - low) / (high - low).clamp(min=1e-12)).byte().cpu().numpy()
    height, width = (enlarged * size for size in pixels.shape[1:])
    below = 20 + 16 * captions[0].count("\n") if captions else 0
    rows = math.ceil(len(pixels) / columns)
    figure = Image.new("L", (columns * (width + 4) + 4, rows * (height + below + 4) + 4), 255)
    draw, font = ImageDraw.Draw(figure), ImageFont.load_default(13)
    for index, image in enumerate(pixels):
        row, column = divmod(index, columns)
        x, y = 4 + column * (width + 4), 4 + row * (height + below + 4)
        figure.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (x, y))
        if captions:
            draw.text((x + width / 2, y + height), captions[index], 0, font, anchor="ma", align="center", spacing=2)
    return pil_to_tensor(figure)


def matrix(counts: Tensor) -> Tensor:
    """Draw a confusion matrix. Each row ends with the share of right answers.

    Args:
        counts: int64 `(10, 10)`, one row for each label and one column for each answer.

    Returns:
        uint8 `(3, height, width)`.
    """
    cell, left, top = 40, 56, 56
    figure = Image.new("RGB", (left + 11 * cell + 24, top + 10 * cell + 8), PAPER)
    draw, font = ImageDraw.Draw(figure), ImageFont.load_default(14)
    draw.text((left + 5 * cell, 16), "answer", INK, font, anchor="mm")
    draw.text((left + 10.7 * cell, 40), "right", INK, font, anchor="mm")
    draw.text((8, top - 16), "label", INK, font, anchor="lm")
    totals = counts.sum(1).tolist()
    for label, row in enumerate(counts.tolist()):
        y = top + label * cell
        draw.text((36, y + cell / 2), str(label), INK, font, anchor="mm")
        draw.text((left + (label + 0.5) * cell, 40), str(label), INK, font, anchor="mm")
        for answer, count in enumerate(row):
            x = left + answer * cell
            share = count / max(1, totals[label])
            # The square root makes one mistake in a hundred visible.
            strength, colour = (0.75 * share, RIGHT) if answer == label else (min(1, 4 * share**0.5), WRONG)
            fill = tuple(round(255 + (hue - 255) * strength) for hue in colour)
            draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill if count else (245, 245, 245))
            if count:
                draw.text((x + cell / 2 - 1, y + cell / 2 - 1), str(count), INK, font, anchor="mm")
        right = f"{row[label] / totals[label]:.1%}" if totals[label] else ""
        draw.text((left + 10.7 * cell, y + cell / 2 - 1), right, INK, font, anchor="mm")
    return pil_to_tensor(figure)
