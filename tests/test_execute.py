"""The notebooks headless: with what was asked and nothing else, and quiet."""

import os
import re
import shutil
import signal
import subprocess
import sys

import jupytext
import nbformat
import pytest
from conftest import REPOSITORY, as_arguments, wait
from nbformat.v4 import new_code_cell, new_notebook

from ctseg.execute import main
from ctseg.files import read_json
from ctseg.pairs import KERNELSPEC

SMALL = {"target_size": 32, "width": 2, "depth": 2}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The notebooks next to the package, with values that somebody tried and saved in both halves of 03."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("ctseg", "notebooks"):
        shutil.copytree(REPOSITORY / name, folder / name)
    for suffix in (".py", ".ipynb"):
        path = folder / "notebooks" / f"03_train{suffix}"
        text = path.read_text()
        assert text.count("lr: float = None") == 1
        path.write_text(text.replace("lr: float = None", "lr: float = 0.25"))
    return folder


def start(clone, *arguments):
    command = [sys.executable, "-m", "ctseg.execute", *map(str, arguments)]
    # Of a notebook that starts it, as `!make run` does.
    environment = os.environ | {"PYTHONPATH": str(clone), "JPY_SESSION_NAME": "/a.ipynb"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=clone, env=environment, **pipes, start_new_session=True)


def run(clone, *arguments):
    """Run it; return (status, what it printed, what it printed as an error)."""
    process = start(clone, *arguments)
    printed, error = process.communicate()
    return process.returncode, printed, error


def test_a_run_gets_what_was_asked_and_nothing_that_was_tried(clone, phantom):
    parameters = as_arguments({"data_root": phantom, "epochs": 1, "n_folds": 2, **SMALL})
    training = ["--only", "03_train", "-r", "run", "7"]
    status, printed, error = run(clone, *training, *parameters)
    assert status == 0 and error == "", error  # nor does the kernel speak
    run_dir = clone / "runs" / "7"
    assert read_json(run_dir / "config.json")["lr"] == 0.002
    assert [path.name for path in run_dir.glob("*.ipynb")] == ["03_train.ipynb"]
    assert "fold0 epoch 1/1" in printed

    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}
    status, _, error = run(clone, *training, *parameters, "-p", "lr", "0.5")
    assert status == 1 and error.startswith("03_train failed: ValueError: ")
    assert "lr: got 0.5, stored 0.002" in error
    assert error.count("\n") == 1 and "choose another run name" in error
    after = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}
    assert after.keys() - before.keys() == {run_dir / "03_train_unfinished.ipynb"}
    assert before.items() <= after.items()

    status, printed, error = run(clone, *training, "-p", "fold", 1)
    assert status == 0 and "fold1 is finished already" in printed, error  # of the run's two folds

    status, printed, error = run(
        clone,
        "--only",
        "04_postprocess_submit",
        "-r",
        "run",
        "7",
        "-r",
        "predict_folder",
        phantom / "Test" / "Image",
    )
    assert status == 0 and (run_dir / "predict.ipynb").is_file(), error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "epocs", "1"], "not run: unknown parameter 'epocs', did you mean 'epochs'?"),
        (["-p", "epochs", "0"], "not run: parameter epochs: got 0, expected 1"),
        (["-r", "run", "../x"], "not run: parameter run: got '../x'"),
        (["-f", "none.yaml"], "not run: no file none.yaml"),
        (["--only", "99_more"], "not run: no notebook '99_more' in "),
        (["-p", "predict_folder", "x"], "not run: predict_folder is for notebook 04 alone; make predict"),
        (["-p", "runs", "a,b"], "not run: runs is for notebook 04 alone; make average runs it"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(clone, monkeypatch, capsys, arguments, message):
    before = sorted(clone.rglob("*"))
    monkeypatch.chdir(clone)
    with pytest.raises(SystemExit, match=re.escape(message)):
        main(["-r", "run", "new", *arguments])
    assert capsys.readouterr().out == "" and sorted(clone.rglob("*")) == before


def test_stopped_by_hand_it_says_one_line_and_goes_on(clone, phantom):
    parameters = as_arguments({"data_root": phantom, "epochs": 400, **SMALL})
    arguments = ["--only", "03_train", "-r", "run", "stopped", *parameters]
    process = start(clone, *arguments)
    history = clone / "runs" / "stopped" / "fold0" / "history.csv"
    wait(lambda: history.is_file() or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, error = process.communicate(timeout=600)
    assert process.returncode == 1
    assert error == "stopped; the same command goes on after the last whole epoch\n"


def test_a_kernel_that_dies_is_explained(clone):
    parameters = new_code_cell('run = ""', metadata={"tags": ["parameters"]})
    dies = new_code_cell('import os\nos.write(2, b"last words")\nos._exit(9)')
    notebook = new_notebook(cells=[parameters, dies], metadata={"kernelspec": KERNELSPEC})
    path = clone / "notebooks" / "05_dies.py"
    jupytext.write(notebook, path, fmt="py:percent")
    nbformat.write(notebook, path.with_suffix(".ipynb"))
    try:
        status, _, error = run(clone, "--only", "05_dies", "-r", "run", "dies")
    finally:
        for suffix in (".py", ".ipynb"):
            path.with_suffix(suffix).unlink()
    assert status == 1 and "last words" in error and "is there enough memory?" in error
