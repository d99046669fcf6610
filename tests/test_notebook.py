"""docs/tutorial.ipynb: its outputs come from its code, and the code does what the text says."""

import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from helpers import ROOT
from nbformat import NotebookNode

sys.path.insert(0, str(ROOT / "benchmarks"))
import tutorial

COMMITTED = nbformat.read(tutorial.NOTEBOOK, as_version=4)
AGAIN = "run `python benchmarks/tutorial.py`, which writes the outputs again"


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(cell: NotebookNode) -> str:
    """What a cell printed and returned, with `-` for each time in seconds."""
    parts = [output.get("text") or output.data["text/plain"] for output in cell.outputs]
    return re.sub(r"\d+\.\d s$", "-", "\n".join(parts), flags=re.MULTILINE)


def words(text: str) -> str:
    """A text with `#` for each number. The answer may be `unsure` or not: a number that is rounded can decide."""
    text = re.sub(r"unsure, (\S+) for \d", r"0, \1", text)
    return re.sub(r" +", " ", re.sub(r"\d[\d,]*(\.\d+)?", "#", text))


def accuracies(text: str) -> list[float]:
    """All accuracies in a text, from 0 to 100."""
    return [100 * float(share) for share in re.findall(r"/acc ([\d.]+)", text)] + [
        float(percent) for percent in re.findall(r"([\d.]+) %", text)
    ]


def test_the_outputs_come_from_the_code() -> None:
    cells = code_cells(COMMITTED)
    assert COMMITTED.metadata.code == tutorial.code_hash(COMMITTED), AGAIN
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)], AGAIN


def test_the_notebook_is_small_and_has_pictures_and_no_noise() -> None:
    assert tutorial.NOTEBOOK.stat().st_size < 1_500_000
    outputs = [output for cell in code_cells(COMMITTED) for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 10
    assert {output.output_type for output in outputs} == {"stream", "execute_result"}  # no errors
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert "execution" not in {key for cell in COMMITTED.cells for key in cell.metadata}  # times of each cell


def compare(notebook: NotebookNode) -> None:
    """Fail if a notebook that has just run differs from the committed one.

    Until the first training, all texts are the same. Numbers that follow from a training may differ a little between
    processors and versions of torch.
    """
    trained = False
    for cell, committed in zip(code_cells(notebook), code_cells(COMMITTED), strict=True):
        trained = trained or "optimizer.step()" in cell.source
        found, expected = text(cell), text(committed)
        assert (words(found) if trained else found) == (words(expected) if trained else expected), AGAIN
        assert accuracies(found) == pytest.approx(accuracies(expected), abs=10), AGAIN
        kinds, expected_kinds = ([{*output.get("data", {})} for output in each.outputs] for each in (cell, committed))
        assert kinds == expected_kinds, AGAIN


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("60,074", "61,706"),
        (r"\[128, 1, 28, 28\]", "[64, 1, 28, 28]"),
        ("test image 3", "digit 3"),
        (r"97\.\d\d %", "84.34 %"),
    ],
)
def test_a_changed_output_is_noticed(before: str, after: str) -> None:
    compare(COMMITTED)
    changed = json.loads(re.sub(before, after, json.dumps(COMMITTED)))
    with pytest.raises(AssertionError, match="writes the outputs again"):
        compare(nbformat.from_dict(changed))


@pytest.mark.slow
def test_the_notebook_runs_and_gives_the_outputs_that_are_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the outputs are a CPU's
    (tmp_path / "docs").mkdir()
    copy = Path(shutil.copy(tutorial.NOTEBOOK, tmp_path / "docs"))
    shutil.copytree(ROOT / "docs/digits", tmp_path / "docs/digits")
    (tmp_path / "data").symlink_to(ROOT / "data")
    before = sorted(tmp_path.rglob("*"))
    notebook = tutorial.run(copy)
    assert sorted(tmp_path.rglob("*")) == before  # it leaves no files

    compare(notebook)

    everything = "\n".join(text(cell) for cell in code_cells(notebook))
    lines = everything.splitlines()
    for line in (
        "(torch.Size([128, 1, 28, 28]), torch.Size([128]))",
        "from the loader: torch.uint8 torch.Size([128, 28, 28]) torch.Size([128])",
        "10 tensors",
        "60,074 parameters",
        "torch.Size([6, 1, 3, 3])",
        "469 469",
        "430",
        "labels:  tensor([7, 2, 1, 0])",
    ):
        assert line in lines
    losses = [float(loss) for loss in re.findall(r"last 100 steps is ([\d.]+)", everything)]
    assert losses[0] > 2 > losses[1]
    counted, measured, after_twenty = (float(share) for share in re.findall(r"^([\d.]+) %$", everything, re.MULTILINE))
    assert counted == measured
    seeds = [float(share) for share in re.findall(r"^seed \d: ([\d.]+) %", everything, re.MULTILINE)]
    assert all(40 < share < 90 for share in (counted, *seeds))
    assert max(seeds) - min(seeds) > 5  # luck
    assert 97.5 < after_twenty < 98.6
    assert lines[-1] == "True"  # the continued run has the same weights
