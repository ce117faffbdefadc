"""Folds in turn and side by side, and what is decided on their out-of-fold predictions."""

import numpy as np
import pytest
import torch
from PIL import Image

from ctseg.config import make_config, open_run
from ctseg.data import SegmentationDataset, find_cases, load_squares
from ctseg.folds import assign_folds, find_folds, load_folds, make_dataset, train_folds
from ctseg.losses import DiceBCELoss
from ctseg.metrics import dice_score
from ctseg.model import make_model, predict_squares
from ctseg.postprocess import PostProcess, make_mask
from ctseg.predict import OutOfFold, predict_cases, predict_masks, score_masks, write_masks, write_oof
from ctseg.report import summarize, write_summary
from ctseg.train import evaluate_model
from ctseg.transforms import EvalTransform, to_float

SETTINGS = {"preset": "quick", "n_folds": 2, "epochs": 1, "target_size": 32, "width": 2, "depth": 2, "tta": "flips"}


def make_run(phantom, name, monkeypatch, folder, **changes):
    monkeypatch.chdir(folder)
    config = make_config(SETTINGS | {"data_root": str(phantom), "run": name} | changes)
    return config, open_run(config)


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine that counts two GPUs; the workers themselves find none and use the CPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_folds_side_by_side_learn_what_they_learn_in_turn(phantom, tmp_path, monkeypatch, request, capsys):
    config, in_turn = make_run(phantom, "in_turn", monkeypatch, tmp_path)
    first = train_folds(config, in_turn)
    request.getfixturevalue("two_gpus")
    config, side_by_side = make_run(phantom, "side_by_side", monkeypatch, tmp_path)
    second = train_folds(config, side_by_side)
    assert first.keys() == second.keys() == {0, 1}
    assert all(first[k][0]["val_dice"] == pytest.approx(second[k][0]["val_dice"], abs=1e-6) for k in first)
    assert {"fold0 epoch 1/1", "fold1 epoch 1/1"} <= {line[:15] for line in capsys.readouterr().out.splitlines()}


@pytest.mark.parametrize("side_by_side", [False, True])
def test_a_fold_that_fails_is_reported_and_the_others_go_on(phantom, tmp_path, monkeypatch, request, side_by_side, capsys):
    if side_by_side:
        request.getfixturevalue("two_gpus")
    config, folder = make_run(phantom, "broken", monkeypatch, tmp_path)
    (folder / "fold0").write_text("a file in the way")
    assert train_folds(config, folder).keys() == {1}
    assert "FAILED: fold 0" in capsys.readouterr().out
    assert [path.name for path in find_folds(folder)] == ["fold1"]
    failed = write_summary(folder, scores={}, postprocess="")["failed"]
    assert failed.keys() == {"fold0"} and failed["fold0"].startswith("FileExistsError")
    (folder / "fold0").unlink()
    assert train_folds(config, folder).keys() == {0, 1}
    assert not list(folder.glob("failed*"))


def test_where_no_fold_finishes_what_went_wrong_is_raised(phantom, tmp_path, monkeypatch):
    config, folder = make_run(phantom, "broken", monkeypatch, tmp_path)
    for fold in (0, 1):
        (folder / f"fold{fold}").write_text("a file in the way")
    with pytest.raises(FileExistsError):
        train_folds(config, folder)


def test_a_finished_fold_is_not_trained_again_even_without_its_checkpoint(phantom, tmp_path, monkeypatch):
    config, folder = make_run(phantom, "finished", monkeypatch, tmp_path)
    histories = train_folds(config, folder)
    for fold in (0, 1):
        (folder / f"fold{fold}" / "last.pth").unlink()
    monkeypatch.setattr("ctseg.folds.train_model", lambda *_, **__: pytest.fail("trained again"))
    assert train_folds(config, folder) == histories


def test_a_fold_trains_on_what_it_does_not_validate_on_with_a_seed_of_its_own(phantom, tmp_path, monkeypatch):
    config, folder = make_run(phantom, "parts", monkeypatch, tmp_path)
    seen = []
    monkeypatch.setattr("ctseg.folds.train_model", lambda _, train, validation, *__, **options: seen.append((train, validation, options)))
    monkeypatch.setattr("ctseg.folds.load_weights", lambda *_: None)
    monkeypatch.setattr("ctseg.folds.read_history", lambda folder: [])
    train_folds(config, folder)
    for train, validation, _ in seen:
        trained, validated = ({case.image_id for case in part.cases} for part in (train, validation))
        assert not trained & validated and len(trained | validated) == 24
    assert seen[0][2]["seed"] != seen[1][2]["seed"]


def test_out_of_fold_predictions_are_those_of_the_weights_that_are_kept(phantom, tmp_path, monkeypatch):
    config, folder = make_run(phantom, "kept", monkeypatch, tmp_path, n_folds=1, epochs=2, keep="best", lr=0.05)
    scores = iter([[0.9], [0.1]])
    monkeypatch.setattr("ctseg.train.evaluate_model", lambda *_, **__: np.array(next(scores)))
    train_folds(config, folder)
    (model,) = load_folds(config, folder)
    kept = OutOfFold([folder / "fold0" / "oof.npz"], find_cases(phantom, "Train"))
    dataset = make_dataset(config, "Train")
    dataset.cases = kept.cases
    again = [square for _, square, _ in predict_cases([model], dataset, tta=config.tta)]
    assert np.abs(kept.squares / 255 - np.array(again)).max() <= 0.5 / 255 + 1e-5


def test_a_gpu_without_the_memory_is_an_error_that_names_a_batch_size(phantom, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")

    config, folder = make_run(phantom, "memory", monkeypatch, tmp_path)
    monkeypatch.setattr("ctseg.folds.train_model", fail)
    with pytest.raises(MemoryError, match="too small for batch_size 4; try -p batch_size 2 .*Tried to allocate 2.00 GiB.$"):
        train_folds(config, folder)


def test_a_budget_is_shared_by_folds_in_turn_and_counts_once_side_by_side(phantom, tmp_path, monkeypatch):
    config, folder = make_run(phantom, "budget", monkeypatch, tmp_path, n_folds=3, budget_minutes=6.0)
    given = []
    monkeypatch.setattr("ctseg.folds.read_history", lambda folder: [])
    monkeypatch.setattr("ctseg.folds.train_fold", lambda *arguments: given.append(arguments[2]))
    monkeypatch.setattr("ctseg.folds.train_in_process", lambda *arguments: given.append(arguments[1]))
    train_folds(config, folder)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    train_folds(config, folder)
    assert given == [120, 120, 120, 180, 180, 180]


@pytest.fixture
def run(phantom, tmp_path, monkeypatch):
    """A run of two trained folds: (config, folder)."""
    config, folder = make_run(phantom, "run", monkeypatch, tmp_path)
    train_folds(config, folder)
    return config, folder


def test_out_of_fold_predictions_are_those_of_the_network_that_did_not_see_the_image(run):
    config, folder = run
    squares = load_squares(make_dataset(config, "Train"))
    fold_of_case = dict(zip((case.image_id for case in squares.cases), assign_folds(config, squares)))
    validation = OutOfFold([path / "oof.npz" for path in find_folds(folder)], squares.cases)
    assert sorted(case.image_id for case in validation.cases) == sorted(fold_of_case)
    assert [fold_of_case[case.image_id] for case in validation.cases] == validation.parts.tolist()
    models = load_folds(config, folder)
    index = len(validation.cases) - 1
    dataset = make_dataset(config, "Train")
    dataset.cases = [validation.cases[index]]
    (_, expected, frame) = next(predict_cases([models[1]], dataset, tta="flips"))
    square, own_frame, truth = validation.read(index)
    assert np.abs(square - expected).max() <= 0.5 / 255 + 1e-5 and own_frame == frame and truth.shape == frame.original_size


def test_a_plain_threshold_scores_as_training_did(run, tmp_path):
    config, folder = run
    squares = load_squares(make_dataset(config, "Train"))
    validation = OutOfFold([folder / "fold0" / "oof.npz"], squares.cases)
    assert np.bincount(validation.parts).min() >= 2 and validation.parts.max() == 4
    (model, _) = load_folds(config, folder)
    plain, other = PostProcess(), PostProcess(threshold=0.6, fill_holes=True)
    scores = validation.score([plain, other])
    for chosen, values in scores.items():
        again = [dice_score(make_mask(square, frame, chosen), truth) for square, frame, truth in map(validation.read, range(len(values)))]
        assert values.tolist() == again
    ids = {case.image_id for case in validation.cases}
    own = squares.subset([index for index, case in enumerate(squares.cases) if case.image_id in ids])
    with torch.no_grad():  # a hardly trained network is near one half everywhere, where a rounded probability would change sides
        for parameter in model.head.parameters():
            parameter *= 1000
    write_oof(tmp_path / "oof.npz", model, own)
    again = OutOfFold([tmp_path / "oof.npz"], squares.cases).score([plain])[plain]
    assert np.allclose(again, evaluate_model(model, own), atol=0.01)


@pytest.mark.parametrize(("finds", "expected"), [("nothing", [1, 0, 0, 0]), ("everything", [0, 168 / 1284, 196 / 1298, 224 / 1312])])
def test_an_empty_mask_scores_by_one_rule_in_training_validation_and_report(tiny, tmp_path, finds, expected):
    """Both empty: 1; one empty: 0. The masks of case_1 to case_3 have 84, 98 and 112 of 1200 pixels."""
    Image.new("L", (40, 30)).save(tiny / "Train" / "Mask" / "case_0.png")
    squares = load_squares(SegmentationDataset(find_cases(tiny, "Train"), EvalTransform(32)))
    model = make_model(width=2, depth=2)
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.constant_(model.head.bias, -50 if finds == "nothing" else 50)
    losses = DiceBCELoss()(model(to_float(squares.images)), torch.zeros(4, 1, 32, 32))
    assert losses.dice_loss.item() == pytest.approx(0 if finds == "nothing" else 1, abs=1e-3) and losses.loss.isfinite()
    in_training = evaluate_model(model, squares)
    write_oof(tmp_path / "oof.npz", model, squares)
    in_validation = OutOfFold([tmp_path / "oof.npz"], squares.cases).score([PostProcess()])[PostProcess()]
    masks = predict_masks([model], SegmentationDataset(squares.cases, EvalTransform(32)), PostProcess())
    assert len(list(write_masks(masks, tmp_path / "masks"))) == 4
    in_report = score_masks(tmp_path / "masks", tiny / "Train" / "Mask")
    for scores in (in_training.tolist(), in_validation.tolist(), list(in_report.values())):
        assert scores == pytest.approx(expected)
    assert summarize(in_training)["dice"] == pytest.approx(np.mean(expected))


def test_each_test_image_gets_its_own_prediction(run):
    config, folder = run
    dataset, (model, _) = make_dataset(config, "Test"), load_folds(config, folder)
    predictions = list(predict_cases([model], dataset, batch_size=3))
    assert [case for case, _, _ in predictions] == dataset.cases
    for index, (_, square, frame) in enumerate(predictions):
        own, _, own_frame = dataset[index]
        assert np.allclose(square, predict_squares(model, own[None])[0], atol=0.01) and frame == own_frame


def test_test_masks_are_of_the_mean_probability_and_of_the_images_size(run):
    config, folder = run
    dataset, models = make_dataset(config, "Test"), load_folds(config, folder)
    masks = dict(predict_masks(models, dataset, PostProcess(threshold=0.4), tta="flips"))
    each = [{case.image_id: (square, frame) for case, square, frame in predict_cases([model], dataset, tta="flips")} for model in models]
    for case in dataset.cases:
        (first, frame), (second, _) = (squares[case.image_id] for squares in each)
        expected = make_mask((first + second) / 2, frame, PostProcess(threshold=0.4))
        assert masks[case.image_id].shape == expected.shape == frame.original_size
        assert np.mean(masks[case.image_id] != expected) < 0.001
