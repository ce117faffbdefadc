"""Notebooks as files: pairs, what git keeps, values that were tried."""

import os
import shutil
import subprocess
import sys

import jupytext
import nbformat
import pytest
from conftest import REPOSITORY
from nbformat.v4 import new_code_cell, new_output

from ctseg.pairs import check_pairs, find_notebooks, find_tried, reset_parameters, strip_notebook

NOTEBOOKS = ["01_eda", "02_transforms", "03_train", "04_postprocess_submit"]


def read(name="03_train", folder=REPOSITORY):
    return nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4)


def change(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


@pytest.fixture
def tree(tmp_path):
    """The notebooks in a repository of their own."""
    shutil.copytree(REPOSITORY / "notebooks", tmp_path / "notebooks")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True)


def commit(folder):
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "all")


def test_pairs_that_agree_pass_whatever_their_outputs_are(tree):
    notebook = read(folder=tree)
    notebook.cells[2].outputs = [new_output("stream", text="a")]
    nbformat.write(notebook, tree / "notebooks" / "03_train.ipynb")
    for suffix in (".py", ".ipynb"):
        (tree / "notebooks" / f"03_train-Copy1{suffix}").write_text("a copy that somebody made")
    assert [path.stem for path in find_notebooks(tree)] == NOTEBOOKS
    check_pairs(tree)


@pytest.mark.parametrize("suffix", [".py", ".ipynb"])
def test_a_half_that_was_changed_alone_is_found_in_the_tree_and_in_the_commit(tree, suffix):
    change(tree / "notebooks" / f"02_transforms{suffix}", "preset: str = None", "preset: str = 7")
    with pytest.raises(ValueError, match="02_transforms.py and .ipynb differ, one .*; run make sync"):
        check_pairs(tree)
    commit(tree)
    other = ".ipynb" if suffix == ".py" else ".py"
    change(tree / "notebooks" / f"02_transforms{other}", "preset: str = None", "preset: str = 7")
    with pytest.raises(ValueError, match="differ in the last commit; run make sync, and commit both"):
        check_pairs(tree)
    commit(tree)
    check_pairs(tree)


@pytest.mark.parametrize("place", [3, -1])
def test_an_empty_line_at_the_end_of_a_cell_is_no_difference(tree, place):
    notebook = read(folder=tree)
    notebook.cells[place].source += "\n"
    nbformat.write(notebook, tree / "notebooks" / "03_train.ipynb")
    check_pairs(tree)


def test_a_missing_half_is_found_and_no_repository_is_no_problem(tree):
    shutil.rmtree(tree / ".git")
    check_pairs(tree)
    saved = (tree / "notebooks" / "01_eda.ipynb").read_text()
    for suffix in (".ipynb", ".py"):
        (tree / "notebooks" / f"01_eda{suffix}").unlink()
        with pytest.raises(ValueError, match="01_eda.py and .ipynb differ"):
            check_pairs(tree)
        (tree / "notebooks" / "01_eda.ipynb").write_text(saved)
    (tree / "notebooks" / "01_eda.py").write_text("")
    (tree / "notebooks" / "01_eda.ipynb").write_text("<<<<<<< HEAD")
    with pytest.raises(ValueError, match="notebooks/01_eda.ipynb is damaged: "):
        check_pairs(tree)


def test_git_keeps_nothing_of_a_notebook_that_was_run():
    stored = (REPOSITORY / "notebooks" / "03_train.ipynb").read_text()
    notebook = nbformat.reads(stored, as_version=4)
    notebook.metadata |= {"language_info": {"name": "python"}, "widgets": {}}
    notebook.metadata.kernelspec.display_name = ".venv (3.12.1)"
    notebook.metadata.jupytext.text_representation = {"extension": ".py"}
    for number, cell in enumerate(notebook.cells):
        cell.metadata["trusted"] = True
        if cell.cell_type == "code":
            cell.execution_count, cell.outputs = number, [new_output("stream", text="größer\n")]
    assert strip_notebook(nbformat.from_dict(notebook)) == nbformat.reads(stored, as_version=4)
    command = [sys.executable, "-m", "ctseg.pairs", "strip"]
    text = nbformat.writes(notebook).encode()
    done = subprocess.run(command, cwd=REPOSITORY, input=text, capture_output=True, check=True)
    assert done.stdout.decode() == stored


def test_what_was_tried_is_found_and_put_back():
    original = read()
    notebook = read()
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for old, new in (
        ("epochs: int = None", "epochs: int = (\n    2 + 1\n)"),
        ("lr: float = None", "lr = 0.5"),
        ('data_root: str = ""', 'data_root: str = "größer"'),
        ("encoder: str = None", 'encoder: str = ""'),
    ):
        assert cell.source.count(old) == 1
        cell.source = cell.source.replace(old, new)
    expected = {"data_root": "'größer'", "epochs": "2 + 1", "lr": "0.5", "encoder": "''"}
    assert find_tried(notebook) == expected
    values, declared = {}, {}
    reset_parameters(notebook)
    exec(cell.source, values)
    exec(next(c for c in original.cells if "parameters" in c.metadata.get("tags", [])).source, declared)
    names = [name for name in declared if not name.startswith("_")]
    assert len(names) == 13 and all(values[name] == declared[name] for name in names)
    assert find_tried(notebook) == {} and reset_parameters(original) == read()


@pytest.mark.parametrize("place", [0, 4])
def test_a_cell_of_its_own_that_sets_a_parameter_is_refused(place):
    notebook = read()
    notebook.cells.insert(place, new_code_cell("_a = 1\nepochs = 2"))
    with pytest.raises(ValueError, match="a cell of its own sets 'epochs'; set it in the parameters cell"):
        reset_parameters(notebook)


@pytest.mark.parametrize(
    "line",
    ["lr, epochs = 0.5, 3", "if True:\n    lr = 0.5", "lr += 0.5", "lr = epochs = 3", "(lr := 3)", "lr = 3"],
)
def test_a_parameter_that_is_not_set_by_name_and_once_is_refused(line):
    notebook = read()
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source += f"\n{line}"
    for function in (find_tried, reset_parameters):
        with pytest.raises(ValueError, match="the parameters cell sets '(lr|epochs)' otherwise than once"):
            function(notebook)


def test_a_parameter_without_a_value_is_let_alone():
    notebook = read()
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source = cell.source.replace("lr: float = None", "lr: float")
    assert find_tried(notebook) == {} and "lr: float  #" in reset_parameters(notebook).cells[3].source


def test_the_settings_cell_itself_and_one_with_ipythons_lines_may_not_set_any():
    for place, source in ((4, "lr = 0.5\n"), (1, "%pwd\nlr = 0.5\n")):
        notebook = read()
        notebook.cells[place].source = source + notebook.cells[place].source
        with pytest.raises(ValueError, match="a cell of its own sets 'lr'"):
            reset_parameters(notebook)


def test_the_filter_writes_utf_8_whatever_the_terminal_has_and_refuses_what_is_no_notebook():
    command = [sys.executable, "-m", "ctseg.pairs", "strip"]
    stored = (REPOSITORY / "notebooks" / "03_train.ipynb").read_bytes()
    options = {"cwd": REPOSITORY, "capture_output": True, "env": os.environ | {"PYTHONIOENCODING": "ascii"}}
    assert subprocess.run(command, input=stored, **options).stdout == stored
    for text in (b"[1]", b"{}", b"<<<<<<< HEAD"):
        done = subprocess.run(command, input=text, **options)
        assert done.returncode == 1 and done.stdout == b"" and b"Traceback" not in done.stderr


def test_lines_that_are_not_python_are_let_alone_and_in_the_parameters_an_error():
    notebook = read()
    notebook.cells.insert(0, new_code_cell("%pwd\n!ls"))
    reset_parameters(notebook)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source += "\n<<<<<<< HEAD"
    with pytest.raises(ValueError, match="the parameters cell is not Python, line 14: "):
        reset_parameters(notebook)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_both_halves_as_they_are_have_the_defaults(name):
    text = jupytext.read(REPOSITORY / "notebooks" / f"{name}.py")
    assert find_tried(text) == find_tried(read(name)) == {}
