"""Networks: float images `(N, 1, 28, 28)` in, logits `(N, 10)` out."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_lightning.errors import SettingError

BORDER = 2  # pixels that ConvNet cuts off on each side


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
    """Blocks of convolutions, mostly of 3x3 as in VGG (Simonyan and Zisserman 2015). Each block halves the image.

    It cuts off a border of 2 pixels, which MNIST's digits seldom reach. With the default blocks, it has six
    convolutions and 240,058 parameters.

    Args:
        blocks: The number of channels of each convolution, for three blocks.
        dropout: The share of features that the last layer does not see in a training step, in 0..1 (Srivastava et
            al. 2014).
        jitter: How far the images move at random in a training step, in whole pixels, 0..2. All images of a batch
            move alike.
        shift: How far the image moves for test-time augmentation, in pixels, 0..1. If it is above 0, `eval` mode
            averages the logits of nine views: the image itself and eight shifted copies. A shift by part of a pixel
            blurs an image. Distortions blur images, too, so only a network that was trained with them profits from it.

    Raises:
        SettingError: An argument is outside its range.
    """

    kernels: Tensor

    def __init__(
        self,
        blocks: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] = ((16,), (48, 48), (96, 96, 96)),
        dropout: float = 0.25,
        jitter: int = 0,
        shift: float = 0.0,
    ) -> None:
        super().__init__()
        if len(blocks) != 3 or not all(block and min(block) > 0 for block in blocks):
            raise SettingError("blocks", blocks, "three blocks of convolutions with at least 1 channel")
        for name, value, most in (("dropout", dropout, 1), ("jitter", jitter, BORDER), ("shift", shift, 1)):
            if not 0 <= value <= most:
                raise SettingError(name, value, f"0..{most}")
        layers: list[nn.Module] = []
        inputs = 1
        for block in blocks:
            for number, outputs in enumerate(block, 1):
                layers.append(_layer(inputs, outputs, first=not layers, pool=number == len(block)))
                inputs = outputs
        self.features = nn.Sequential(*layers)  # (N, 96, 2, 2)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(inputs * 2 * 2, 10)
        self.jitter = jitter
        self.shift = shift
        # A convolution makes the views. Each kernel mixes neighbouring pixels to shift an image.
        axis = torch.tensor([[shift, 1 - shift, 0], [0, 1, 0], [0, 1 - shift, shift]])
        kernels = torch.einsum("iy,jx->ijyx", axis, axis).reshape(9, 1, 3, 3)
        self.register_buffer("kernels", kernels, persistent=False)  # not in checkpoints: it follows from `shift`

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, 10)` for float images `(N, 1, 28, 28)`."""
        top = left = BORDER
        if self.training and self.jitter:
            top, left = (BORDER + torch.randint(-self.jitter, self.jitter + 1, (2,))).tolist()
        if self.training or not self.shift:
            return self._logits(images[..., top : top + 24, left : left + 24])
        views = F.conv2d(images[..., 1:-1, 1:-1], self.kernels)  # (N, 9, 24, 24)
        return self._logits(views.flatten(0, 1).unsqueeze(1)).view(-1, 9, 10).mean(1)

    def _logits(self, images: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.features(images).flatten(1)))


def _layer(inputs: int, outputs: int, first: bool, pool: bool) -> nn.Sequential:
    # The first kernel is larger: the image has one channel, so this is cheap.
    kernel_size, padding = (5, 0) if first else (3, 1)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size, padding=padding, bias=False),  # the normalization adds a bias
        *([nn.MaxPool2d(2)] if pool else []),  # first, because the normalization then sees a quarter of the values
        nn.BatchNorm2d(outputs),  # Ioffe and Szegedy 2015
        nn.ReLU(inplace=True),
    )
