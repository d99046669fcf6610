"""What a network makes of images: rows for people to read, and for machines."""

import csv
import io
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from torch import Tensor

from mnist_lightning.calibration import Calibration, probabilities
from mnist_lightning.files import written_whole

SUFFIXES = (".csv", ".json")


@dataclass(frozen=True)
class Prediction:
    """What was read in one image.

    Attributes:
        file: where the image is from.
        answer: the digit, or `unsure` if the confidence is below the threshold; "" where there is a problem.
        digit: the likeliest one, 0..9, None where there is a problem, as for the next three.
        confidence: its calibrated probability, in 0..1.
        second_digit: the next likely one.
        second_confidence: its calibrated probability.
        problem: why nothing could be read, "" if it could.
    """

    file: str
    answer: str
    digit: int | None = None
    confidence: float | None = None
    second_digit: int | None = None
    second_confidence: float | None = None
    problem: str = ""


def interpret(
    logits: Tensor, calibration: Calibration | None, files: list[str], problems: list[str]
) -> list[Prediction]:
    """Return what logits `(N, 10)` say of N images.

    Args:
        logits: float `(N, 10)`.
        calibration: of the network. Without it confidences are those of the softmax, and nothing is `unsure`.
        files: N names.
        problems: N reasons, "" where there is none.
    """
    threshold = calibration.threshold if calibration else 0.0
    likely, digits = probabilities(logits, calibration).topk(2)
    return [
        Prediction(file, "", problem=problem)
        if problem
        else Prediction(file, str(first) if sure >= threshold else "unsure", first, sure, second, next_sure)
        for file, problem, (sure, next_sure), (first, second) in zip(
            files, problems, likely.tolist(), digits.tolist(), strict=True
        )
    ]


def table(rows: list[Prediction]) -> str:
    """Return a line for each row, below a heading."""
    lines = [("file", "answer", "confidence", "second choice")]
    for row in rows:
        if row.problem:
            lines.append((row.file, "-", row.problem, ""))
        else:
            sure = f"{row.confidence:.2%}" + (f" for {row.digit}" if row.answer == "unsure" else "")
            lines.append((row.file, row.answer, sure, f"{row.second_digit} ({row.second_confidence:.2%})"))
    width = max(len(file) for file, *_ in lines)
    return "\n".join(
        f"{file:{width}}  {answer:6}  {confidence:12}  {second}".rstrip() for file, answer, confidence, second in lines
    )


def write(rows: list[Prediction], path: Path) -> None:
    """Write rows as CSV or JSON, by the suffix of a path: a column, or a key, for each attribute of `Prediction`."""
    if path.suffix.lower() == ".json":
        text = json.dumps([asdict(row) for row in rows], indent=1) + "\n"
    else:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, [field.name for field in fields(Prediction)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
        text = buffer.getvalue()
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
