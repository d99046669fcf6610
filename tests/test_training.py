"""Real training runs on the real archives."""

from pathlib import Path

import pytest
import torch
from helpers import DATA, LAST, ROOT, curves, load, right_answers
from lightning.pytorch import Trainer

from mnist_lightning import DigitClassifier, LeNet, MNISTDataModule
from mnist_lightning.cli import main


def test_a_short_run_learns_to_read_most_digits(workplace: Path) -> None:
    """200 steps with a learning rate 30 times the tutorial's, as a notebook would run them."""
    model = DigitClassifier(LeNet(), optimizer=lambda params: torch.optim.SGD(params, lr=0.03, momentum=0.9))
    trainer = Trainer(max_steps=200, enable_progress_bar=False, logger=False, enable_checkpointing=False)
    data = MNISTDataModule(DATA)
    trainer.fit(model, data)
    assert trainer.test(model, data)[0]["test/acc"] > 0.9


@pytest.mark.slow
def test_the_tutorials_recipe_reaches_the_tutorials_accuracy(workplace: Path) -> None:
    """Ten runs of the tutorial's own loop: 97.97 % with a standard deviation of 0.13."""
    main(["fit", f"--config={ROOT / 'configs/tutorial.yaml'}", f"--data.root={DATA}"])
    main(["test", "--ckpt_path=last", f"--data.root={DATA}"])

    assert load(LAST)["global_step"] == 20 * 469
    right = right_answers(LAST)
    ((_, logged),) = curves()["test/acc"]
    assert round(logged * 10_000) == right
    assert 9_760 <= right <= 9_850
