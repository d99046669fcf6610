"""What the README's figures are made with."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import accuracy
import report


def test_a_recipe_is_summed_up_by_mean_deviation_and_students_interval() -> None:
    """Of 99.1, 99.2 and 99.6 %: the deviation is 0.2646 %, the interval 4.303 / sqrt(3) of it."""
    assert accuracy.summary([0.991, 0.992, 0.996], [10.0, None, 30.0]) == (
        "3 | 99.300 % ± 0.265 | 98.643 to 99.957 % | 20 s, at most 30 s"
    )
    assert accuracy.summary([0.9912], [None]) == "1 | 99.12 % | unknown | not measured"


def test_a_row_replaces_the_recipes_own_and_those_of_other_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = tmp_path / "README.md"
    monkeypatch.setattr(report, "README", readme)
    other = "| `configs/tutorial.yaml` | 1 |"
    before, after = "# Title\n<!-- accuracy: by x -->\n| recipe |\n|---|\n", "\n<!-- end of accuracy -->\nÜnd.\n"
    setup = f"\n\nOn {report.setup()}."
    readme.write_text(f"{before}{other}{setup}{after}", encoding="utf-8")
    for cells in ("1 | 2", "3 | 4"):
        accuracy.write_row(ROOT / "configs/fast.yaml", cells, "abc1234")
    row = "| `configs/fast.yaml` | 3 | 4 | `abc1234` |"
    assert readme.read_text(encoding="utf-8") == f"{before}{other}\n{row}{setup}{after}"

    readme.write_text(f"{before}{other}\n\nOn another machine.{after}", encoding="utf-8")
    accuracy.write_row(ROOT / "configs/fast.yaml", "3 | 4", "abc1234")
    assert readme.read_text(encoding="utf-8") == f"{before}{row}{setup}{after}"


def test_another_config_or_other_code_is_another_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, source = tmp_path / "a.yaml", tmp_path / "mnist_lightning/data.py"
    source.parent.mkdir()
    source.write_text("x = 1")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    config.write_text("data:\n  elastic: 1\n")
    first = accuracy.digest(config)
    config.write_text("# The same.\ndata: {elastic: 1}\n")
    assert accuracy.digest(config) == first
    config.write_text("data:\n  elastic: 2\n")
    second = accuracy.digest(config)
    source.write_text("x = 2")
    assert len({first, second, accuracy.digest(config)}) == 3


@pytest.mark.parametrize("config", ["fast.yaml", "accurate.yaml"])
def test_a_recipe_gives_the_accuracy_that_the_readme_gives(config: str) -> None:
    row = next(line for line in report.read_block("accuracy").splitlines() if f"configs/{config}" in line)
    mean = re.search(r"(\d\d\.\d+) %", row)[1]
    assert f"{float(mean):.2f} %" in (ROOT / "configs" / config).read_text().splitlines()[0]


@pytest.mark.slow
def test_a_stopped_measurement_goes_on_and_ends_with_the_same_figures(tmp_path: Path) -> None:
    """A copy of the project, whose README is written. Once in a run, once as if killed behind its last step."""
    for name in ("benchmarks", "mnist_lightning"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    (tmp_path / "data").symlink_to(ROOT / "data")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- accuracy: x -->\n| recipe |\n|---|\n<!-- end of accuracy -->\n")
    config = tmp_path / "tiny.yaml"
    settings = {"max_epochs": 2, "limit_train_batches": 200, "limit_val_batches": 2}
    config.write_text(yaml.safe_dump({"trainer": settings}))
    command = [sys.executable, "benchmarks/accuracy.py", "tiny.yaml", "--seeds", "2"]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}

    def folder(seed: int) -> Path:
        return next(tmp_path.glob("benchmarks/runs/tiny-*")) / f"seed_{seed}"

    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("benchmarks/runs/tiny-*/seed_0/lightning_logs/version_0/checkpoints/last.ckpt")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert "The same command goes on from here." in process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert not (folder(0) / "seconds.json").exists()

    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    results = [json.loads((folder(seed) / "accuracy.json").read_text()) for seed in range(2)]
    seconds = [json.loads((folder(seed) / "seconds.json").read_text()) for seed in range(2)]
    assert seconds[0] is None
    assert seconds[1] > 1
    assert "| `tiny.yaml` | 2 | " in readme.read_text()

    (folder(1) / "seconds.json").unlink()
    (folder(1) / "accuracy.json").unlink()
    shutil.rmtree(folder(0))
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert [json.loads((folder(seed) / "accuracy.json").read_text()) for seed in range(2)] == results
    assert len(list(folder(1).glob("lightning_logs/*"))) == 1
