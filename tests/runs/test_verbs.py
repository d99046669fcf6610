"""Each verb as a user types it, on small data."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Run
from helpers import BEST, FIRST, LAST, ROOT, SECOND, curves, load
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.nn import functional as F
from torchvision.datasets import MNIST

from mnist_lightning import DigitClassifier, LeNet, archive
from mnist_lightning.cli import main


def steps(run: Path = FIRST) -> dict[str, list[int]]:
    """The steps at which each curve of a run has a point, except for the accuracies of single digits."""
    points = curves(run)
    return {name: [step for step, _ in points[name]] for name in points if "_of_digit/" not in name}


def test_fit_leaves_a_whole_run_folder(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit")
    assert sorted(path.name for path in (FIRST / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    config = yaml.safe_load((FIRST / "config.yaml").read_text())
    assert config["data"]["val_size"] == 100
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.001
    assert config["seed_everything"] == 42
    assert steps() == {
        "train/loss": list(range(10)),
        "lr-SGD": list(range(10)),
        "epoch": list(range(10)),
        "train/acc": [4, 9],
        "val/loss": [4, 9],
        "val/acc": [4, 9],
    }
    out = capsys.readouterr().out
    assert re.search(r"Best checkpoint with val/acc 0\.\d{4}: lightning_logs/version_0/checkpoints/best.ckpt\n", out)
    for command in (f"test --ckpt_path {BEST}", f"fit --ckpt_path {FIRST} --trainer.max_epochs 4"):
        assert f"python -m mnist_lightning {command} --data.root" in out
    assert "tensorboard --logdir lightning_logs\n" in out


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["validate", "compare"])
def test_what_draws_no_curves_imports_no_tensorboard(verb: str, run: Run, small_data: str) -> None:
    run("fit", "--trainer.max_epochs=1")
    arguments = [verb, f"--data.root={small_data}", *([str(FIRST)] * 2 if verb == "compare" else [])]
    code = f"""
import sys
from torchvision.datasets import MNIST
from mnist_lightning.cli import main
MNIST.resources = {MNIST.resources}
main({arguments})
print("imported:", "tensorboard" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "imported: False" in result.stdout


def test_best_is_the_checkpoint_with_the_highest_validation_accuracy(run: Run) -> None:
    # A learning rate that has learned by the third epoch, and is then too high.
    schedule = [
        "--model.lr_scheduler=MultiStepLR",
        "--model.lr_scheduler.milestones=[3]",
        "--model.lr_scheduler.gamma=20",
    ]
    run("fit", "--model.optimizer.lr=0.1", *schedule, "--trainer.max_epochs=5")
    points = EventAccumulator(str(FIRST)).Reload().Scalars("val/acc")
    highest = max(points, key=lambda point: point.value)
    assert highest.step == 14
    assert load(BEST)["global_step"] == 15
    assert load(LAST)["global_step"] == 25


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        (["--trainer.check_val_every_n_epoch=2", "--trainer.max_epochs=1"], 5),
        (["--trainer.check_val_every_n_epoch=2", "--trainer.max_epochs=3"], 15),
        (["--trainer.max_steps=7"], 7),
    ],
)
def test_last_is_written_at_the_end_whatever_was_validated(
    arguments: list[str], steps: int, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit", *arguments)
    assert load(LAST)["global_step"] == steps
    assert "python -m mnist_lightning test --ckpt_path" in capsys.readouterr().out


def test_hparams_tab_names_the_settings_and_the_final_metrics(run: Run) -> None:
    run("fit", "--model.optimizer.lr=0.02")
    events = EventAccumulator(str(FIRST)).Reload()
    plugin = events.summary_metadata
    content = {
        tag: HParamsPluginData.FromString(plugin[tag].plugin_data.content)
        for tag in ("_hparams_/experiment", "_hparams_/session_start_info")
    }
    metrics = {info.name.tag for info in content["_hparams_/experiment"].experiment.metric_infos}
    assert {"val/acc", "val/loss", "train/acc", "test/acc"} <= metrics
    # The tab shows the last point of each metric's curve; the names alone draw none.
    assert steps()["val/acc"] == [4, 9]
    settings = content["_hparams_/session_start_info"].session_start_info.hparams
    assert settings["model.optimizer.init_args.lr"].number_value == 0.02
    assert settings["model.network.class_path"].string_value == "mnist_lightning.LeNet"


def test_test_counts_what_plain_pytorch_counts(run: Run, small_data: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "--model.optimizer.lr=0.1")
    run("test", "--ckpt_path=last")
    network = LeNet()
    weights = load(LAST)["state_dict"]
    network.load_state_dict({name.removeprefix("network."): weight for name, weight in weights.items()})
    images, labels = archive.read(small_data, "test")
    with torch.no_grad():
        logits = network((images[:, None] / 255 - 0.5) / 0.5)
    events = EventAccumulator(str(FIRST)).Reload()
    assert events.Scalars("test/acc")[0].value == pytest.approx((logits.argmax(1) == labels).sum().item() / 200)
    assert events.Scalars("test/loss")[0].value == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_test_draws_into_the_run_whose_checkpoint_it_tests(run: Run) -> None:
    run("fit")
    config = (FIRST / "config.yaml").read_bytes()
    run("test", "--ckpt_path=last")
    assert steps()["test/acc"] == [9]
    assert steps()["epoch"] == list(range(10))
    assert (FIRST / "config.yaml").read_bytes() == config
    assert [path.name for path in FIRST.parent.iterdir()] == ["version_0"]


@pytest.mark.parametrize("verb", ["test", "validate"])
def test_evaluation_takes_the_newest_best_by_default_and_says_so(
    verb: str, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    run("fit")
    run("fit", "--seed_everything=1")
    (FIRST.parent / "version_2").mkdir()
    run(verb)
    assert "Loaded model weights from the checkpoint at lightning_logs/version_1/checkpoints/best.ckpt" in caplog.text


def test_validate_measures_on_the_split_of_the_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit")
    accuracy = EventAccumulator(str(FIRST)).Reload().Scalars("val/acc")[-1].value
    capsys.readouterr()
    run("validate", "--ckpt_path=last")  # val_size is the checkpoint's, not the default
    assert str(accuracy)[:8] in capsys.readouterr().out


def test_last_is_looked_for_where_a_configuration_says(run: Run) -> None:
    Path("mine.yaml").write_text("trainer:\n  default_root_dir: mine\n  max_epochs: 3\n")
    run("fit", "--config=mine.yaml", "--trainer.max_epochs=1")
    run("fit", "--config=mine.yaml", "--ckpt_path=last")
    assert load("mine" / LAST)["epoch"] == 3


def test_the_command_line_wins_over_the_checkpoint(run: Run) -> None:
    run("fit", "--model.optimizer.lr=0.01", "--model.lr_interval=step", "--data.batch_size=64")
    before = load(LAST)
    run("fit", "--ckpt_path=last", "--model.optimizer.lr=0", "--trainer.max_epochs=3")
    after = load(LAST)
    assert after["optimizer_states"][0]["param_groups"][0]["lr"] == 0
    # With a learning rate of 0 the weights stay; the momentum, taken over, moves on.
    assert all(torch.equal(before["state_dict"][name], weight) for name, weight in after["state_dict"].items())
    momentum, moved = (content["optimizer_states"][0]["state"][0]["momentum_buffer"] for content in (before, after))
    assert not torch.equal(momentum, moved)
    # What was not given anew is the checkpoint's.
    assert after["hyper_parameters"]["lr_interval"] == "step"
    assert after["datamodule_hyper_parameters"]["batch_size"] == 64


def test_another_optimizer_starts_afresh_from_a_checkpoint(run: Run) -> None:
    run("fit")
    run("fit", "--ckpt_path=last", "--model.optimizer=Adam", "--trainer.max_epochs=3")
    assert load(LAST)["optimizer_states"][0]["state"][0]["step"] == 5


ONE_CYCLE = ["--model.lr_scheduler=OneCycleLR", "--model.lr_scheduler.max_lr=0.1", "--model.lr_interval=step"]


@pytest.mark.parametrize(("first", "second"), [(ONE_CYCLE, []), ([], ONE_CYCLE)], ids=["longer", "new"])
def test_a_schedule_that_changes_goes_on_where_it_would_be(first: list[str], second: list[str], run: Run) -> None:
    run("fit", *first)
    run("fit", "--ckpt_path=last", *second, "--trainer.max_epochs=4")
    run("fit", *ONE_CYCLE, "--trainer.max_epochs=4")
    rates = [[p.value for p in EventAccumulator(str(path)).Reload().Scalars("lr-SGD")] for path in (FIRST, SECOND)]
    assert rates[0][10:] == rates[1][10:]
    assert len(rates[0]) == 20


def test_reduce_on_plateau_by_flags(run: Run) -> None:
    plateau = "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau"
    run("fit", plateau, "--model.lr_scheduler.monitor=val/loss", "--model.lr_scheduler.patience=0")
    assert load(LAST)["lr_schedulers"][0]["patience"] == 0


@pytest.mark.parametrize(
    ("first", "second", "steps"),
    [
        ([], ["--data.batch_size=50"], 10 + 11),
        ([], ["--data.val_size=0"], 10 + 5),
        (["--trainer.limit_train_batches=2"], ["--trainer.limit_train_batches=null"], 4 + 5),
    ],
)
def test_an_epoch_of_another_length_is_a_whole_one_after_resuming(
    first: list[str], second: list[str], steps: int, run: Run
) -> None:
    run("fit", *first)
    run("fit", "--ckpt_path=last", "--trainer.max_epochs=3", *second)
    assert load(LAST)["global_step"] == steps


def test_a_runs_configuration_repeats_it(run: Run) -> None:
    run("fit", "--model.optimizer=Adam", "--model.optimizer.lr=0.01")
    run("fit", f"--config={FIRST / 'config.yaml'}")
    weights = [load(Path(f"lightning_logs/version_{n}/checkpoints/last.ckpt"))["state_dict"] for n in (0, 1)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_checkpoint_of_the_command_line_loads_by_itself(run: Run) -> None:
    run("fit", "--model.lr_interval=step")
    model = DigitClassifier.load_from_checkpoint(LAST, weights_only=True)
    assert model.lr_interval == "step"
    assert torch.equal(model.network.fc3.weight, load(LAST)["state_dict"]["network.fc3.weight"])


def test_without_validation_best_is_last(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "--data.val_size=0")
    best, last = (load(FIRST / f"checkpoints/{name}.ckpt")["state_dict"] for name in ("best", "last"))
    assert all(torch.equal(best[name], last[name]) for name in best)
    assert "val/acc" not in curves(FIRST)
    assert "Best checkpoint: lightning_logs/version_0/checkpoints/best.ckpt" in capsys.readouterr().out


RECIPES = sorted({*(ROOT / "configs").glob("*.yaml")} - {ROOT / "configs/sweep.yaml"})


@pytest.mark.parametrize("config", RECIPES, ids=lambda path: path.name)
def test_every_configuration_runs(config: Path, run: Run) -> None:
    run("fit", f"--config={config}", "--trainer.max_epochs=1")
    assert LAST.is_file()


def test_a_trial_run_leaves_nothing(run: Run) -> None:
    run("fit", "--trainer.fast_dev_run=true")
    assert [path for path in Path().rglob("*") if path.is_file()] == []


def test_progress_bar_and_logger_of_the_users_own_are_kept(run: Run) -> None:
    run(
        "fit",
        "--trainer.callbacks=TQDMProgressBar",
        "--trainer.logger=CSVLogger",
        "--trainer.logger.save_dir=out",
    )
    assert not FIRST.exists()
    assert Path("out/lightning_logs/version_0/metrics.csv").is_file()


def test_a_line_for_each_epoch_and_no_bar_without_a_terminal(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "--model.optimizer.lr=0.1")
    out, err = capsys.readouterr()
    lines = re.findall(
        r"epoch +(\d+)  train/loss (\S+)  train/acc (\S+)  val/loss (\S+)  val/acc (\S+)  \d+\.\d s\n", out
    )
    assert [int(line[0]) for line in lines] == [1, 2]
    points = curves()
    for epoch, (_, train_loss, train_acc, val_loss, val_acc) in enumerate(lines):
        losses = [value for step, value in points["train/loss"] if step // 5 == epoch]
        assert float(train_loss) == pytest.approx(sum(losses) / 5, abs=1e-4)
        for name, value in (("train/acc", train_acc), ("val/loss", val_loss), ("val/acc", val_acc)):
            assert float(value) == pytest.approx(points[name][epoch][1], abs=1e-4)
    assert "it/s" not in out + err


def test_the_summary_shows_layers_with_sizes_and_nothing_else(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "--trainer.max_epochs=1")
    out, err = capsys.readouterr()
    assert [line.split("  ")[0].strip() for line in out.splitlines()[:7]] == [
        *("layer", "conv1", "conv2", "fc1", "fc2", "fc3"),
        "60,074 parameters",
    ]
    assert re.search(r"conv1 +Conv2d +\[1, 1, 28, 28\] +\[1, 6, 26, 26\] +60\n", out)
    assert "FLOPs" not in out + err
    assert "Accuracy" not in out + err


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_help_has_at_most_90_lines_with_our_own_flags_first(
    verb: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 90
    assert lines[0] == f"usage: python -m mnist_lightning {verb} [FLAGS]"
    flags = [line.split()[0] for line in lines if line.startswith("  --")]
    assert flags[:2] == ["--config", "--ckpt_path"]
    assert flags.index("--data.root") < flags.index("--trainer.accelerator")
    assert not {"--weights_only", "--verbose"} & {*flags}
    assert lines[-1] == f"All flags: python -m mnist_lightning {verb} --help_all"


def test_help_all_shows_every_flag_of_the_trainer(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help_all"])
    assert stop.value.code == 0
    assert "--trainer.reload_dataloaders_every_n_epochs" in capsys.readouterr().out
