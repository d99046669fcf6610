"""Writes results to the README, with the machine, the versions and the commit that they were measured with."""

import argparse
import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import torch

import mnist_lightning

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DATA = str(ROOT / "data")
MEASURED = ["mnist_lightning", "configs", "benchmarks"]  # the folders that results depend on

if Path(mnist_lightning.__file__).resolve().parent.parent != ROOT:
    sys.exit(f"mnist_lightning is {mnist_lightning.__file__}; expected the package in {ROOT}: pip install -e {ROOT}")


def add_accelerator(parser: argparse.ArgumentParser) -> None:
    """Add `--accelerator` to the options of a program."""
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu", help="Where to train. Default: cpu")


def device_of(accelerator: str) -> torch.device:
    """Return the device on which Lightning would train."""
    if accelerator == "cpu":
        return torch.device("cpu")
    if not torch.accelerator.is_available():
        sys.exit("--accelerator is gpu, but torch finds none here")
    return torch.device(torch.accelerator.current_accelerator().type, 0)


def flags_of(accelerator: str) -> list[str]:
    """Return the flags of `fit` and `test` for an accelerator. The images lie in the memory of a GPU."""
    resident = ["--data.resident=true"] if accelerator == "gpu" else []
    return [f"--trainer.accelerator={accelerator}", "--trainer.devices=1", *resident]


def synchronize(device: torch.device) -> None:
    """Wait until all work on a device is done. A GPU works on while Python goes on, and a clock would not see it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def setup(accelerator: str = "cpu") -> str:
    """Return the processor and the GPU that torch uses, and the versions that results depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    machine = f"{torch.get_num_threads()} cores of {models[0] if models else platform.machine()}"
    if accelerator == "gpu":
        device = device_of(accelerator)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"the GPU ({device.type})"
        machine = f"{name} and {machine}"
    return (
        f"{machine}, Python {platform.python_version()}, torch {torch.__version__}, lightning {lightning.__version__}"
    )


def commit() -> str:
    """Return the commit that is measured. A `+` follows if a file in `MEASURED` has changed since."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", *MEASURED) else "")
    except (OSError, subprocess.CalledProcessError):
        return "no commit"


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the results in a file of JSON lines. A kill can cut off a line. Such a line is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def add_result(path: Path, result: dict[str, Any]) -> None:
    """Add a result to a file of JSON lines, on a line of its own. The file may end with half a line."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(f"\n{json.dumps(result)}\n")


def read_block(name: str) -> str:
    """Return the text between the markers of a name in the README."""
    found = _block(name).search(README.read_text(encoding="utf-8"))
    if not found:
        sys.exit(f"{README} has no markers for {name}; expected <!-- {name}: ... --> and <!-- end of {name} -->")
    return found[2].strip()


def write_block(name: str, text: str) -> None:
    """Replace the text between the markers of a name in the README."""
    readme = README.read_text(encoding="utf-8")
    readme = _block(name).sub(lambda found: f"{found[1]}\n{text}\n{found[3]}", readme)
    README.write_text(readme, encoding="utf-8")


def _block(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name}:.*? -->)\n(.*?)\n(<!-- end of {name} -->)", re.DOTALL)
