"""A sweep: what it refuses, what it leaves, and that real processes can share it, end and go on."""

import glob
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
import yaml
from conftest import Program
from helpers import DATA, curves, events, write_sweep
from optuna.trial import TrialState
from processes import wait_for
from torch.optim import SGD

from mnist_lightning.cli import main
from mnist_lightning.errors import OutputError, SettingError
from mnist_lightning.runs import folders
from mnist_lightning.use.sweep.life import Watch
from mnist_lightning.use.sweep.search import Search
from mnist_lightning.use.sweep.study import Study
from mnist_lightning.use.sweep.trial_run import TrialRun

SWEEP = Path("lightning_logs/sweep_0")
Trials = list[optuna.trial.FrozenTrial]


def trials(url: str = "") -> Trials:
    storage = optuna.storages.RDBStorage(url or f"sqlite:///{SWEEP / 'trials.db'}")
    try:
        (study,) = optuna.get_all_study_names(storage)
        return optuna.load_study(study_name=study, storage=storage).trials
    finally:
        storage.remove_session()
        storage.engine.dispose()  # psycopg warns about an open connection


def runs() -> dict[str, dict[str, Any]]:
    """The configuration of each run of the sweep."""
    return {path.parent.name: yaml.safe_load(path.read_text()) for path in SWEEP.glob("version_*/config.yaml")}


@pytest.fixture
def small(small_data: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A sweep on the small data: 540 images. A sweep makes Lightning silent in this process."""
    monkeypatch.setattr(sys, "argv", ["mnist_lightning"])
    write_sweep(small_data)
    yield small_data
    speak()


@pytest.fixture
def quick(small: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same, without the check, the picture and the cleaning of memory, which take longer than a trial."""
    monkeypatch.setattr("mnist_lightning.use.sweep.verb.check", lambda search, path: {})
    monkeypatch.setattr("mnist_lightning.use.sweep.report.write_picture", lambda study: None)
    monkeypatch.setattr("gc.collect", lambda: 0)
    return small


@pytest.fixture
def untrained(quick: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same, and no trial is trained: each has the score 0.5."""
    monkeypatch.setattr(TrialRun, "train", lambda self: 0.5)
    return quick


def speak() -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.INFO)


# In this process.


def test_each_trial_is_a_run(small: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("mnist_lightning.use.sweep.study.KEPT", 2)
    main(["sweep", "sweep.yaml", "--trials", "4"])
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:5]] == [*"1234"]
    assert "Importance: lr " in out
    counts = Counter(trial.state for trial in trials())
    assert counts[TrialState.COMPLETE] + counts[TrialState.PRUNED] == 4
    for trial in trials():
        run = SWEEP / f"version_{trial.number}"
        settings = runs()[run.name]
        assert settings["seed_everything"] == trial.number
        assert settings["data"]["batch_size"] == trial.params["data.batch_size"]
        points = [value for _, value in curves(run)["val/acc"]]
        assert [*trial.intermediate_values.values()] == points
        assert trial.state != TrialState.COMPLETE or trial.value == max(points)
        assert "test/acc" not in curves(run)
        assert "_hparams_/session_start_info" in events(run).summary_metadata
    kept = {path.parts[2] for path in SWEEP.rglob("*.ckpt")}
    best = sorted((t for t in trials() if t.state == TrialState.COMPLETE), key=lambda t: -t.value)
    assert kept == {f"version_{trial.number}" for trial in best[:2]}
    assert {path.name for path in SWEEP.rglob("*.ckpt")} == {"best.ckpt"}
    assert (SWEEP / "sweep.html").stat().st_size > 1e6
    main(["fit", "--config", str(SWEEP / "best.yaml")])  # the same seed gives the same run
    again, trained = curves(), curves(SWEEP / f"version_{best[0].number}")
    assert {name: again[name] for name in trained} == trained


def test_the_same_line_goes_on(
    untrained: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = []
    monkeypatch.setattr(TrialRun, "train", lambda self: seeds.append(self.config.seed_everything) or 0.5)
    main(["sweep", "sweep.yaml", "--trials", "1"])
    main(["sweep", "sweep.yaml", "--trials", "3"])
    main(["sweep", "sweep.yaml", "--trials", "3"])
    main(["sweep", "sweep.yaml", "--trials", "1"])
    assert capsys.readouterr().out.count("3 of 3 trials are done") == 2
    assert [trial.number for trial in trials()] == [0, 1, 2]
    assert len({trial.params["model.optimizer.init_args.lr"] for trial in trials()}) == 3
    assert seeds == [0, 1, 2]
    write_sweep(untrained, seed=100)  # another sweep
    main(["sweep", "sweep.yaml", "--trials", "1"])
    assert seeds == [0, 1, 2, 100]
    assert Path("lightning_logs/sweep_1/best.yaml").is_file()


def test_the_first_trial_has_the_settings_of_the_base(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base has the default `lr`, 0.001. Its batches of 128 images are no choice of this sweep."""
    monkeypatch.setattr(TrialRun, "train", lambda self: 0.5)
    main(["sweep", "sweep.yaml", "--trials", "2"])
    first, second = (trial.params for trial in trials())
    assert first["model.optimizer.init_args.lr"] == 0.001 != second["model.optimizer.init_args.lr"]
    assert first["data.batch_size"] in (32, 64)


def test_no_value_of_a_range_takes_the_place_of_the_base(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrialRun, "train", lambda self: 0.5)
    write_sweep(small, {"model.optimizer.init_args.lr": {"log_float": [0.01, 1]}})
    main(["sweep", "sweep.yaml", "--trials", "1"])
    assert "fixed_params" not in trials()[0].system_attrs


def test_a_worker_that_died_before_its_first_sign_of_life_is_not_waited_for(
    untrained: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its trial is a second attempt, so it has settings from the start."""
    main(["sweep", "sweep.yaml", "--trials", "1"])
    storage = optuna.storages.RDBStorage(f"sqlite:///{SWEEP / 'trials.db'}")
    study = optuna.load_study(study_name=None, storage=storage)
    study.enqueue_trial({"model.optimizer.init_args.lr": 0.02})
    study.ask()
    storage.remove_session()
    storage.engine.dispose()
    monkeypatch.setattr("mnist_lightning.use.sweep.life.SILENCE", 2)
    main(["sweep", "sweep.yaml", "--trials", "2"])
    assert "Waiting for the trials of other workers" in capsys.readouterr().out
    assert [trial.state.name for trial in trials()] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert trials()[2].params["model.optimizer.init_args.lr"] == 0.02


def test_only_a_trial_without_new_signs_of_life_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def running(number: int, **attributes: int) -> optuna.trial.FrozenTrial:
        trial = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
        trial.number = number
        return trial

    watch = Watch()
    for seconds in range(0, 90, 10):
        monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: 1000 + seconds)
        dead, alive = running(0, sign_of_life=7), running(1, sign_of_life=seconds)
        assert watch.silent([dead, alive]) == ([dead] if seconds > 30 else [])


@pytest.mark.parametrize("made", [1, 4])
def test_a_sweep_survives_a_kill_while_its_database_is_made(
    made: int, untrained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = sqlalchemy.MetaData.create_all

    def killed(self: sqlalchemy.MetaData, engine: sqlalchemy.Engine) -> None:
        original(self, engine, tables=self.sorted_tables[:made])
        sys.exit(137)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(sqlalchemy.MetaData, "create_all", killed)
        main(["sweep", "sweep.yaml", "--trials", "1"])
    main(["sweep", "sweep.yaml", "--trials", "1"])
    assert len(trials()) == 1


def test_repeats_give_the_mean_over_seeds(quick: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(quick, pruner="none")
    main(["sweep", "sweep.yaml", "--trials", "2", "--repeats", "3"])
    assert {name: run["seed_everything"] for name, run in runs().items()} == {f"version_{n}": n for n in range(6)}
    for trial in trials():
        best = [max(v for _, v in curves(SWEEP / f"version_{3 * trial.number + n}")["val/acc"]) for n in range(3)]
        assert trial.user_attrs["scores"] == best
        assert trial.value == pytest.approx(sum(best) / 3)
    out = capsys.readouterr().out
    assert " ?" not in out
    assert "trial  val/acc  sd " in out


def test_a_hopeless_trial_is_stopped(quick: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda self: self.number == 1)
    main(["sweep", "sweep.yaml", "--trials", "3"])
    assert [trial.state.name for trial in trials()] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert len(curves(SWEEP / "version_1")["val/acc"]) == 1
    assert not [*SWEEP.glob("version_1/checkpoints/*")]


def test_the_last_validation_stops_no_trial(quick: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_the_second(trial: optuna.Trial) -> bool:
        return len(trial.storage.get_trial(trial._trial_id).intermediate_values) == 2

    monkeypatch.setattr(optuna.Trial, "should_prune", at_the_second)
    main(["sweep", "sweep.yaml", "--trials", "1"])
    assert trials()[0].state == TrialState.COMPLETE


def test_a_trial_that_diverges_or_fails_counts(
    quick: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = TrialRun.train

    def train(self: TrialRun) -> float:
        if self.folder.name == "version_1":
            raise SettingError("batch_size", 3, "another number")
        if self.folder.name == "version_0":
            self.model.optimizer = lambda weights: SGD(weights, lr=1e30)
        return original(self)

    monkeypatch.setattr(TrialRun, "train", train)
    main(["sweep", "sweep.yaml", "--trials", "3"])
    assert [trial.state.name for trial in trials()] == ["PRUNED", "PRUNED", "COMPLETE"]
    out = capsys.readouterr().out
    assert "not finite" in out
    assert "batch_size is 3; expected another number" in out


def test_a_trial_that_is_stopped_is_given_anew(
    untrained: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(TrialRun, "train", lambda self: sys.exit(130))
        main(["sweep", "sweep.yaml", "--trials", "2"])
    assert "Continue:   python -m mnist_lightning sweep sweep.yaml --trials 2\n" in capsys.readouterr().out
    main(["sweep", "sweep.yaml", "--trials", "2"])
    assert [trial.state.name for trial in trials()] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert trials()[0].params == trials()[1].params


@pytest.mark.parametrize("error", [RuntimeError("in the user's network"), OutputError("the disk is full")])
def test_settings_that_fail_three_times_count_as_pruned(
    error: Exception, untrained: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk is no fault of the settings, nor is a signal."""

    def train(self: TrialRun) -> float:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(TrialRun, "train", train)
        for _ in range(3):
            with pytest.raises((RuntimeError, SystemExit), match=str(error)):
                main(["sweep", "sweep.yaml", "--trials", "1"])
    if isinstance(error, RuntimeError):
        with pytest.raises(SystemExit, match=r"none of the trials in .* has finished"):
            main(["sweep", "sweep.yaml", "--trials", "1"])
        assert "given up: 3 attempts were killed, or ended with an error\n" in capsys.readouterr().out
    else:
        main(["sweep", "sweep.yaml", "--trials", "1"])
    assert len({str(trial.params) for trial in trials()}) == 1
    assert Counter(trial.state.name for trial in trials())["FAIL"] == 3


def test_a_run_without_a_validation_has_no_score(quick: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(quick, trainer={"check_val_every_n_epoch": 5})
    with pytest.raises(SystemExit, match=r"none of the trials in .* has finished"):
        main(["sweep", "sweep.yaml", "--trials", "1"])
    assert "ended before its first validation; see trainer.check_val_every_n_epoch" in capsys.readouterr().out
    assert trials()[0].state == TrialState.PRUNED


def test_the_report_shows_only_what_the_trials_can_show(
    untrained: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here, all scores are equal, and there is one seed. pytest turns the warning of Optuna into an error."""
    main(["sweep", "sweep.yaml", "--trials", "3"])
    out = capsys.readouterr().out
    assert "Importance" not in out
    assert "trial  val/acc  batch_size  lr\n" in out
    write_sweep(untrained, {"data.fade": {"float": [0, 0.5]}})
    scores = iter([0.5, 0.6, 0.7])
    monkeypatch.setattr(TrialRun, "train", lambda self: next(scores))
    main(["sweep", "sweep.yaml", "--trials", "3"])
    assert "Importance" not in capsys.readouterr().out


FADE = {"data.fade": {"float": [0, 0.5]}}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"base": None}, "base is None; expected a file"),
        ({"base": "none.yaml"}, "none.yaml can't be read"),
        ({"base": "sweep.yaml"}, "base is sweep.yaml: --config has an unknown key"),
        ({"prunr": "none"}, "unknown key prunr; expected base, search, sampler"),
        ({"sampler": "bayes"}, "sampler is bayes; expected tpe or random"),
        ({"pruner": 1}, "pruner is 1; expected median or none"),
        ({"trials": "many"}, "trials is many; expected 1 to"),
        ({"seed": True}, "seed is True; expected 0 to"),
        ({"search": 5}, "search has no range"),
        ({"search": {"data.batch_size": 5}}, "search has no range"),
        ({"search": {"data.batch_sze": {"int": [1, 2]}}}, r"data.batch_sze is \d+: .*did you mean --data.batch_size"),
        ({"search": {"data.batch_size": {"list": [1, 2]}}}, r"data.batch_size is {'list': \[1, 2\]}; expected a value"),
        ({"search": {"data.batch_size": {"int": [2, 1]}}}, r"data.batch_size is {'int': \[2, 1\]}; expected a value"),
        ({"search": {"data.batch_size": {"int": 2}}}, "data.batch_size is {'int': 2}; expected a value"),
        ({"search": {"data.batch_size": {"int": [0, 2]}}}, "data.batch_size is 0: .*expected at least 1"),
        ({"search": {"data.batch_size": {"float": [16, 32]}}}, r"data.batch_size is 21\.3.*: .*expected int"),
        ({"search": {"data.batch_size": {"choice": []}}}, "data.batch_size is {'choice': .*one or more"),
        ({"search": {"data.batch_size": {"choice": [[1]]}}}, "data.batch_size is {'choice': .*each choice must be"),
        ({"search": {"data.fade": {"log_float": [0, 1]}}}, "data.fade is {'log_float': .*low > 0"),
        ({"search": {"seed_everything": {"int": [0, 1]}}}, "the sweep itself sets seed_everything"),
        ({"base": ""}, "base is ; expected a file"),
        ({"search": {"data.batch_size": {"int": [1, 5.5]}}}, "data.batch_size is {'int': .*must be whole numbers"),
        ({"search": {"data.batch_size": {"int": [1, 10**30]}}}, "data.batch_size is {'int': .*must be whole numbers"),
        ({"search": {"data.fade": {"float": [0, math.inf]}}}, "data.fade is {'float': .*must be numbers"),
        ({"search": {"data.batch_size": {"choice": "ab"}}}, "data.batch_size is {'choice': .*one or more"),
        ({"search": FADE | {"print_config": ""}}, "print_config is : a flag such as --help trains nothing"),
        ({"search": FADE | {"model.network.help": "LeNet"}}, "model.network.help is LeNet: a flag such as --help"),
        ({"search": FADE | {"data.val_size": 0}}, "expected validation images: data.val_size"),
        ({"search": FADE | {"trainer.devices": 2}}, "expected one device for each trial: trainer.devices: 1"),
        ({"search": FADE | {"trainer.fast_dev_run": 1}}, "expected the usual logger: no trainer.logger, trainer.fast"),
    ],
)
def test_a_mistake_is_named_before_the_first_trial(keys: dict[str, Any], words: str, small: str) -> None:
    write_sweep(small, **keys)
    with pytest.raises(SystemExit, match=f"sweep: error: FILE: .*{words}") as stop:
        main(["sweep", "sweep.yaml"])
    assert str(stop.value).count("\n") <= 1
    assert not Path("lightning_logs").exists()


def test_wrong_flags(quick: str, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--trials=0", "--workers=0", "--repeats=-1"):
        with pytest.raises(SystemExit, match=r"^2$"):
            main(["sweep", "sweep.yaml", flag])
        assert "expected at least 1" in capsys.readouterr().err
    refused = "connection failed: .*refused"
    for url, words in {
        "": "Could not parse SQLAlchemy URL",
        "nonsense": "Could not parse SQLAlchemy URL",
        "postgresql://nobody@127.0.0.1:1/none": refused,
        "postgres://nobody@127.0.0.1:1/none": refused,
        "postgresql://nobody@127.0.0.1:port/none": "invalid literal",
    }.items():
        with pytest.raises(SystemExit, match=f"--storage: the storage can't be used: {words}"):
            main(["sweep", "sweep.yaml", f"--storage={url}"])
    assert not Path("lightning_logs").exists()


def test_a_file_that_can_not_be_used_is_named(untrained: str) -> None:
    lock = Path("lightning_logs/.sweep.lock")
    lock.mkdir(parents=True)
    with pytest.raises(SystemExit, match=f"sweep: error: .*{lock} can't be used: Is a directory"):
        main(["sweep", "sweep.yaml"])
    lock.rmdir()
    other = Path("lightning_logs/sweep_0/search.yaml")  # of another sweep, and of no use
    other.parent.mkdir()
    other.write_bytes(b"\xff")
    main(["sweep", "sweep.yaml", "--trials", "1"])
    database = Path("lightning_logs/sweep_1/trials.db")
    database.write_bytes(b"nonsense" * 1000)
    with pytest.raises(SystemExit, match=f"sweep: error: {database} can't be used: file is not a database"):
        main(["sweep", "sweep.yaml", "--trials", "1"])
    database.unlink()
    Path("lightning_logs/sweep_1/version_0").mkdir()
    with pytest.raises(SystemExit, match="lightning_logs/sweep_1 has runs of trials that its database does not know"):
        main(["sweep", "sweep.yaml", "--trials", "1"])


def test_without_optuna_one_line_says_what_to_install(workplace: Path) -> None:
    code = "import sys; sys.modules['optuna'] = None; from mnist_lightning.cli import main; main(['sweep', 'x.yaml'])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr.endswith("error: a sweep needs optuna: pip install 'mnist-lightning[sweep]'\n")
    assert process.stderr.count("\n") == 1


def test_a_planted_optimum_is_found_better_than_by_chance(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The sampler against random settings, 30 trials each. With 20 seeds, 15 wins have p = 0.02 (sign test)."""

    def planted(self: Study, trial: optuna.Trial, settings: dict[str, Any]) -> float:
        lr, momentum, batch = (settings[key] for key in ("lr", "momentum", "batch"))
        return 1 - math.log10(lr / 0.1) ** 2 - 0.5 * (momentum - 0.7) ** 2 - 0.05 * abs(math.log2(batch) - 6)

    search = {"lr": {"log_float": [1e-3, 10]}, "momentum": {"float": [0, 1]}, "batch": {"choice": [16, 32, 64, 128]}}
    monkeypatch.setattr(Study, "_score", planted)
    monkeypatch.setattr(Study, "_print_line", lambda *_: None)
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def best(sampler: str, seed: int) -> float:
        sampled = Search(tmp_path, search, sampler, seed=1000 * seed)
        study = Study(optuna.create_study(direction="maximize"), sampled, tmp_path, 1, 30)
        study.work()
        return study.best(1)[0].values[0]

    wins = sum(best("tpe", seed) > best("random", seed) for seed in range(20))
    assert sum(math.comb(20, k) for k in range(wins, 21)) / 2**20 < 0.05


# Several processes.

STEPS = {"limit_train_batches": 60, "limit_val_batches": 5, "log_every_n_steps": 10}


@pytest.fixture
def real(workplace: Path) -> list[str]:
    """A sweep on the real images, of runs that take a second."""
    write_sweep(DATA, trainer=STEPS)
    return ["sweep", "sweep.yaml", "--trials"]


def check_counts(found: Trials, size: int) -> None:
    """Each trial counts once, and has runs of its own. A trial that does not count was tried again."""
    counted = [t for t in found if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(counted) == size
    assert {t.state for t in found} <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    for trial in counted:
        config = runs()[f"version_{trial.number}"]
        assert config["model"]["optimizer"]["init_args"]["lr"] == trial.params["model.optimizer.init_args.lr"]
    retried = [t.params for t in found if t.state == TrialState.FAIL and t.params]
    assert all(any(params == t.params for t in counted) for params in retried)


@pytest.mark.slow
def test_two_processes_share_a_study(real: list[str], program: Program) -> None:
    out, err = program(*real, "8", "--workers", "2").communicate()
    assert err == ""
    found = trials()
    check_counts(found, 8)
    assert len([line for line in out.splitlines() if " of 8  trial " in line]) == 8
    spans = [(t.datetime_start, t.datetime_complete) for t in found if t.params]
    assert any(a[0] < b[0] < a[1] for a in spans for b in spans)  # type: ignore[operator]


def running(sweep: Path = SWEEP) -> list[Path]:
    """The runs that are being trained."""
    return [run for run in folders.list_runs(sweep) if folders.is_running(run)]


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_workers_stop_together_and_go_on(signum: int, real: list[str], program: Program) -> None:
    process = program(*real, "6", "--workers", "2")
    wait_for(lambda: len(running()) == 2)
    process.send_signal(signum)
    out, err = process.communicate()
    assert (process.returncode, err) == (128 + signum, "")
    assert "Continue:   python -m mnist_lightning sweep sweep.yaml --trials 6 --workers 2\n" in out
    assert running() == []
    out, err = program(*real, "6", "--workers", "2").communicate()
    assert err == ""
    assert "Train best:" in out
    check_counts(trials(), 6)


@pytest.mark.slow
def test_a_killed_worker_is_noticed_and_the_others_go_on(real: list[str], program: Program) -> None:
    process = program(*real, "6", "--workers", "2")
    wait_for(lambda: len(running()) == 2)
    os.kill(worker_of(running()[0]), signal.SIGKILL)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "Train best:" in out
    check_counts(trials(), 6)
    assert any(t.state == TrialState.FAIL and t.params for t in trials())


@pytest.mark.slow
def test_the_end_of_all_workers_is_told(real: list[str], program: Program) -> None:
    process = program(*real, "6", "--workers", "2")
    wait_for(lambda: len(running()) == 2)
    for run in running():
        os.kill(worker_of(run), signal.SIGKILL)
    err = process.communicate()[1]
    assert process.returncode == 1
    assert "error: the workers ended with the exit codes [-9, -9], before all trials were done.\nContinue: " in err


def worker_of(run: Path) -> int:
    wait_for(lambda: "process" in folders.read_status(run))
    return int(folders.read_status(run)["process"])


@pytest.mark.slow
def test_a_sweep_goes_on_after_kills_at_any_moment(real: list[str], program: Program) -> None:
    """The moments lie from the start of Python to the end of the third trial."""
    for kill in range(8):
        process = program(*real, "6")
        wait_for(SWEEP.exists)
        time.sleep(kill * 0.7)
        process.kill()
    out, err = program(*real, "6").communicate()
    assert err == ""
    assert "Train best:" in out
    check_counts(trials(), 6)


@pytest.mark.slow
def test_workers_end_if_their_sweep_is_killed(real: list[str], program: Program) -> None:
    process = program(*real, "100", "--workers", "2")
    wait_for(lambda: len(running()) == 2)
    workers = [worker_of(run) for run in running()]
    process.kill()
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


@pytest.mark.slow
def test_a_worker_that_was_suspended_does_not_count_twice(real: list[str], program: Program) -> None:
    first = program(*real, "3")
    wait_for(lambda: len(running()) == 1)
    first.send_signal(signal.SIGSTOP)
    second = program(*real, "3")
    wait_for(lambda: any(t.state == TrialState.FAIL for t in trials()), 120, pause=1)
    first.send_signal(signal.SIGCONT)
    for process in (first, second):
        assert process.communicate()[1] == ""
    check_counts(trials(), 3)


# Several machines.


class PostgreSQL:
    """A server of PostgreSQL with an empty database. It refuses to run as root, so root gives it to another user."""

    def __init__(self, programs: str) -> None:
        self.programs, self.folder = programs, tempfile.mkdtemp()  # pytest's folders are closed to other users
        self.user = {"user": "postgres"} if os.getuid() == 0 else {}
        if self.user:
            shutil.chown(self.folder, "postgres")
        options = ["-D", f"{self.folder}/data", "-A", "trust", "-U", "sweep", "--no-sync"]
        subprocess.run([f"{programs}/initdb", *options], check=True, capture_output=True, cwd=self.folder, **self.user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://sweep@127.0.0.1:{self.port}/postgres"
        self.start()

    def start(self) -> None:
        options = ["-D", f"{self.folder}/data", "-p", str(self.port), "-k", "", "-h", "127.0.0.1"]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.server = subprocess.Popen([f"{self.programs}/postgres", *options], cwd=self.folder, **silent, **self.user)
        wait_for(
            lambda: subprocess.run([f"{self.programs}/pg_isready", "-qh127.0.0.1", f"-p{self.port}"]).returncode == 0
        )

    def stop(self) -> None:
        self.server.send_signal(signal.SIGINT)
        self.server.wait()


@pytest.fixture
def postgresql() -> Iterator[PostgreSQL]:
    if not (found := sorted(glob.glob("/usr/lib/postgresql/*/bin"))):
        pytest.skip("needs Debian's package postgresql")
    server = PostgreSQL(found[-1])
    yield server
    server.stop()
    shutil.rmtree(server.folder)


@pytest.mark.slow
def test_a_trial_survives_a_restart_of_the_database(real: list[str], program: Program, postgresql: PostgreSQL) -> None:
    """If the database stays away, one line says so."""
    # The trial lasts longer than the restart, and reports its only score after it.
    write_sweep(DATA, {"data.fade": {"float": [0, 0.5]}}, trainer={"max_epochs": 8, "check_val_every_n_epoch": 8})
    process = program(*real, "2", "--storage", postgresql.url)
    wait_for(running)
    postgresql.stop()
    time.sleep(6)  # longer than the time between two signs of life
    postgresql.start()
    wait_for(lambda: process.poll() or (len(folders.list_runs(SWEEP)) == 2 and running()), seconds=300)
    postgresql.stop()
    out, err = process.communicate()
    assert " 1 of 2  trial 0  val/acc" in out
    assert process.returncode == 1
    assert err.startswith("python -m mnist_lightning sweep: error: --storage: the storage can't be used: connection")
    assert err.count("\n") <= 2


@pytest.mark.slow
def test_two_machines_share_a_database_and_one_dies(
    real: list[str], program: Program, postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each machine is a process in a folder of its own."""
    here, other = Path.cwd(), Path("other").resolve()
    other.mkdir()
    for name in ("base.yaml", "sweep.yaml"):
        shutil.copy(name, other)
    line = [*real, "12", "--storage", postgresql.url]
    first = program(*line)
    monkeypatch.chdir(other)
    second = program(*line)
    wait_for(lambda: running(here / SWEEP) and running(other / SWEEP))
    first.kill()
    out, err = second.communicate()
    assert err == ""
    assert "Train best:" in out
    url = postgresql.url.replace("://", "+psycopg://")
    found = trials(url)
    assert sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in found) == 12
    assert any(t.state == TrialState.FAIL and t.params for t in found)
    numbers = [run.name for folder in (here, other) for run in (folder / SWEEP).glob("version_*")]
    assert len(numbers) == len({*numbers})
