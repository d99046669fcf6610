"""Digits that are not MNIST's: in fonts of Debian's packages, and scikit-learn's."""

import random
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))


@pytest.mark.slow
def test_digits_of_other_sources_are_read_if_they_are_prepared(trained: Path) -> None:
    """By LeNet after half an epoch; `accurate.yaml` reads more of them (README)."""
    import reading

    checkpoint = trained / "version_0/checkpoints/best.ckpt"
    sources = [(reading.rendered(reading.HANDWRITTEN), 0.8), (reading.rendered(reading.PRINTED), 0.8)]
    for (pictures, labels), least in [*sources, (reading.scikit_learn(), 0.6)]:
        chosen = random.Random(0).sample(range(len(pictures)), 200)
        resized, prepared = (
            (reading.logits_of(checkpoint, torch.stack([how(pictures[i]) for i in chosen])).argmax(1) == labels[chosen])
            for how in (reading.resized, reading.prepared)
        )
        assert prepared.float().mean() > least
        assert prepared.float().mean() > resized.float().mean() + 0.2
