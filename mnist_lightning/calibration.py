"""How far a network's confidence can be trusted, measured on the validation images."""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

KEY = "calibration"  # the key of a calibration in a checkpoint
ABOVE_ALL = math.nextafter(1, 2)  # a threshold above any confidence
RISK = 1 / 1_000  # the largest share of wrong answers on the validation images


@dataclass(frozen=True)
class Calibration:
    """What a validation has found out about a network.

    Attributes:
        threshold: The smallest confidence that gives an answer. Below it, the answer is `unsure`. In 0..1, or just
            above 1 if no confidence is enough.
        accuracy: The share of right digits, in 0..1.
        images: The number of validation images.
        step: The number of training steps that the network had made.
    """

    threshold: float
    accuracy: float
    images: int
    step: int

    @classmethod
    def stored(cls, values: Any) -> Self | None:
        """Return the calibration in a checkpoint, None if this version can't read it."""
        known = isinstance(values, dict) and values.keys() == cls.__annotations__.keys()
        if not known or not all(isinstance(value, int | float) for value in values.values()):
            return None
        stored = cls(**values)
        shares = 0 <= stored.threshold <= ABOVE_ALL and 0 <= stored.accuracy <= 1  # also refuses NaN
        counts = isinstance(stored.images, int) and isinstance(stored.step, int)
        return stored if shares and counts and stored.images >= 1 and stored.step >= 0 else None


def calibrate(logits: Tensor, labels: Tensor, step: int) -> Calibration | None:
    """Choose the threshold that allows the most answers, with at most one in 1,000 wrong.

    This is selective classification (Geifman and El-Yaniv 2017).

    Args:
        logits: float `(N, 10)`, of images that the network was not trained on.
        labels: int64 `(N,)` in 0..9.
        step: The number of training steps that the network has made.

    Returns:
        None if there are no images, or if a logit is not finite.
    """
    logits, labels = logits.cpu(), labels.cpu()
    if not len(labels) or not logits.isfinite().all():
        return None
    confidences, digits = logits.float().softmax(1).max(1)
    right = digits == labels
    confidences, order = confidences.sort(descending=True)
    answers = torch.arange(1, len(order) + 1)
    # Images with the same confidence are answered together.
    last_of_equals = torch.cat([confidences[:-1] > confidences[1:], torch.tensor([True])])
    allowed = (((~right[order]).cumsum(0) <= RISK * answers) & last_of_equals).nonzero()
    threshold = confidences[allowed[-1]].item() if len(allowed) else ABOVE_ALL
    return Calibration(threshold, right.double().mean().item(), len(labels), step)
