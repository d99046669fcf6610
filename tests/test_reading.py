"""Digits that are not MNIST's: with the fonts of Debian's packages, and scikit-learn's."""

import random
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_predict import trained  # noqa: F401

from mnist_lightning import DigitClassifier

sys.path.insert(0, str(ROOT / "benchmarks"))


@pytest.mark.slow
def test_digits_of_other_sources_are_read_if_they_are_prepared(trained: Path) -> None:  # noqa: F811
    """By LeNet after a minute's training; `accurate.yaml` reads more of them (README)."""
    import reading

    model = DigitClassifier.load_from_checkpoint(trained / "version_0/checkpoints/best.ckpt").eval()
    least = {"handwritten": (0.9, reading.HANDWRITTEN), "printed": (0.9, reading.PRINTED), "scikit-learn": (0.75, None)}
    for share, fonts in least.values():
        pictures, labels = reading.rendered(fonts) if fonts else reading.scikit_learn()
        chosen = random.Random(0).sample(range(len(pictures)), 200)
        read = {
            how: (reading.logits_of(model, torch.stack([how(pictures[i]) for i in chosen])).argmax(1) == labels[chosen])
            for how in (reading.resized, reading.prepared)
        }
        assert read[reading.prepared].float().mean() > share
        assert read[reading.prepared].float().mean() > read[reading.resized].float().mean() + 0.2
