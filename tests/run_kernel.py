"""`make test-kernel`: the kernel's text as the server received it, and nothing else, run by Kaggle's versions of papermill and Jupyter.

`--python` names the interpreter of that environment, in which `ctseg` is not installed.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import REPOSITORY
from kaggle_server import KaggleServer

from ctseg.data import COMPETITION, find_cases, read_mask
from ctseg.metrics import dice_score
from ctseg.phantom import write_phantom
from ctseg.submission import check_submission, decode_rle, read_rows

NOTEBOOKS = ("01_eda", "02_transforms", "03_train", "04_postprocess_submit")
SMALL = {"preset": "quick", "n_folds": 2, "epochs": 20, "target_size": 64, "width": 8}
PLACES = {"newer": f"competitions/{COMPETITION}/Dataset", "older": f"{COMPETITION}/Dataset"}


@pytest.fixture(scope="module")
def sent(tmp_path_factory) -> str:
    """The text that the server receives of a kernel that is built and pushed with no arguments."""
    clone = tmp_path_factory.mktemp("clone")
    for name in ("ctseg", "notebooks", "kaggle_kernel"):
        shutil.copytree(REPOSITORY / name, clone / name, ignore=shutil.ignore_patterns("__pycache__", "ctseg.ipynb", "*.json"))
    server = KaggleServer()
    server.answers = {"SaveKernel": {"url": "https://example.org/code/somebody/ctseg-segmentation", "versionNumber": 1}}
    environment = server.environment(clone) | {"PYTHONPATH": str(clone)}
    for command in (["build.py"], ["client.py", "push"]):
        subprocess.run([sys.executable, f"kaggle_kernel/{command[0]}", *command[1:]], cwd=clone, env=environment, check=True)
    server.shutdown()
    server.server_close()
    return server.received["SaveKernel"]["text"]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", n_train=60, n_test=12)


def mount(phantom: Path, folder: Path, place: str) -> Path:
    """Lay the phantom's images and masks out read-only, as Kaggle does; return what stands in for /kaggle/input."""
    shutil.copytree(phantom, folder / "input" / place)
    for path in [folder / "input", *(folder / "input").rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    return folder / "input"


def run_kernel(request, sent: str, folder: Path, mounted: Path, **parameters) -> tuple[subprocess.CompletedProcess, Path]:
    """Run the text in an empty working folder; return the finished papermill and the folder."""
    working = folder / "working"
    working.mkdir(parents=True, exist_ok=True)
    (folder / "sent.ipynb").write_text(sent)
    python = request.config.getoption("python")
    command = [python, "-m", "papermill", "--no-progress-bar", "--log-output", folder / "sent.ipynb", folder / "out.ipynb"]
    command += [part for name, value in parameters.items() for part in ("-p", name, value)]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CTSEG_DATA")}
    environment |= {"CTSEG_KAGGLE_INPUT": str(mounted), "TORCH_HOME": str(folder / "torch"), "HTTPS_PROXY": "http://127.0.0.1:9"}
    before = list_files(mounted)
    done = subprocess.run([*map(str, command)], cwd=working, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert list_files(mounted) == before
    return done, working


def list_files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def score(submission: Path, phantom: Path) -> float:
    """Mean Dice of a submission against the phantom's hidden masks; it has to be valid."""
    check_submission(submission, find_cases(phantom, "Test"))
    truths = {row["ID"]: read_mask(phantom.parent / "test_masks" / f"{row['ID']}.png") for row in read_rows(submission)}
    return float(
        np.mean([dice_score(decode_rle(row["Mask"], truths[row["ID"]].shape), truths[row["ID"]]) for row in read_rows(submission)])
    )


@pytest.fixture(scope="module")
def local(phantom, tmp_path_factory) -> Path:
    """The submission that the four notebooks leave here, with the settings `SMALL`."""
    folder = tmp_path_factory.mktemp("local")
    parameters = [str(part) for name, value in (SMALL | {"data_root": phantom}).items() for part in ("-p", name, value)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    for name in NOTEBOOKS:
        command = [
            sys.executable,
            "-m",
            "papermill",
            REPOSITORY / "notebooks" / f"{name}.ipynb",
            folder / "out.ipynb",
            "-r",
            "run",
            "small",
        ]
        subprocess.run([*map(str, command), *parameters], cwd=folder, env=environment, check=True)
    return folder / "runs" / "small" / "submission.csv"


@pytest.fixture(scope="module")
def finished(request, sent, phantom, local, tmp_path_factory) -> Path:
    """The working folder of a kernel that ran with the settings `SMALL`."""
    folder = tmp_path_factory.mktemp("finished")
    done, working = run_kernel(request, sent, folder, mount(phantom, folder, PLACES["newer"]), run="small", **SMALL)
    assert done.returncode == 0, done.stdout
    return working


def test_the_environment_is_kaggles_and_has_no_ctseg(request):
    python = request.config.getoption("python")
    wanted = [line for line in (REPOSITORY / "tests" / "kaggle_image.txt").read_text().splitlines() if "==" in line]
    installed = subprocess.check_output([python, "-m", "pip", "freeze"], text=True).lower().splitlines()
    assert [line for line in wanted if line.lower() not in installed] == []
    assert subprocess.run([python, "-c", "import ctseg"], cwd="/", capture_output=True, env={}).returncode == 1


def test_the_kernel_submits_what_the_notebooks_submit_here(finished, local, phantom):
    assert (finished / "submission.csv").read_bytes() == local.read_bytes()
    assert score(finished / "submission.csv", phantom) > 0.3


def test_only_what_is_worth_downloading_is_left(finished):
    left = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    expected = {
        "config.json",
        "data_check.csv",
        "cases.csv",
        "round_trip.csv",
        "postprocess.json",
        "submission.csv",
        "summary.json",
        "examples.png",
    }
    expected |= {f"fold{k}/{name}" for k in (0, 1) for name in ("best_unet_model.pth", "history.csv", "oof.npz")}
    assert {path for path in left if "val_outputs" not in path} == {"submission.csv", *(f"runs/small/{path}" for path in expected)}
    assert len([path for path in left if "val_outputs" in path]) <= 2 * 2 * 4


def test_one_line_an_epoch_and_the_pictures_are_there(finished):
    kernel = nbformat.read(finished.parent / "out.ipynb", as_version=4)
    outputs = [output for cell in kernel.cells for output in cell.get("outputs", [])]
    lines = "".join(output.text for output in outputs if output.output_type == "stream").splitlines()
    assert len([line for line in lines if " epoch " in line]) == 2 * 20 and not any("it/s" in line for line in lines)
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) >= 10
    assert any("no GPU" in line or "x " in line for line in lines)


def test_the_older_mount_will_do_and_a_time_budget_too(request, sent, phantom, tmp_path):
    done, working = run_kernel(request, sent, tmp_path, mount(phantom, tmp_path, PLACES["older"]), preset="quick", budget_minutes=0.5)
    assert done.returncode == 0, done.stdout
    assert score(working / "submission.csv", phantom) > 0.3


def test_a_run_that_is_attached_is_predicted_with_and_not_trained_again(request, sent, finished, phantom, tmp_path):
    shutil.copytree(finished / "runs" / "small", tmp_path / "input" / "my-weights" / "runs" / "small")
    done, working = run_kernel(request, sent, tmp_path, mount(phantom, tmp_path, PLACES["newer"]), run="small", preset="quick")
    assert done.returncode == 0 and " epoch " not in done.stdout, done.stdout
    assert (working / "submission.csv").read_bytes() == (finished / "submission.csv").read_bytes()


def test_a_fold_that_crashes_is_reported_and_left_out(request, sent, phantom, tmp_path):
    in_the_way = tmp_path / "working" / "runs" / "small" / "fold1"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where the fold's folder should be")
    done, working = run_kernel(request, sent, tmp_path, mount(phantom, tmp_path, PLACES["newer"]), run="small", **SMALL)
    assert done.returncode == 0 and "FAILED: fold 1" in done.stdout and "FAILED and left out: fold1" in done.stdout, done.stdout
    summary = json.loads((working / "runs" / "small" / "summary.json").read_text())
    assert summary["failed"].keys() == {"fold1"} and summary["train_seconds"].keys() == {"fold0"}
    check_submission(working / "submission.csv", find_cases(phantom, "Test"))


def test_nothing_mounted_missing_weights_and_no_fold_finished_are_failures(request, sent, phantom, tmp_path):
    (tmp_path / "empty" / "input").mkdir(parents=True)
    done, working = run_kernel(request, sent, tmp_path / "empty", tmp_path / "empty" / "input")
    assert done.returncode != 0 and "no data set: none of" in done.stdout and not (working / "data").exists()
    mounted = mount(phantom, tmp_path, PLACES["newer"])
    done, working = run_kernel(request, sent, tmp_path / "offline", mounted, epochs=1)
    assert done.returncode != 0 and "no weights file mobilenet_v2-" in done.stdout and "on Kaggle turn the internet on" in done.stdout
    assert not (working / "submission.csv").exists()
    done, working = run_kernel(request, sent, tmp_path / "missing", mounted, weights="/kaggle/input/none/none.pth")
    assert done.returncode != 0 and "no weights file '/kaggle/input/none/none.pth'" in done.stdout
    for fold in (0, 1):
        in_the_way = tmp_path / "none" / "working" / "runs" / "small" / f"fold{fold}"
        in_the_way.parent.mkdir(parents=True, exist_ok=True)
        in_the_way.write_text("in the way")
    done, working = run_kernel(request, sent, tmp_path / "none", mounted, run="small", **SMALL)
    assert done.returncode != 0 and "FileExistsError" in done.stdout and not (working / "submission.csv").exists()
