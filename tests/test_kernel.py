"""`make test-kernel`: the kernel as the server received it, and nothing else, run by Kaggle's versions.

`--python` names the interpreter of an environment with Kaggle's papermill and Jupyter, in which `ctseg` is
not installed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import REPOSITORY, as_arguments, copy_sources, wait
from kaggle_server import KaggleServer

from ctseg.contest import A0
from ctseg.data import find_cases, read_mask
from ctseg.metrics import dice_score
from ctseg.phantom import write_phantom
from ctseg.submission import check_submission, decode_rle, read_rows

pytestmark = pytest.mark.kernel

SMALL = {"preset": "quick", "n_folds": 2, "epochs": 20, "target_size": 64, "width": 8}
PLACES = {"newer": f"competitions/{A0.slug}/Dataset", "older": f"{A0.slug}/Dataset"}


@pytest.fixture(scope="module")
def sent(tmp_path_factory) -> str:
    """The text that the server receives of a kernel that is built and pushed with no arguments."""
    return send(tmp_path_factory.mktemp("clone"))


def send(folder: Path, *options: str) -> str:
    """Build a kernel with the options and push it; return the text that the server receives."""
    clone = copy_sources(folder)
    server = KaggleServer()
    saved = {"url": "https://example.org/code/somebody/ctseg-segmentation", "versionNumber": 1}
    server.answers = {"SaveKernel": saved}
    environment = server.environment(clone) | {"PYTHONPATH": str(clone)}
    for command in (["build.py", *options], ["client.py", "push"]):
        program = [sys.executable, f"kaggle_kernel/{command[0]}", *command[1:]]
        subprocess.run(program, cwd=clone, env=environment, check=True)
    server.shutdown()
    server.server_close()
    return server.received["SaveKernel"]["text"]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", n_train=60, n_test=12)


def mount(phantom: Path, folder: Path, place: str) -> Path:
    """Lay the phantom out read-only, as Kaggle does; return the folder in place of /kaggle/input."""
    shutil.copytree(phantom, folder / "input" / place)
    for path in [folder / "input", *(folder / "input").rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    return folder / "input"


def list_files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def find_python(request) -> str:
    """The interpreter of the environment like Kaggle's."""
    return request.config.getoption("python") or pytest.skip("no --python; run make test-kernel")


@pytest.fixture
def run_kernel(request, sent):
    """Run the text in an empty working folder; return the finished papermill and the folder."""
    return make_runner(request, sent)


def make_runner(request, sent: str):
    python = find_python(request)

    def run(
        folder: Path, mounted: Path, meanwhile=lambda: None, **parameters
    ) -> tuple[subprocess.CompletedProcess, Path]:
        working = folder / "working"
        working.mkdir(parents=True, exist_ok=True)
        (folder / "sent.ipynb").write_text(sent)
        options = ["--no-progress-bar", "--log-output"]
        command = [python, "-m", "papermill", *options, folder / "sent.ipynb", folder / "out.ipynb"]
        command += as_arguments(parameters)
        hidden = ("PYTHONPATH", "CTSEG_DATA")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment |= {
            "CTSEG_KAGGLE_INPUT": str(mounted),
            "TORCH_HOME": str(folder / "torch"),
            "HTTPS_PROXY": "http://127.0.0.1:9",
        }
        before = list_files(mounted)
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        thread = threading.Thread(target=meanwhile)
        thread.start()
        done = subprocess.run([*map(str, command)], cwd=working, env=environment, **output)
        thread.join()
        assert list_files(mounted) == before
        return done, working

    return run


def score(submission: Path, phantom: Path) -> float:
    """Mean Dice of a submission against the phantom's hidden masks; it has to be valid."""
    check_submission(submission, find_cases(phantom, "test", A0), A0)
    scores = []
    for row in read_rows(submission, A0):
        true_mask = read_mask(phantom.parent / "test_masks" / f"{row['ID']}.png")
        scores.append(dice_score(decode_rle(row["Mask"], true_mask.shape, A0), true_mask))
    return float(np.mean(scores))


@pytest.fixture(scope="module")
def local(phantom, tmp_path_factory) -> Path:
    """The submission that the four notebooks write here, with the settings `SMALL`."""
    folder = tmp_path_factory.mktemp("local")
    arguments = ["-r", "run", "small", *as_arguments(SMALL | {"data_root": phantom})]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        command = [sys.executable, "-m", "papermill", path, folder / "out.ipynb", *arguments]
        subprocess.run(command, cwd=folder, env=environment, check=True)
    return folder / "runs" / "small" / "submission.csv"


@pytest.fixture(scope="module")
def finished(request, sent, phantom, local, tmp_path_factory) -> Path:
    """The working folder of a kernel that ran with the settings `SMALL`."""
    folder = tmp_path_factory.mktemp("finished")
    mounted = mount(phantom, folder, PLACES["newer"])
    done, working = make_runner(request, sent)(folder, mounted, run="small", **SMALL)
    assert done.returncode == 0, done.stdout
    return working


def test_the_environment_is_kaggles_and_has_no_ctseg(request):
    python = find_python(request)
    lines = (REPOSITORY / "tests" / "tools" / "kaggle_image.txt").read_text().splitlines()
    wanted = [line.lower() for line in lines if "==" in line]
    installed = subprocess.check_output([python, "-m", "pip", "freeze"], text=True).lower().splitlines()
    assert wanted and [line for line in wanted if line not in installed] == []
    alone = subprocess.run([python, "-c", "import ctseg"], cwd="/", capture_output=True, env={})
    assert alone.returncode == 1


def test_the_kernel_submits_what_the_notebooks_submit_here(finished, local, phantom):
    assert (finished / "submission.csv").read_bytes() == local.read_bytes()
    assert score(finished / "submission.csv", phantom) > 0.3


def test_only_files_that_are_worth_downloading_are_left(finished):
    left = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    expected = {
        "config.json",
        "training_data.json",
        "data_check.csv",
        "cases.csv",
        "round_trip.csv",
        "postprocess.json",
    }
    expected |= {
        "submission.csv",
        "summary.json",
        "scores.csv",
        "suspects.csv",
        "examples.png",
        "report.html",
    }
    names = ("best_unet_model.pth", "last.pth", "history.csv", "oof.npz")
    expected |= {f"fold{k}/{name}" for k in (0, 1) for name in names}
    pictures = {path for path in left if re.search("/(val_outputs|cases|figures)/", path)}
    assert left - pictures == {"submission.csv", *(f"runs/small/{path}" for path in expected)}
    assert len([path for path in pictures if "val_outputs" in path]) <= 2 * 3 * 4
    assert len([path for path in pictures if "figures" in path]) == 26
    report = finished / "runs" / "small" / "report.html"
    assert report.stat().st_size < 4_000_000 and report.read_text().count("<img ") >= 25
    assert all((finished / f"runs/small/fold{k}/last.pth").stat().st_size < 50_000 for k in (0, 1))


def test_one_line_per_epoch_and_the_pictures_are_there(finished):
    kernel = nbformat.read(finished.parent / "out.ipynb", as_version=4)
    outputs = [output for cell in kernel.cells for output in cell.get("outputs", [])]
    lines = "".join(output.text for output in outputs if output.output_type == "stream").splitlines()
    assert len([line for line in lines if " epoch " in line]) == 2 * 20
    assert not any("it/s" in line for line in lines)
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) >= 10
    assert any("WARNING: no GPU" in line or re.match(r"\d+ x ", line) for line in lines)


def test_the_older_mount_will_do_and_a_time_budget_too(run_kernel, phantom, tmp_path):
    mounted = mount(phantom, tmp_path, PLACES["older"])
    done, working = run_kernel(tmp_path, mounted, preset="quick", budget_minutes=0.5)
    assert done.returncode == 0, done.stdout
    check_submission(working / "submission.csv", find_cases(phantom, "test", A0), A0)


def test_an_attached_run_is_predicted_with_and_not_trained(run_kernel, finished, phantom, tmp_path):
    shutil.copytree(finished / "runs" / "small", tmp_path / "input" / "my-weights" / "runs" / "small")
    mounted = mount(phantom, tmp_path, PLACES["newer"])
    done, working = run_kernel(tmp_path, mounted, run="small")
    assert done.returncode == 0 and " epoch " not in done.stdout, done.stdout
    assert (working / "submission.csv").read_bytes() == (finished / "submission.csv").read_bytes()


def test_an_attached_run_predicts_whatever_test_images_there_are(run_kernel, finished, phantom, tmp_path):
    """As in a contest that takes notebooks only, and runs them again with its hidden test images."""
    shutil.copytree(finished / "runs" / "small", tmp_path / "input" / "ctseg-weights")
    hidden = shutil.copytree(phantom, tmp_path / "hidden" / "Dataset")
    images = sorted((hidden / "Test" / "Image").iterdir())
    for path in images[3:]:
        path.unlink()
    for path in images[:3]:
        path.rename(path.with_stem(f"hidden_{path.stem}"))
    done, working = run_kernel(tmp_path, mount(hidden, tmp_path, PLACES["newer"]), run="small")
    assert done.returncode == 0 and " epoch " not in done.stdout, done.stdout
    rows = {row["ID"]: row["Mask"] for row in read_rows(working / "submission.csv", A0)}
    before = {row["ID"]: row["Mask"] for row in read_rows(finished / "submission.csv", A0)}
    assert rows == {f"hidden_{path.stem}": before[path.stem] for path in images[:3]}


def put_in_the_way(folder: Path, *folds: int) -> None:
    """Write a file where a fold's folder should be."""
    for fold in folds:
        path = folder / "working" / "runs" / "small" / f"fold{fold}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("in the way")


def test_a_fold_that_crashes_is_reported_and_left_out(run_kernel, phantom, tmp_path):
    put_in_the_way(tmp_path, 1)
    done, working = run_kernel(tmp_path, mount(phantom, tmp_path, PLACES["newer"]), run="small", **SMALL)
    assert done.returncode == 0, done.stdout
    assert "FAILED: fold 1" in done.stdout and "FAILED in its last try: fold1" in done.stdout
    summary = json.loads((working / "runs" / "small" / "summary.json").read_text())
    assert summary["failed"].keys() == {"fold1"} and summary["train_seconds"].keys() == {"fold0"}
    check_submission(working / "submission.csv", find_cases(phantom, "test", A0), A0)


def pretend_gpus(sent: str) -> str:
    """The kernel's text, in which the notebook pretends to have two GPUs; its workers compute on the CPU."""
    pretended = sent.replace("print(check_gpus())", "import torch; torch.cuda.device_count = lambda: 2")
    assert pretended != sent
    return pretended


def send_to_worker(working: Path, run: str, fold: int, number: int) -> None:
    """Send a signal to the process that trains a fold, after its first epoch."""
    wait((working / "runs" / run / f"fold{fold}" / "history.csv").is_file)
    workers = subprocess.check_output(["pgrep", "-f", f"ctseg.folds {fold} "], text=True).split()
    (worker,) = [pid for pid in workers if os.readlink(f"/proc/{pid}/cwd") == str(working)]
    os.kill(int(worker), number)


def test_with_one_worker_killed_and_one_that_hangs_the_kernel_submits_in_time(
    request, sent, phantom, tmp_path
):

    def disturb() -> None:
        send_to_worker(tmp_path / "working", "small", 0, signal.SIGKILL)
        send_to_worker(tmp_path / "working", "small", 1, signal.SIGSTOP)

    mounted = mount(phantom, tmp_path, PLACES["newer"])
    settings = SMALL | {"n_folds": 3, "epochs": 100_000, "deadline_minutes": 3.0}
    started = time.monotonic()
    run_kernel = make_runner(request, pretend_gpus(sent))
    done, working = run_kernel(tmp_path, mounted, disturb, run="small", **settings)
    minutes = (time.monotonic() - started) / 60
    assert done.returncode == 0, done.stdout
    assert "status -9, killed, most often because memory ran out" in done.stdout
    assert "killed because it had given no sign for 2.0 minutes" in done.stdout
    assert re.search(r"fold2 has time for \d+ epochs instead of 100000", done.stdout)
    summary = json.loads((working / "runs" / "small" / "summary.json").read_text())
    assert summary["failed"].keys() == {"fold0", "fold1"} and "small: fold2 of 3" in done.stdout
    check_submission(working / "submission.csv", find_cases(phantom, "test", A0), A0)
    assert 2.5 < minutes < 7  # training ends after 3; then come 04 and whatever the machine is busy with


def test_a_deadline_that_falls_into_the_second_member_gives_the_average_of_both(request, phantom, tmp_path):
    sent = send(tmp_path / "clone", "--member", "epochs=100000,width=12")
    mounted = mount(phantom, tmp_path, PLACES["newer"])
    started = time.monotonic()
    run_kernel = make_runner(request, pretend_gpus(sent))
    done, working = run_kernel(tmp_path, mounted, run="small", **SMALL | {"deadline_minutes": 3.0})
    minutes = (time.monotonic() - started) / 60
    assert done.returncode == 0, done.stdout
    first, second = done.stdout.split("member small-epochs=100000-width=12\n")
    assert "instead of 20" not in first and len(re.findall(r"fold[01] epoch 20/20", first)) == 2
    epochs = [int(n) for n in re.findall(r"fold[01] has time for (\d+) epochs instead of 100000", second)]
    assert len(epochs) == 2 and min(epochs) > 0 and "FAILED" not in done.stdout
    assert re.search(r"\nDice 0.\d+ without it, 0.\d+ with it, on \d+ validation images", second)
    names = ("small", "small-epochs=100000-width=12")
    assert all((working / f"runs/{name}/fold{k}/oof.npz").is_file() for name in names for k in (0, 1))
    average = working / "runs" / "small-average"
    assert json.loads((average / "config.json").read_text())["runs"] == ",".join(names)
    summary = json.loads((average / "summary.json").read_text())
    scores = {name: figures["dice"] for name, figures in summary["scores"].items()}
    alone = [scores[f"validation, plain, {name} alone"] for name in names]
    assert scores["validation, plain threshold"] >= alone[0] - 1e-9
    submitted = (working / "submission.csv").read_bytes()
    assert submitted == (average / "submission.csv").read_bytes()
    assert score(working / "submission.csv", phantom) > 0.3
    assert 2.5 < minutes < 6  # training ends after 3; then comes 04


def test_no_data_no_weights_and_no_finished_fold_are_failures(run_kernel, phantom, tmp_path):
    (tmp_path / "empty" / "input").mkdir(parents=True)
    done, working = run_kernel(tmp_path / "empty", tmp_path / "empty" / "input")
    assert done.returncode != 0 and "no data set: none of" in done.stdout and not (working / "data").exists()
    mounted = mount(phantom, tmp_path, PLACES["newer"])
    done, working = run_kernel(tmp_path / "offline", mounted, epochs=1)
    assert done.returncode != 0 and "no weights file mobilenet_v2-" in done.stdout
    assert "on Kaggle turn the internet on" in done.stdout and not (working / "submission.csv").exists()
    done, working = run_kernel(tmp_path / "missing", mounted, weights="/kaggle/input/none/none.pth")
    assert done.returncode != 0 and "no file '/kaggle/input/none/none.pth'" in done.stdout
    put_in_the_way(tmp_path / "none", 0, 1)
    done, working = run_kernel(tmp_path / "none", mounted, run="small", **SMALL)
    assert done.returncode != 0 and "FileExistsError" in done.stdout
    assert not (working / "submission.csv").exists()
