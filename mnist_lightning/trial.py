"""Tries a network on an image or two, so that a network that does not fit is found before it is used."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mnist_lightning.errors import NetworkError


def with_weights(network: nn.Module) -> nn.Module:
    """Return a network. Its lazy layers, such as `LazyLinear`, receive their weights: nothing can use them before.

    Raises:
        NetworkError: The network has lazy layers, and fails on an image.
    """
    if any(is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
        training = network.training
        with torch.no_grad(), named_errors():
            network.eval()(torch.zeros(1, 1, 28, 28))
        network.train(training)
    return network


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Return the logits `(N, 10)` of float images `(N, 1, 28, 28)`.

    Raises:
        NetworkError: The network fails, or gives something else.
    """
    with named_errors():
        logits: Any = network(images)
    if not isinstance(logits, Tensor):
        raise NetworkError(f"outputs are of the type {type(logits).__name__}; expected a tensor of logits")
    if logits.shape != (len(images), 10):
        raise NetworkError(f"logits have the shape {tuple(logits.shape)}, not {(len(images), 10)}")
    return logits


@contextmanager
def named_errors() -> Iterator[None]:
    """Turn any error of a network into a `NetworkError`."""
    try:
        yield
    except Exception as error:  # users can write networks
        reason = next(iter(str(error).splitlines()), "")
        raise NetworkError(f"network fails on images (N, 1, 28, 28): {type(error).__name__}: {reason}") from error
