"""What make passes on: the data, the run and the parameters that a command line names."""

import os
import subprocess

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


def test_new_images_are_predicted_by_a_run_that_is_named():
    assert "RUN=name is required" in expand("predict", "IMAGES=x")
    assert '-r run "r" -r predict_folder "x"' in expand("predict", "IMAGES=x", "RUN=r")


def test_what_is_submitted_by_default_is_the_kernels_output():
    assert "--run" not in expand("submit", "ARGS=-f contest.yaml")
    assert 'submit --run "r"' in expand("submit", "RUN=r")
