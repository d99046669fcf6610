"""A run that is stopped, by anything and at any moment, goes on as if it never had been."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Run
from helpers import BEST, FIRST, LAST, curves, differences, fit_in_notebook, load
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from processes import EXIT_CODES, Outcome, enter, fit, start, stop_at, wait_for
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from mnist_lightning import DigitClassifier, ExactResume, LeNet

# The same run: its folder, its configuration, its curves.


def test_fit_goes_on_in_the_folder_of_the_run_with_its_configuration(run: Run) -> None:
    run("fit", "--model.optimizer.momentum=0.5", "--trainer.gradient_clip_val=0.3")
    first = (FIRST / "config.yaml").read_bytes()
    run("fit", "--ckpt_path=last", "--trainer.max_epochs=3")
    run("fit", f"--ckpt_path={LAST}", "--trainer.max_epochs=4")

    assert [path.name for path in FIRST.parent.iterdir()] == ["version_0"]
    assert sorted(path.name for path in FIRST.glob("config*")) == ["config.yaml", "config_2.yaml", "config_3.yaml"]
    assert (FIRST / "config.yaml").read_bytes() == first
    for name, epochs in (("config_2.yaml", 3), ("config_3.yaml", 4)):
        assert yaml.safe_load((FIRST / name).read_text()) == yaml.safe_load(first) | {
            "trainer": yaml.safe_load(first)["trainer"] | {"max_epochs": epochs}
        }
    assert load(LAST)["optimizer_states"][0]["param_groups"][0]["momentum"] == 0.5
    assert load(LAST)["global_step"] == 20
    with pytest.raises(SystemExit, match="belongs to a finished run: max_epochs is 4"):
        run("fit", "--ckpt_path=last")  # the newest configuration counts
    for name, points in curves().items():
        at_epochs_ends = name in ("train/acc", "val/acc", "val/loss") or name.startswith("val_acc_of_digit/")
        assert [step for step, _ in points] == ([4, 9, 14, 19] if at_epochs_ends else list(range(20))), name


def test_the_best_score_so_far_stands(run: Run) -> None:
    run("fit", "--model.optimizer.lr=0.1", "--trainer.max_epochs=5")
    best = BEST.read_bytes()
    score = load(LAST)["callbacks"]["CheckpointWriter"]["best_score"]
    assert score == max(value for _, value in curves()["val/acc"])
    # With a learning rate of 0 nothing gets better.
    run("fit", "--ckpt_path=last", "--model.optimizer.lr=0", "--trainer.max_epochs=6")
    assert load(LAST)["callbacks"]["CheckpointWriter"]["best_score"] == score
    assert BEST.read_bytes() == best


def test_going_on_from_best_takes_the_run_back_to_it(run: Run) -> None:
    run("fit", "--model.optimizer.lr=0.1", "--trainer.max_epochs=5")
    whole, points = load(LAST), curves()
    step = load(BEST)["global_step"]
    assert 5 <= step < 25
    run("fit", "--ckpt_path=best")
    assert differences(whole, load(LAST)) == []
    assert curves() == points
    assert differences(whole, load(FIRST / "checkpoints/last_2.ckpt")) == []  # what the run was before is not lost


def test_a_checkpoint_that_a_callback_of_the_users_wrote_is_as_good(run: Run) -> None:
    every_four = ["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=4"]
    run("fit", *every_four, "--trainer.callbacks.save_top_k=-1", "--trainer.max_epochs=3")
    whole, points = load(LAST), curves()
    for step in (4, 8, 12):
        (path,) = LAST.parent.glob(f"epoch=*-step={step}.ckpt")
        run("fit", f"--ckpt_path={path}")
        assert curves() == points
        for part in ("state_dict", "optimizer_states"):
            assert differences(whole[part], load(LAST)[part]) == []


def test_flags_of_the_runs_own_classes_can_be_given_anew(run: Run) -> None:
    run("fit", "--model.optimizer=Adam", "--trainer.gradient_clip_val=0.3")
    run("fit", "--ckpt_path=last", "--model.optimizer.betas=[0.8, 0.9]", "--trainer.max_epochs=3")
    assert load(LAST)["optimizer_states"][0]["param_groups"][0]["betas"] == (0.8, 0.9)


def test_another_seed_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "--seed_everything=7")
    with pytest.raises(SystemExit):
        run("fit", "--ckpt_path=last", "--seed_everything=8", "--trainer.max_epochs=3")
    assert "--seed_everything is 8; expected 7, the seed of the run" in capsys.readouterr().err
    shutil.copy(LAST, "elsewhere.ckpt")
    run("fit", "--ckpt_path=elsewhere.ckpt", "--trainer.max_epochs=3", "--trainer.log_every_n_steps=1")
    assert yaml.safe_load((FIRST.with_name("version_1") / "config.yaml").read_text())["seed_everything"] == 7


def test_a_damaged_configuration_is_named(run: Run) -> None:
    run("fit")
    (FIRST / "config.yaml").write_text("trainer: [")
    with pytest.raises(SystemExit, match=r"version_0/config\.yaml, the newest configuration of the run, can't be read"):
        run("fit", "--ckpt_path=last", "--trainer.max_epochs=3")


def test_a_damaged_curve_stays_what_it_is(run: Run) -> None:
    run("fit")
    (path,) = FIRST.glob("events*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    run("fit", "--ckpt_path=last", "--trainer.max_epochs=3")
    assert path.read_bytes() == content


def test_half_a_configuration_is_no_configuration(run: Run) -> None:
    run("fit")
    half = FIRST / "config_2.yaml.partial"  # a kill has left it
    half.write_text("trainer:\n  max_ep")
    run("fit", "--ckpt_path=last", "--trainer.max_epochs=3")
    assert not half.exists()
    assert yaml.safe_load((FIRST / "config_2.yaml").read_text())["trainer"]["max_epochs"] == 3


def test_a_score_outlives_the_validation_that_gave_it(run: Run) -> None:
    run("fit", "--model.optimizer.lr=0.1", "--trainer.num_sanity_val_steps=1")
    best = BEST.read_bytes()
    run("fit", "--ckpt_path=last", "--trainer.limit_val_batches=0", "--trainer.max_epochs=3")
    assert BEST.read_bytes() == best


def test_a_checkpoint_outside_any_run_starts_a_new_one(run: Run) -> None:
    run("fit", "--model.optimizer.momentum=0.5")
    before = {path: path.read_bytes() for path in FIRST.rglob("*") if path.is_file()}
    shutil.copy(LAST, "elsewhere.ckpt")
    run("fit", "--ckpt_path=elsewhere.ckpt", "--trainer.max_epochs=3", "--trainer.log_every_n_steps=1")

    assert {path: path.read_bytes() for path in FIRST.rglob("*") if path.is_file()} == before
    second = FIRST.with_name("version_1")
    assert [path.name for path in second.glob("config*")] == ["config.yaml"]
    assert load(second / "checkpoints/last.ckpt")["optimizer_states"][0]["param_groups"][0]["momentum"] == 0.5
    # The run's only validation is its best, whatever the other run's was.
    assert load(second / "checkpoints/best.ckpt")["global_step"] == 15
    assert [step for step, _ in curves(second)["train/loss"]] == list(range(10, 15))


def counts_no_step(content: dict[str, Any]) -> None:
    content["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] = None


def has_a_text_as_momentum(content: dict[str, Any]) -> None:
    content["optimizer_states"][0]["param_groups"][0]["momentum"] = "0.9"


def has_a_small_momentum_and_no_callbacks(content: dict[str, Any]) -> None:
    """torch's fused step would write outside of this momentum, and Lightning would tell no callback to restore."""
    content["optimizer_states"][0]["state"][0]["momentum_buffer"] = torch.zeros(0)
    del content["callbacks"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (counts_no_step, "_batches_that_stepped in the checkpoint is of the type NoneType; expected int"),
        (has_a_text_as_momentum, "momentum in the checkpoint is of the type str; expected float"),
        (has_a_small_momentum_and_no_callbacks, r"momentum_buffer in the checkpoint has the shape \(0,\), and its"),
    ],
)
def test_a_damaged_training_state_is_refused(run: Run, damage: Callable[[dict[str, Any]], None], words: str) -> None:
    run("fit", "--model.optimizer.momentum=0.5")
    damage(content := load(LAST))
    torch.save(content, LAST)
    with pytest.raises(SystemExit, match=words):
        run("fit", "--ckpt_path=last", "--trainer.max_epochs=3")


def test_a_schedule_that_is_shorter_than_the_run_is_refused(run: Run) -> None:
    schedule = ["--model.lr_scheduler=OneCycleLR", "--model.lr_scheduler.max_lr=0.1", "--model.lr_interval=step"]
    run("fit", *schedule)
    with pytest.raises(SystemExit, match="the run is longer than its new schedule: Tried to step 7 times"):
        run("fit", "--ckpt_path=last", "--trainer.max_epochs=3", "--trainer.limit_train_batches=2")


def test_what_does_not_fit_into_the_epoch_leaves_the_run_as_it_was(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        stop_at(patch, "exception", "training_step", 8)
        run("fit", "--checkpoint.every_n_steps=1")
    files = [*FIRST.glob("config*"), *FIRST.glob("checkpoints/*")]
    before, points = {path: path.read_bytes() for path in files}, curves()
    with pytest.raises(SystemExit, match=r"lies within an epoch that has batch_size 128; .* and found 100"):
        run("fit", "--ckpt_path=last", "--data.batch_size=100")
    assert [*FIRST.glob("config*"), *FIRST.glob("checkpoints/*")] == files
    assert ({path: path.read_bytes() for path in files}, curves()) == (before, points)


@pytest.mark.parametrize("every", [1, 3])
def test_last_is_written_every_so_many_steps(every: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        stop_at(patch, "exception", "training_step", 9)  # the fourth step of the second epoch
        run("fit", f"--checkpoint.every_n_steps={every}")
    assert load(LAST)["global_step"] == 8


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
@pytest.mark.parametrize("step", [7, 10, 12])
def test_a_notebook_goes_on_from_any_step_with_one_callback(step: int, small_data: str, tmp_path: Path) -> None:
    """With 5 steps an epoch, a checkpoint from within the second, from its end, and from within the third."""

    def model() -> DigitClassifier:
        seed_everything(7)
        return DigitClassifier(
            LeNet(),
            optimizer=partial(SGD, lr=0.1, momentum=0.9),
            lr_scheduler=partial(OneCycleLR, max_lr=0.1),
            lr_interval="step",
        )

    every_step = ModelCheckpoint(dirpath=tmp_path / "steps", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, continued = model(), model()
    fit_in_notebook(whole, small_data, tmp_path, max_epochs=3, callbacks=[ExactResume(), every_step])
    seed_everything(8)  # the order goes on with the seed that it began with
    path = tmp_path / f"steps/step={step}.ckpt"
    fit_in_notebook(continued, small_data, tmp_path, path, max_epochs=3, callbacks=ExactResume())
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, continued.state_dict()[name]), name


def test_numbers_of_numpy_in_a_notebook_leave_plain_data(small_data: str, tmp_path: Path) -> None:
    model = DigitClassifier(LeNet(), optimizer=partial(SGD, lr=np.float64(0.1)))
    trainer = fit_in_notebook(model, small_data, tmp_path, callbacks=ExactResume())
    trainer.save_checkpoint(tmp_path / "notebook.ckpt")
    assert load(tmp_path / "notebook.ckpt")["optimizer_states"][0]["param_groups"][0]["lr"] == 0.1


def test_without_the_callback_the_images_still_follow_from_seed_and_epoch(small_data: str, tmp_path: Path) -> None:
    class Recording(DigitClassifier):
        seen: list[Tensor]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.seen.append(batch[0].clone())
            return super().training_step(batch, batch_idx)

    def images(draws: int) -> Tensor:
        seed_everything(7)
        torch.rand(draws)  # another random state
        model = Recording(LeNet())
        model.seen = []
        fit_in_notebook(model, small_data, tmp_path, callbacks=[])
        return torch.cat(model.seen)

    assert torch.equal(images(1), images(2))


def test_a_data_module_of_another_kind_is_named(tmp_path: Path) -> None:
    options = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "max_epochs": 1}
    trainer = Trainer(callbacks=ExactResume(), **options)
    with pytest.raises(TypeError, match="ExactResume needs a DigitClassifier and an MNISTDataModule"):
        trainer.fit(DigitClassifier(LeNet()), loader := torch.utils.data.DataLoader([1]), loader)


# Bit for bit.

MOMENTS = {  # the method in which the run is stopped, and its call; with 9 steps and 2 batches of validation an epoch
    "at the first step": ("training_step", 1),
    "at an epoch's start": ("training_step", 10),
    "mid-epoch": ("training_step", 13),
    "in a validation": ("validation_step", 3),
    "at an epoch's end": ("on_train_epoch_end", 2),
}


DEFAULTS: list[str] = []
NOISY = [
    "--model.network=helpers.NoisyNetwork",
    "--model.optimizer.lr=0.1",
    "--model.lr_scheduler=OneCycleLR",
    "--model.lr_scheduler.max_lr=0.1",
    "--model.lr_interval=step",
    "--data.distortion.rotation=20",
    "--data.distortion.elastic=1",
    "--data.fade=0.5",
]
OTHERS = {
    "moving average of the weights": ["--trainer.callbacks=EMAWeightAveraging", "--model.optimizer.lr=0.1"],
    "plateau": [
        "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau",
        "--model.lr_scheduler.monitor=val/loss",
        "--model.lr_scheduler.patience=0",
        "--model.optimizer.lr=0.5",
    ],
    "accumulated gradients": ["--trainer.accumulate_grad_batches=4", "--checkpoint.every_n_steps=1"],
    "validation within epochs": ["--trainer.val_check_interval=3", "--trainer.check_val_every_n_epoch=null"],
    "a limit of steps": ["--trainer.max_steps=31"],
    "saved rarely": ["--checkpoint.every_n_steps=1000"],
}


@pytest.fixture
def arguments(small_data: str) -> list[str]:
    return [
        f"--data.root={small_data}",
        "--data.val_size=100",
        "--data.batch_size=64",
        "--trainer.max_epochs=3",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--checkpoint.every_n_steps=2",
    ]


def outcome(arguments: list[str], stops: list[tuple[str, str, int]]) -> Outcome:
    """What a run comes to when each of these stops ends it in turn."""
    for stop in [*stops, None]:
        fit(["--ckpt_path=last"] if LAST.exists() else arguments, stop)
    return Outcome()


@pytest.mark.slow
def test_a_noisy_run_is_the_same_after_a_kill(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(tmp_path / "whole", monkeypatch)
    whole = outcome(arguments + NOISY, [])
    enter(tmp_path / "stopped", monkeypatch)
    whole.assert_same(outcome(arguments + NOISY, [("SIGKILL", "training_step", 13)]))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [DEFAULTS, NOISY], ids=["LeNet with the defaults", "dropout and augmentation"])
def test_every_stop_at_every_moment(
    recipe: list[str],
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    enter(tmp_path / "whole", monkeypatch)
    whole = outcome(arguments + recipe, [])
    stops = {f"{kind} {name}": [(kind, *moment)] for name, moment in MOMENTS.items() for kind in EXIT_CODES if kind}
    stops["twice"] = [("SIGKILL", "training_step", 13), ("SIGKILL", "training_step", 4)]
    stops["five times"] = [
        ("SIGTERM", "training_step", 1),
        ("SIGKILL", "training_step", 1),
        ("exception", "validation_step", 1),
        ("SIGINT", "training_step", 1),
        ("SIGKILL", "on_train_epoch_end", 1),
    ]
    for name, chosen in stops.items():
        enter(tmp_path / name, monkeypatch)
        whole.assert_same(outcome(arguments + recipe, chosen))
    with capsys.disabled():
        print(f"\n{request.node.callspec.id}: {len(stops)} of {len(stops)} stopped runs the same to the bit")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", OTHERS.values(), ids=list(OTHERS))
@pytest.mark.parametrize("moment", ["at an epoch's start", "mid-epoch", "in a validation"])
def test_other_settings_are_exact_too(
    recipe: list[str], moment: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(tmp_path / "whole", monkeypatch)
    whole = outcome(arguments + recipe, [])
    enter(tmp_path / "stopped", monkeypatch)
    whole.assert_same(outcome(arguments + recipe, [("SIGKILL", *MOMENTS[moment])]))


def test_more_epochs_later_are_the_same_as_at_once(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    average = OTHERS["moving average of the weights"]
    enter(tmp_path / "whole", monkeypatch)
    whole = outcome(arguments + average, [])
    enter(tmp_path / "in two", monkeypatch)
    fit([*arguments, *average, "--trainer.max_epochs=2"])
    fit(["--ckpt_path=last", "--trainer.max_epochs=3"])
    whole.assert_same(Outcome())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_fifty_kills_at_random_moments(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run that saves at every step, killed and continued over and over, is that which nothing disturbed.

    Every other kill waits for a file that is being written.
    """
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    assert os.stat("/dev/shm").st_dev != os.stat(tmp_path).st_dev
    arguments = [*arguments, *NOISY[:2], "--trainer.max_epochs=1000", "--checkpoint.every_n_steps=1"]
    moments = random.Random(0)
    enter(tmp_path / "killed", monkeypatch)
    half_written = 0
    for kill in range(50):
        process = start(["--ckpt_path=last"] if kill else arguments)
        wait_for(LAST.exists)
        time.sleep(moments.uniform(0, 1.5))  # it trains after about 0.7 s
        if kill % 2:
            wait_for(lambda: list(FIRST.rglob("*.partial")), pause=0)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        half_written += bool(list(FIRST.rglob("*.partial")))
        assert DigitClassifier.load_from_checkpoint(LAST).network is not None
    epochs = f"--trainer.max_epochs={load(LAST)['epoch'] + 1}"
    fit(["--ckpt_path=last", epochs])
    assert list(FIRST.rglob("*.partial")) == []
    killed = Outcome()
    enter(tmp_path / "whole", monkeypatch)
    fit([*arguments, epochs])
    Outcome().assert_same(killed)
    assert half_written >= 10
    with capsys.disabled():
        print(f"\n50 of 50 kills survived, {half_written} of them while a file was half written")
