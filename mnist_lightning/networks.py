"""Networks: float images `(N, 1, 28, 28)` in, logits `(N, 10)` out."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_lightning.errors import SettingError


class LeNet(nn.Module):
    """The tutorial's network, after LeNet-5 (LeCun et al. 1998): 60,074 parameters in ten tensors.

    The layers have the same names as in the tutorial's `Net`, so each network loads the other's `state_dict`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3)
        self.conv2 = nn.Conv2d(6, 16, 3)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, 10)` for float images `(N, 1, 28, 28)`."""
        # The tutorial pools after ReLU. The result is the same, and ReLU here sees a quarter of the values.
        x = F.relu(F.max_pool2d(self.conv1(images), 2))  # (N, 6, 13, 13)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # (N, 16, 5, 5)
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class ConvNet(nn.Module):
    """Six convolutions, mostly of 3x3 as in VGG (Simonyan and Zisserman 2015): 244,858 parameters.

    Args:
        dropout: The share of features that the last layer does not see in a training step, in 0..1 (Srivastava et
            al. 2014).
        shift: How far the image moves for test-time augmentation, in pixels, 0..1. If it is above 0, `eval` mode
            averages the logits of nine views: the image itself and eight shifted copies. Use it for networks that were
            trained on distorted images: a shift by part of a pixel blurs an image, and so do distortions.

    Raises:
        SettingError: An argument is outside its range.
    """

    kernels: Tensor

    def __init__(self, dropout: float = 0.25, shift: float = 0.0) -> None:
        super().__init__()
        if not 0 <= dropout <= 1:
            raise SettingError("dropout", dropout, "0..1")
        if not 0 <= shift <= 1:
            raise SettingError("shift", shift, "0..1")
        self.features = nn.Sequential(
            _layer(1, 16, kernel_size=5, padding=0, pool=True),  # (N, 16, 12, 12)
            _layer(16, 48),
            _layer(48, 48, pool=True),  # (N, 48, 6, 6)
            _layer(48, 96),
            _layer(96, 96),
            _layer(96, 96, pool=True),  # (N, 96, 3, 3)
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(96 * 3 * 3, 10)
        self.shift = shift
        # A convolution makes the views. Each kernel mixes neighbouring pixels to shift an image.
        axis = torch.tensor([[shift, 1 - shift, 0], [0, 1, 0], [0, 1 - shift, shift]])
        kernels = torch.einsum("iy,jx->ijyx", axis, axis).reshape(9, 1, 3, 3)
        self.register_buffer("kernels", kernels, persistent=False)  # not in checkpoints: it follows from `shift`

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, 10)` for float images `(N, 1, 28, 28)`."""
        if self.training or not self.shift:
            return self._logits(images)
        views = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), self.kernels)  # (N, 9, 28, 28)
        return self._logits(views.flatten(0, 1).unsqueeze(1)).view(-1, 9, 10).mean(1)

    def _logits(self, images: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.features(images).flatten(1)))


def _layer(inputs: int, outputs: int, kernel_size: int = 3, padding: int = 1, pool: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size, padding=padding, bias=False),  # the normalization adds a bias
        *([nn.MaxPool2d(2)] if pool else []),  # first, because the normalization then sees a quarter of the values
        nn.BatchNorm2d(outputs),  # Ioffe and Szegedy 2015
        nn.ReLU(inplace=True),
    )
