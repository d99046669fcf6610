"""Networks: float images `(N, 1, 28, 28)` in, logits `(N, 10)` out."""

from torch import Tensor, nn
from torch.nn import functional as F


class LeNet(nn.Module):
    """The tutorial's network, after LeNet-5 (LeCun et al. 1998): 60,074 parameters in ten tensors.

    Layers are named as in the tutorial's `Net`, so that the two exchange their `state_dict`.
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
        # Pooling before the ReLU gives the tutorial's values exactly (both are monotonic), and the ReLU then
        # sees a quarter of the elements.
        x = F.relu(F.max_pool2d(self.conv1(images), 2))  # (N, 6, 13, 13)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # (N, 16, 5, 5)
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)
