"""What a run was trained on: changed data are refused, and the folds are drawn once."""

import json

import numpy as np
import pytest
from conftest import begin_run, save_image, write_pair
from PIL import Image

from ctseg.data import load_training_set
from ctseg.fingerprint import read_folds, read_window
from ctseg.folds import assign_folds
from ctseg.runs import make_config, make_dataset, open_run


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    """Work in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)


def remove(root):
    for kind in ("Image", "Mask"):
        (root / "Train" / kind / "case_1.png").unlink()


def rename(root):
    for kind in ("Image", "Mask"):
        (root / "Train" / kind / "case_1.png").rename(root / "Train" / kind / "case_1b.png")


def correct(root):
    path = root / "Train" / "Mask" / "case_1.png"
    save_image(path, np.roll(np.asarray(Image.open(path)), 1, axis=0))  # as many pixels as before


def resize(root):
    for kind in ("Image", "Mask"):
        path = root / "Train" / kind / "case_1.png"
        Image.open(path).resize((41, 30)).save(path)


def add(root):
    write_pair(root, "case_0b", IMAGE, IMAGE[..., 0])


CHANGES = {
    "a pair removed": (remove, "'case_1' is missing .1 of 4"),
    "a pair renamed": (rename, "'case_1' is missing .2 of 5"),
    "a pair added": (add, "'case_0b' is new .1 of 5"),
    "a mask corrected": (correct, "'case_1' has another mask .1 of 4"),
    "an image of another size": (resize, "'case_1' is 30 × 41, and was 30 × 40"),
}
IMAGE = np.random.default_rng(5).integers(0, 2, (30, 40, 3), np.uint8) * 255


@pytest.mark.parametrize("change", CHANGES)
def test_data_that_changed_under_a_run_are_refused_before_anything_is_written(tiny, change):
    run_dir = begin_run(tiny)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    damage, message = CHANGES[change]
    damage(tiny)
    config = make_config(run="a", data_root=str(tiny))
    with pytest.raises(ValueError, match=f"trained on other data: {message}.*another run name"):
        open_run(config)
    with pytest.raises(ValueError, match="trained on other data"):
        assign_folds(config, run_dir, load_training_set(make_dataset(config, "train")))
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_a_mask_that_is_only_saved_again_is_the_same(tiny):
    run_dir = begin_run(tiny)
    path = tiny / "Train" / "Mask" / "case_1.png"
    Image.open(path).save(path, compress_level=0)
    assert open_run(make_config(run="a", data_root=str(tiny))) == run_dir
    Image.fromarray(np.asarray(Image.open(path)) // 255).save(path)  # 0 and 1
    assert open_run(make_config(run="a", data_root=str(tiny))) == run_dir


def test_the_folds_of_a_run_are_drawn_once(tiny):
    run_dir = begin_run(tiny)
    config = make_config(run="a", data_root=str(tiny))
    training_set = load_training_set(make_dataset(config, "train"))
    path = run_dir / "training_data.json"
    kept = json.loads(path.read_text())
    for case in kept["cases"].values():
        case["fold"] = 1 - case["fold"]
    path.write_text(json.dumps(kept))
    folds = [kept["cases"][case.image_id]["fold"] for case in training_set.cases]
    assert assign_folds(config, run_dir, training_set).tolist() == folds


def test_a_run_keeps_nothing_before_training(tiny, tmp_path):
    config = make_config(run="a", data_root=str(tiny))
    run_dir = open_run(config)
    assert read_folds(run_dir, make_dataset(config, "train").cases) is None and read_window(run_dir) is None
    remove(tiny)
    assert open_run(make_config(run="a", data_root=str(tiny))) == run_dir


def test_a_begun_run_that_does_not_know_its_data_is_refused(tiny):
    run_dir = begin_run(tiny)
    config = make_config(run="a", data_root=str(tiny))
    training_set = load_training_set(make_dataset(config, "train"))
    path = run_dir / "training_data.json"
    for damage, message in [
        (path.unlink, "has trained folds, but no training_data.json, which says on what; copy the whole run"),
        (lambda: path.write_text("{}"), "training_data.json is damaged: it lacks cases"),
        (lambda: path.write_text('{"window": null, "cases": []}'), "damaged: it lacks cases"),
        (lambda: path.write_text('{"window": null, "cases": {"a": {"fold": 1}}}'), "damaged: it lacks cases"),
        (lambda: path.write_text("[" * 10**5), "training_data.json is damaged: .*recursion"),
    ]:
        damage()
        for use in (
            lambda: open_run(config),
            lambda: assign_folds(config, run_dir, training_set),
            lambda: read_window(run_dir),
        ):
            with pytest.raises(ValueError, match=message):
                use()
    assert path.read_text() == "[" * 10**5


def test_a_begun_run_without_its_settings_is_refused(tiny):
    run_dir = begin_run(tiny)
    (run_dir / "config.json").unlink()
    for parameters in ({"data_root": str(tiny)}, {"predict_folder": str(tiny / "Train" / "Image")}):
        with pytest.raises(ValueError, match="has trained folds, but no config.json with their settings"):
            make_config(run="a", **parameters)
    assert not (run_dir / "config.json").exists()


def test_weights_that_were_not_written_to_the_end_begin_no_run(tiny):
    run_dir = begin_run(tiny)
    (run_dir / "fold0" / "last.pth").rename(run_dir / "fold0" / ".partial-1-last.pth")
    open_run(make_config(run="a", data_root=str(tiny), lr=0.5))


@pytest.mark.parametrize("stored", [8, 16])
def test_a_window_is_the_runs_own_only_where_training_needs_it(tiny, stored):
    if stored == 16:
        path = tiny / "Train" / "Image" / "case_1.png"
        save_image(path, np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 9)
    config = make_config(run="a", data_root=str(tiny), target_size=32, window_low=0, window_high=4095)
    run_dir = open_run(config)
    assign_folds(config, run_dir, load_training_set(make_dataset(config, "train")))
    assert read_window(run_dir) == (None if stored == 8 else (0, 4095))
