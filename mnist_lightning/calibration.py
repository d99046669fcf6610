"""How far a network's confidence can be trusted, as the validation split tells."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RISK = 1 / 1_000  # at most so many of the answers given on the validation split are wrong
SHARPEST, FLATTEST = 1 / 20, 20.0  # temperatures


@dataclass(frozen=True)
class Calibration:
    """What turns logits into confidences and answers.

    Attributes:
        temperature: logits are divided by it before the softmax (Guo et al. 2017); more than 0.
        threshold: the least confidence with which a digit is the answer; below it, `unsure` is. In 0..1, or just above
            where no confidence is enough.
        accuracy: on the validation images, in 0..1.
        images: how many validation images there were.
        step: how many training steps the network had made.
    """

    temperature: float
    threshold: float
    accuracy: float
    images: int
    step: int


def probabilities(logits: Tensor, calibration: Calibration | None) -> Tensor:
    """Return probabilities float64 `(N, 10)` for logits `(N, 10)`: calibrated, or those of the plain softmax."""
    return (logits.double() / (calibration.temperature if calibration else 1)).softmax(1)


def calibrate(logits: Tensor, labels: Tensor, step: int) -> Calibration | None:
    """Choose a temperature and a threshold on images that the network was not trained on.

    The temperature is the one of the least cross-entropy. The threshold keeps as many answers as it can with at most
    one in 1,000 of them wrong (selective classification, Geifman and El-Yaniv 2017).

    Args:
        logits: float `(N, 10)`.
        labels: int64 `(N,)` in 0..9.
        step: how many training steps the network has made.

    Returns:
        None if there is nothing to choose on: no images, or logits that are not all finite.
    """
    logits, labels = logits.cpu().double(), labels.cpu()  # a Mac's GPU has no float64
    if not len(labels) or not logits.isfinite().all():
        return None
    of_labels = logits.gather(1, labels[:, None])
    low, high = SHARPEST, FLATTEST
    for _ in range(30):
        # The loss is convex in 1 / temperature: where it grows with that, the softmax is too sharp.
        middle = (low * high) ** 0.5
        expected = ((logits / middle).softmax(1) * logits).sum(1, keepdim=True)
        low, high = (middle, high) if (expected - of_labels).mean() > 0 else (low, middle)
    temperature = (low * high) ** 0.5

    confidences, digits = (logits / temperature).softmax(1).max(1)
    right = digits == labels
    confidences, order = confidences.sort(descending=True)
    answers = torch.arange(1, len(order) + 1)
    # Equal confidences are all answers, or none.
    last_of_equals = torch.cat([confidences[:-1] > confidences[1:], torch.tensor([True])])
    allowed = (((~right[order]).cumsum(0) <= RISK * answers) & last_of_equals).nonzero()
    threshold = confidences[allowed[-1]].item() if len(allowed) else math.nextafter(1, 2)
    return Calibration(temperature, threshold, right.double().mean().item(), len(labels), step)
