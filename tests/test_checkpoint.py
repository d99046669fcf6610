"""What a checkpoint file may be, and what becomes of it when the disk is full."""

import errno
import os
import random
import re
import resource
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from traceback import format_exception
from typing import Any

import pytest
import torch
from conftest import Program, Run
from helpers import BEST, DATA, LAST, SECOND, differences, files_of_at_most, load
from PIL import Image
from processes import wait_for

from mnist_lightning import DigitClassifier, LeNet, checkpoint
from mnist_lightning.errors import CheckpointError, OutputError
from mnist_lightning.runs.saving import DurableCheckpointIO

VERBS = ["fit", "validate", "test"]


class Payload:
    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (Path("executed"),)


@pytest.fixture
def malicious(workplace: Path) -> Path:
    """A checkpoint that touches a file when it is loaded as a common pickle, which torch can be told to do."""
    content = {"state_dict": LeNet().state_dict(), "pytorch-lightning_version": "2.6.6", "payload": Payload()}
    torch.save(content, "malicious.ckpt")
    torch.load("malicious.ckpt", weights_only=False)
    Path("executed").unlink()
    return Path("malicious.ckpt")


def test_no_verb_runs_what_a_checkpoint_contains(malicious: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for verb in VERBS:
        with pytest.raises(SystemExit, match=r"--ckpt_path: malicious\.ckpt holds more than plain data"):
            run(verb, f"--ckpt_path={malicious}")
    with pytest.raises(CheckpointError, match="holds more than plain data"):
        DigitClassifier.load_from_checkpoint(malicious, weights_only=False)
    assert not Path("executed").exists()


def test_the_message_names_what_is_not_plain_data(malicious: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(malicious)
    found = "(builtins.getattr, pathlib.Path, pathlib.PosixPath)"
    assert str(caught.value) == f"{malicious} holds more than plain data {found}, and could run code; it was not loaded"
    traceback = "".join(format_exception(caught.value))
    assert "weights_only" not in traceback  # torch's advice to load the file all the same
    assert "\x1b" not in traceback


WEIGHTS = "holds only the weights of a network; expected a checkpoint of `fit`"
OTHER_FILE = "expected best, last, a run folder, version_N or a checkpoint of `fit`"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("net.pth", WEIGHTS),
        ("net.pt2", f"is an exported network; {OTHER_FILE}"),
        ("net.onnx", f"is an exported network; {OTHER_FILE}"),
        ("digit.png", f"is a picture; {OTHER_FILE}"),
        ("script.pt", "is a TorchScript program; expected a checkpoint of `fit`"),
        ("other.zip", "is not a checkpoint, or only a part of one"),
        ("old.pth", "is not a checkpoint, or only a part of one"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_another_file_in_place_of_a_checkpoint(name: str, message: str, run: Run) -> None:
    if name == "net.pth":
        torch.save(LeNet().state_dict(), name)
    elif name == "net.pt2":
        torch.export.save(torch.export.export(LeNet(), (torch.zeros(1, 1, 28, 28),)), name)
    elif name == "script.pt":
        torch.jit.script(torch.nn.Linear(1, 1)).save(name)
    elif name == "other.zip":
        with zipfile.ZipFile(name, "w") as archive:
            archive.writestr("folder/file.txt", "text")
    elif name == "old.pth":
        torch.save(LeNet().state_dict(), name, _use_new_zipfile_serialization=False)
    elif name == "digit.png":
        Image.new("L", (28, 28)).save(name)
    else:
        Path(name).write_bytes(b"\x08\x0a\x12\x07pytorch")
    with pytest.raises(SystemExit) as caught:
        run("test", f"--ckpt_path={name}")
    assert f"--ckpt_path: {name} {message}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def too_large(path: str, kind: str) -> None:
    """Write a file of 20 GB that needs little space on the disk, or one that unpacks to 20 GB."""
    if kind == "sparse":
        Path(path).touch()
        os.truncate(path, 20 * 2**30)
    else:
        size = 20 * 2**30 if kind == "deflated, slow" else 2 * 2**30
        records = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        with records, records.open("archive/data.pkl", "w", force_zip64=True) as record:
            for _ in range(size // 2**24):
                record.write(bytes(2**24))


@pytest.mark.parametrize(
    "kind", ["sparse", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("deflated", "deflated, slow"))]
)
def test_a_checkpoint_of_20_gigabytes_is_refused_without_reading_it(kind: str, workplace: Path) -> None:
    too_large("huge.ckpt", kind)
    code = """
import resource
from mnist_lightning import checkpoint
before = resource.getrusage(resource.RUSAGE_SELF)
try:
    checkpoint.read("huge.ckpt")
except checkpoint.CheckpointError as error:
    print(error)
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_maxrss - before.ru_maxrss)  # KiB
print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    message, kibibytes, seconds = done.stdout.splitlines()
    if kind == "sparse":
        assert message == "huge.ckpt is too large: 21,474,836,480 bytes; expected at most 4,294,967,296"
    else:
        assert message == "huge.ckpt is not a checkpoint: its records are compressed, or overlap"
    assert int(kibibytes) < 200_000
    assert float(seconds) < 2


@pytest.mark.parametrize("place", ["hparams", "module_arguments", "hparams_name"])
def test_settings_in_places_of_old_versions_are_refused(place: str, run: Run) -> None:
    """Lightning would build the network from them, and so call a function that the file names."""
    run("fit")
    content = load(LAST)
    network = {
        "class_path": "torch.fx.graph_module.reduce_graph_module",
        "init_args": {"body": {"_code": "forward = print"}, "import_block": "open('executed', 'w')\n"},
    }
    if place == "hparams_name":
        content |= {"hyper_parameters": network, "hparams_name": "network"}
    else:
        del content["hyper_parameters"]["network"]
        content[place] = {"network": network}
    torch.save(content, "crafted.ckpt")
    with pytest.raises(CheckpointError, match=r"crafted\.ckpt is of another program: its settings are unknown"):
        DigitClassifier.load_from_checkpoint("crafted.ckpt")
    assert not Path("executed").exists()


@pytest.mark.parametrize("momentum", [torch.zeros(3), torch.zeros(6, 1, 3, 3, 50), torch.zeros(())])
def test_momentum_of_another_shape_is_refused(momentum: torch.Tensor, run: Run) -> None:
    """torch's fused step would read and write outside of it, and end the process or change other memory."""
    run("fit")
    content = load(LAST)
    content["optimizer_states"][0]["state"][0]["momentum_buffer"] = momentum
    torch.save(content, "crafted.ckpt")
    found = re.escape(f"{tuple(momentum.shape)}, and its parameter (6, 1, 3, 3)")
    with pytest.raises(SystemExit, match=f"the momentum_buffer in the checkpoint has the shape {found}"):
        run("fit", "--ckpt_path=crafted.ckpt", "--trainer.max_epochs=3")


def test_momentum_gets_the_order_in_memory_of_its_parameter(run: Run) -> None:
    """torch's fused step reads momentum and parameter in the same order, and does not compare their strides."""
    run("fit", "--trainer.max_epochs=1")
    content = load(LAST)
    for state in content["optimizer_states"][0]["state"].values():
        state["momentum_buffer"] = state["momentum_buffer"].contiguous()
    assert (
        content["optimizer_states"][0]["state"][2]["momentum_buffer"].stride()
        != content["state_dict"]["network.conv2.weight"].stride()
    )
    torch.save(content, "reordered.ckpt")
    run("fit", f"--ckpt_path={LAST}", "--trainer.max_epochs=2")
    expected = load(LAST)["state_dict"]
    run("fit", "--ckpt_path=reordered.ckpt", "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1")
    found = load(SECOND / "checkpoints/last.ckpt")["state_dict"]
    assert differences(expected, found) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content["optimizer_states"][0].pop("param_groups"), "can't be restored: KeyError: 'param_gro"),
        (lambda content: content["loops"]["fit_loop"].pop("epoch_progress"), "is damaged: it does not count epochs"),
        (lambda content: content["ExactResume"].update(batches_done=99), "says that 99 of 5 batches are done"),
    ],
)
def test_a_training_state_that_is_damaged_ends_in_a_line(damage: Callable[[Any], Any], message: str, run: Run) -> None:
    run("fit")
    content = load(LAST)
    damage(content)
    torch.save(content, "crafted.ckpt")
    with pytest.raises(SystemExit) as caught:
        run("fit", "--ckpt_path=crafted.ckpt", "--trainer.max_epochs=3")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_no_url_is_opened(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/last.ckpt"
        for verb in VERBS:
            with pytest.raises(SystemExit, match=f"--ckpt_path: {url} is a URL; expected a file"):
                run(verb, f"--ckpt_path={url}")
        with pytest.raises(CheckpointError, match="is a URL; expected a file"):
            DigitClassifier.load_from_checkpoint(url)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has come
            server.accept()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"optimizer": {"class_path": "builtins.exec", "init_args": {"source": "open('executed', 'w')"}}},
            "its optimizer is builtins.exec; expected an optimizer class",
        ),
        (
            {"lr_scheduler": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "executed"]}}},
            "its lr_scheduler is subprocess.Popen; expected a schedule class",
        ),
        (
            {
                "lr_scheduler": {
                    "class_path": "torch.optim.lr_scheduler.LambdaLR",
                    "init_args": {"lr_lambda": "pathlib.Path.touch"},
                }
            },
            "its lr_scheduler is pathlib.Path.touch; expected a schedule class",
        ),
        (  # annotated to return a network, which jsonargparse is content with
            {
                "network": {
                    "class_path": "torch.fx.graph_module.reduce_graph_module",
                    "init_args": {"body": {"_code": "forward = print"}, "import_block": "open('executed', 'w')\n"},
                }
            },
            "its network is torch.fx.graph_module.reduce_graph_module; expected a network class",
        ),
        ({"optimizer": "no.such"}, "its optimizer is no.such; expected an optimizer class that can be imported"),
        ({"_instantiator": "builtins.exec"}, "is of another program: its settings are unknown"),
        ({"network": {"class_path": 3}}, "its network is 3; expected a network class that can be imported"),
    ],
)
def test_no_function_is_called_because_a_checkpoint_names_it(
    settings: dict[str, object], message: str, run: Run
) -> None:
    run("fit")
    content = torch.load(LAST, weights_only=True)
    content["hyper_parameters"] |= settings
    torch.save(content, "crafted.ckpt")
    with pytest.raises(SystemExit) as caught:
        run("test", "--ckpt_path=crafted.ckpt")
    assert message in str(caught.value)
    with pytest.raises(CheckpointError) as refused:
        DigitClassifier.load_from_checkpoint("crafted.ckpt")
    assert message in str(refused.value)
    assert not Path("executed").exists()


def test_damage_is_found_before_use(run: Run) -> None:
    run("fit")
    content = bytearray(LAST.read_bytes())
    content[len(content) // 2] ^= 1
    LAST.write_bytes(content)
    for verb in VERBS:
        with pytest.raises(SystemExit, match=rf"--ckpt_path: {LAST} is damaged: the checksum of its record "):
            run(verb, "--ckpt_path=last")
    BEST.write_bytes(BEST.read_bytes()[:-100])
    with pytest.raises(SystemExit, match=rf"--ckpt_path: {BEST} is not a checkpoint, or only a part of one"):
        run("test")


def test_of_300_flipped_bits_and_100_cuts_none_changes_what_is_used(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit")
    whole = LAST.read_bytes()
    content = torch.load(LAST, weights_only=True)
    chance = random.Random(0)
    refused = harmless = 0
    for trial in range(400):
        damaged = bytearray(whole)
        if trial < 300:
            bit = chance.randrange(8 * len(whole))
            damaged[bit // 8] ^= 1 << bit % 8
        else:
            del damaged[chance.randrange(len(whole)) :]
        Path("damaged.ckpt").write_bytes(damaged)
        try:
            read = checkpoint.read("damaged.ckpt")
        except CheckpointError:
            refused += 1
        else:
            assert trial < 300
            assert differences(content, read) == []
            harmless += 1
    with capsys.disabled():
        print(f"\n{refused} of 400 damaged checkpoints refused; in {harmless} nothing that counts was hit")
    assert harmless <= 10


def limit_file_size(pid: int, size: int) -> None:
    """Let writes beyond a size fail, as a full disk does."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(program: Program) -> None:
    process = program("fit", f"--data.root={DATA}", "--trainer.accelerator=cpu", "--checkpoint.every_n_steps=20")
    wait_for(LAST.exists)
    limit_file_size(process.pid, 100_000)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert err.splitlines()[-1] == (
        f"python -m mnist_lightning fit: error: {LAST} can't be written: {os.strerror(errno.EFBIG)}; "
        "the existing file is unchanged"
    )
    assert checkpoint.read(LAST)["global_step"] % 20 == 0
    assert [path.name for path in LAST.parent.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_that_can_not_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    DurableCheckpointIO().save_checkpoint({"step": 1}, path)
    with files_of_at_most(1_000), pytest.raises(OutputError, match=r"last\.ckpt can't be written: File too large"):
        DurableCheckpointIO().save_checkpoint({"step": 2, "weights": torch.zeros(1_000)}, path)
    assert torch.load(path) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]
