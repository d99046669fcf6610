"""`DigitReader`: a trained network with everything around it. uint8 images in, logits and probabilities out."""

import copy
import os
import pkgutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from mnist_lightning import checkpoint, trial
from mnist_lightning.calibration import KEY, Calibration
from mnist_lightning.errors import CheckpointError, NetworkError, in_a_line
from mnist_lightning.normalization import normalize
from mnist_lightning.runs import folders
from mnist_lightning.settings import settings_of
from mnist_lightning.use import photos

BATCH = 500  # images that the network reads at a time
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, repr=False)
class Prediction:
    """What was read in one image.

    Attributes:
        file: Where the image comes from.
        answer: The digit, or `unsure` if its confidence is below the threshold. Empty if there is a problem.
        digit: The most likely digit, 0..9. If there is a problem, this and the next three attributes are None.
        confidence: The probability of `digit`, in 0..1.
        second_digit: The second most likely digit.
        second_confidence: The probability of `second_digit`.
        problem: Why no digit was read, or empty.
    """

    file: str
    answer: str
    digit: int | None = None
    confidence: float | None = None
    second_digit: int | None = None
    second_confidence: float | None = None
    problem: str = ""

    def __repr__(self) -> str:
        """Return a line for people: a notebook shows it."""
        if self.problem:
            return f"<{self.file}: {self.problem}>"
        sure, second = self.choices()
        return f"<{self.file}: {self.answer}, {sure}, second choice {second}>"

    def choices(self) -> tuple[str, str]:
        """Return the confidence and the second choice as texts for people."""
        sure = f"{self.confidence:.2%}" + (f" for {self.digit}" if self.answer == "unsure" else "")
        return sure, f"{self.second_digit} ({self.second_confidence:.2%})"


class DigitReader(nn.Module):
    """Reads digits with a trained network.

        reader = DigitReader.load("best")
        reader.read("photo.jpg").answer
        logits, probabilities = reader(images)

    Args:
        network: Turns float images `(N, 1, 28, 28)` into logits `(N, 10)`. The reader keeps a copy.
        mean: The mean that the network's images were normalized with.
        std: The standard deviation of the same normalization.
        calibration: What validation has found out about the network. Without a calibration, no answer is `unsure`.

    Attributes:
        source: Where the network comes from: checkpoint, run, step, class, arguments and validation.
    """

    def __init__(
        self, network: nn.Module, mean: float = 0.5, std: float = 0.5, calibration: Calibration | None = None
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network is {network!r}; expected a torch module")
        self.network = copy.deepcopy(trial.with_weights(network))
        self.mean = mean
        self.std = std
        self.calibration = calibration
        self.source: dict[str, Any] = {}
        self.eval()

    @classmethod
    def load(cls, name: str | Path = "best", network: nn.Module | None = None, logs: str = "lightning_logs") -> Self:
        """Build a reader from a checkpoint.

        Args:
            name: `best` or `last` for the newest run that has one, a run folder, `version_N`, or a file.
            network: Receives the weights. Only for a notebook's checkpoint, which names no network.
            logs: The folder of the runs.

        Raises:
            CheckpointError: There is no such checkpoint, it is damaged, or it belongs to another program.
        """
        path = folders.find_checkpoint(name, Path(logs))
        content = checkpoint.read(path)
        setting = settings_of(content, path, ["network"]).get("network")
        data = content.get("datamodule_hyper_parameters", {})
        if network is None and setting is None:
            raise CheckpointError(f"{path} does not name its network; expected a checkpoint of `fit`, or a `network`")
        mean, std = data.get("mean"), data.get("std")
        numbers = all(type(value) in (int, float) and abs(value) < LARGEST for value in (mean, std))
        if not numbers or not std > 0:
            raise CheckpointError(f"{path} does not say how its images were normalized; expected a checkpoint of `fit`")
        try:
            calibration = Calibration.stored(content.get(KEY))
            reader = cls(_build(setting) if network is None else network, mean, std, calibration)
        except Exception as error:  # users can write classes
            raise CheckpointError(f"{path} can't be used: its network can't be built: {in_a_line(error)}") from error
        weights = {
            name.removeprefix("network."): weight
            for name, weight in content["state_dict"].items()
            if name.startswith("network.")
        }
        checkpoint.load_weights(reader.network, weights, path)
        reader.check(path)
        run = folders.run_of(path)
        reader.source = {
            "network": f"{type(reader.network).__module__}.{type(reader.network).__qualname__}",
            "arguments": setting.get("init_args", {}) if isinstance(setting, Mapping) else {},
            "validation": asdict(reader.calibration) if reader.calibration else None,
            "run": os.path.relpath(run) if run else None,
            "checkpoint": os.path.relpath(path),
            "step": content.get("global_step"),
        }
        return reader

    def check(self, path: Path) -> None:
        """Read one blank image.

        Raises:
            CheckpointError: The network of the checkpoint at `path` does not give ten finite logits.
        """
        try:
            blank = torch.zeros(1, 28, 28, dtype=torch.uint8)
            logits = trial.logits_of(self.network, normalize(blank, self.mean, self.std))
        except NetworkError as error:
            raise CheckpointError(f"{path} can't be used: its {error}") from error
        if not logits.isfinite().all():
            raise CheckpointError(f"{path} can't be used: its network gives numbers that are not finite")

    @property
    def threshold(self) -> float:
        """The smallest confidence that gives an answer. Without a calibration, any confidence does."""
        return self.calibration.threshold if self.calibration else 0.0

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and probabilities, both float32 `(N, 10)`, for uint8 images `(N, 28, 28)`."""
        logits = self.network(normalize(images, self.mean, self.std))
        return logits, logits.softmax(1)

    def probabilities(self, images: Tensor) -> Tensor:
        """Return probabilities, float32 `(N, 10)`, for any number of uint8 images `(N, 28, 28)`."""
        with torch.inference_mode():
            return torch.cat([self(batch)[1] for batch in images.split(BATCH)])

    def predict(self, images: Tensor, files: list[str], problems: list[str] | None = None) -> list[Prediction]:
        """Return what the network reads in images.

        Args:
            images: uint8 `(N, 28, 28)`, ink is 255, background is 0.
            files: N names.
            problems: N texts that say why there is no image, or are empty.
        """
        confidences, digits = self.probabilities(images).topk(2)
        return [
            Prediction(file, "", problem=problem)
            if problem
            else Prediction(file, str(first) if sure >= self.threshold else "unsure", first, sure, second, next_sure)
            for file, problem, (sure, next_sure), (first, second) in zip(
                files, problems or [""] * len(files), confidences.tolist(), digits.tolist(), strict=True
            )
        ]

    def read(self, photo: str | Path) -> Prediction:
        """Return what the network reads in a photo. If the photo can't be read, `problem` says why."""
        images, problems = photos.prepare_all([Path(photo)])
        return self.predict(images, [str(photo)], problems)[0]


def _build(setting: Any) -> Any:
    """Build an object from its class and arguments, as LightningCLI stores them.

    LightningCLI's own function would import Lightning, which takes longer than reading a photo.
    """
    if isinstance(setting, Mapping) and "class_path" in setting:
        arguments = setting.get("init_args", {}) | setting.get("dict_kwargs", {})
        return pkgutil.resolve_name(setting["class_path"])(**{key: _build(value) for key, value in arguments.items()})
    return [_build(value) for value in setting] if isinstance(setting, list) else setting
