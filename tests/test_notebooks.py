"""The notebooks as files, and run headless from start to submission on a small phantom."""

import ast
import json
import os
import shutil
import subprocess
import sys

import jupytext
import nbformat
import numpy as np
import pytest
from conftest import REPOSITORY, as_arguments
from jupytext.compare import compare_notebooks
from PIL import Image

from ctseg.config import NAMES
from ctseg.pairs import strip_notebook
from ctseg.postprocess import PostProcess
from ctseg.report import print_summary

NOTEBOOKS = sorted(path.stem for path in (REPOSITORY / "notebooks").glob("*.ipynb"))
SHOWN = ["preset", "data_root", "run"]
PARAMETERS = [
    *SHOWN,
    *("fold", "n_folds", "epochs", "budget_minutes", "batch_size", "lr", "target_size"),
    *("encoder", "weights", "seed"),
]


def read(name):
    return nbformat.read(REPOSITORY / "notebooks" / f"{name}.ipynb", as_version=4)


def code_cells(name):
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def parameters_cell(name):
    (cell,) = [cell for cell in code_cells(name) if "parameters" in cell.metadata.get("tags", [])]
    return cell


def test_there_are_four_pairs():
    assert [name[:2] for name in NOTEBOOKS] == ["01", "02", "03", "04"]
    assert sorted(path.stem for path in (REPOSITORY / "notebooks").glob("*.py")) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_pair_is_in_sync_and_holds_no_outputs(name):
    text = jupytext.read(REPOSITORY / "notebooks" / f"{name}.py")
    compare_notebooks(read(name), text, fmt="py:percent")
    assert [cell.source for cell in text.cells] == [cell.source for cell in read(name).cells]
    assert [cell.metadata for cell in text.cells] == [cell.metadata for cell in read(name).cells]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code_cells(name))
    assert read(name).metadata.kernelspec.name == "python3"
    assert strip_notebook(read(name)) == read(name)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_03_shows_all_parameters_and_the_others_the_first_three(name):
    cell = parameters_cell(name)
    statements = ast.parse(cell.source).body
    expected = {"03": PARAMETERS, "04": [*SHOWN, "predict_folder", "runs", "use_unfinished"]}.get(
        name[:2], SHOWN
    )
    assert [statement.target.id for statement in statements] == expected
    assert set(expected) <= set(NAMES)
    assert {ast.literal_eval(statement.value) for statement in statements} <= {None, "", False}
    assert all("#" in line for line in cell.source.splitlines())
    assert parameters_cell(NOTEBOOKS[2]).source.startswith(parameters_cell(NOTEBOOKS[0]).source)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_parameters_and_the_settings_are_tagged(name):
    tags = [cell.metadata.get("tags", []) for cell in read(name).cells]
    assert [tag for tag in tags if tag] == [["setup"], ["parameters"], ["setup"]]
    (settings,) = [cell for cell in code_cells(name) if "setup" in cell.metadata.get("tags", [])]
    assert "(**read_parameters(globals()))" in settings.source
    assert settings.source.startswith("config = run_dir = None")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_cell_below_the_parameters_sets_one(name):
    cells = [cell for cell in code_cells(name) if cell != parameters_cell(name)]
    nodes = [
        node for cell in cells for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)
    ]
    assert {node.id for node in nodes if isinstance(node.ctx, ast.Store)} & set(NAMES) == set()


def is_nested(node):
    """Whether a node is a comprehension with another one, or a second loop, in it."""
    kinds = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
    if not isinstance(node, kinds):
        return False
    return len(node.generators) > 1 or sum(isinstance(inner, kinds) for inner in ast.walk(node)) > 1


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_are_short_and_hold_no_logic_of_their_own(name):
    first = read(name).cells[0]
    assert first.cell_type == "markdown" and "Artifact" in first.source
    for cell in code_cells(name):
        statements = ast.parse(cell.source).body
        imports = [node for node in statements if isinstance(node, ast.Import | ast.ImportFrom)]
        n_lines = len(cell.source.splitlines()) - sum(node.end_lineno - node.lineno + 1 for node in imports)
        assert n_lines <= 15 and max(map(len, cell.source.splitlines())) <= 100
        assert not any(map(is_nested, ast.walk(ast.parse(cell.source))))
        for forbidden in ("def ", "class ", "sys.path", "!pip", "torch.load", "open("):
            assert forbidden not in cell.source.replace("Image.open(", "")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A copy of the notebooks next to a link to the module: runs/ is made there and not here."""
    folder = tmp_path_factory.mktemp("workplace")
    shutil.copytree(REPOSITORY / "notebooks", folder / "notebooks")
    (folder / "ctseg").symlink_to(REPOSITORY / "ctseg")
    return folder


def papermill(workplace, *arguments, cwd="."):
    """Run papermill there; return the finished process."""
    environment = {**os.environ, "PYTHONPATH": str(workplace)}
    command = [sys.executable, "-m", "papermill", *map(str, arguments)]
    return subprocess.run(command, cwd=workplace / cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def small(phantom):
    """A run of seconds."""
    settings = {"epochs": 2, "lr": "0.0005", "target_size": 32, "width": 4, "n_folds": 2}
    return ["-r", "run", "007", *as_arguments({"data_root": phantom, **settings})]


@pytest.fixture(scope="module")
def run(workplace, small):
    """The four notebooks run in turn, as `make run` does, without a word on the red stream."""
    command = [sys.executable, "-m", "ctseg.execute", *small]
    environment = {**os.environ, "PYTHONPATH": str(workplace)}
    done = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and "report: " in done.stdout, done
    run_dir = workplace / "runs" / "007"
    assert sorted(path.stem for path in run_dir.glob("*.ipynb")) == NOTEBOOKS
    return run_dir


def test_the_notebooks_write_every_artifact_of_a_run(run):
    expected = ["config.json", "data_check.csv", "cases.csv", "round_trip.csv", "postprocess.json"]
    expected += ["submission.csv", "summary.json", "scores.csv", "suspects.csv", "report.html"]
    of_fold = ("best_unet_model.pth", "history.csv", "oof.npz", "val_outputs/epoch_1", "val_outputs/epoch_2")
    expected += [f"fold{k}/{name}" for k in (0, 1) for name in of_fold]
    assert [name for name in expected if not (run / name).exists()] == []
    assert len(list((run / "predicted_masks").glob("*.png"))) == 4
    scores = json.loads((run / "summary.json").read_text())["scores"]
    assert scores["validation, plain threshold"]["n"] == scores["validation, cross-fitted"]["n"] == 24
    assert scores["test"]["n"] == 4
    decided = json.loads((run / "postprocess.json").read_text())
    assert decided["chosen"].keys() == PostProcess.__dataclass_fields__.keys()
    assert len(decided["table"]) >= 16
    assert decided["scores"]["cross-fitted"] == scores["validation, cross-fitted"]


def test_under_papermill_there_is_one_line_per_epoch_and_no_bar(run):
    cells = nbformat.read(run / "03_train.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    lines = "".join(output.text for output in outputs if output.output_type == "stream").splitlines()
    epochs = [line.split("  ")[0] for line in lines if " epoch " in line]
    assert epochs == [f"fold{k} epoch {epoch}/2" for k in (0, 1) for epoch in (1, 2)]
    assert not any("it/s" in line or "\r" in line for line in lines)


def test_the_report_begins_with_the_result_and_has_the_figures_of_all_four(run, capsys):
    html = (run / "report.html").read_text()
    places = [
        html.index(text) for text in (">Dice ", "valid: each test image once", "Examples", "Training</h2>")
    ]
    places += [html.index(f"<summary>{number} ") for number in (1, 2, 3, 4)]
    assert places == sorted(places)
    assert html.count("lowest: ") == 2 and "<td>epochs</td><td>2</td><td>20</td>" in html
    assert html.count("<summary>") == 27 and str(run.parent.parent) not in html
    print_summary(run)
    printed = capsys.readouterr().out
    assert "validation, cross-fitted" in printed and "threshold" in printed and "submission.csv" in printed


def test_04_runs_alone_with_nothing_but_the_runs_name(workplace, run):
    submission = (run / "submission.csv").read_bytes()
    (run / "submission.csv").unlink()
    arguments = ["04_postprocess_submit.ipynb", "out.ipynb", "-r", "run", "007"]
    done = papermill(workplace, *arguments, cwd="notebooks")
    assert done.returncode == 0, done.stderr
    assert (run / "submission.csv").read_bytes() == submission
    for given in (["-p", "submission_columns", "id,rle"], []):  # a format stays
        papermill(workplace, *arguments, *given, cwd="notebooks")
        assert (run / "submission.csv").read_text().startswith("id,rle\n")


def test_03_of_a_finished_run_needs_no_weights_to_start_from(workplace, run):
    config = json.loads((run / "config.json").read_text())
    copy = workplace / "runs" / "copy"
    shutil.copytree(run, copy)
    gone = {"run": "copy", "weights": "gone.pth", "weights_digest": "0123456789abcdef"}
    (copy / "config.json").write_text(json.dumps(config | gone))
    arguments = ["03_train.ipynb", "out.ipynb", "-p", "run", "copy", "--log-output"]
    done = papermill(workplace, *arguments, cwd="notebooks")
    assert done.returncode == 0 and " epoch " not in done.stderr, done.stderr


def read_images(folder):
    """The images of a folder by their names."""
    return {path.stem: np.asarray(Image.open(path)) for path in folder.glob("*.png")}


def test_04_predicts_new_images_as_the_run_does_and_without_its_data(workplace, run, phantom, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    new = tmp_path / "from a colleague"
    shutil.copytree(phantom / "Test" / "Image", new)
    (new / "broken.png").write_bytes(b"no image")
    shutil.copytree(new, new / "deeper")
    (run / "places.json").rename(tmp_path / "aside")
    arguments = [
        "04_postprocess_submit.ipynb",
        "out.ipynb",
        "-r",
        "run",
        "007",
        "-r",
        "predict_folder",
        str(new),
    ]
    done = papermill(workplace, *arguments, "--log-output", cwd="notebooks")
    (tmp_path / "aside").rename(run / "places.json")
    assert done.returncode == 0 and "left out broken: cannot read" in done.stderr, done.stderr
    assert "warning: from a colleague: left out: deeper (1); only images right in the folder" in done.stderr
    (out,) = (run / "predictions").glob("from a colleague-*")
    expected, found = read_images(run / "predicted_masks"), read_images(out / "predicted_masks")
    assert expected.keys() == found.keys() and len(found) == 4
    assert all(np.array_equal(expected[name], found[name]) for name in expected)
    assert (out / "submission.csv").read_bytes() == (run / "submission.csv").read_bytes()
    assert Image.open(out / "examples.png").size > (100, 100)
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert {path: time for path, time in after.items() if out not in path.parents} == before


def test_04_averages_runs_into_one_of_their_own(workplace, run, phantom):
    def execute(*arguments):
        command = [sys.executable, "-m", "ctseg.execute", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(workplace)}
        done = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done

    settings = {"data_root": phantom, "run": "48", "epochs": 1, "target_size": 48, "width": 4, "n_folds": 2}
    execute("--only", "03_train", *as_arguments(settings))
    execute("--only", "04_postprocess_submit", "-r", "runs", "007,48", "-r", "run", "both")
    both = run.with_name("both")
    assert not list(both.glob("fold*")) and (both / "04_postprocess_submit.ipynb").is_file()
    scores, own = (json.loads((path / "summary.json").read_text())["scores"] for path in (both, run))
    assert scores["validation, plain, 007 alone"] == own["validation, plain threshold"]
    assert scores["validation, plain, 48 alone"]["n"] == scores["validation, cross-fitted"]["n"] == 24
    assert len({score["dice"] for score in scores.values()}) >= 4
    report = (both / "report.html").read_text()
    assert "The mean of several runs" in report and "<p>Of 007,48; each one" in report
    assert "validation, plain, 007 alone" in report and "valid: each test image once" in report
    assert "Training</h2>" not in report
    # New images by the average of the same runs, as decided for them.
    arguments = ["--only", "04_postprocess_submit", "-r", "run", "both"]
    execute(*arguments, "-r", "predict_folder", phantom / "Test" / "Image")
    (out,) = (both / "predictions").iterdir()
    expected, found = read_images(both / "predicted_masks"), read_images(out / "predicted_masks")
    assert len(found) == 4 and all(np.array_equal(expected[name], found[name]) for name in expected)


def test_without_test_images_the_run_is_trained_and_validated(workplace, phantom, tmp_path, capsys):
    root = tmp_path / "Dataset"
    shutil.copytree(phantom / "Train", root / "Train")
    settings = {"epochs": 1, "target_size": 32, "width": 2, "data_root": root, "run": "early"}
    run_dir = workplace / "runs" / "early"
    for name in (NOTEBOOKS[0], *NOTEBOOKS[2:]):
        arguments = [f"notebooks/{name}.ipynb", tmp_path / f"{name}.ipynb", *as_arguments(settings)]
        done = papermill(workplace, *arguments, "--log-output")
        assert done.returncode == 0, done.stderr
    assert "no images to predict, so no submission" in done.stderr
    assert "no test images" in (run_dir / "data_check.csv").read_text()
    scores = json.loads((run_dir / "summary.json").read_text())["scores"]
    assert scores["validation, cross-fitted"]["n"] > 0 and "test" not in scores
    print_summary(run_dir)
    assert "submission" not in capsys.readouterr().out


def test_other_settings_in_a_run_are_refused_and_nothing_touched(workplace, run, small):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    others = as_arguments({"lr": 0.1, "elastic": 0.2})  # the parameters cell shows one of them
    done = papermill(workplace, "notebooks/03_train.ipynb", "out.ipynb", *small, *others)
    assert done.returncode != 0 and "lr: got 0.1, stored 0.0005" in done.stderr
    assert "elastic: got 0.2, stored 0.01" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_an_unknown_parameter_is_refused_through_papermill(workplace, small):
    arguments = ["03_train.ipynb", "out.ipynb", *small, "-p", "epoch", "3"]
    done = papermill(workplace, *arguments, cwd="notebooks")
    assert done.returncode != 0 and "unknown parameter 'epoch', did you mean 'epochs'" in done.stderr


def test_01_writes_its_table_and_then_stops_at_errors(workplace, tiny):
    (tiny / "Test" / "Image" / "case_9.jpg").write_bytes(b"")
    (tiny / "sample_submission.csv").write_text("ID,Mask\ncase_9.jpg,1 1\n")
    arguments = as_arguments({"data_root": tiny, "run": "damaged"})
    done = papermill(workplace, "notebooks/01_eda.ipynb", "out.ipynb", *arguments)
    assert done.returncode != 0 and "2 errors in the data, fix them first" in done.stderr
    assert "Test/Image/case_9.jpg: cannot be read" in done.stderr
    run_dir = workplace / "runs" / "damaged"
    assert "ids with an extension, but the settings say" in (run_dir / "data_check.csv").read_text()


def test_04_without_a_trained_fold_says_so(workplace, small):
    arguments = ["notebooks/04_postprocess_submit.ipynb", "out.ipynb", *small, "-r", "run", "untrained"]
    done = papermill(workplace, *arguments)
    assert done.returncode != 0 and "no trained fold" in done.stderr and "03_train" in done.stderr


def test_papermill_explains_every_parameter(workplace):
    explained = papermill(workplace, "--help-notebook", "notebooks/03_train.ipynb").stdout
    for parameter in PARAMETERS:
        assert f"{parameter}: " in explained
    assert "wall minutes from loading to predictions" in explained


def test_a_notebook_runs_as_a_script_too(workplace, phantom):
    environment = os.environ | {"PYTHONPATH": str(workplace), "CTSEG_DATA": str(phantom)}
    command = [sys.executable, "notebooks/02_transforms.py"]
    done = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("round_trip.csv\n"), done.stderr
