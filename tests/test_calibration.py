import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from mnist_lightning.calibration import Calibration, calibrate, probabilities


def answers(temperature: float, size: int = 20_000) -> tuple[Tensor, Tensor]:
    """Logits that are `temperature` times as sharp as their labels are certain."""
    generator = torch.Generator().manual_seed(0)
    honest = 3 * torch.randn(size, 10, generator=generator)
    labels = torch.multinomial(honest.softmax(1), 1, generator=generator).flatten()
    return temperature * honest, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_takes_back_what_is_too_sharp_or_too_flat(temperature: float) -> None:
    logits, labels = answers(temperature)
    calibration = calibrate(logits, labels, 7)
    assert calibration.temperature == pytest.approx(temperature, rel=0.03)
    # No other temperature has a lower loss.
    losses = [F.cross_entropy(logits.double() / (calibration.temperature * by), labels) for by in (0.98, 1, 1.02)]
    assert losses[1] < min(losses[0], losses[2])
    error = [
        multiclass_calibration_error(probabilities(logits, by).float(), labels, num_classes=10)
        for by in (None, calibration)
    ]
    assert error[1] < 0.01
    assert error[1] <= error[0] + 0.001


def test_the_threshold_answers_as_much_as_one_mistake_in_1000_allows() -> None:
    """2,000 images, ever less certain, of which the 1,001st, the 1,500th and those after the 1,600th are mistaken."""
    logits = torch.zeros(2_000, 10)
    logits[:, 7] = torch.linspace(9, 4, 2_000)
    labels = torch.full([2_000], 7)
    labels[[1_000, 1_499]] = 1
    labels[1_600:] = 1
    calibration = calibrate(logits, labels, 7)
    confidences = probabilities(logits, calibration).max(1).values
    # Up to the 1,499th there is one mistake, which is no more than one in 1,000; with the 1,500th there are two.
    assert calibration.threshold == pytest.approx(confidences[1_498].item(), abs=1e-12)
    assert (calibration.accuracy, calibration.images, calibration.step) == (1_598 / 2_000, 2_000, 7)


def test_a_network_that_is_wrong_about_all_answers_nothing() -> None:
    logits = torch.eye(10).repeat(10, 1)
    calibration = calibrate(logits, (torch.arange(100) + 1) % 10, 7)
    assert calibration.threshold > 1
    assert calibration.temperature == pytest.approx(20, rel=0.01)  # as flat as it gets


def test_equal_confidences_are_all_answers_or_none() -> None:
    logits = torch.zeros(2_000, 10)
    logits[:, 7] = 5
    logits[:500, 7] = 6
    labels = torch.full([2_000], 7)
    labels[1_990:] = 1  # ten of those that are less certain
    calibration = calibrate(logits, labels, 7)
    answered = probabilities(logits, calibration).max(1).values >= calibration.threshold
    assert answered.sum() == 500


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_that_diverged_has_no_calibration(value: float) -> None:
    assert calibrate(torch.full([10, 10], value), torch.arange(10), 7) is None


def test_probabilities_are_those_of_the_softmax_at_a_temperature() -> None:
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(probabilities(logits, None), logits.double().softmax(1))
    calibrated = probabilities(logits, Calibration(2.0, 0.9, 0.99, 100, 7))
    assert calibrated.dtype == torch.float64
    assert torch.allclose(calibrated, (logits.double() / 2).softmax(1))
