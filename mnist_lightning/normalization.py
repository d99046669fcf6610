"""How pixels become the numbers that a network receives."""

from torch import Tensor


def normalize(images: Tensor, mean: float, std: float) -> Tensor:
    """Return float images for a network, on the device of the given images.

    The result equals that of torchvision's `ToTensor` and `Normalize`, bit for bit.

    Args:
        images: uint8 `(N, 28, 28)` in 0..255.
        mean: The number to subtract from pixels in 0..1.
        std: The divisor of pixels minus `mean`. With mean 0.5 and std 0.5, pixels end up in -1..1.

    Returns:
        float32 `(N, 1, 28, 28)`.
    """
    return images.unsqueeze(1).float().div_(255).sub_(mean).div_(std)
