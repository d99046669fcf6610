from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Program
from helpers import DATA, LAST
from processes import wait_for

from mnist_lightning.errors import CheckpointError, UserError
from mnist_lightning.runs import folders


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
    folders.status_file(run).write_text('{"process": 7, "host": "here"}')
    assert not folders.is_running(run)
    held = folders.lock(run)
    assert folders.is_running(run)
    with pytest.raises(UserError, match="version_0 is being trained by process 7 on here"):
        folders.lock(run)
    held.release()
    assert not folders.is_running(run)


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
