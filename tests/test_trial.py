"""Networks are tried before they are used."""

import copy

import pytest
import torch
from torch import Tensor, nn

from mnist_lightning import DigitClassifier, DigitReader, LeNet
from mnist_lightning.errors import NetworkError
from mnist_lightning.trial import logits_of, with_weights


class Lazy(nn.Sequential):
    """A network with lazy layers, one of them with buffers."""

    def __init__(self, outputs: int = 10) -> None:
        super().__init__(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(outputs))


def test_the_logits_of_a_network_that_fits_are_returned() -> None:
    network, images = LeNet(), torch.rand(3, 1, 28, 28)
    assert torch.equal(logits_of(network, images), network(images))


def test_a_lazy_network_works_in_a_notebook() -> None:
    images = torch.rand(3, 1, 28, 28)
    model = DigitClassifier(Lazy())
    assert model.network.training
    assert model.network[1].num_batches_tracked == 0  # the try counts as no batch
    model.optimizer(model.parameters())
    assert model(images).shape == (3, 10)
    assert DigitReader(model.network).probabilities(torch.zeros(2, 28, 28, dtype=torch.uint8)).shape == (2, 10)


def test_other_networks_are_not_touched() -> None:
    network = LeNet()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    assert with_weights(network) is network
    assert all(torch.equal(before[name], weights) for name, weights in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


class Wrong(nn.Module):
    """A network for images of 40x40 pixels or more."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyConv2d(4, 40)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images)


def test_a_lazy_network_that_fails_is_named_with_the_reason() -> None:
    with pytest.raises(NetworkError, match=r"network fails on images \(N, 1, 28, 28\): RuntimeError: .*Kernel size"):
        DigitClassifier(Wrong())
