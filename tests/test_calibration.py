import pytest
import torch

from mnist_lightning.calibration import Calibration, calibrate


def test_the_threshold_allows_as_many_answers_as_one_mistake_in_1000_permits() -> None:
    """2,000 images in order of confidence. The 1,001st, the 1,500th and all after the 1,600th are wrong."""
    logits = torch.zeros(2_000, 10)
    logits[:, 7] = torch.linspace(9, 4, 2_000)
    labels = torch.full([2_000], 7)
    labels[[1_000, 1_499]] = 1
    labels[1_600:] = 1
    calibration = calibrate(logits, labels, 7)
    confidences = logits.softmax(1).max(1).values
    # Among the first 1,499 images there is one mistake, which is allowed. Among the first 1,500 there are two.
    assert calibration.threshold == pytest.approx(confidences[1_498].item(), abs=1e-12)
    assert (calibration.accuracy, calibration.images, calibration.step) == (1_598 / 2_000, 2_000, 7)


def test_no_lower_threshold_is_allowed_and_the_order_of_the_images_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6_000, 10, generator=generator)
    labels = torch.multinomial((3 * logits).softmax(1), 1, generator=generator).flatten()
    calibration = calibrate(logits, labels, 7)
    order = torch.randperm(6_000, generator=generator)
    assert calibrate(logits[order], labels[order], 7) == calibration

    confidences, digits = logits.softmax(1).max(1)
    wrong, answered = digits != labels, confidences >= calibration.threshold
    assert 0 < wrong[answered].sum() <= answered.sum() / 1_000
    # Each lower threshold would allow too many mistakes.
    answered = confidences >= confidences[~answered].unique()[:, None]  # (thresholds, images)
    assert ((answered & wrong).sum(1) > answered.sum(1) / 1_000).all()


def test_a_network_that_is_always_wrong_gives_no_answers() -> None:
    logits = torch.eye(10).repeat(10, 1)
    calibration = calibrate(logits, (torch.arange(100) + 1) % 10, 7)
    assert calibration.threshold > 1


def test_images_with_the_same_confidence_are_answered_together() -> None:
    logits = torch.zeros(2_000, 10)
    logits[:, 7] = 5
    logits[:500, 7] = 6
    labels = torch.full([2_000], 7)
    labels[1_990:] = 1  # ten of the images with less confidence
    calibration = calibrate(logits, labels, 7)
    answered = logits.softmax(1).max(1).values >= calibration.threshold
    assert answered.sum() == 500


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_whose_logits_are_not_finite_has_no_calibration(value: float) -> None:
    assert calibrate(torch.full([10, 10], value), torch.arange(10), 7) is None


def test_without_images_there_is_no_calibration() -> None:
    assert calibrate(torch.empty(0, 10), torch.empty(0, dtype=torch.int64), 7) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": float("nan")},
        {"threshold": 1.1},
        {"threshold": "0.9"},
        {"accuracy": -0.1},
        {"images": 0},
        {"images": 2.5},
        {"step": -1},
        {"temperature": 1.0},
    ],
)
def test_values_that_no_validation_can_find_are_not_used(wrong: dict[str, object]) -> None:
    right = {"threshold": 0.9, "accuracy": 0.99, "images": 5_000, "step": 860}
    assert Calibration.stored(right) == Calibration(0.9, 0.99, 5_000, 860)
    assert Calibration.stored(right | wrong) is None
