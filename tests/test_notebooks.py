"""The notebooks as files, and run headless from start to submission on a small phantom."""

import ast
import json
import os
import shutil
import subprocess
import sys

import jupytext
import nbformat
import pytest
from conftest import REPOSITORY
from jupytext.compare import compare_notebooks

from ctseg.config import Config
from ctseg.postprocess import PostProcess
from ctseg.report import print_summary, write_report

NAMES = ["01_eda", "02_transforms", "03_train", "04_postprocess_submit"]
PARAMETERS = [
    "preset",
    "data_root",
    "run",
    "fold",
    "n_folds",
    "epochs",
    "budget_minutes",
    "batch_size",
    "lr",
    "target_size",
    "encoder",
    "weights",
    "seed",
]


def read(name):
    return nbformat.read(REPOSITORY / "notebooks" / f"{name}.ipynb", as_version=4)


def code_cells(name):
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", NAMES)
def test_the_pair_is_in_sync_and_holds_no_outputs(name):
    text = jupytext.read(REPOSITORY / "notebooks" / f"{name}.py")
    compare_notebooks(read(name), text, fmt="py:percent")
    assert [cell.source for cell in text.cells] == [cell.source for cell in read(name).cells]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code_cells(name))
    assert read(name).metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("name", NAMES)
def test_the_parameters_cell_is_the_same_everywhere_and_every_name_is_a_setting(name):
    (cell,) = [cell for cell in code_cells(name) if "parameters" in cell.metadata.get("tags", [])]
    (first,) = [cell for cell in code_cells(NAMES[0]) if "parameters" in cell.metadata.get("tags", [])]
    assert cell.source == first.source
    statements = ast.parse(cell.source).body
    assert [statement.target.id for statement in statements] == PARAMETERS
    assert all(parameter in Config.__dataclass_fields__ for parameter in PARAMETERS)
    assert [ast.literal_eval(statement.value) for statement in statements[3:]] == [None] * 10
    assert all("#" in line for line in cell.source.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_short_and_hold_no_logic_of_their_own(name):
    assert read(name).cells[0].cell_type == "markdown" and "Artefact" in read(name).cells[0].source
    for cell in code_cells(name):
        assert len(cell.source.splitlines()) <= 15
        for forbidden in ("def ", "class ", "sys.path", "!pip", "torch.load", "open("):
            assert forbidden not in cell.source.replace("Image.open(", "")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the notebooks beside a link to the module: runs/ is made there and not here."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(REPOSITORY / "notebooks", folder / "notebooks")
    (folder / "ctseg").symlink_to(REPOSITORY / "ctseg")
    return folder


def papermill(clone, *arguments, cwd="."):
    """Run papermill in the clone; return the finished process."""
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    return subprocess.run(
        [sys.executable, "-m", "papermill", *map(str, arguments)], cwd=clone / cwd, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def small(phantom):
    """A run of seconds."""
    return [
        "-p",
        "data_root",
        phantom,
        "-r",
        "run",
        "007",
        "-p",
        "epochs",
        2,
        "-p",
        "lr",
        "0.0005",
        "-p",
        "target_size",
        32,
        "-p",
        "width",
        4,
        "-p",
        "n_folds",
        2,
    ]


@pytest.fixture(scope="module")
def run(clone, small):
    """The four notebooks run in turn, each from the repository root."""
    folder = clone / "runs" / "007"
    for name in NAMES:
        folder.mkdir(parents=True, exist_ok=True)
        done = papermill(clone, f"notebooks/{name}.ipynb", folder / f"{name}.ipynb", *small)
        assert done.returncode == 0, done.stderr
    return folder


def test_the_notebooks_leave_every_artefact_of_a_run(run):
    expected = ["config.json", "data_check.csv", "cases.csv", "round_trip.csv", "postprocess.json", "submission.csv", "summary.json"]
    expected += [
        f"fold{k}/{name}" for k in (0, 1) for name in ("best_unet_model.pth", "last.pth", "history.csv", "oof.npz", "val_outputs/epoch_2")
    ]
    assert [name for name in expected if not (run / name).exists()] == []
    assert len(list((run / "predicted_masks").glob("*.png"))) == 4
    scores = json.loads((run / "summary.json").read_text())["scores"]
    assert scores["validation, plain threshold"]["n"] == scores["validation, cross-fitted"]["n"] == 24 and scores["test"]["n"] == 4
    decided = json.loads((run / "postprocess.json").read_text())
    assert decided["chosen"].keys() == PostProcess.__dataclass_fields__.keys() and len(decided["table"]) >= 16
    assert decided["figures"]["cross-fitted"] == scores["validation, cross-fitted"]


def test_training_under_papermill_prints_one_line_an_epoch_and_no_bar(run):
    outputs = [output for cell in nbformat.read(run / "03_train.ipynb", as_version=4).cells for output in cell.get("outputs", [])]
    lines = "".join(output.text for output in outputs if output.output_type == "stream").splitlines()
    assert [line.split("  ")[0] for line in lines if " epoch " in line] == [f"fold{k} epoch {epoch}/2" for k in (0, 1) for epoch in (1, 2)]
    assert not any("it/s" in line or "\r" in line for line in lines)


def test_the_report_joins_all_four_and_the_summary_names_the_files(run, capsys):
    html = write_report(run).read_text()
    for heading in ("What is in the data?", "What does the network see", "3 · Train", "Decide on validation"):
        assert heading in html
    assert html.count("data:image/png;base64") >= 10 and "make_config(globals())" not in html
    print_summary(run)
    printed = capsys.readouterr().out
    assert "validation, cross-fitted" in printed and "threshold" in printed and "submission.csv" in printed


def test_04_runs_alone_from_the_notebooks_folder_with_nothing_but_the_runs_name(clone, run):
    submission = (run / "submission.csv").read_bytes()
    (run / "submission.csv").unlink()
    done = papermill(clone, "04_postprocess_submit.ipynb", "out.ipynb", "-r", "run", "007", cwd="notebooks")
    assert done.returncode == 0, done.stderr
    assert (run / "submission.csv").read_bytes() == submission


def test_other_settings_in_the_same_run_are_refused_and_nothing_is_touched(clone, run, small):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    done = papermill(clone, "notebooks/03_train.ipynb", "out.ipynb", *small, "-p", "lr", "0.1")
    assert done.returncode != 0 and "lr: got 0.1, there 0.0005" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "epoch", 3], "unknown parameter 'epoch', did you mean 'epochs'"),
        (["-p", "favour_contrast", "false"], "expected bool; write False"),
    ],
)
def test_bad_parameters_are_refused_through_papermill(clone, small, arguments, message):
    done = papermill(clone, "03_train.ipynb", "out.ipynb", *small, *arguments, cwd="notebooks")
    assert done.returncode != 0 and message in done.stderr


def test_01_leaves_its_table_and_then_stops_at_errors(clone, tiny):
    (tiny / "Test" / "Image" / "case_9.jpg").write_bytes(b"")
    (tiny / "sample_submission.csv").write_text("ID,Mask\ncase_9.jpg,1 1\n")
    done = papermill(clone, "notebooks/01_eda.ipynb", "out.ipynb", "-p", "data_root", tiny, "-p", "run", "damaged")
    assert done.returncode != 0 and "errors in the table of problems: CSV files, Test/Image/case_9.jpg (2); mend them first" in done.stderr
    assert {"data_check.csv", "cases.csv"} <= {path.name for path in (clone / "runs" / "damaged").iterdir()}
    assert "the test images differ in case_9, case_9.jpg (2)" in (clone / "runs" / "damaged" / "data_check.csv").read_text()


def test_04_without_a_trained_fold_says_so(clone, small):
    done = papermill(clone, "notebooks/04_postprocess_submit.ipynb", "out.ipynb", *small, "-r", "run", "untrained")
    assert done.returncode != 0 and "no trained fold" in done.stderr and "03_train" in done.stderr


def test_papermill_explains_every_parameter(clone):
    explained = papermill(clone, "--help-notebook", "notebooks/03_train.ipynb").stdout
    for parameter in PARAMETERS:
        assert f"{parameter}: " in explained
    assert "wall minutes of training" in explained
