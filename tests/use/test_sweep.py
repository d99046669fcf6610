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
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from processes import wait_for
from torch.optim import SGD

from mnist_lightning.cli import main
from mnist_lightning.errors import SettingError
from mnist_lightning.runs import folders
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


def test_the_same_line_goes_on(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sweep", "sweep.yaml", "--trials", "1"])
    main(["sweep", "sweep.yaml", "--trials", "3"])
    main(["sweep", "sweep.yaml", "--trials", "3"])
    assert "3 of 3 trials are done" in capsys.readouterr().out
    assert [trial.number for trial in trials()] == [0, 1, 2]
    assert len({trial.params["model.optimizer.init_args.lr"] for trial in trials()}) == 3
    write_sweep(small, seed=100)  # another sweep
    main(["sweep", "sweep.yaml", "--trials", "1"])
    config = yaml.safe_load(Path("lightning_logs/sweep_1/version_0/config.yaml").read_text())
    assert config["seed_everything"] == 100


def test_the_first_trial_has_the_settings_of_the_base(small: str) -> None:
    """The base has the default `lr`, 0.001. Its batches of 128 images are no choice of this sweep."""
    main(["sweep", "sweep.yaml", "--trials", "2"])
    first, second = (trial.params for trial in trials())
    assert first["model.optimizer.init_args.lr"] == 0.001 != second["model.optimizer.init_args.lr"]
    assert first["data.batch_size"] in (32, 64)


def test_no_value_of_a_range_takes_the_place_of_the_base(small: str) -> None:
    write_sweep(small, {"model.optimizer.init_args.lr": {"log_float": [0.01, 1]}})
    main(["sweep", "sweep.yaml", "--trials", "1"])
    assert "fixed_params" not in trials()[0].system_attrs


def test_a_worker_that_died_before_its_first_sign_of_life_is_not_waited_for(
    small: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["sweep", "sweep.yaml", "--trials", "1"])
    storage = optuna.storages.RDBStorage(f"sqlite:///{SWEEP / 'trials.db'}")
    optuna.load_study(study_name=None, storage=storage).ask()
    storage.remove_session()
    storage.engine.dispose()
    monkeypatch.setattr("mnist_lightning.use.sweep.study.SILENCE", 2)
    main(["sweep", "sweep.yaml", "--trials", "2"])
    assert "Waiting for the trials of other workers" in capsys.readouterr().out
    assert [trial.state.name for trial in trials()] == ["COMPLETE", "FAIL", "COMPLETE"]


def test_a_kill_leaves_no_half_of_a_database(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = sqlalchemy.MetaData.create_all

    def killed(self: sqlalchemy.MetaData, engine: sqlalchemy.Engine) -> None:
        original(self, engine, tables=[self.tables["studies"]])
        sys.exit(137)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(sqlalchemy.MetaData, "create_all", killed)
        main(["sweep", "sweep.yaml", "--trials", "1"])
    assert not (SWEEP / "trials.db").exists()
    main(["sweep", "sweep.yaml", "--trials", "1"])
    assert len(trials()) == 1


def test_repeats_give_the_mean_over_seeds(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(small, pruner="none")
    main(["sweep", "sweep.yaml", "--trials", "2", "--repeats", "3"])
    assert {name: run["seed_everything"] for name, run in runs().items()} == {f"version_{n}": n for n in range(6)}
    for trial in trials():
        best = [max(v for _, v in curves(SWEEP / f"version_{3 * trial.number + n}")["val/acc"]) for n in range(3)]
        assert trial.user_attrs["scores"] == best
        assert trial.value == pytest.approx(sum(best) / 3)
    assert " ?" not in capsys.readouterr().out


def test_a_hopeless_trial_is_stopped(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda self: self.number == 1)
    main(["sweep", "sweep.yaml", "--trials", "3"])
    assert [trial.state.name for trial in trials()] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert len(curves(SWEEP / "version_1")["val/acc"]) == 1
    assert not [*SWEEP.glob("version_1/checkpoints/*")]


def test_the_last_validation_stops_no_trial(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_the_second(trial: optuna.Trial) -> bool:
        return len(trial.storage.get_trial(trial._trial_id).intermediate_values) == 2

    monkeypatch.setattr(optuna.Trial, "should_prune", at_the_second)
    main(["sweep", "sweep.yaml", "--trials", "1"])
    assert trials()[0].state == TrialState.COMPLETE


def test_a_trial_that_diverges_or_fails_counts(
    small: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = TrialRun.train

    def train(self: TrialRun) -> None:
        if self.folder.name == "version_1":
            raise SettingError("batch_size", 3, "another number")
        if self.folder.name == "version_0":
            self.model.optimizer = lambda weights: SGD(weights, lr=1e30)
        original(self)

    monkeypatch.setattr(TrialRun, "train", train)
    main(["sweep", "sweep.yaml", "--trials", "3"])
    assert [trial.state.name for trial in trials()] == ["PRUNED", "PRUNED", "COMPLETE"]
    out = capsys.readouterr().out
    assert "not finite" in out
    assert "batch_size is 3; expected another number" in out


def test_a_trial_that_is_stopped_is_given_anew(
    small: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(TrialRun, "train", lambda self: sys.exit(130))
        main(["sweep", "sweep.yaml", "--trials", "2"])
    assert "Continue:   python -m mnist_lightning sweep sweep.yaml --trials 2\n" in capsys.readouterr().out
    main(["sweep", "sweep.yaml", "--trials", "2"])
    assert [trial.state.name for trial in trials()] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert trials()[0].params == trials()[1].params


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
        ({"search": {"data.batch_size": {"int": [1, 2]}, "data.val_size": 0}}, "expected a new run .* with validation"),
    ],
)
def test_a_mistake_is_named_before_the_first_trial(keys: dict[str, Any], words: str, small: str) -> None:
    write_sweep(small, **keys)
    with pytest.raises(SystemExit, match=f"sweep: error: FILE: .*{words}") as stop:
        main(["sweep", "sweep.yaml"])
    assert str(stop.value).count("\n") <= 1
    assert not Path("lightning_logs").exists()


def test_wrong_flags(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--trials=0", "--workers=0", "--repeats=-1"):
        with pytest.raises(SystemExit, match=r"^2$"):
            main(["sweep", "sweep.yaml", flag])
        assert "expected at least 1" in capsys.readouterr().err
    for url in ("nonsense", "postgresql://nobody@127.0.0.1:1/none"):
        with pytest.raises(SystemExit, match="--storage: the storage can't be used"):
            main(["sweep", "sweep.yaml", f"--storage={url}"])
    assert not Path("lightning_logs").exists()


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
    monkeypatch.setattr(InMemoryStorage, "record_heartbeat", lambda *_: None, raising=False)
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def best(sampler: str, seed: int) -> float:
        what = Search(tmp_path, search, sampler, seed=1000 * seed)
        study = Study(optuna.create_study(direction="maximize"), what, tmp_path, 1, 30)
        study.work()
        return study.best(1)[0].values[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optuna.storages.fail_stale_trials", lambda study: None)
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


@pytest.fixture
def postgresql() -> Iterator[str]:
    """A server of PostgreSQL with an empty database. It refuses to run as root, so root gives it to another user."""
    if not (found := sorted(glob.glob("/usr/lib/postgresql/*/bin"))):
        pytest.skip("needs Debian's package postgresql")
    folder = tempfile.mkdtemp()  # pytest's folders are closed to other users
    user = {"user": "postgres"} if os.getuid() == 0 else {}
    if user:
        shutil.chown(folder, "postgres")
    initdb = [f"{found[-1]}/initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "sweep", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [f"{found[-1]}/postgres", "-D", f"{folder}/data", "-p", str(port), "-k", "", "-h", "127.0.0.1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **user)

    def accepts() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(accepts)
        time.sleep(1)
        yield f"postgresql://sweep@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
        shutil.rmtree(folder)


@pytest.mark.slow
def test_two_machines_share_a_database_and_one_dies(
    real: list[str], program: Program, postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each machine is a process in a folder of its own."""
    here, other = Path.cwd(), Path("other").resolve()
    other.mkdir()
    for name in ("base.yaml", "sweep.yaml"):
        shutil.copy(name, other)
    line = [*real, "12", "--storage", postgresql]
    first = program(*line)
    monkeypatch.chdir(other)
    second = program(*line)
    wait_for(lambda: running(here / SWEEP) and running(other / SWEEP))
    first.kill()
    out, err = second.communicate()
    assert err == ""
    assert "Train best:" in out
    url = postgresql.replace("://", "+psycopg://")
    found = trials(url)
    assert sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in found) == 12
    assert any(t.state == TrialState.FAIL and t.params for t in found)
    numbers = [run.name for folder in (here, other) for run in (folder / SWEEP).glob("version_*")]
    assert len(numbers) == len({*numbers})
