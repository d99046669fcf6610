"""What is typed, or stands in YAML, is what happens."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Run
from helpers import FIRST, curves, load

from mnist_lightning.runs.configuration import read
from mnist_lightning.runs.start import asked_for

TINY = "--trainer.enable_progress_bar=false"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{previous}'] * 9)}]\n"
    for previous, name in zip("abcdefgh", "bcdefghi", strict=True)
)

Message = Callable[..., str]


@pytest.fixture
def message(run: Run, capsys: pytest.CaptureFixture[str]) -> Message:
    """Type a command that is refused, and return its message."""

    def message(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            run(*arguments)
        assert caught.value.code not in (0, None)
        text = caught.value.code if isinstance(caught.value.code, str) else capsys.readouterr().err
        assert len(text.splitlines()) <= 2
        return text

    return message


def steps(number: int) -> int:
    """How many steps the last checkpoint of a run has done."""
    return load(Path(f"lightning_logs/version_{number}/checkpoints/last.ckpt"))["global_step"]


def test_one_is_one_batch_and_1_0_is_all_batches(run: Run) -> None:
    run("fit", "--trainer.max_epochs=1", TINY, "--trainer.limit_train_batches=1")
    run("fit", "--trainer.max_epochs=1", TINY, "--trainer.limit_train_batches=1.0")
    assert (steps(0), steps(1)) == (1, 5)
    Path("one.yaml").write_text("trainer: {limit_train_batches: 1}\n")
    run("fit", "--trainer.max_epochs=1", TINY, "--config=one.yaml")
    run("fit", "--config=lightning_logs/version_0/config.yaml", TINY)
    run("fit", "--config=lightning_logs/version_1/config.yaml", TINY)
    assert (steps(2), steps(3), steps(4)) == (1, 1, 5)
    run("fit", "--ckpt_path=version_0", "--trainer.max_epochs=3")
    assert steps(0) == 3


@pytest.mark.parametrize("name", ["limit_train", "limit_val", "limit_test", "limit_predict"])
def test_a_record_keeps_a_number_of_batches_and_a_share_apart(name: str, run: Run) -> None:
    for number, value in enumerate(["1", "1.0"]):
        run("fit", f"--trainer.{name}_batches={value}", "--trainer.max_steps=1", TINY)
        text = Path(f"lightning_logs/version_{number}/config.yaml").read_text()
        assert f"{name}_batches: {value}\n" in text


def test_one_batch_between_validations(run: Run) -> None:
    run("fit", "--trainer.max_epochs=1", "--trainer.val_check_interval=1", TINY)
    assert [step for step, _ in curves()["val/loss"]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("seed_everything: 1\ndata: {}\nseed_everything: 2\n", ", line 3: seed_everything is already set in line 1"),
        ("trainer:\n  max_epochs: 1\n  max_epochs: 2\n", ", line 3: max_epochs is already set in line 2"),
        ("trainer:\n  callbacks:\n  - {a: 1, a: 2}\n", ", line 3: a is already set in line 3"),
        ("", " is empty; expected settings such as"),
        ("# nothing\n", " is empty; expected settings such as"),
        ("hello", " is not a YAML file of settings"),
        (BOMB, ": aliases (`*name`) make more than 100,000 values"),
        ("a: &a [*a]\n", ": aliases (`*name`) make more than 100,000 values"),
        ("- " * 40_000, ": the values are nested too deeply"),
        ("# " + "x" * 100_000, " is too large for settings: more than 100 kB"),
        (b"\x80\x04\x95", " is not a YAML file: it is not UTF-8 text"),
        ("a: \xe9".encode("latin1"), " is not a YAML file: it is not UTF-8 text"),
        ("a\0: 1", ": unacceptable character #x0000"),
        ('model: "a\\0b"\n', ", line 1: a text has a zero byte"),
        ("?", ": a key is not text"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(content: str | bytes, found: str, message: Message) -> None:
    Path("x.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert f"--config: x.yaml{found}" in message("fit", "--config=x.yaml")
    assert not Path("lightning_logs").exists()


def test_a_folder_is_no_configuration(message: Message) -> None:
    Path("folder").mkdir()
    assert "--config: Path is not a file" in message("fit", "--config=folder")


def test_repeated_keys_are_refused_wherever_yaml_is_read(message: Message) -> None:
    Path("trainer.yaml").write_text("max_epochs: 1\nmax_epochs: 2\n")
    assert "max_epochs is already set in line 1" in message("fit", "--trainer=trainer.yaml")
    assert "max_epochs is already set in line 1" in message("fit", "--config={trainer: {max_epochs: 1, max_epochs: 2}}")


def test_aliases_that_make_few_values_work(workplace: Path) -> None:
    Path("a.yaml").write_text("base: &base {a: 1, b: 2}\nmore: {<<: *base, b: 3}\n")
    assert read(Path("a.yaml"))["more"] == {"a": 1, "b": 3}


def test_what_jsonargparse_reads_is_what_the_peek_reads(workplace: Path) -> None:
    Path("a.yaml").write_text("ckpt_path: last\ntrainer: {default_root_dir: there}\n")
    assert asked_for(["--config", "a.yaml"]) == ("last", "there", None)
    assert asked_for(["--config", "a.yaml", "--ckpt_path", "best"]) == ("best", "there", None)
    assert asked_for(["--ckpt_path", "best", "--config", "a.yaml"]) == ("last", "there", None)
    assert asked_for(["--config", "{seed_everything: 1}" * 99]) == (None, None, None)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("ckpt_path: 5\n", "--ckpt_path: expected str Given value: 5"),
        ("seed_everything: null\n", "--seed_everything is none; expected 0..4294967295"),
        ('"\\e[31mred": 1\n', r"\x1b[31mred"),
        ("trainer: {default_root_dir: 5}\n", "--trainer.default_root_dir: expected str"),
        ("trainer:\n  # max_epochs: 1\n", "--trainer is empty; expected settings below it, or no such line"),
        ("data:\n  distortion:\n", "--data.distortion is empty; expected settings below it, or no such line"),
        ("modle: {network: {class_path: LeNet}}\n", "unknown key: --modle.network; did you mean --model.network?"),
        ("model: {netwrok: {class_path: LeNet}}\n", "unknown key: --model.netwrok; did you mean --model.network?"),
        ("trainer: inner.yaml\n", "config 'inner.yaml' max_epochs is already set in line 1; see line 2\n"),
    ],
)
def test_a_mistake_in_a_file_is_named(content: str, found: str, message: Message) -> None:
    Path("x.yaml").write_text(content)
    Path("inner.yaml").write_text("max_epochs: 1\nmax_epochs: 2\n")
    assert found in message("fit", "--config=x.yaml")


def test_a_checkpoint_is_never_dropped(message: Message) -> None:
    """The checkpoint is found before the real parse, which alone reads text and pipes."""
    assert "--ckpt_path last is not in a file; type it as a flag of its own" in message(
        "fit", "--config={ckpt_path: last}"
    )


def test_a_run_is_written_where_a_file_of_trainer_settings_says(run: Run) -> None:
    Path("trainer.yaml").write_text("default_root_dir: there\n")
    run("fit", "--trainer=trainer.yaml", "--trainer.max_steps=1", TINY)
    assert Path("there/lightning_logs/version_0/config.yaml").exists()
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize("seed", ["-1", "4294967296", "99999999999999999999", "true", "false"])
def test_a_seed_that_numpy_can_not_use_is_refused(seed: str, message: Message) -> None:
    assert f"--seed_everything is {seed}; expected 0..4294967295\n" in message("fit", f"--seed_everything={seed}")
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_seed_is_recorded(seed: int, run: Run) -> None:
    run("fit", f"--seed_everything={seed}", "--trainer.max_steps=1", TINY)
    assert yaml.safe_load((FIRST / "config.yaml").read_text())["seed_everything"] == seed


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_the_configuration_of_a_run_works_with_each_verb(verb: str, run: Run) -> None:
    run("fit", "--trainer.max_epochs=1", TINY, "--model.optimizer=Adam", "--model.optimizer.lr=0.01")
    run(verb, "--config=lightning_logs/version_0/config.yaml", TINY)
    run(verb, "--config=lightning_logs/version_0/config.yaml", "--ckpt_path=last", TINY)


@pytest.fixture
def two_runs(run: Run) -> str:
    """Make two runs with different networks, and return the argument that names the configuration of the first."""
    for network in ("LeNet", "ConvNet"):
        run("fit", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1", TINY, f"--model.network={network}")
    return "--config=lightning_logs/version_0/config.yaml"


def test_with_the_configuration_of_a_run_its_own_checkpoints_are_measured(
    two_runs: str, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    for verb in ("validate", "test"):
        for arguments, name in (([], "best"), (["--ckpt_path=last"], "last")):
            caplog.clear()
            run(verb, two_runs, *arguments, TINY)
            assert f"checkpoint at lightning_logs/version_0/checkpoints/{name}.ckpt" in caplog.text


def test_with_the_configuration_of_a_run_that_run_goes_on(two_runs: str, run: Run) -> None:
    run("fit", two_runs, "--ckpt_path=last", "--trainer.max_epochs=3", TINY)
    assert (steps(0), steps(1)) == (3, 1)


def test_a_checkpoint_is_not_measured_with_the_configuration_of_another_run(two_runs: str, message: Message) -> None:
    for verb in ("validate", "test"):
        found = message(verb, two_runs, "--ckpt_path=version_1")
        assert "--config is of lightning_logs/version_0, and lightning_logs/version_1/checkpoints/best.ckpt is" in found


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("--model.optimizer Adamm", "--model.optimizer: expected a class, and found Adamm; did you mean Adam?"),
        ("--model.optimizer sgd", "found sgd; did you mean SGD?"),
        ("--model.network LeNett", "--model.network: expected a class, and found LeNett; did you mean LeNet?"),
        ("--model.lr_scheduler OneCycleRL", "found OneCycleRL; did you mean OneCycleLR?"),
        ("--trainer.callbacks EarlyStoping", "--trainer.callbacks: expected a class, and found EarlyStoping; did you"),
        ("--trainer.callbacks+=EarlyStoping", "found EarlyStoping; did you mean EarlyStopping?"),
        ("--trainer.logger CSVLoger", "found CSVLoger; did you mean CSVLogger?"),
        ("--model.optimizer Qwertz", "--model.optimizer: expected a class, and found Qwertz\n"),
        ("--model.optimizer.momentun 0", "--model.optimizer: it has no argument momentun; did you mean momentum?"),
        ("--model.optimizer Adam --model.optimizer.bettas 1", "it has no argument bettas; did you mean betas?"),
        ("--model.network ConvNet --model.network.dropuot 0", "no argument dropuot; did you mean dropout?"),
        ("--model.lr_scheduler StepLR --model.lr_scheduler.gama 1", "no argument gama; did you mean gamma?"),
        ("--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.monitorr x", "monitorr; did you mean monitor?"),
        ("--model.network torch.nn.Linearr", "--model.network: torch.nn has no class Linearr; did you mean Linear?"),
        ("--config typo.yaml", "--model.optimizer: expected a class, and found Adamm; did you mean Adam?"),
        ("--model.lr_interval stp", "--model.lr_interval: expected 'step', 'epoch'. Got value: stp"),
    ],
)
def test_a_mistyped_class_or_argument_gets_a_proposal(arguments: str, found: str, message: Message) -> None:
    Path("typo.yaml").write_text("model:\n  optimizer:\n    class_path: Adamm\n    init_args: {lr: 0.1}\n")
    assert found in message("fit", *arguments.split())
