import json
from dataclasses import asdict

import pytest

from ctseg.config import PRESETS, Config, make_config, open_run


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch, phantom):
    """Work in an empty repository, so that runs/ is not the real one; the phantom is the data."""
    for name in ("ctseg", "notebooks"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setenv("CTSEG_DATA", str(phantom))


def test_the_defaults_are_the_reference_recipe():
    config = make_config({"preset": "baseline"})
    expected = {
        "split": "random", "seed": 42, "n_folds": 1, "target_size": 256, "favour_contrast": False, "epochs": 30, "batch_size": 8,
        "width": 64, "depth": 4, "bottleneck_dropout": 0.3, "decoder_dropout": 0.2, "bce_weight": 0.5, "threshold": 0.5,
        "lr": 1e-4, "schedule": "constant", "weight_decay": 0, "clip_norm": None,
        "flip": 0.5, "turn": 0.5, "scale": 0, "rotation": 0, "elastic": 0, "brightness": 0, "contrast": 0, "gamma": 0, "colour": 0,
        "noise": 0, "keep": "best", "tta": "none", "encoder": "unet", "weights": "",
    }  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_makes_a_config_and_an_explicit_value_wins(preset):
    assert make_config({"preset": preset}).preset == preset
    assert make_config({"preset": preset, "lr": 0.5, "fold": None, "n_folds": 3}).lr == 0.5


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"epochz": 3}, ValueError, "unknown parameter 'epochz', did you mean 'epochs'"),
        ({"preset": "fast"}, ValueError, "preset: got 'fast', expected one of baseline, quick, strong"),
        ({"epochs": 2.5}, TypeError, r"epochs: got 2.5 \(float\), expected int or None"),
        ({"lr": "fast"}, TypeError, r"lr: got 'fast' \(str\), expected float"),
        ({"favour_contrast": "false"}, TypeError, "favour_contrast: got 'false' .*expected bool; write False"),
        ({"batch_size": True}, TypeError, "batch_size: got True"),
        ({"lr": -1}, ValueError, "lr: got -1, expected 1e-08 … 10"),
        ({"schedule": "poly"}, ValueError, "schedule: got 'poly', expected one of constant, one_cycle"),
        ({"encoder": "resnet35"}, ValueError, "encoder: got 'resnet35', expected one of .*resnet34"),
        ({"fold": 3, "n_folds": 3}, ValueError, "fold 3 with n_folds 3; expected 0 … 2"),
        ({"weights": "none.pth"}, FileNotFoundError, "none.pth"),
        ({"data_root": "nowhere"}, FileNotFoundError, "nowhere"),
        ({"run": "../escape"}, ValueError, "plain folder name"),
    ],
)
def test_bad_parameters_are_refused_by_name_with_what_was_expected(parameters, error, message):
    with pytest.raises(error, match=message):
        open_run(make_config(parameters))


def test_an_int_is_fine_for_a_float_and_a_run_is_text():
    config = make_config({"lr": 1, "run": 7})
    assert config.lr == 1 and config.run == "7"


def test_of_epochs_and_budget_an_explicit_one_replaces_the_presets_other():
    assert make_config({"budget_minutes": 3}).epochs is None
    both = make_config({"budget_minutes": 3, "epochs": 2})
    assert (both.epochs, both.budget_minutes) == (2, 3)


def test_a_notebooks_other_names_are_no_parameters():
    notebook = {
        "In": ["x"],
        "Out": {},
        "_": 3,
        "__name__": "__main__",
        "np": json,
        "make_config": make_config,
        "PAPERMILL_INPUT_PATH": "x",
        "lr": 0.1,
    }
    assert make_config(notebook).lr == 0.1
    assert make_config({**notebook, "config": Config(epochs=1), "my_own": 3}).lr == 0.1  # a cell run again in a live notebook


def test_the_default_run_name_is_made_from_the_settings_but_not_from_the_fold():
    first = make_config({"n_folds": 2})
    assert first.run == make_config({"n_folds": 2, "fold": 1}).run
    assert first.run != make_config({"n_folds": 2, "lr": 0.1}).run
    assert first.run.startswith("quick-") and len(first.run) == len("quick-") + 8


def test_the_same_settings_open_the_same_run_and_others_are_refused_with_the_difference(tmp_path):
    folder = open_run(make_config({"run": "a", "epochs": 2}))
    assert folder == tmp_path / "runs" / "a"  # at the repository root, though the notebook started below it
    written = (folder / "config.json").read_text()
    assert open_run(make_config({"run": "a", "epochs": 2, "fold": 0})) == folder
    with pytest.raises(ValueError, match="other settings .epochs: got 3, there 2.*-f .*config.json"):
        open_run(make_config({"run": "a", "epochs": 3}))
    assert (folder / "config.json").read_text() == written


def test_the_config_file_of_a_run_reproduces_it_as_parameters():
    config = make_config({"preset": "baseline", "run": "a", "budget_minutes": 3, "lr": 0.5})
    folder = open_run(config)
    again = make_config(json.loads((folder / "config.json").read_text()))
    assert asdict(again) == asdict(config)


def test_notebook_04_takes_what_is_not_given_from_the_run():
    open_run(make_config({"preset": "baseline", "run": "a", "epochs": 2, "lr": 0.5}))
    config = make_config({"preset": "quick", "data_root": "", "run": "a", "lr": None}, of_run=True)
    assert (config.preset, config.width, config.epochs, config.lr) == ("baseline", 64, 2, 0.5)
    with pytest.raises(ValueError, match="lr: got 0.1, there 0.5"):
        open_run(make_config({"run": "a", "lr": 0.1}, of_run=True))
