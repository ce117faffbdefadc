"""The bar and the curves of a live notebook."""

import re
import sys
from types import SimpleNamespace

import pytest

from ctseg import live, progress
from ctseg.files import write_csv, write_text
from ctseg.live import is_live, leave_notebook
from ctseg.log import Log
from ctseg.progress import Display

PLACES = ("JPY_SESSION_NAME", "VSCODE_PID", "KAGGLE_KERNEL_RUN_TYPE")


@pytest.mark.parametrize(
    ("names", "has_kernel", "expected"),
    [
        ({}, True, False),  # papermill, nbconvert
        ({"JPY_SESSION_NAME": "/a.ipynb"}, True, True),
        ({"JPY_SESSION_NAME": "/a.ipynb"}, False, False),  # a program that a notebook started
        ({"VSCODE_PID": "7"}, True, True),
        ({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, True, True),
        ({"KAGGLE_KERNEL_RUN_TYPE": "Batch", "JPY_SESSION_NAME": "a"}, True, False),
        ({"google.colab": ""}, True, True),
    ],
)
def test_somebody_watches_a_kernel_of_jupyter_vs_code_colab_or_kaggles_editor(
    monkeypatch, names, has_kernel, expected
):
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    for name, value in names.items():
        if "." in name:
            monkeypatch.setitem(sys.modules, name, None)
        else:
            monkeypatch.setenv(name, value)
    shell = SimpleNamespace(kernel=1) if has_kernel else SimpleNamespace()
    monkeypatch.setattr(live, "get_ipython", lambda: shell)
    assert is_live() is expected


@pytest.fixture
def shown(monkeypatch):
    """What is shown now: the bar, then the curves."""
    states = []

    class Handle:
        def __init__(self, content):
            self.place = len(states)
            states.append(content)

        def update(self, content):
            states[self.place] = content

    monkeypatch.setattr(progress, "display", lambda content, display_id: Handle(content))
    return states


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, as a list of one number that a test moves on."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def read(shown):
    """The value of the bar, and the lines around it."""
    before, value, after = re.match(
        r'(.*?)<progress value="(.*?)".*?</progress><br>(.*)', shown[0].data
    ).groups()
    return float(value), before, after


def row(epoch, dice):
    values = {"loss": 1.0, "bce": 1.0, "train_soft_dice": 0.5, "lr": 1e-3, "seconds": 1.0}
    return {"epoch": epoch, "val_dice": dice, **values}


def test_one_bar_goes_over_all_folds_and_says_where_training_is(shown, clock, tmp_path):
    folds = [tmp_path / f"fold{k}" for k in range(5)]
    write_text("", folds[0] / "oof.npz")
    log = Display(folds)
    log.say("fold0 is finished already")
    log.on_end(folds[0], failed=False)
    log.on_step(folds[1], 1, 10, 0.0)
    clock[0] += 60
    log.on_step(folds[1], 1, 10, 1.0)
    log.on_epoch(folds[1], [row(1, 0.75)], 10)
    clock[0] += 60
    log.on_step(folds[1], 2, 10, 1.0)
    assert read(shown) == (
        0.24,  # one fold, and a fifth of another
        "fold0 is finished already<br>",
        "fold1 (2 of 5), epoch 2/10, best validation Dice 0.7500 in epoch 1 · 38 min left",
    )
    assert len(shown[1].axes) == 2
    log.on_end(folds[1], failed=False)
    log.close()
    assert read(shown)[0] == 0.4 and shown[1].data == ""
    assert shown[0].data.endswith("2 of 5 folds are done; best validation Dice: fold1 0.7500")


def test_lines_of_other_processes_move_the_bar(shown, tmp_path):
    folds = [tmp_path / f"fold{k}" for k in range(2)]
    log = Display(folds)
    for path in folds:
        write_csv([row(1, 0.5), row(2, 0.25)], path / "history.csv")
    log.pass_on("fold1 epoch 2/4  train_soft_dice 0.5\n")
    log.pass_on("fold0 epoch 2/4  train_soft_dice 0.5\n")
    log.pass_on("fold0: <something> else\n")
    value, before, after = read(shown)
    assert value == 0.5 and before == "fold0: &lt;something&gt; else<br>"
    assert after.count("best validation Dice 0.5000 in epoch 1") == 2


def test_drawing_takes_a_small_share_of_the_time(shown, clock, tmp_path, monkeypatch):
    drawn = []

    def draw(histories, panels):
        clock[0] += 2
        drawn.append(clock[0])

    monkeypatch.setattr(progress, "plot_history", draw)
    log = Display([tmp_path / "fold0"])
    for epoch in range(1, 101):
        clock[0] += 1
        log.on_epoch(tmp_path / "fold0", [row(epoch, 0.5)], 100)
    assert 2 <= len(drawn) <= 4


def test_folds_that_failed_are_not_done_and_those_finished_before_take_no_time(shown, clock, tmp_path):
    folds = [tmp_path / f"fold{k}" for k in range(4)]
    write_text("", folds[1] / "oof.npz")
    log = Display(folds)
    log.on_step(folds[0], 1, 1, 0.0)
    clock[0] += 100
    log.on_end(folds[0], failed=True)
    log.on_end(folds[1], failed=False)  # finished before
    assert "1 of 4 folds are done, 1 failed" in shown[0].data
    clock[0] += 1
    log.on_step(folds[2], 1, 1, 0.0)
    assert read(shown)[2].endswith("3 min left")  # two folds of 100 seconds


def test_a_log_knows_where_other_processes_are(tmp_path, capsys):
    log = Log([tmp_path / "fold1"])
    log.pass_on("fold1 epoch 2/4  train_soft_dice 0.5\n")
    assert log.places == {tmp_path / "fold1": (3, 4)}
    assert capsys.readouterr().out == "fold1 epoch 2/4  train_soft_dice 0.5\n"


def test_programs_that_a_notebook_starts_are_not_live(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "/a.ipynb")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    monkeypatch.setattr(live, "get_ipython", lambda: SimpleNamespace(kernel=1))
    assert is_live()
    leave_notebook()
    assert not is_live()
