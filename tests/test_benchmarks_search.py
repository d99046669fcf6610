"""The program that compares settings on images that it holds out."""

import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import search


def test_every_third_block_of_images_is_held_out() -> None:
    trained, held_out = search.split_by_writer(torch.zeros(60_000), 20_000)
    assert (len(trained), len(held_out)) == (40_000, 20_000)
    assert sorted([*trained.tolist(), *held_out.tolist()]) == [*range(60_000)]
    assert {index // 2_000 % 3 for index in held_out.tolist()} == {0}


def test_a_seed_is_trained_once_for_each_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = []
    original = search.train

    def train(config: Path, flags: list[str], seed: int) -> dict[str, float]:
        trained.append(seed)
        few = [f"--trainer.{name}=2" for name in ("limit_train_batches", "limit_val_batches", "log_every_n_steps")]
        return original(config, [*flags, *few], seed)

    monkeypatch.setattr(search, "train", train)
    monkeypatch.setattr(search, "RESULTS", tmp_path / "runs/search.jsonl")
    for flags, seeds in ([["--data.batch_size=16"], 1], [["--data.batch_size=16"], 2], [["--data.batch_size=32"], 1]):
        monkeypatch.setattr("sys.argv", ["search.py", str(ROOT / "configs/fast.yaml"), f"--seeds={seeds}", *flags])
        search.main()
    assert trained == [0, 1, 0]
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[:2] for row in rows] == [
        ["| `--data.batch_size=16`", "1"],
        ["| `--data.batch_size=16`", "2"],
        ["| `--data.batch_size=32`", "1"],
    ]
    assert 10_000 < float(rows[0][2]) <= 20_000  # two steps teach little
