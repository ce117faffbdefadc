"""Where the data, the repository, a run and its weights are found."""

import shutil
from pathlib import Path

import pytest

from ctseg import paths
from ctseg.contest import A0, Contest
from ctseg.paths import (
    find_data_root,
    find_file,
    find_repository,
    find_run_dir,
    find_run_name,
    make_portable,
)


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """An empty repository; the current folder is its folder of notebooks, and CTSEG_DATA is not set."""
    root = tmp_path / "repository"
    for name in ("ctseg", "notebooks"):
        (root / name).mkdir(parents=True)
    monkeypatch.chdir(root / "notebooks")
    monkeypatch.delenv("CTSEG_DATA", raising=False)
    return root


def test_the_data_root_is_found_by_path_variable_and_one_up(tiny, monkeypatch):
    assert find_data_root(tiny, A0) == find_data_root(tiny.parent, A0) == tiny
    monkeypatch.setenv("CTSEG_DATA", str(tiny.parent))
    assert find_data_root("", A0) == tiny


def test_without_data_the_error_lists_the_places_looked_at(tmp_path, monkeypatch):
    monkeypatch.delenv("CTSEG_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="/kaggle/input/competitions/a0-2025.*CTSEG_DATA"):
        find_data_root("", A0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_data_root("nowhere", A0)
    assert not any(tmp_path.iterdir())  # and no phantom was written


def test_all_kaggle_mounts_are_found(tiny, tmp_path, monkeypatch):
    monkeypatch.delenv("CTSEG_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    slug = "a0-2025-medical-image-segmentation"
    for name in (f"competitions/{slug}", slug, "some/other/name"):
        mount = tmp_path / name.replace("/", "_") / "input"
        (mount / name).mkdir(parents=True)
        shutil.copytree(tiny, mount / name / "Dataset")
        monkeypatch.setattr("ctseg.paths.KAGGLE_INPUT", mount)
        assert find_data_root("", A0) == mount / name / "Dataset"


@pytest.mark.parametrize("folder", ["data", "data/a0-2025-medical-image-segmentation"])
def test_data_in_the_repository_is_found_from_its_notebooks(tiny, repository, folder):
    shutil.copytree(tiny, repository / folder / "Dataset")
    assert find_data_root("", A0) == repository / folder / "Dataset"
    assert find_data_root(folder, A0) == repository / folder / "Dataset"


def test_the_phantom_is_written_into_the_repository(repository, monkeypatch):
    monkeypatch.setattr(paths, "write_phantom", lambda folder: folder / "Dataset")
    assert find_data_root("phantom", A0) == repository / "data" / "phantom" / "Dataset"


def test_the_repository_is_at_or_above_the_current_folder(repository, tmp_path, monkeypatch):
    assert find_repository() == repository
    monkeypatch.chdir(tmp_path)
    assert find_repository() == tmp_path  # elsewhere, as on Kaggle, the current folder


def test_a_run_lies_below_runs_and_its_name_cannot_lead_out(repository):
    for name in ("a", "a/b"):  # b of the sweep a
        assert find_run_dir(name) == repository / "runs" / name
        assert find_run_name(find_run_dir(name)) == name
    for name in ("../escape", "a/b/c", "a/..", "../a", "a/", "/a", "..", ".", ""):
        with pytest.raises(ValueError, match=f"run: got {name!r}, expected a plain folder name"):
            find_run_dir(name)


def test_a_run_that_is_a_link_has_its_links_name(tmp_path, monkeypatch):
    for name in ("notebooks", "ctseg", "runs", "elsewhere/a_run"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "elsewhere" / "a_run")
    assert find_run_name(find_run_dir("linked")) == "linked"


def test_weights_are_found_from_here_and_from_the_repository(repository):
    with pytest.raises(
        FileNotFoundError, match="no file 'w.pth': looked for .*notebooks/w.pth and .*pass an existing one"
    ):
        find_file("w.pth")
    (repository / "w.pth").write_bytes(b"")
    assert find_file("w.pth") == find_file("../w.pth") == repository / "w.pth"
    (repository / "notebooks" / "w.pth").write_bytes(b"")
    assert find_file("w.pth") == repository / "notebooks" / "w.pth"


def test_two_attached_data_sets_are_refused_with_both_names(tiny, repository, monkeypatch):
    kaggle_input = repository / "input"
    monkeypatch.setattr("ctseg.paths.KAGGLE_INPUT", kaggle_input)
    names = ("extra-isic-2018", "my-copy/Dataset")
    for name in names:
        shutil.copytree(tiny, kaggle_input / name)
    (kaggle_input / "weights" / "runs").mkdir(parents=True)
    with pytest.raises(ValueError, match="data set in .*input/extra-isic-2018, .*my-copy/Dataset"):
        find_data_root("", A0)
    for name in names:
        assert find_data_root(kaggle_input / name, A0) == kaggle_input / name
    mount = kaggle_input / "competitions" / A0.slug / "Dataset"
    shutil.copytree(tiny, mount)  # the contest's own comes before all others
    assert find_data_root("", A0) == mount


def test_another_contests_mount_is_found_by_its_slug_and_layout(tiny, repository, monkeypatch):
    monkeypatch.setattr("ctseg.paths.KAGGLE_INPUT", repository / "input")
    mount = repository / "input" / "competitions" / "another"
    shutil.copytree(tiny / "Train" / "Image", mount / "train")
    shutil.copytree(tiny / "Train" / "Mask", mount / "train_masks")
    shutil.copytree(tiny, repository / "input" / "competitions" / A0.slug / "Dataset")
    assert find_data_root("", Contest(slug="another")) == mount
    assert find_data_root("", A0) == repository / "input" / "competitions" / A0.slug / "Dataset"


def test_a_folder_without_images_next_to_a_data_set_is_none(repository, tiny):
    for kind in ("Image", "Mask"):
        hidden = repository / "data" / "__MACOSX" / "Train" / kind
        hidden.mkdir(parents=True)
        (hidden / "._case_0.png").write_bytes(b"")
    shutil.copytree(tiny, repository / "data" / "Dataset")
    assert find_data_root(repository / "data", A0) == repository / "data" / "Dataset"


def test_a_folder_that_is_no_data_set_is_described(repository, tiny):
    (repository / "wrong" / "pictures").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="images in .* of .*wrong, which has pictures; pass"):
        find_data_root("wrong", A0)
    for name in ("a", "b"):
        shutil.copytree(tiny, repository / "both" / name)
    with pytest.raises(ValueError, match="data set in .*both/a, .*both/b; pass one as data_root"):
        find_data_root(repository / "both", A0)


def test_paths_below_the_repository_are_portable(repository, tmp_path):
    assert make_portable(repository / "data" / "x") == Path("data/x")
    assert make_portable(tmp_path / "elsewhere") == tmp_path / "elsewhere"
