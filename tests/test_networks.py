from typing import Any

import pytest
import torch
from helpers import Net
from torch import Tensor
from torch.nn import functional as F

from mnist_lightning import LeNet
from mnist_lightning.errors import SettingError
from mnist_lightning.networks import ConvNet


def test_lenet_gives_ten_logits_for_each_image() -> None:
    logits = LeNet()(torch.randn(3, 1, 28, 28))
    assert logits.shape == (3, 10)
    assert logits.dtype == torch.float32


def test_lenet_has_the_tutorials_parameters() -> None:
    parameters = list(LeNet().parameters())
    assert len(parameters) == 10
    assert parameters[0].shape == (6, 1, 3, 3)
    assert sum(parameter.numel() for parameter in parameters) == 60_074


def test_weights_go_both_ways_between_lenet_and_the_tutorials_net() -> None:
    torch.manual_seed(0)
    ours, theirs = LeNet(), Net()
    theirs.load_state_dict(ours.state_dict())
    LeNet().load_state_dict(theirs.state_dict())

    # Whole 0 and 1 pixels, so that pooling sees ties.
    images = torch.randint(0, 2, (32, 1, 28, 28)).float()
    assert torch.equal(ours(images), theirs(images))
    ours(images).square().sum().backward()
    theirs(images).square().sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)


BLOCKS = ((16,), (32,), (64,))


def test_convnet_gives_ten_logits_for_each_image() -> None:
    for network in (ConvNet(), ConvNet().eval(), ConvNet(shift=0.5).eval(), ConvNet(BLOCKS, jitter=2)):
        logits = network(torch.randn(3, 1, 28, 28))
        assert logits.shape == (3, 10)
        assert logits.dtype == torch.float32


def test_convnet_has_as_many_parameters_as_it_says() -> None:
    assert sum(parameter.numel() for parameter in ConvNet().parameters()) == 240_058
    assert sum(parameter.numel() for parameter in ConvNet(BLOCKS).parameters()) == 26_234


def cut(images: Tensor, down: int = 0, right: int = 0) -> Tensor:
    return images[..., 2 + down : 26 + down, 2 + right : 26 + right]


def test_convnet_drops_features_in_training_alone() -> None:
    images, network = torch.randn(8, 1, 28, 28), ConvNet(dropout=0.5)
    features = network.features(cut(images)).flatten(1)  # with the batch's own statistics, the same on every pass
    assert not torch.equal(network(images), network.classifier(features))
    features = network.eval().features(cut(images)).flatten(1)
    assert torch.equal(network(images), network.classifier(features))


def test_convnet_moves_images_in_training_alone() -> None:
    images, network = torch.randn(8, 1, 28, 28), ConvNet(BLOCKS, dropout=0, jitter=1)
    moves = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    possible = [network.classifier(network.features(cut(images, *move)).flatten(1)) for move in moves]
    seen = set()
    for _ in range(200):
        logits = network(images)
        seen |= {move for move, expected in zip(moves, possible, strict=True) if torch.equal(logits, expected)}
    assert len(seen) == 9
    same = ConvNet(BLOCKS).eval()
    same.load_state_dict(network.eval().state_dict())
    assert torch.equal(network(images), same(images))


def test_convnet_takes_the_mean_over_nine_shifts() -> None:
    images, network = torch.randn(8, 1, 28, 28), ConvNet(shift=0.25).eval()
    once = ConvNet().eval()
    once.load_state_dict(network.state_dict())  # views are not among the weights
    places = [-0.25, 0.0, 0.25]
    moves = [torch.tensor([[1, 0, x / 14], [0, 1, y / 14]]).expand(8, 2, 3) for x in places for y in places]
    views = [
        F.grid_sample(images, F.affine_grid(move, [8, 1, 28, 28], False), padding_mode="border", align_corners=False)
        for move in moves
    ]
    torch.testing.assert_close(network(images), torch.stack([once(view) for view in views]).mean(0))


def test_convnet_in_training_looks_once() -> None:
    images, network = torch.randn(8, 1, 28, 28), ConvNet(dropout=0, shift=0.75)
    assert torch.equal(network(images), network.classifier(network.features(cut(images)).flatten(1)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"shift": 1.5}, r"shift is 1.5; expected 0\.\.1"),
        ({"jitter": 3}, r"jitter is 3; expected 0\.\.2"),
        ({"blocks": ((16,), (), (64,))}, r"blocks is .*; expected three blocks"),
        ({"blocks": ((16,), (0,), (64,))}, r"blocks is .*; expected three blocks"),
        ({"blocks": ((16,), (32,))}, r"blocks is .*; expected three blocks"),
    ],
)
def test_convnet_refuses_a_wrong_argument(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        ConvNet(**arguments)
