"""What the documentation says: its commands, its examples, and the files and flags that it names."""

import contextlib
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Run
from helpers import ROOT, write_sweep
from lightning.pytorch import Trainer

from mnist_lightning.cli import VERBS

DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "data/README.md",
    "docs/runs.md",
    "docs/sweep.md",
    "docs/search.md",
]
NOTEBOOK = "docs/tutorial.ipynb"
TEXT = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
CELLS = json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8"))["cells"]
TEXT[NOTEBOOK] = "\n\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
README = TEXT["README.md"]
PROGRAMS = (["python", "-m", "mnist_lightning"], ["mnist-lightning"])
MADE = {
    "config.yaml",
    "config_2.yaml",
    "config_3.yaml",
    "hparams.yaml",
    "my_module.py",
    "best.yaml",
}  # by a run, or by the reader


def blocks(document: str, language: str) -> list[str]:
    """The code blocks of a document in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT[document], re.DOTALL | re.MULTILINE)


def lines(document: str) -> list[str]:
    """The lines that a document tells its readers to type."""
    return [line for block in blocks(document, "sh") for line in block.splitlines()]


def commands(document: str) -> list[list[str]]:
    """Those that start this program: the verb and its arguments."""
    typed = [shlex.split(line.rpartition(" && ")[2]) for line in lines(document)]
    return [words[len(start) :] for words in typed for start in PROGRAMS if words[: len(start)] == start]


def prose(document: str) -> str:
    """A document without its code blocks."""
    return re.sub(r"^```.*?^```", "", TEXT[document], flags=re.DOTALL | re.MULTILINE)


def test_the_readme_starts_with_the_two_commands() -> None:
    assert lines("README.md")[:2] == [
        "pip install -e . && python -m mnist_lightning fit",
        "pip install -e '.[dev]' && pytest",
    ]


def test_ci_runs_the_test_command() -> None:
    assert f'bash -c "{lines("README.md")[1]}"' in (ROOT / ".ci/run").read_text()


def test_the_readme_has_a_command_for_every_verb() -> None:
    assert {verb for verb, *_ in commands("README.md")} == {*VERBS}
    assert len(commands("README.md")) >= 30


@pytest.fixture
def place(run: Run, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the commands name: a run, the recipes, photos, and a network of the reader."""
    for folder in ("configs", "docs"):
        Path(folder).symlink_to(ROOT / folder)
    shutil.copy(ROOT / "docs/digits/seven.png", "photo.png")
    shutil.copytree(ROOT / "docs/digits", tmp_path / "home/Pictures/digits")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for code in blocks("README.md", "python"):
        if name := re.match(r"# (\w+\.py)\n", code):
            Path(name[1]).write_text(code)
    return workplace


def type_in(words: list[str], run: Run) -> None:
    """Run a command on the small data, with a limit on its epochs."""
    here = {"/path/to/version_3": "lightning_logs/version_0", "30": "4"}  # 30 epochs or trials
    here["lightning_logs/sweep_0/version_7"] = "lightning_logs/sweep_0/version_0"
    verb, *arguments = (here.get(word, word) for word in words)
    if "gpu" in arguments:
        devices = int(arguments[arguments.index("--trainer.devices") + 1]) if "--trainer.devices" in arguments else 1
        if torch.accelerator.device_count() < devices:
            with pytest.raises(SystemExit):
                run(verb, *arguments)
            return
        if devices > 1:  # starts more processes, as tests/runs/test_distributed.py does
            return
    if verb == "sweep":
        write_sweep(str(Path("../small_data").resolve()))
        if "--workers" in arguments or "--storage" in arguments:  # as tests/use/test_sweep.py does
            return
        arguments[0] = "sweep.yaml"
    if "WandbLogger" in arguments:  # another package, which needs a network
        with pytest.raises(SystemExit, match=r"^0$"):
            run(verb, *arguments, "--print_config")
        return
    if "--data.val_size" in arguments:  # the small data have 640 images in all
        arguments.append("--data.val_size=100")
    if verb == "fit" and "--ckpt_path" not in arguments:
        arguments.append("--trainer.max_epochs=1")
    run(verb, *arguments)


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if commands(name)])
def test_every_command_runs_in_the_order_of_the_document(
    document: str, run: Run, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit")
    out = capsys.readouterr().out
    if document == "README.md":
        shown = blocks("README.md", "text")[0].splitlines()
        assert "\n".join(shown[: shown.index("60,074 parameters") + 1]) in out
        for line in shown[-4:]:  # what to type next
            assert line in out
        assert commands(document)[0] == ["fit"]  # the run above
    for words in commands(document)[document == "README.md" :]:
        type_in(words, run)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a notebook's second run has a folder of its own
def test_the_notebook_runs(
    small_data: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data").symlink_to(small_data)
    Path("docs").symlink_to(ROOT / "docs")
    original = Trainer.__init__
    monkeypatch.setattr(Trainer, "__init__", lambda self, **options: original(self, log_every_n_steps=1, **options))
    codes = blocks("README.md", "python")
    assert len(codes) >= 4
    names: dict[str, object] = {"__name__": "notebook"}
    for code in codes:
        code = code.replace("MNISTDataModule()", "MNISTDataModule(val_size=100)")
        if "Tuner" in code:  # an epoch of the small data is too short for it
            code = code.replace("max_epochs=1", "max_epochs=20")
        exec(code, names)
    out = capsys.readouterr().out
    assert "tensor([7, 2, 1, 0])" in out  # the labels
    assert "<docs/digits/seven.png: " in out
    assert float(out.split()[-1]) > 0  # the learning rate


@pytest.mark.parametrize("text", blocks("CHANGELOG.md", "yaml"))
def test_settings_in_yaml_are_known(text: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(text)
    with pytest.raises(SystemExit, match=r"^0$"):
        run("fit", "--config=mine.yaml", "--print_config")
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["model"]["optimizer"]["init_args"]["lr"] == 0.001  # a part of a group keeps the rest


def test_flags_that_the_text_names_exist(workplace: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        with contextlib.suppress(SystemExit):
            run(verb, "--help_all" if verb == "fit" else "--help")
    known = {*re.findall(r"--[\w.+]+", capsys.readouterr().out)}
    assert len(known) > 80
    texts = [prose(document) for document in DOCUMENTS if document != "CHANGELOG.md"]  # which names old flags
    spans = [span for text in texts for span in re.findall("`(.+?)`", text)]
    ours = [span for span in spans if span.startswith("--") or span.split()[0] in VERBS]
    flags = {flag for span in ours for flag in re.findall(r"--[\w.+]+", span)}
    assert len(flags) > 15
    assert flags - known == set()


def anchors(document: str) -> list[str]:
    """The anchors of a document's headings: GitHub's, or Jupyter's in a notebook."""
    headings = [line.lstrip("# ") for line in TEXT[document].splitlines() if line.startswith("#")]
    if document == NOTEBOOK:
        return [heading.replace(" ", "-") for heading in headings]
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("document", TEXT)
def test_links_lead_somewhere(document: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", prose(document)):
        if target.startswith("https://"):
            continue
        path = (ROOT / document).parent / target if target else ROOT / document
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(str(path.resolve().relative_to(ROOT)))


def test_each_step_of_the_tutorial_has_a_link_to_the_notebook() -> None:
    table = README.partition("| in the tutorial |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(table) == 14
    assert all(re.search(rf"\| \[[\w ]+\]\({NOTEBOOK}#[\w-]+\) \|$", row) for row in table)


@pytest.mark.parametrize("document", TEXT)
def test_files_that_the_text_names_exist(document: str) -> None:
    places = [ROOT, ROOT / "mnist_lightning", ROOT / "configs", ROOT / "data/MNIST/raw", (ROOT / document).parent]
    named = re.findall(r"`([\w./-]+(?:\.(?:py|md|ya?ml|txt|toml|png|gz)|/))`", prose(document))
    named += re.findall(r"(?:\.ci|configs|docs|benchmarks|tests)/[\w./]*\w", TEXT[document])
    assert [name for name in named if name not in MADE and not any((place / name).exists() for place in places)] == []


def test_line_counts_are_those_of_the_files() -> None:
    printed = {
        name: int(count.replace(",", ""))
        for name, count in re.findall(r"^\| `([\w/]+(?:\.py|/))` \| ([\d,]+) \|", README, re.MULTILINE)
    }
    assert len(printed) >= 10
    for name in printed:
        path = ROOT / "mnist_lightning" / name
        files = [file for kind in ("py", "js", "html", "css") for file in path.glob(f"*.{kind}")] or [path]
        printed[name] -= sum(len(file.read_text().splitlines()) for file in files)
    assert printed == dict.fromkeys(printed, 0), "lines too many in the README"


def test_the_version_is_that_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.findall(r"mnist_lightning-([\d.]+)-py3", README) == [version]
    assert re.findall(r"^## (.+)", TEXT["CHANGELOG.md"], re.MULTILINE)[0] == version


def test_tensorboard_shows_the_runs(run: Run) -> None:
    run("fit")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "lightning_logs", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        tags = b""
        while b"val/acc" not in tags:
            assert time.monotonic() < deadline, f"TensorBoard knows of {tags!r}"
            time.sleep(0.2)
            try:
                url = f"http://127.0.0.1:{port}/data/plugin/scalars/tags"
                tags = urllib.request.urlopen(url, timeout=5).read()
            except OSError:
                continue
        assert b"version_0" in tags
    finally:
        server.kill()
        server.wait()
