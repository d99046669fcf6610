"""Compares settings of a recipe on training images that it holds out. It never reads the test images.

    OMP_NUM_THREADS=1 python benchmarks/search.py CONFIG [--seeds N] [--FLAG=VALUE ...]

It trains the recipe with flags of `fit` on 40,000 images, and counts the mistakes on the other 20,000. These are every
third block of 2,000 images. Images of one writer follow each other in the file, so the network has not seen the writers
of the held-out images, as for the test images.

Each seed adds a line to `benchmarks/runs/search.jsonl`. A seed that has a line is not trained again.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import report
import torch
from torch import Tensor

from mnist_lightning.use.sweep.trial_run import TrialRun

RESULTS = report.ROOT / "benchmarks/runs/search.jsonl"
HELD_OUT = 20_000


def split_by_writer(labels: Tensor, _: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the images for training, and of those that are held out."""
    held_out = torch.arange(len(labels)) // 2_000 % 3 == 0
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def train(config: Path, flags: list[str], seed: int) -> dict[str, float]:
    """Return the mistakes on the held-out images, the mean loss, and the seconds of CPU time of the training."""
    settings = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    settings |= {"seed_everything": seed, "data.val_size": HELD_OUT, "data.root": report.DATA}
    with tempfile.TemporaryDirectory() as folder, mock.patch("mnist_lightning.data.split", split_by_writer):
        run = TrialRun(config, settings, Path(folder) / "version_0")
        run.trainer.check_val_every_n_epoch = run.trainer.max_epochs
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            run.train()
        accuracy, loss = (run.trainer.callback_metrics[f"val/{name}"].item() for name in ("acc", "loss"))
    return {"mistakes": round((1 - accuracy) * HELD_OUT), "loss": loss, "seconds": time.process_time() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="Number of seeds. Default: 3")
    options, flags = parser.parse_known_args()
    rows = []
    for seed in range(options.seeds):
        name = {"config": options.config.read_text(), "flags": sorted(flags), "seed": seed}
        row = next((result for result in report.read_results(RESULTS) if name.items() <= result.items()), None)
        if not row:
            row = name | train(options.config, flags, seed)
            report.add_result(RESULTS, row)
        rows.append(row)
    mistakes = [row["mistakes"] for row in rows]
    mean, loss, seconds = (statistics.mean(row[key] for row in rows) for key in ("mistakes", "loss", "seconds"))
    error = f" ± {statistics.stdev(mistakes) / len(mistakes) ** 0.5:.1f}" if len(mistakes) > 1 else ""
    print(f"| `{' '.join(flags)}` | {len(rows)} | {mean:.1f}{error} | {loss:.4f} | {seconds:.0f} s |")


if __name__ == "__main__":
    main()
