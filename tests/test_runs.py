"""From a notebook's parameters to a config and its run's folder."""

import json
import math
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import begin_run, save_image, write_pair

from ctseg.config import CONTEST_FACTS, Config
from ctseg.data import drop_unreadable
from ctseg.files import read_json, write_json, write_text
from ctseg.paths import find_run_dir
from ctseg.phantom import write_phantom
from ctseg.runs import (
    choose_window,
    count_operations,
    find_members,
    find_new_folder,
    keep_format,
    make_config,
    make_dataset,
    make_network,
    make_new_dataset,
    measure_step_memory,
    name_predictions,
    open_run,
    read_config,
    read_parameters,
)

PARAMETERS = 'preset: str = "quick"  # quick, baseline or strong\nepochs: int = None\nlr: float = None\n'


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch, phantom):
    """Work in an empty repository, so that runs/ is not the real one; the phantom is the data."""
    for name in ("ctseg", "notebooks"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setenv("CTSEG_DATA", str(phantom))


def run_cells(*cells: str) -> dict:
    """The globals of a notebook in which these cells were run; cells that are not Python do nothing."""
    namespace = {"In": [""], "Out": {}, "_": 3, "__name__": "__main__", "PAPERMILL_INPUT_PATH": "x"}
    for cell in cells:
        namespace["In"].append(cell)
        with suppress(SyntaxError):
            exec(cell, namespace)
    return namespace


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"epochz": 3}, ValueError, "unknown parameter 'epochz', did you mean 'epochs'"),
        ({"lr": -1}, ValueError, "lr: got -1.0, expected 1e-08 … 10"),
        ({"encoder": "resnet35"}, ValueError, "unknown encoder 'resnet35'; expected one of .*resnet34"),
        ({"weights": "none.pth"}, FileNotFoundError, "none.pth"),
        ({"data_root": "nowhere"}, FileNotFoundError, "nowhere"),
        ({"run": "../escape"}, ValueError, "plain folder name"),
    ],
)
def test_bad_parameters_are_refused_before_a_run_is_made(parameters, error, message, tmp_path):
    with pytest.raises(error, match=message):
        open_run(make_config(**parameters))
    assert not (tmp_path / "runs").exists()


def test_other_names_of_a_notebook_are_not_parameters():
    notebook = {
        "In": ["x", "lr = 0.1"],
        "Out": {},
        "_": 3,
        "__name__": "__main__",
        "np": json,
        "make_config": make_config,
        "PAPERMILL_INPUT_PATH": "x",
        "lr": 0.1,
    }
    assert make_config(**read_parameters(notebook)).lr == 0.1
    # A cell run again in a live notebook.
    again = {**notebook, "config": Config(epochs=1), "my_own": 3}
    assert make_config(**read_parameters(again)).lr == 0.1


@pytest.mark.parametrize("cells", [None, 3, [1, 2], "deleted"])
def test_without_a_list_of_cells_the_settings_count(cells):
    namespace = {"_": 3, "__name__": "x", "np": json, "PAPERMILL_INPUT_PATH": "x", "lr": 0.1, "epochs": None}
    namespace |= {"TEST_MASKS": "x", "AUGMENTATIONS": {"flip": 0.5}, "i": 3, "Out": 5, "In": cells}
    if cells == "deleted":
        del namespace["In"]
    assert read_parameters(namespace) == {"lr": 0.1, "epochs": None}
    with pytest.raises(ValueError, match="unknown parameter 'epochz', did you mean 'epochs'"):
        read_parameters(namespace | {"epochz": 3})


def test_the_parameters_cell_and_what_papermill_injects_are_read():
    notebook = run_cells("import json", PARAMETERS)
    assert read_parameters(notebook) == {"preset": "quick", "epochs": None, "lr": None}
    notebook = run_cells("import json", PARAMETERS, "# Parameters\nlr = 0.1\nrotation = 20\n")
    assert read_parameters(notebook) == {"preset": "quick", "epochs": None, "lr": 0.1, "rotation": 20}
    assert make_config(**read_parameters(notebook)).rotation == 20


def test_an_infinite_number_that_papermill_injects_counts():
    notebook = run_cells("# Parameters\nlr = float('inf')\nwindow_low = -100\n")
    assert read_parameters(notebook) == {"lr": math.inf, "window_low": -100}
    with pytest.raises(ValueError, match="lr: got inf"):
        make_config(**read_parameters(notebook))


def test_one_cell_may_set_several_names_at_once():
    assert read_parameters(run_cells("lr, epochs = 0.1, 3")) == {"lr": 0.1, "epochs": 3}
    assert read_parameters(run_cells("width = depth = 4")) == {"width": 4, "depth": 4}


def test_a_value_of_the_parameters_cell_may_be_computed():
    notebook = run_cells("import math", 'preset = "quick"\nlr = math.exp(-3)')
    assert read_parameters(notebook) == {"preset": "quick", "lr": math.exp(-3)}


def test_a_typo_is_refused_in_a_live_notebook_as_well():
    config = make_config(epochs=1)
    notebook = {**run_cells(PARAMETERS, "epochz = 3"), "config": config}
    with pytest.raises(ValueError, match="unknown parameter 'epochz', did you mean 'epochs'"):
        make_config(**read_parameters(notebook))


def test_a_typo_that_was_corrected_is_refused_with_the_way_out():
    notebook = run_cells("epochz = 3", "epochs = 3")
    with pytest.raises(
        ValueError, match="unknown parameter 'epochz'.*begin its name .*, or run 'del epochz'"
    ):
        make_config(**read_parameters(notebook))
    del notebook["epochz"]
    assert read_parameters(notebook) == {"epochs": 3}


@pytest.mark.parametrize(
    "cell",
    [
        'preset = "quick"\nepohcs = 3',
        '"""My settings."""\nepohcs = 3',
        "epohcs = 3\nprint(epohcs)",
        "lr = 0.1\nepohcs = 3\nlr",
        "# Parameters\nepohcs = 3",
        "# Parameters\nsomething = 3",
    ],
)
def test_a_name_that_is_not_a_settings_is_refused(cell):
    with pytest.raises(ValueError, match="unknown parameter '(epohcs', did you mean 'epochs'|something')"):
        read_parameters(run_cells(PARAMETERS, cell))


def test_other_variables_of_a_notebook_are_not_parameters():
    notebook = run_cells(
        "for index in range(2):\n    total = index",
        "names = sorted(['b', 'a'])",
        "print\nlimit = 5",
        "n = 5",
        "DRIVE = '/content/drive'",
        "in_fold = {k: k for k in (1, 2)}",
        "k: int",
        PARAMETERS,
    )
    assert {"index", "total", "names", "limit", "n", "DRIVE", "in_fold"} <= notebook.keys()
    assert read_parameters(notebook).keys() == {"preset", "epochs", "lr"}


@pytest.mark.parametrize(
    "cell",
    [
        "lr = 0.1\nprint(lr)",
        "import math\nlr = 0.1",
        "lr = 0.1; lr",
        "base = [0.05]\nlr = 2 * base[0]",
        "lr = 0.2\nlr /= 2",
        "# Parameters\nlr = 0.1",
        "if True:\n    lr = 0.1",
        "globals().update(lr=0.1)",
        "print(lr := 0.1)",
        "exec('lr = 0.1')",
    ],
)
def test_a_setting_counts_however_it_was_set(cell):
    assert read_parameters(run_cells(cell))["lr"] == 0.1


def test_one_print_in_the_parameters_cell_loses_nothing():
    notebook = run_cells(PARAMETERS.replace("lr: float = None", "lr: float = 0.1") + "print(lr)")
    assert read_parameters(notebook) == {"preset": "quick", "epochs": None, "lr": 0.1}


MAGIC = "get_ipython().run_line_magic('matplotlib', 'inline')"  # as IPython keeps it


DEEP = "_x = " + "-" * 5000 + "1"


@pytest.mark.parametrize("cell", ["seed = = 3", "def", MAGIC, DEEP, "'\ud800'", "\0"])
def test_a_cell_that_cannot_be_parsed_or_is_a_magic_is_skipped(cell):
    assert read_parameters({"lr": 0.1, "In": [cell, "lr = 0.1"]}) == {"lr": 0.1}


def test_a_stored_setting_of_another_version_is_said_so(tmp_path):
    run_dir = open_run(make_config(run="old"))
    stored = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(stored | {"turn": 0.5}))
    with pytest.raises(ValueError, match="config.json has the setting 'turn', which this version"):
        make_config(run="old")


def test_a_default_run_is_named_by_its_settings_not_its_fold():
    first = make_config(n_folds=2)
    assert first.run == make_config(n_folds=2, fold=1).run
    assert first.run != make_config(n_folds=2, lr=0.1).run
    assert first.run.startswith("quick-") and len(first.run) == len("quick-") + 8


def test_a_run_opens_with_its_own_settings_only(tmp_path):
    run_dir = open_run(make_config(run="a", epochs=2))
    assert run_dir == tmp_path / "runs" / "a"  # at the repository root, though the notebook started below it
    written = (run_dir / "config.json").read_text()
    assert open_run(make_config(run="a", epochs=2, fold=0)) == run_dir
    write_text("", run_dir / "fold0" / "last.pth")
    with pytest.raises(ValueError, match="other settings .epochs: got 3, stored 2.*choose another run name"):
        open_run(make_config(run="a", epochs=3))
    assert (run_dir / "config.json").read_text() == written


def test_settings_may_change_until_a_fold_is_begun():
    run_dir = open_run(make_config(run="a", epochs=2))
    assert open_run(make_config(run="a", epochs=3)) == run_dir
    assert read_json(run_dir / "config.json")["epochs"] == 3


def test_the_format_of_the_submission_may_change_at_any_time(tiny):
    begin_run(tiny)
    config = make_config(run="a", pixel_order="F", submission_columns="id,rle")
    run_dir = open_run(config)
    assert make_config(run="a").pixel_order == "C"  # what may yet be refused is not kept
    keep_format(config, run_dir)
    assert (make_config(run="a").pixel_order, read_config(run="a").submission_columns) == ("F", "id,rle")


def test_the_config_file_of_a_run_reproduces_it_as_parameters():
    config = make_config(preset="baseline", run="a", budget_minutes=3, lr=0.5)
    run_dir = open_run(config)
    again = make_config(**json.loads((run_dir / "config.json").read_text()))
    assert asdict(again) == asdict(config)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"lr": 1'])
def test_a_damaged_config_is_said_to_be(tmp_path, text):
    run_dir = open_run(make_config(run="a"))
    (run_dir / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json (is damaged|holds list).*restore it"):
        make_config(run="a")


def test_missing_values_come_from_the_run():
    run_dir = open_run(make_config(preset="baseline", run="a", epochs=2, lr=0.5))
    write_text("", run_dir / "fold0" / "last.pth")
    config = make_config(preset=None, data_root="", run="a", lr=None)
    assert (config.preset, config.width, config.epochs, config.lr) == ("baseline", 64, 2, 0.5)
    with pytest.raises(ValueError, match="lr: got 0.1, stored 0.5"):
        open_run(make_config(run="a", lr=0.1))


def test_a_new_run_takes_missing_values_from_its_preset():
    assert asdict(make_config(run="b", lr=0.1)) == asdict(make_config(run="b", lr=0.1))
    assert asdict(make_config(run="")) == asdict(make_config(run=""))


def test_an_unknown_preset_is_refused_for_an_existing_run_too():
    open_run(make_config(run="a"))
    with pytest.raises(ValueError, match="preset: got 'fast', expected one of baseline, quick, strong, gpu"):
        make_config(run="a", preset="fast")


def test_a_trained_run_does_not_need_the_weights_it_started_from(tmp_path):
    weights = tmp_path / "notebooks" / "w.pth"
    weights.write_bytes(b"")
    config = make_config(run="a", weights="w.pth")
    assert config.weights == "notebooks/w.pth" and len(config.weights_digest) == 16
    run_dir = open_run(config)
    write_text("", run_dir / "fold0" / "last.pth")
    weights.unlink()
    stored = json.loads((run_dir / "config.json").read_text())
    for given in ({"run": "a"}, stored, {"run": "a", "weights": "notebooks/w.pth"}):
        assert asdict(make_config(**given)) == asdict(config)
    with pytest.raises(FileNotFoundError, match="no file 'typo.pth'.*or '' for scratch"):
        make_config(run="a", weights="typo.pth")
    with pytest.raises(FileNotFoundError, match="w.pth"):
        make_network(make_config(run="a"))  # a new fold does need them


def test_weights_are_the_same_wherever_their_file_lies(tiny, tmp_path):
    for name, content in (("w.pth", b"1"), ("moved/w.pth", b"1"), ("other.pth", b"2")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    begin_run(tiny, weights="w.pth")
    open_run(make_config(run="a", weights="moved/w.pth"))
    assert make_config(run="a").weights == "moved/w.pth"
    message = "other settings .weights: got '.*other.pth', stored 'moved/w.pth' .files are compared by"
    with pytest.raises(ValueError, match=message):
        open_run(make_config(run="a", weights="other.pth"))
    (tmp_path / "moved/w.pth").write_bytes(b"2")
    with pytest.raises(ValueError, match="moved/w.pth is not the weights file that the run was made with"):
        make_network(make_config(run="a"))


IMAGE = np.random.default_rng(5).integers(0, 2, (30, 40, 3), np.uint8) * 255


def test_a_run_and_its_data_may_be_moved(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("CTSEG_DATA", raising=False)
    run_dir = begin_run(tiny)
    moved = tmp_path / "elsewhere" / "Dataset"
    moved.parent.mkdir()
    tiny.rename(moved)
    stored = json.loads((run_dir / "config.json").read_text())
    assert "data_root" not in stored
    with pytest.raises(FileNotFoundError, match=f"no data set.*the data of a were in {tiny.name}"):
        make_config(run="a")
    for given in ({"run": "a"}, stored):
        assert open_run(make_config(**given, data_root=str(moved))) == run_dir
    assert make_config(run="a").data_root == str(moved)  # from now on without being told
    (tmp_path / "data").mkdir()
    moved.rename(tmp_path / "data" / "Dataset")
    assert open_run(make_config(**stored)) == run_dir
    assert make_config(run="a").data_root == str(tmp_path / "data" / "Dataset")
    assert f"the data of a are no longer in {moved.relative_to(tmp_path)}" in capsys.readouterr().out
    clone = tmp_path.with_name(f"{tmp_path.name}_moved")
    monkeypatch.chdir("/")
    tmp_path.rename(clone)  # the whole clone, its data below it
    monkeypatch.chdir(clone)
    assert open_run(make_config(run="a")) == clone / "runs" / "a"
    assert not capsys.readouterr().out


def test_new_images_need_no_training_data(tiny, tmp_path, monkeypatch):
    monkeypatch.delenv("CTSEG_DATA")
    run_dir = begin_run(tiny)
    before = sorted(path for path in run_dir.rglob("*"))
    new = tmp_path / "new images"
    new.mkdir()
    for name in ("a.png", "b.jpg", "b.png", "b.jpg.png"):
        save_image(new / name, IMAGE)
    (new / "c.png").write_bytes(b"no image")
    shutil.rmtree(tiny)
    config = make_config(run="a", predict_folder=str(new), submission_columns="id,rle")
    assert open_run(config) == run_dir and sorted(path for path in run_dir.rglob("*")) == before
    dataset, unreadable = drop_unreadable(make_new_dataset(config, run_dir, find_new_folder(config)))
    assert [case.image_id for case in dataset.cases] == ["a.png", "b.jpg", "b.png", "b.jpg.png"]
    assert unreadable.keys() == {"c.png"} and "cannot identify" in unreadable["c.png"]
    for path in new.glob("[ab].*"):
        path.unlink()
    with pytest.raises(ValueError, match="none of 1 images can be read; the first: cannot read .*c.png"):
        drop_unreadable(make_new_dataset(config, run_dir, new))
    for name in ("nowhere", str(new / "c.png")):
        with pytest.raises(FileNotFoundError, match=f"no images in .*{name}.*; expected a folder with files"):
            find_new_folder(make_config(run="a", predict_folder=name))


def test_new_images_need_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run .*/runs/typo to predict new images with"):
        open_run(make_config(run="typo", predict_folder=str(tmp_path)))


def test_the_predictions_of_each_folder_have_a_folder_of_their_own(monkeypatch, tmp_path):
    paths = ["/", "/data", "/a/study/images", "/b/study/images"]
    names = [name_predictions(Path(path)) for path in paths]
    assert len(set(names)) == 4 and all(Path(name).name == name for name in names)
    assert names[0].startswith("root-") and names[2].startswith("images-")
    save_image(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    config = make_config(run="a", predict_folder="..")
    assert find_new_folder(config) == tmp_path
    monkeypatch.chdir("/")
    assert find_new_folder(make_config(run="a", predict_folder=str(tmp_path))) == tmp_path


def test_new_images_of_16_bits_are_seen_through_the_windows_of_training(tiny, tmp_path):
    rng = np.random.default_rng(0)
    for path in (tiny / "Train" / "Image").iterdir():
        save_image(path, rng.integers(1000, 3000, (30, 40), np.uint16))
    run_dir = begin_run(tiny)
    (tmp_path / "new").mkdir()
    save_image(tmp_path / "new" / "a.png", np.full((5, 5), 2000, np.uint16))
    window, new = make_dataset(make_config(run="a"), "train").window, tmp_path / "new"
    assert make_new_dataset(make_config(run="a", predict_folder="new"), run_dir, new).window == window
    given = make_config(run="a", predict_folder="new", window_low=0, window_high=9)
    assert make_new_dataset(given, run_dir, new).window == (0, 9)
    with pytest.raises(ValueError, match="other settings .window_low: got 0.0, stored None"):
        open_run(given)  # training saw its images otherwise


def test_a_window_may_be_given_for_new_images_of_16_bits_where_training_had_8(tiny, tmp_path):
    run_dir = begin_run(tiny)
    (tmp_path / "new").mkdir()
    save_image(tmp_path / "new" / "a.png", np.full((5, 5), 2000, np.uint16))
    shutil.rmtree(tiny)
    config = make_config(run="a", predict_folder="new", window_low=0, window_high=4000)
    assert open_run(config) == run_dir
    assert make_new_dataset(config, run_dir, tmp_path / "new").read(0)[0].max() == 128
    with pytest.raises(ValueError, match="needs window_low and window_high"):
        without = make_config(run="a", predict_folder="new")
        drop_unreadable(make_new_dataset(without, run_dir, tmp_path / "new"))


def test_a_data_set_and_a_network_are_made_as_the_config_says(phantom):
    config = make_config(target_size=64, width=4, depth=2)
    train, test = make_dataset(config, "train"), make_dataset(config, "test")
    assert (len(train), len(test)) == (24, 4)
    image, target, letterbox = train[0]
    assert image.shape == (3, 64, 64) and target.shape == (1, 64, 64) and letterbox.target_size == 64
    assert test[0][1] is None
    assert make_network(config)(image[None].float() / 255).shape == (1, 1, 64, 64)


def test_the_window_of_16_bit_images_comes_from_training_images(tiny):
    deep = np.linspace(1000, 3000, 1200).astype(np.uint16).reshape(30, 40)
    write_pair(tiny, "deep", deep, np.zeros((30, 40), np.uint8))
    save_image(tiny / "Test" / "Image" / "case_9.png", deep + np.uint16(5000))
    (tiny / "Test" / "Image" / "case_9.jpg").unlink()
    config = make_config(data_root=str(tiny))
    low, high = make_dataset(config, "test").window
    assert 1000 < low < 1030 and 2970 < high < 3000
    assert make_dataset(make_config(data_root=str(tiny), window_low=7), "test").window == (7, high)


def test_a_window_may_be_given_later_where_training_used_none(tiny):
    run_dir = begin_run(tiny)
    config = make_config(run="a", window_low=0, window_high=5000)
    assert open_run(config) == run_dir and make_dataset(config, "test").window == (0, 5000)
    save_image(tiny / "Train/Image/case_1.png", np.arange(1200, dtype=np.uint16).reshape(30, 40))
    begin_run(tiny, run="deep")
    config = make_config(run="deep", window_low=0, window_high=5000)
    with pytest.raises(ValueError, match="other settings .window_low: got 0.0, stored None; window_high"):
        open_run(config)


RESNET = Config(encoder="resnet18", weights="default", width=4)


def test_offline_default_weights_say_how_to_get_them_on_kaggle(hub):
    with pytest.raises(FileNotFoundError) as caught:
        make_network(RESNET)
    places = ("resnet18-f37072fd.pth", str(hub), "/kaggle/input", "network is unreachable")
    for text in (*places, "pass weights", "on Kaggle turn the internet on", "dataset_sources"):
        assert text in str(caught.value)


def test_default_weights_that_are_attached_are_the_networks(hub, monkeypatch, tmp_path):
    backbone = torchvision.models.resnet18()
    folder = tmp_path / "input" / "models" / "mine"
    folder.mkdir(parents=True)
    monkeypatch.setattr("ctseg.runs.KAGGLE_INPUT", tmp_path / "input")
    torch.save(backbone.state_dict(), folder / "resnet18-f37072fd.pth")
    assert torch.equal(make_network(RESNET).encoder.features.conv1.weight, backbone.conv1.weight)


@pytest.fixture
def no_data(tmp_path, monkeypatch):
    """A fresh clone: no data anywhere; a phantom that is written quickly."""
    monkeypatch.delenv("CTSEG_DATA")
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    monkeypatch.setattr(
        "ctseg.paths.write_phantom", lambda folder: write_phantom(folder, n_train=3, n_test=1)
    )
    return tmp_path


def test_without_data_a_new_run_uses_the_phantom_and_says_so_each_time(no_data, capsys):
    for trains in (False, True):
        config = make_config(run="a")
        assert config.data_root == str(no_data / "data" / "phantom" / "Dataset")
        assert capsys.readouterr().out == "DATA: the synthetic phantom; data_root names your own\n"
        open_run(config, trains=trains)
    assert "phantom" in read_json(find_run_dir("a") / "places.json")["data_root"]  # it is trained on
    make_config(run="a", data_root="phantom")
    assert capsys.readouterr().out == ""  # it was asked for


def test_data_that_are_there_in_other_folders_are_not_replaced_by_the_phantom(no_data):
    (no_data / "data" / "mine" / "pictures").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no data set"):
        make_config(run="a")


def test_the_phantom_gives_way_to_data_that_come_before_training(no_data, phantom, capsys):
    open_run(make_config(run="a"), trains=False)
    shutil.copytree(phantom, no_data / "data" / "a0-2025-medical-image-segmentation" / "Dataset")
    assert "a0-2025" in make_config(run="a").data_root
    open_run(make_config(run="b", data_root="phantom"), trains=False)
    assert "phantom" in make_config(run="b").data_root  # that was given


def test_what_was_tried_before_a_fold_has_weights_is_not_what_the_run_says(phantom):
    run_dir = open_run(make_config(run="a", preset="strong", lr=0.5, slug="b", encoder="unet", weights=""))
    assert (make_config(run="a").preset, make_config(run="a").lr, make_config(run="a").slug) == (
        "quick",
        0.002,
        "b",
    )
    write_text("", run_dir / "fold0" / "last.pth")
    assert (make_config(run="a").preset, make_config(run="a").lr) == ("strong", 0.5)


def test_data_that_are_there_come_before_the_phantom(no_data, phantom):
    make_config(run="a")
    shutil.copytree(phantom, no_data / "data" / "a0-2025-medical-image-segmentation" / "Dataset")
    assert "a0-2025" in make_config(run="b").data_root


@pytest.mark.parametrize(
    "given",
    [
        {"data_root": "gone"},
        {"slug": "another"},
        {"group": "groups.csv"},
        {"train_images": "images"},
        {"test_images": "images"},
    ],
)
def test_what_is_given_and_not_there_is_never_replaced_by_the_phantom(no_data, given):
    with pytest.raises(FileNotFoundError, match="no data set"):
        make_config(run="a", **given)
    assert not (no_data / "data").exists()


@pytest.mark.parametrize("place", ["CTSEG_DATA", "KAGGLE_KERNEL_RUN_TYPE", "mounts", "places", "begun"])
def test_a_kaggle_kernel_and_a_run_that_had_data_never_use_the_phantom(no_data, monkeypatch, phantom, place):
    if place == "mounts":
        monkeypatch.setattr("ctseg.runs.KAGGLE_INPUT", no_data)
    elif place == "places":
        shutil.copytree(phantom, no_data / "mine")
        open_run(make_config(run="a", data_root=str(no_data / "mine")))
        shutil.rmtree(no_data / "mine")
    elif place == "begun":
        write_text("", find_run_dir("a") / "fold0" / "last.pth")
        write_json(make_config(run="", data_root=str(phantom)).stored(), find_run_dir("a") / "config.json")
    else:
        monkeypatch.setenv(place, "gone")
    with pytest.raises(FileNotFoundError, match="no data set"):
        make_config(run="a")
    assert not (no_data / "data").exists()


def test_what_does_not_train_keeps_the_contests_facts_alone(tmp_path, capsys):
    looking = make_config(run="a", preset="quick", lr=0.5, slug="b", target_size=64)
    run_dir = open_run(looking, trains=False)
    assert read_json(run_dir / "config.json").keys() == {"run", "runs", *CONTEST_FACTS}
    config = make_config(run="a", preset="strong")
    assert (config.slug, config.lr, config.encoder, config.target_size) == ("b", 0.001, "mobilenet_v2", 192)
    open_run(config)
    open_run(make_config(run="a", target_size=64), trains=False)  # until a fold has weights
    assert read_json(run_dir / "config.json")["target_size"] == 192
    write_text("", run_dir / "fold0" / "best_unet_model.pth")
    with pytest.raises(ValueError, match="target_size: got 64, stored 192"):
        open_run(make_config(run="a", target_size=64), trains=False)


def test_refused_settings_come_with_advice_for_the_place(tmp_path, phantom, monkeypatch):
    begin_run(phantom)
    config = make_config(run="a", lr=0.5)
    with pytest.raises(ValueError, match="choose another run name, or pass its name alone"):
        open_run(config)
    monkeypatch.setattr("ctseg.runs.is_live", lambda: True)
    with pytest.raises(ValueError, match="in the parameters cell, give run another name, or set these back"):
        open_run(config)


@pytest.mark.parametrize(
    "changes",
    [{}, {"encoder": "regnet_y_400mf"}, {"encoder": "mobilenet_v2"}, {"batch_size": 1, "target_size": 32}],
)
def test_the_memory_of_a_step_is_counted_for_any_network(changes):
    config = Config(width=4) if not changes else Config(**{"width": 4, "target_size": 64} | changes)
    n = max(2, config.batch_size)
    one, four = (measure_step_memory(replace(config, batch_size=batch_size)) for batch_size in (n, 4 * n))
    assert measure_step_memory(config) == one
    n_weights = sum(parameter.numel() for parameter in make_network(config).parameters())
    # What does not grow with the batch are the weights, their gradients and the two means of AdamW.
    assert 12 * n_weights < one - (four - one) / 3 < 17 * n_weights + 1e5


def begin_two(phantom):
    """Two runs of one data set, "a" and "b", that have begun to train."""
    begin_run(phantom, lr=0.1, slug="x")
    begin_run(phantom, run="b", target_size=48, slug="x")


def test_an_average_has_the_first_runs_settings_and_a_name_of_its_own(phantom, tmp_path, monkeypatch):
    begin_two(phantom)
    monkeypatch.delenv("CTSEG_DATA")  # found where the first run had them
    config = make_config(runs="b, a")
    assert (config.run, config.target_size, config.slug) == ("b+a", 48, "x")
    run_dir = open_run(config, trains=False)
    assert run_dir == tmp_path / "runs" / "b+a" and Path(config.data_root) == phantom
    members = find_members(config, run_dir)
    assert [(member.run, member.target_size) for member, _ in members] == [("b", 48), ("a", 32)]
    assert [folder.name for _, folder in members] == ["b", "a"]
    again = make_config(run="b+a")
    assert again == config and open_run(again, trains=False) == run_dir
    kept = make_config(run="both", runs="a,b", slug="y")
    find_members(kept, open_run(kept, trains=False))
    assert make_config(run="both").slug == "y" and make_config(run="a").slug == "x"
    only, folder = make_config(run="a"), find_run_dir("a")
    assert find_members(only, folder) == [(only, folder)]


def test_runs_of_a_sweep_have_commas_in_their_names(phantom):
    for run in ("s/lr=1,tta=d4", "s/lr=2,tta=d4"):
        begin_run(phantom, run=run)
    config = make_config(runs="s/lr=1,tta=d4,s/lr=2,tta=d4")
    assert config.run == "s-lr=1,tta=d4+s-lr=2,tta=d4"
    members = find_members(config, open_run(config, trains=False))
    assert [member.run for member, _ in members] == ["s/lr=1,tta=d4", "s/lr=2,tta=d4"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"runs": "a,none"}, "parameter runs: 'none' is no run with trained folds below "),
        ({"runs": "a,a"}, "got 'a,a' for the run 'a[+]a'; expected each once, and another name for it"),
        ({"runs": "a,b", "run": "a"}, "got 'a,b' for the run 'a'; expected each once"),
        ({"runs": "a,b", "lr": 0.2}, "parameter lr: runs 'a,b' have their own settings; leave it out"),
        ({"runs": "a,b", "preset": "strong"}, "have their own settings; leave it out"),
        ({"runs": ","}, "got ',', expected the names of two trained runs or more, as in a,b"),
        ({"runs": "a"}, "got 'a', expected the names of two trained runs or more, as in a,b"),
        ({"runs": (7, 48)}, "parameter runs: '7' is no run with trained folds below "),
        ({"runs": 7}, "parameter runs: '7' is no run with trained folds below "),
        ({"runs": "a,b", "run": "c"}, "got 'a,b'; they are for 04, and for a run without folds of its own"),
    ],
)
def test_what_is_no_average_is_refused(phantom, parameters, message):
    begin_two(phantom)
    begin_run(phantom, run="c", slug="x")
    with pytest.raises(ValueError, match=message):
        open_run(make_config(**parameters), trains=False)
    assert read_json(find_run_dir("a") / "config.json")["runs"] == ""


def test_a_list_of_runs_is_refused_with_what_to_write():
    with pytest.raises(TypeError, match="parameter runs: got .'a', 'b'. .list., expected str; write 'a,b'"):
        make_config(runs=["a", "b"])


def test_an_average_is_not_trained(phantom):
    begin_two(phantom)
    config = make_config(runs="a,b")
    with pytest.raises(ValueError, match="got 'a,b'; they are for 04"):
        open_run(config)
    find_members(config, open_run(config, trains=False))
    with pytest.raises(ValueError, match="got 'a,b'; they are for 04"):
        open_run(make_config(run="a+b"))


def test_an_average_that_is_refused_leaves_what_there_was(phantom, tmp_path):
    begin_two(phantom)
    config = make_config(runs="a,b", run="both")
    find_members(config, open_run(config, trains=False))
    kept = (tmp_path / "runs" / "both" / "config.json").read_bytes()
    begin_run(phantom, run="c", slug="x")
    (tmp_path / "runs" / "c" / "training_data.json").unlink()
    for run in ("both", "new"):
        other = make_config(runs="a,c", run=run)
        with pytest.raises(ValueError, match="runs/c"):
            find_members(other, open_run(other, trains=False))
    assert (tmp_path / "runs" / "both" / "config.json").read_bytes() == kept
    assert not (tmp_path / "runs" / "new").exists()


def test_the_facts_that_are_given_hold_for_all_runs_of_an_average(phantom, tmp_path):
    begin_two(phantom)
    moved = (phantom / "Train").rename(phantom / "elsewhere")
    names = {"train_images": "elsewhere/Image", "train_masks": "elsewhere/Mask"}
    config = make_config(runs="a,b", **names)
    for member, _ in find_members(config, open_run(config, trains=False)):
        assert member.train_masks == "elsewhere/Mask"
    moved.rename(phantom / "Train")


def test_a_window_for_16_bits_may_be_given_to_an_average_of_runs_that_saw_8(tiny, tmp_path):
    for run in "ab":
        begin_run(tiny, run=run)
    config = make_config(runs="a,b", run="both", data_root=str(tiny), window_low=0, window_high=4000)
    members = find_members(config, open_run(config, trains=False))
    assert [choose_window(*member) for member in members] == [(0, 4000)] * 2
    config = make_config(run="both")
    assert [choose_window(*member) for member in find_members(config, find_run_dir("both"))] == [None] * 2
    for path in (tiny / "Train" / "Image").iterdir():
        save_image(path, np.full((30, 40), 2000, np.uint16))
    begin_run(tiny, run="deep")
    config = make_config(runs="a,deep", run="c", data_root=str(tiny), window_low=0, window_high=4000)
    with pytest.raises(ValueError, match="runs/deep holds a run with other settings .window_low: got 0.0"):
        find_members(config, open_run(config, trains=False))


def test_many_runs_and_a_run_that_is_called_as_their_list_are_no_matter(phantom, tmp_path):
    names = [f"{letter * 60}-{n}" for n, letter in enumerate("abcdef")]
    for name in names:
        begin_run(phantom, run=name)
    config = make_config(runs=",".join(names))
    assert re.fullmatch("average-[0-9a-f]{8}", config.run)
    assert [member.run for member, _ in find_members(config, open_run(config, trains=False))] == names
    pair = ",".join(names[:2])
    for run in (pair, "other"):
        config = make_config(runs=pair, run=run)
        assert len(find_members(config, open_run(config, trains=False))) == 2


def test_operations_are_those_of_three_forward_passes():
    small, large = (count_operations(Config(target_size=size, width=16)) for size in (32, 64))
    assert large == 4 * small
    # The first convolution alone: 3 x 3 x 3 products and sums for each of 16 channels of each pixel.
    assert small > 3 * 2 * 27 * 16 * 32 * 32
