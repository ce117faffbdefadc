"""What make passes on: the data, the run and the parameters that a command line names."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY


def expand(*arguments: str) -> str:
    """The commands that make would run, or its error."""
    command = ["make", "--dry-run", "--no-print-directory", "-o", "setup", *arguments]
    # Not what the make that runs the tests was called with.
    ours = {"DATA", "RUN", "ARGS", "PRESET", "IMAGES", "MAKEFLAGS", "MAKELEVEL"}
    ours |= {"GRID", "SWEEP", "JOBS", "SCHEDULER"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        ((), '-r data_root "phantom" -r run "phantom"'),
        (("DATA=d", "RUN=r"), '-r data_root "d" -r run "r"'),
        (("DATA=d",), "RUN=name is required"),
        (("RUN=r", "ARGS=-f contest.yaml"), '-r run "r" -f contest.yaml'),
        (("RUN=r", "ARGS=--file=contest.yaml"), '-r run "r" --file=contest.yaml'),
        (("RUN=r", "ARGS=-p data_root d"), '-r run "r" -p data_root d'),
        (("ARGS=-f contest.yaml",), "RUN=name is required"),
        (
            ("PRESET=strong", "ARGS=-p lr 1"),
            '-p preset strong -r data_root "phantom" -r run "phantom" -p lr 1',
        ),
    ],
)
def test_a_run_gets_the_data_that_are_named(arguments, passed):
    printed = expand("run", *arguments)
    assert passed in printed
    assert ("phantom" in printed) == ("phantom" in passed)


def test_the_check_looks_for_data_where_a_file_may_name_them():
    assert 'ctseg.check "phantom"' in expand("check")
    assert 'ctseg.check "" -f contest.yaml' in expand("check", "ARGS=-f contest.yaml")


def test_a_sweep_gets_its_grid_and_where_it_runs():
    for arguments, words in [
        (["ARGS=-p lr 1e-3,5e-4"], 'ctseg.sweep -r data_root "phantom" -p lr 1e-3,5e-4'),
        (
            ["GRID=g.yaml", "SWEEP=s", "JOBS=2", "SCHEDULER=tcp://a:1"],
            'ctseg.sweep "g.yaml" --sweep "s" --jobs 2 --scheduler "tcp://a:1"',
        ),
    ]:
        assert " ".join(expand("sweep", *arguments).replace("\\", "").split()).endswith(words)


@pytest.mark.parametrize("target", ["kernel", "push", "test"])
def test_pairs_are_compared_before_they_are_used(target):
    assert "ctseg.pairs check" in expand(target)


def test_runs_are_compared_by_their_names():
    assert 'RUNS="a b" is required' in expand("compare")
    assert "ctseg.compare a b" in expand("compare", "RUNS=a b")


@pytest.fixture
def place(tmp_path):
    """A Makefile with two runs, and files that are nobody's to remove."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path / "Makefile")
    for name in (
        "runs/a/config.json",
        "runs/sweep/b/config.json",
        "runs/.hidden/x",
        "data/x",
        "build/x",
        "runs/a/fold0/oof.npz",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


def clean(place, *arguments, **variables):
    """Call `make clean` there; return (status, the files that are left, the printed text)."""
    names = {
        name: value for name, value in os.environ.items() if name not in ("RUN", "MAKEFLAGS", "MAKELEVEL")
    }
    done = subprocess.run(
        ["make", "clean", *arguments], cwd=place, env=names | variables, capture_output=True, text=True
    )
    left = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()} - {"Makefile"}
    return done.returncode, left, done.stdout + done.stderr


def test_a_run_is_removed_by_its_name_and_nothing_else(place):
    _, before, _ = clean(place, "RUN=none")
    for run, name in (("a", "runs/a/config.json"), ("sweep/b", "runs/sweep/b/config.json")):
        status, left, _ = clean(place, f"RUN={run}")
        assert (
            status == 0
            and before - left >= {name}
            and all(Path(run) in Path(gone).relative_to("runs").parents for gone in before - left)
        )
        before = left
    assert "build/x" in before


@pytest.mark.parametrize(
    "run", ["", ".", "..", "a/..", "../data", "a/../../data", "/", "none", "a/", "*", "sweep", "a/fold0"]
)
def test_what_is_not_the_name_of_a_run_removes_nothing(place, run):
    _, before, _ = clean(place, "RUN=none")
    status, left, printed = clean(place, f"RUN={run}")
    assert status != 0 and left == before and "no run runs/" in printed


def test_a_name_is_never_a_command(place):
    _, before, _ = clean(place, "RUN=none")
    for run in ('a" "data', "a' 'data", "$$(touch new)", "`touch new`", "a; touch new", "a b"):
        status, left, _ = clean(place, f"RUN={run}")
        assert status != 0 and left == before


def test_without_a_name_on_the_command_line_no_run_is_removed(place):
    status, left, _ = clean(place, RUN="a")
    assert status == 0 and left == {
        "runs/a/config.json",
        "runs/a/fold0/oof.npz",
        "runs/sweep/b/config.json",
        "runs/.hidden/x",
        "data/x",
    }


def test_new_images_are_predicted_by_a_run_that_is_named():
    assert "RUN=name is required" in expand("predict", "IMAGES=x")
    assert '-r run "r" -r predict_folder "x"' in expand("predict", "IMAGES=x", "RUN=r")


def test_what_is_submitted_by_default_is_the_kernels_output():
    assert "--run" not in expand("submit", "ARGS=-f contest.yaml")
    assert 'submit --run "r"' in expand("submit", "RUN=r")
