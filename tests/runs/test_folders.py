import errno
import json
import os
import random
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Program, Run
from filelock import FileLock
from helpers import DATA, FIRST, LAST, curves, load
from processes import Outcome, enter, fit, start, wait_for

from mnist_lightning.errors import CheckpointError, UserError
from mnist_lightning.runs import folders
from mnist_lightning.runs.listing import list_runs


def make_run(logs: Path, version: str, *checkpoints: str) -> Path:
    folder = logs / version / "checkpoints"
    folder.mkdir(parents=True)
    for name in checkpoints:
        (folder / f"{name}.ckpt").touch()
    (folder.parent / "config.yaml").touch()
    return folder.parent


def test_runs_are_listed_oldest_first_by_number(tmp_path: Path) -> None:
    for version in ("version_10", "version_9", "version_2"):
        make_run(tmp_path, version)
    (tmp_path / "version_x").mkdir()
    (tmp_path / "version_11").touch()
    assert [run.name for run in folders.list_runs(tmp_path)] == ["version_2", "version_9", "version_10"]


def test_best_and_last_are_those_of_the_newest_run_that_has_one(tmp_path: Path) -> None:
    make_run(tmp_path, "version_8", "best", "last")
    make_run(tmp_path, "version_9", "best", "last")
    make_run(tmp_path, "version_10", "last")
    make_run(tmp_path, "version_11")
    assert folders.find_checkpoint("best", tmp_path) == tmp_path / "version_9/checkpoints/best.ckpt"
    assert folders.find_checkpoint("last", tmp_path) == tmp_path / "version_10/checkpoints/last.ckpt"


@pytest.mark.parametrize("logs", [".", "missing"])
def test_no_checkpoint_at_all_is_an_error(tmp_path: Path, logs: str) -> None:
    with pytest.raises(CheckpointError, match=r"no run in .* has a checkpoints/last\.ckpt"):
        folders.find_checkpoint("last", tmp_path / logs)


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    make_run(tmp_path, "version_9")
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda _: folders.create_run(tmp_path), range(40)))
    assert sorted(versions) == list(range(10, 50))


def test_configurations_are_listed_first_to_newest(tmp_path: Path) -> None:
    run = make_run(tmp_path, "version_0")
    for name in ("config_10.yaml", "config_2.yaml", "config_old.yaml"):
        (run / name).touch()
    assert [path.name for path in folders.configurations(run)] == ["config.yaml", "config_2.yaml", "config_10.yaml"]


def test_the_run_of_a_checkpoint_is_the_folder_with_its_configuration(tmp_path: Path) -> None:
    run = make_run(tmp_path, "version_0", "best")
    assert folders.run_of(run / "checkpoints/best.ckpt") == run
    (run / "config.yaml").unlink()
    assert folders.run_of(run / "checkpoints/best.ckpt") is None
    assert folders.run_of(tmp_path / "best.ckpt") is None


def test_every_way_to_name_a_checkpoint_finds_it(tmp_path: Path) -> None:
    run = make_run(tmp_path, "version_0", "best", "last")
    make_run(tmp_path, "version_1")
    best, last = (run / f"checkpoints/{name}.ckpt" for name in ("best", "last"))
    for name in ("best", "version_0", run, best):
        assert folders.find_checkpoint(name, tmp_path) == best
    for name in ("last", "version_0", str(run), last):
        assert folders.find_checkpoint(name, tmp_path, prefer="last") == last
    with pytest.raises(CheckpointError, match=r"version_1 has no checkpoints/best\.ckpt"):
        folders.find_checkpoint("version_1", tmp_path)


def test_a_run_can_be_locked_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, "version_0")
    folders.status_file(run).write_text('{"process": 7, "host": "there", "epochs": 3}')
    assert not folders.is_running(run)
    held = folders.lock(run)
    assert folders.is_running(run)
    holder = f"process {os.getpid()} on {re.escape(socket.gethostname())}; stop"
    with pytest.raises(UserError, match=f"version_0 is being trained by {holder}"):
        folders.lock(run)
    assert folders.read_status(run)["epochs"] == 3
    held.release()
    assert not folders.is_running(run)


def test_of_many_that_lock_at_once_one_wins(tmp_path: Path) -> None:
    run = make_run(tmp_path, "version_0")

    def attempt(_: int) -> FileLock | None:
        try:
            return folders.lock(run)
        except UserError:
            return None

    with ThreadPoolExecutor(8) as pool:
        locks = list(pool.map(attempt, range(8)))  # a lock that is no longer referred to is released
    assert sum(lock is not None for lock in locks) == 1


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_the_file_system_knows_no_locks_a_run_trains_and_says_so_once(
    number: int, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(file: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", no_locks)
    run("fit", "--trainer.max_epochs=1")
    run("fit", "--ckpt_path=last", "--trainer.max_epochs=2")
    assert load(LAST)["global_step"] == 10
    assert not folders.is_running(FIRST)
    line = (
        "The file system of lightning_logs/version_0 knows no locks. Make sure that no other process trains this run."
    )
    assert capsys.readouterr().out.splitlines().count(line) == 2  # once for each of the two commands


def test_a_lock_file_of_somebody_else_is_named(run: Run) -> None:
    run("fit", "--trainer.max_epochs=1")
    (FIRST / ".lock").unlink()
    (FIRST / ".lock").mkdir()
    with pytest.raises(SystemExit, match=r"version_0/\.lock can't be written: Is a directory"):
        run("fit", "--ckpt_path=last", "--trainer.max_epochs=2")


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_that_is_newest_once_the_run_is_locked(
    run: Run, small_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process trains the run after this one has found its checkpoint, and ends before this one locks it."""
    run("fit")

    def lock_later(folder: Path) -> FileLock:
        fit(["--ckpt_path=last", "--trainer.max_epochs=3"])
        return lock(folder)

    lock = folders.lock
    monkeypatch.setattr("mnist_lightning.runs.logger.lock", lock_later)
    run("fit", "--ckpt_path=last", "--trainer.max_epochs=4")
    assert [step for step, _ in curves()["train/loss"]] == list(range(20))


@pytest.mark.slow
def test_a_second_fit_of_a_running_run_is_refused_and_a_kill_frees_it(program: Program) -> None:
    options = [f"--data.root={DATA}", "--trainer.accelerator=cpu", "--trainer.max_epochs=100"]
    first = program("fit", *options)
    wait_for(LAST.exists)
    second = program("fit", "--ckpt_path=last", *options)
    assert second.wait(timeout=180) == 1
    assert f"lightning_logs/version_0 is being trained by process {first.pid} on " in second.communicate()[1]
    assert first.poll() is None
    first.kill()
    first.wait()
    third = program("fit", "--ckpt_path=last", f"--data.root={DATA}", "--trainer.max_steps=500")
    assert third.wait(timeout=180) == 0


@pytest.mark.slow
def test_fifty_kills_with_two_contenders(
    small_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After each kill, two processes try to continue the run. One is refused, and the other is killed in turn.

    Both start at the same moment, or the second one starts while the first one trains. In the end, the run is the
    same as a run that nothing disturbed.
    """
    arguments = [f"--data.root={small_data}", "--data.val_size=100", "--data.batch_size=64"]
    arguments += ["--trainer.max_epochs=1000", "--trainer.log_every_n_steps=1", "--checkpoint.every_n_steps=1"]
    moments = random.Random(0)
    enter(tmp_path / "contended", monkeypatch)
    holder = start(arguments)
    wait_for(LAST.exists)
    for number in range(50):
        holder.kill()
        holder.join()
        written = LAST.stat().st_mtime_ns
        errors = [Path(f"errors_{number}_{name}") for name in "ab"]
        first = start(["--ckpt_path=last"], errors=errors[0])
        if number % 2:
            wait_for(lambda before=written: LAST.stat().st_mtime_ns > before)
        second = start(["--ckpt_path=last"], errors=errors[1])
        wait_for(lambda both=(first, second): any(process.exitcode is not None for process in both))
        loser, holder = (second, first) if first.exitcode is None else (first, second)
        message = errors[loser is second].read_text().splitlines()[-1]
        reason = f"{FIRST} is being trained by process {holder.pid} on {socket.gethostname()}; "
        assert message.startswith(f"python -m mnist_lightning fit: error: {reason}")
        assert (loser.exitcode, holder.exitcode) == (1, None)
        time.sleep(moments.uniform(0, 0.5))
    holder.kill()
    holder.join()
    epochs = f"--trainer.max_epochs={load(LAST)['epoch'] + 1}"
    fit(["--ckpt_path=last", epochs])
    contended = Outcome()
    enter(tmp_path / "whole", monkeypatch)
    fit([*arguments, epochs])
    Outcome().assert_same(contended)
    with capsys.disabled():
        print("\n50 of 50 kills survived; 50 of 50 second processes refused")


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 10_000, "[]", '{"epochs": [1], "network": {}}', "{"])
def test_a_damaged_status_counts_as_unknown(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "version_0"
    run.mkdir()
    folders.status_file(run).write_text(text)
    assert folders.read_status(run) == {}
    list_runs([str(tmp_path)])
    assert "version_0" in capsys.readouterr().out


def test_a_status_can_not_colour_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "version_0"
    run.mkdir()
    folders.status_file(run).write_text(json.dumps({"network": "\x1b[31mred\n" * 100}))
    list_runs([str(tmp_path)])
    _, line = capsys.readouterr().out.splitlines()
    assert r"\x1b[31mred" in line
    assert line.isprintable()
