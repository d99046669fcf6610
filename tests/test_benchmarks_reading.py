"""Digits that are not MNIST's: in fonts of Debian's packages, and scikit-learn's."""

import random
import re
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from mnist_lightning import DigitReader

sys.path.insert(0, str(ROOT / "benchmarks"))


@pytest.mark.slow
def test_digits_of_other_sources_are_read_right_only_if_they_are_prepared(trained: Path) -> None:
    """The reader is a LeNet after half an epoch. `accurate.yaml` reads more of them right (README)."""
    import reading

    reader = DigitReader.load(trained / "version_0")
    sources = [(reading.rendered(reading.HANDWRITTEN), 0.8), (reading.rendered(reading.PRINTED), 0.8)]
    for (pictures, labels), least in [*sources, (reading.scikit_learn(), 0.6)]:
        chosen = random.Random(0).sample(range(len(pictures)), 200)
        digits = reading.as_images(([pictures[number] for number in chosen], labels[chosen]))
        resized, prepared = (
            (reader.probabilities(images).argmax(1) == digits.labels).float().mean()
            for images in (digits.resized, digits.prepared)
        )
        assert prepared > least
        assert prepared > resized + 0.2
        cells = reading.accuracies(reader, digits)
        assert cells[:2] == [reading.percent(resized), reading.percent(prepared)]


@pytest.mark.slow
def test_the_tables_have_one_number_in_each_cell(trained: Path) -> None:
    import reading

    pictures, labels = reading.scikit_learn()
    digits = reading.as_images((pictures[:20], labels[:20]))
    text = reading.tables({"a.yaml": trained / "version_0/checkpoints/best.ckpt"}, {"digits": digits})
    photos, test_images = text.split("\n\n")
    for table, pattern in (
        (photos, r"\| `a.yaml` \| 20 digits \| [\d.]+ % \| [\d.]+ % \| \d+ % \| ([\d.]+ %)? \|"),
        (test_images, r"\| `a.yaml` \| 0\.\d\d % \| \d\.\de-0\d \|"),
    ):
        heading, rule, row = table.splitlines()
        assert heading.count("|") == rule.count("|") == row.count("|")
        assert re.fullmatch(pattern, row)
