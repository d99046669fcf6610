"""The programs that write the README's tables."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from helpers import LAST, ROOT, load

from mnist_lightning.runs.resume import epochs_done

sys.path.insert(0, str(ROOT / "benchmarks"))
import accuracy
import report
import speed


def test_the_summary_has_mean_standard_deviation_and_students_interval() -> None:
    """99.1, 99.2 and 99.6 % have a standard deviation of 0.2646 %. The interval is 4.303 / sqrt(3) times as wide."""
    assert accuracy.summary([0.991, 0.992, 0.996], [10.0, None, 30.0]) == (
        "3 | 99.300 % ± 0.265 | 98.643 to 99.957 % | 20 s, at most 30 s"
    )
    assert accuracy.summary([0.9912], [None]) == "1 | 99.12 % | unknown | not measured"


def test_a_row_replaces_the_previous_row_of_its_recipe_and_rows_of_other_machines(
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
    config = tmp_path / "a.yaml"
    sources = [tmp_path / "mnist_lightning" / name for name in ("data.py", "runs/resume.py", "use/reader.py")]
    for source in sources:
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text("x = 1")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    config.write_text("data:\n  elastic: 1\n")
    first = accuracy.digest(config)
    config.write_text("# The same settings.\ndata: {elastic: 1}\n")
    assert accuracy.digest(config) == first
    config.write_text("data:\n  elastic: 2\n")
    digests = {first, accuracy.digest(config)}
    for source in sources:
        source.write_text("x = 2")
        digests.add(accuracy.digest(config))
    assert len(digests) == 5


def test_a_gpu_is_named_and_another_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    config, cpu = ROOT / "configs/fast.yaml", report.setup()
    monkeypatch.setattr(report, "device_of", lambda _: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    assert report.setup("gpu") == f"NVIDIA H100 and {cpu}"
    assert accuracy.digest(config, "gpu") != accuracy.digest(config, "cpu")
    assert report.flags_of("gpu") == ["--trainer.accelerator=gpu", "--trainer.devices=1", "--data.resident=true"]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="has an accelerator")
@pytest.mark.parametrize(("program", "config"), [(accuracy, [str(ROOT / "configs/fast.yaml")]), (speed, [])])
def test_gpu_on_a_machine_without_one_is_an_error_at_once(
    program: ModuleType, config: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark", *config, "--accelerator", "gpu"])
    with pytest.raises(SystemExit, match="--accelerator is gpu, but torch finds none here"):
        program.main()


@pytest.mark.parametrize("config", ["fast.yaml", "medium.yaml", "accurate.yaml"])
def test_a_recipe_names_the_same_accuracy_as_the_readme(config: str) -> None:
    row = next(line for line in report.read_block("accuracy").splitlines() if f"configs/{config}" in line)
    mean = re.search(r"(\d\d\.\d+) %", row)[1]
    assert f"{float(mean):.2f} %" in (ROOT / "configs" / config).read_text().splitlines()[0]


def test_ten_copies_of_each_image_are_trained_on_and_validation_stays_the_same(small_data: str) -> None:
    once, ten_times = speed.MNISTDataModule(small_data, val_size=100), speed.TenTimes(small_data, val_size=100)
    for data in (once, ten_times):
        data.setup("fit")
    labels = [torch.cat([labels for _, labels in data.train_dataloader()]) for data in (once, ten_times)]
    assert torch.equal(labels[1].bincount(), 10 * labels[0].bincount())
    images, more = (data.train_dataloader().images for data in (once, ten_times))
    assert (len(images), len(more)) == (640, 6_400)
    assert torch.equal(more[-640:], images)
    for (images, labels), (same, same_labels) in zip(once.val_dataloader(), ten_times.val_dataloader(), strict=True):
        assert torch.equal(images, same)
        assert torch.equal(labels, same_labels)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_epochs_of_barebones_and_of_fit_are_timed(
    small_data: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["mnist_lightning"])
    monkeypatch.setattr(speed, "DATA", small_data)
    flags = ["--data.val_size=100", "--trainer.log_every_n_steps=1"]
    measurements = {
        "barebones": lambda: speed.barebones_epoch(partial(speed.MNISTDataModule, val_size=100)),
        "fit": lambda: speed.fit_epoch(*flags),
    }
    seconds = speed.in_turn(measurements, 1)
    assert seconds.keys() == measurements.keys()
    assert all(0 < measured[0] < 30 for measured in seconds.values())
    assert epochs_done(load(LAST)) == 3


def test_the_parts_of_fit_are_compared_with_the_bare_loop_of_their_round(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, ...]] = []

    def fit_epoch(*flags: str, accelerator: str) -> float:
        taken.append(flags)
        return 3.0 - 0.25 * len(flags)

    monkeypatch.setattr(speed, "fit_epoch", fit_epoch)
    bare = iter([2.0, 1.0, 4.0])
    table = speed.parts_of_fit(lambda: next(bare), 3, "cpu").splitlines()
    assert table[2] == "| as it is | 3.00 s | 3.00 to 3.00 s | 1.50 |"
    assert table[-1] == "| without all of these | 2.00 s | 2.00 to 2.00 s | 1.00 |"
    assert len(table) == 2 + len(taken) / 3
    assert taken[len(speed.PARTS) + 1] == tuple(flag for flags in speed.PARTS.values() for flag in flags)


@pytest.mark.slow
def test_a_stopped_measurement_continues_and_gives_the_same_results(tmp_path: Path) -> None:
    """It is stopped within a run, and then as if it had been killed after the last step. It writes a copy's README."""
    for name in ("benchmarks", "mnist_lightning"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    (tmp_path / "data").symlink_to(ROOT / "data")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- accuracy: x -->\n| recipe |\n|---|\n<!-- end of accuracy -->\n")
    config = tmp_path / "tiny.yaml"
    settings = {"max_epochs": 2, "limit_train_batches": 200, "limit_val_batches": 2}
    config.write_text(yaml.safe_dump({"trainer": settings}))
    command = [sys.executable, "benchmarks/accuracy.py", "tiny.yaml", "--seeds", "2"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def folder(seed: int) -> Path:
        return next(tmp_path.glob("benchmarks/runs/tiny-*")) / f"seed_{seed}"

    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("benchmarks/runs/tiny-*/seed_0/lightning_logs/version_0/checkpoints/last.ckpt")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert "The same command continues from here." in process.communicate()[1]
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
