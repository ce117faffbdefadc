"""The settings: defaults, presets, types and ranges, and what a parameter that is not given means."""

import ast
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY

from ctseg.config import AUGMENTATIONS, PRESETS, Config, fill_settings, list_changes, parse_value
from ctseg.predict import ORIENTATIONS


def make(**parameters) -> Config:
    """The config of parameters, with nothing looked up on this machine."""
    return Config(**fill_settings(parameters))


def test_the_defaults_are_the_reference_recipe():
    config = make(preset="baseline")
    expected = {
        "split": "random",
        "seed": 42,
        "n_folds": 1,
        "target_size": 256,
        "weight_channels_by_contrast": False,
        "epochs": 30,
        "batch_size": 8,
        "width": 64,
        "depth": 4,
        "bottleneck_dropout": 0.3,
        "decoder_dropout": 0.2,
        "bce_weight": 0.5,
        "border_weight": 0,
        "threshold": 0.5,
        "lr": 1e-4,
        "schedule": "constant",
        "weight_decay": 0,
        "clip_norm": None,
        "flip": 0.5,
        "rot90": 0.5,
        "scale": 0,
        "rotation": 0,
        "elastic": 0,
        "brightness": 0,
        "contrast": 0,
        "gamma": 0,
        "color": 0,
        "noise": 0,
        "keep": "best",
        "tta": "none",
        "encoder": "unet",
        "weights": "",
    }
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_makes_a_config_and_explicit_values_win(preset):
    assert make(preset=preset).preset == preset
    assert make(preset=preset, lr=0.5, fold=None, n_folds=3).lr == 0.5


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"epochz": 3}, ValueError, "unknown parameter 'epochz', did you mean 'epochs'"),
        ({"preset": "fast"}, ValueError, "preset: got 'fast', expected one of baseline, quick, strong, gpu"),
        ({"epochs": 2.5}, TypeError, r"epochs: got 2.5 \(float\), expected int or None"),
        ({"lr": "fast"}, TypeError, r"lr: got 'fast' \(str\), expected float"),
        ({"weight_channels_by_contrast": "maybe"}, TypeError, "by_contrast: got 'maybe' .*expected bool"),
        ({"tta": True}, TypeError, "tta: got True .*expected str; YAML takes .* write it in quotes"),
        ({"submission_columns": ["id", "rle"]}, TypeError, "expected str; write 'id,rle'"),
        ({"submission_columns": "ID"}, ValueError, "submission_columns: got 'ID', expected the names of"),
        ({"submission_columns": "ID,Mask,Height"}, ValueError, "submission_columns: got"),
        ({"submission_columns": "ID,ID"}, ValueError, "submission_columns: got"),
        ({"batch_size": True}, TypeError, r"batch_size: got True \(bool\), expected int$"),
        ({"clip_norm": False}, TypeError, "clip_norm: got False .*: write null for none"),
        (
            {"window_low": 9, "window_high": 9},
            ValueError,
            "window_low 9 with window_high 9; expected less",
        ),
        ({"seed": 10**400}, ValueError, "seed: got 1000.*, expected 0 … 2147483648"),
        ({"lr": -1}, ValueError, "lr: got -1.0, expected 1e-08 … 10"),
        ({"schedule": "poly"}, ValueError, "schedule: got 'poly', expected one of constant, one_cycle"),
        ({"fold": 3, "n_folds": 3}, ValueError, "fold 3 with n_folds 3; expected 0 … 2"),
    ],
)
def test_bad_values_are_refused_by_name_with_what_was_expected(parameters, error, message):
    with pytest.raises(error, match=message):
        make(**parameters)


def test_a_run_has_a_length():
    with pytest.raises(ValueError, match="neither epochs nor budget_minutes is set"):
        Config(epochs=None)


def test_an_int_is_fine_for_a_float_and_a_run_is_text():
    config = make(lr=1, run=7)
    assert config.lr == 1 and config.run == "7"


def test_explicit_epochs_or_budget_replace_the_other_preset():
    assert make(budget_minutes=3).epochs is None
    both = make(budget_minutes=3, epochs=2)
    assert (both.epochs, both.budget_minutes) == (2, 3)


def test_stored_settings_count_where_none_is_given():
    stored = asdict(Config(lr=0.5))
    given = {"preset": None, "data_root": "", "run": "a", "lr": None, "seed": 3}
    assert fill_settings(given, stored) == stored | {"run": "a", "seed": 3}
    assert fill_settings(given | {"preset": "baseline"}, stored) == stored | {"run": "a", "seed": 3}
    assert fill_settings({"budget_minutes": 2}, stored) == stored | {"epochs": None, "budget_minutes": 2}


def test_of_a_run_with_another_preset_or_none_yet_the_contests_facts_count_alone():
    stored = {"run": "a", "lr": 0.5, "slug": "b", "pixel_order": "F"}
    for given, name in (({}, "quick"), ({"preset": "strong"}, "strong")):
        expected = fill_settings({"preset": name, "slug": "b", "pixel_order": "F"})
        assert fill_settings(given, stored) == expected
        assert fill_settings({"preset": name}, stored | {"preset": "baseline"}) == expected


def test_the_changes_to_a_preset_are_listed():
    assert list_changes(make(preset="strong")) == {}
    changed = make(preset="strong", lr=0.5, weights="a.pth", weights_digest="d", slug="b", fold=1)
    assert list_changes(changed) == {"lr": (0.5, 0.001), "weights": ("a.pth", "default")}


def test_config_imports_the_standard_library_and_the_contest_only():
    nodes = list(ast.walk(ast.parse((REPOSITORY / "ctseg" / "config.py").read_text(encoding="utf-8"))))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {"." * node.level + (node.module or "") for node in nodes if isinstance(node, ast.ImportFrom)}
    assert "dataclasses" in modules
    assert {module.partition(".")[0] for module in modules - {"ctseg.contest"}} <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr: 1e-3", 0.001),
        ("lr: 5e-05", 5e-5),
        ("lr: '0.001'", 0.001),
        ("lr: 1", 1.0),
        ("window_low: -1e3", -1000.0),
        ("epochs: 5.0", 5),
        ("n_folds: '5'", 5),
        ("weight_channels_by_contrast: yes", True),
        ("weight_channels_by_contrast: 'false'", False),
        ("tta: off", "none"),
        ("tta: no", "none"),
        ("run: 7", "7"),
        ("run: 2024-05-01", "2024-05-01"),
        ("empty_mask: -1", "-1"),
        ("encoder: null", "unet"),
        ("weights:", ""),
    ],
)
def test_yaml_means_what_it_says(text, expected):
    ((name, value),) = yaml.safe_load(text).items()
    config = make(preset="baseline", **{name: value})
    assert getattr(config, name) == expected and type(getattr(config, name)) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", np.int64(3), 3),
        ("lr", np.float32(0.5), 0.5),
        ("data_root", Path("a"), "a"),
        ("weight_channels_by_contrast", np.True_, True),
    ],
)
def test_numpys_numbers_and_paths_are_taken(name, value, expected):
    assert getattr(make(**{name: value}), name) == expected


def test_what_decides_the_result_is_told_from_places_and_the_contests_facts():
    config = make(preset="baseline", weights="a.pth", weights_digest="d")
    same = {"data_root": "/x", "run": "r", "fold": 0, "predict_folder": "y", "weights": "elsewhere/a.pth"}
    same |= {"pixel_order": "F", "slug": "another", "mask_suffix": "_m", "use_unfinished": True}
    assert replace(config, **same).settings() == config.settings()
    assert config.settings()["weights"] == "d"
    for name, value in {"weights_digest": "e", "weights": "", "lr": 0.5, "group": "a"}.items():
        assert replace(config, **{name: value}).settings() != config.settings()
    here = {"fold", "data_root", "predict_folder", "use_unfinished", "deadline_minutes"}
    assert here == {*vars(config)} - config.stored().keys()


def test_the_options_of_tta_are_the_orientations_of_predict():
    options = {entry.name: entry.metadata.get("options") for entry in fields(Config)}
    assert options["tta"] == tuple(ORIENTATIONS)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_shown_strength_is_in_its_range_and_changes_something(name):
    low, high = next(entry.metadata["range"] for entry in fields(Config) if entry.name == name)
    assert low < AUGMENTATIONS[name] <= high


def test_the_augmentation_of_a_config_names_every_change():
    assert Config(**AUGMENTATIONS).augmentation() == AUGMENTATIONS
    assert Config().augmentation() == {**dict.fromkeys(AUGMENTATIONS, 0), "flip": 0.5, "rot90": 0.5}
    geometry = {"flip", "rot90", "scale", "rotation", "elastic"}
    assert AUGMENTATIONS.keys() >= geometry | {"brightness", "contrast", "gamma", "color", "noise"}


def test_a_value_on_the_command_line_is_read_as_what_it_looks_like():
    texts = ["3", "1e-3", "True", "None", "resnet34", "runs/a b", "/data/x.pth"]
    assert [parse_value(text) for text in texts] == [3, 0.001, True, None, *texts[4:]]
