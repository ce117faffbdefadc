"""Probabilities, masks, and predictions that are kept to decide by."""

import numpy as np
import pytest
import torch
from conftest import load_cases, save_image, write_pair
from PIL import Image
from torch import nn

from ctseg.contest import A0
from ctseg.data import (
    Case,
    SegmentationDataset,
    describe_mask,
    find_cases,
    load_training_set,
    printable,
    read_mask,
    read_mask_values,
)
from ctseg.explore import describe_cases
from ctseg.losses import DiceBCELoss
from ctseg.metrics import dice_score
from ctseg.model import make_model
from ctseg.postprocess import PostProcess, make_mask, measure_mask
from ctseg.predict import (
    ORIENTATIONS,
    OutOfFold,
    Predictor,
    measure_agreement,
    measure_spread,
    predict_cases,
    predict_each,
    predict_masks,
    predict_probabilities,
    read_masks,
    read_scores,
    score_masks,
    select_common,
    write_masks,
    write_oof,
)
from ctseg.report import summarize
from ctseg.submission import encode_rle, write_submission
from ctseg.tables import check_tables
from ctseg.train import evaluate_model
from ctseg.transforms import EvalTransform, to_float


def make_constant_model(logit):
    """A network that finds one logit everywhere."""
    model = make_model(width=2, depth=2)
    nn.init.zeros_(model.segmentation_head.weight)
    nn.init.constant_(model.segmentation_head.bias, logit)
    return model


def test_an_image_is_segmented_alike_alone_and_in_a_batch():
    images = torch.randint(0, 255, (5, 3, 32, 32), dtype=torch.uint8)
    model = make_model(width=4)
    alone = torch.cat([predict_probabilities(model, image[None]) for image in images])
    together = predict_probabilities(model, images, batch_size=2)
    assert together.shape == (5, 32, 32) and together.dtype == torch.float32
    assert torch.allclose(alone, together, atol=1e-5)


class Brightness(nn.Module):
    """A "network" that knows where it looks: the red channel, less from left to right and top to bottom."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, images):
        height, width = images.shape[2:]
        slope = torch.linspace(0, 1, width) + torch.linspace(0, 2, height)[:, None]
        return self.scale * (images[:, :1] - slope)


@pytest.mark.parametrize(("tta", "n_orientations"), [("none", 1), ("flips", 4), ("d4", 8)])
def test_orientations_are_undone_before_they_are_averaged(tta, n_orientations):
    images = torch.randint(0, 255, (2, 3, 8, 8), dtype=torch.uint8)
    expected = []
    for rot90, mirrored in ORIENTATIONS[tta]:
        oriented = to_float(images).rot90(rot90, (2, 3))
        oriented = oriented.flip(3) if mirrored else oriented
        logits = Brightness()(oriented).detach()
        logits = logits.flip(3) if mirrored else logits
        expected.append(logits.rot90(-rot90, (2, 3)).sigmoid()[:, 0])
    assert len({probability.numpy().tobytes() for probability in expected}) == n_orientations  # all differ
    probabilities = predict_probabilities(Brightness(), images, tta=tta)
    assert torch.allclose(probabilities, torch.stack(expected).mean(dim=0), atol=1e-6)


def test_with_d4_a_reoriented_image_gives_the_reoriented_map():
    images = torch.randint(0, 255, (1, 3, 32, 32), dtype=torch.uint8)
    model = make_model(width=4)
    reoriented = predict_probabilities(model, images.rot90(1, (2, 3)).flip(3), tta="d4")
    expected = predict_probabilities(model, images, tta="d4").rot90(1, (1, 2)).flip(2)
    assert torch.allclose(reoriented, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("logit", "expected"), [(-50, [1, 0, 0, 0]), (50, [0, 168 / 1284, 196 / 1298, 224 / 1312])]
)
def test_an_empty_mask_scores_by_one_rule_everywhere(tiny, tmp_path, logit, expected):
    """In training, validation and report: both empty is 1, one empty 0.

    The network finds nothing, or everything. Of 1200 pixels the masks of case_1 to case_3 have 84, 98, 112.
    """
    Image.new("L", (40, 30)).save(tiny / "Train" / "Mask" / "case_0.png")
    training_set, model, plain = load_cases(tiny), make_constant_model(logit), PostProcess()
    losses = DiceBCELoss()(model(to_float(training_set.pixels[:, :3])), torch.zeros(4, 1, 32, 32))
    assert losses.dice_loss.item() == pytest.approx(0 if logit < 0 else 1, abs=1e-3)
    assert losses.loss.isfinite()
    in_training = evaluate_model(model, training_set)
    write_oof(tmp_path / "oof.npz", model, training_set)
    in_validation = OutOfFold([tmp_path / "oof.npz"], training_set.cases).score(plain)
    kept = read_scores(tmp_path / "oof.npz")
    assert kept == {case.image_id: dice for case, dice in zip(training_set.cases, in_validation)}
    dataset = SegmentationDataset(training_set.cases, EvalTransform(32))
    write_masks(predict_masks([Predictor([model], dataset)], plain), tmp_path / "masks")
    assert len(list((tmp_path / "masks").glob("*.png"))) == 4
    in_report = score_masks(tmp_path / "masks", tiny / "Train" / "Mask")
    for scores in (in_training.tolist(), in_validation.tolist(), list(in_report.values())):
        assert scores == pytest.approx(expected)
    assert summarize(in_training)["dice"] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut short", "other arrays"])
def test_damaged_predictions_are_named(tmp_path, content):
    path = tmp_path / "oof.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, image_ids=["a"])
    with pytest.raises(ValueError, match=f"cannot read {path}: it is damaged, or of an earlier version"):
        read_scores(path)


REGION = np.zeros((30, 40), np.uint8)
REGION[5:10, 6:20] = 1
EDGE = np.zeros((30, 40), np.uint8)
EDGE[5, 6:20] = 1
MASKS = {  # stored values by kind; all but the empty and the full one hold the region's 70 of 1200 pixels
    "empty": 0 * REGION,
    "full": 0 * REGION + 255,
    "0/1": REGION,
    "0/255": 255 * REGION,
    "two values": 100 * REGION + 20,
    "anti-aliased": 255 * REGION - 55 * EDGE,
}


@pytest.fixture
def of_each_kind(tmp_path):
    """Root of a training pair with a mask of each kind, by the order of `MASKS`."""
    rng = np.random.default_rng(0)
    for index, mask in enumerate(MASKS.values()):
        write_pair(tmp_path / "Dataset", f"case_{index}", rng.integers(0, 255, (30, 40, 3), np.uint8), mask)
    return tmp_path / "Dataset"


def test_masks_that_are_written_are_read_back(of_each_kind, tmp_path):
    cases = find_cases(of_each_kind, "train", A0)
    masks = {case.image_id: read_mask(case.mask) for case in cases}
    assert [mask.sum() for mask in masks.values()] == [0, 1200, 70, 70, 70, 70]
    write_masks([(*item, 1.0) for item in masks.items()], tmp_path / "masks")
    again = list(read_masks(tmp_path / "masks"))
    assert [image_id for image_id, _ in again] == sorted(masks)
    for image_id, mask in again:
        assert mask.dtype == bool and np.array_equal(mask, masks[image_id])


def test_masks_of_an_earlier_prediction_are_removed(tmp_path):
    for name in ("a", "old"):
        save_image(tmp_path / f"{name}.png", 255 * REGION)
    write_masks([("a", REGION == 0, 1.0), ("b", REGION == 1, 0.5)], tmp_path)
    assert [image_id for image_id, _ in read_masks(tmp_path)] == ["a", "b"]
    assert np.unique(read_mask_values(tmp_path / "a.png")).tolist() == [0, 255]
    assert np.array_equal(read_mask(tmp_path / "a.png"), REGION == 0)


def test_a_prediction_that_fails_removes_nothing(tmp_path):
    save_image(tmp_path / "a.png", 255 * REGION)

    def fail():
        yield "b", REGION == 1, 1.0
        raise MemoryError

    with pytest.raises(MemoryError):
        write_masks(fail(), tmp_path)
    assert [image_id for image_id, _ in read_masks(tmp_path)] == ["a", "b"]


def test_a_repeated_prediction_is_refused(tmp_path):
    with pytest.raises(ValueError, match="prediction for 'a', which is repeated"):
        write_masks([("a", REGION == 0, 1.0), ("a", REGION == 1, 1.0)], tmp_path)


# A network that finds 0.6 everywhere: a lower threshold takes all, a higher one nothing.
EVERYTHING, NOTHING = PostProcess(threshold=0.5), PostProcess(threshold=0.7)
OF_EVERYTHING = [0, 1, *4 * [140 / 1270]]
OF_NOTHING = [1, *5 * [0]]


@pytest.fixture
def out_of_fold(of_each_kind, tmp_path):
    """Predictions of 0.6 everywhere for a mask of each kind."""
    training_set = load_cases(of_each_kind)
    assert [describe_mask(read_mask_values(case.mask)) for case in training_set.cases] == list(MASKS)
    write_oof(tmp_path / "oof.npz", make_constant_model(np.log(0.6 / 0.4)), training_set)
    return OutOfFold([tmp_path / "oof.npz"], training_set.cases)


def test_each_candidate_has_its_row_in_the_order_asked_for(out_of_fold):
    assert out_of_fold.score(EVERYTHING).tolist() == pytest.approx(OF_EVERYTHING)
    # Now one is known, one is new, and one of them is repeated.
    scores = out_of_fold.score_each([NOTHING, EVERYTHING, NOTHING])
    assert scores.tolist() == [pytest.approx(row) for row in (OF_NOTHING, OF_EVERYTHING, OF_NOTHING)]
    assert np.array_equal(out_of_fold.score(NOTHING), scores[0])
    assert np.array_equal(out_of_fold.score_each([EVERYTHING]), scores[1:2])


def test_a_score_that_is_known_is_not_worked_out_again(out_of_fold, monkeypatch):
    scores = out_of_fold.score_each([EVERYTHING, NOTHING])
    monkeypatch.setattr(out_of_fold, "read", lambda _: pytest.fail("read again"))
    assert np.array_equal(out_of_fold.score_each([NOTHING, EVERYTHING]), scores[::-1])


def test_candidates_of_several_smoothings_keep_their_rows(tiny, tmp_path):
    training_set = load_cases(tiny)
    write_oof(tmp_path / "oof.npz", Brightness(), training_set)
    validation = OutOfFold([tmp_path / "oof.npz"], training_set.cases)
    candidates = [PostProcess(smoothing, threshold) for threshold in (0.5, 0.4) for smoothing in (0.0, 0.1)]
    scores = validation.score_each(candidates)
    for candidate, row in zip(candidates, scores):
        for index, score in enumerate(row):
            probability, letterbox, true_mask = validation.read(index)
            assert score == dice_score(make_mask(probability, letterbox, candidate), true_mask)
    assert len(np.unique(scores, axis=0)) == 4


@pytest.fixture
def members(tiny, tmp_path):
    """Out-of-fold predictions by two runs, of all cases at 32 pixels, and of two at 48, in another order."""
    made = []
    for size, indices in ((32, range(4)), (48, (2, 0))):
        training_set = load_cases(tiny, size=size)
        path = tmp_path / f"{size}.npz"
        write_oof(path, Brightness(), training_set.select(indices))
        made.append(OutOfFold([path], training_set.cases))
    return made


def test_the_mean_of_runs_lies_in_the_largest_square(members):
    small, large = common = select_common(members)
    mean = OutOfFold.average(common)
    assert [case.image_id for case in mean.cases] == [case.image_id for case in small.cases]
    assert mean.probabilities.shape == (2, 48, 48) and mean.letterboxes == large.letterboxes
    for index in range(2):
        (first, letterbox, _), (second, _, _) = small.read(index), large.read(index)
        own = mean.letterboxes[index]
        expected = (letterbox.undo(first) + large.letterboxes[index].undo(second)) / 2
        assert np.abs(own.undo(mean.read(index)[0]) - expected).mean() < 0.02
    assert np.array_equal(mean.folds, small.folds)
    assert OutOfFold.average([large]) is large
    assert mean.score(PostProcess(threshold=0.3)).shape == (2,)


def test_runs_are_averaged_and_scored_on_images_that_all_of_them_have(members):
    first, second = members
    candidate = PostProcess(threshold=0.3)
    first.score(candidate)  # what is kept of all images says nothing of some
    own, other = select_common(members)
    assert [case.image_id for case in own.cases] == [case.image_id for case in other.cases]
    assert [first.cases.index(case) for case in own.cases] == [0, 2]
    assert own.folds.tolist() == first.folds[[0, 2]].tolist() and len(first.cases) == 4
    assert own.score(candidate).tolist() == first.score(candidate)[[0, 2]].tolist()
    assert other.score(candidate).tolist() == second.score(candidate)[::-1].tolist()
    assert np.array_equal(own.get_mask(1), first.get_mask(2))
    turned = first.select([3, 1, 0, 2])
    for each in select_common([first, turned]):
        assert each.cases == first.cases and np.array_equal(each.probabilities, first.probabilities)
    with pytest.raises(ValueError, match="the runs have no validation image in common"):
        select_common([first.select([1]), second])


def test_the_mean_of_a_run_with_itself_is_that_run(members):
    small, _ = members
    twice = OutOfFold.average([small, small])
    assert np.array_equal(twice.probabilities, small.probabilities) and twice.letterboxes == small.letterboxes


def test_test_images_are_predicted_by_the_mean_of_runs_as_validation_is(tiny):
    cases = find_cases(tiny, "train", A0)
    predictors = [
        Predictor([Brightness()], SegmentationDataset(cases, EvalTransform(size))) for size in (32, 48)
    ]
    ours = list(predict_cases(predictors, batch_size=3))
    each = [list(predict_cases([predictor])) for predictor in predictors]
    for (case, probability, letterbox, agreement), (_, first, small, _), (_, second, large, _) in zip(
        ours, *each
    ):
        assert 0 < agreement <= 1 and letterbox == large and case.image_id.startswith("case_")
        assert np.allclose(probability, (small.transfer(first, large) + second) / 2)


def test_networks_agree_by_the_dice_of_each_ones_mask_with_that_of_the_mean():
    left, top = np.zeros((4, 4), np.float32), np.zeros((4, 4), np.float32)
    left[:, :2], top[:2] = 1, 1
    mean = np.full((4, 4), 0.4, np.float32)
    mean[:2, :2] = 1  # a mask of 4 pixels; the others have 8
    assert measure_agreement([[left, top]], [mean]) == pytest.approx(2 * 4 / 12)
    assert measure_agreement([[left], [mean]], [left, mean]) == 1
    assert measure_agreement([[mean]], [mean]) == 2 * 4 / (4 + 16)  # a single one: cut at 0.7 and at 0.3
    assert measure_agreement([[left * 0, top * 0]], [mean * 0]) == 1  # nothing is found by any
    assert measure_agreement([[left, top]], [mean * 0]) == 0


def test_disagreement_is_the_deviation_over_networks_and_orientations(tiny):
    dataset = SegmentationDataset(find_cases(tiny, "train", A0), EvalTransform(32))
    networks = [make_constant_model(logit) for logit in (-50, 50)]
    halves = measure_spread([Predictor(networks, dataset)], 0)
    assert halves.shape == (30, 40) and np.allclose(halves, 0.5)
    one_run_each = [
        Predictor([network], SegmentationDataset(dataset.cases, EvalTransform(size)))
        for network, size in zip(networks, (32, 64))
    ]
    assert np.allclose(measure_spread(one_run_each, 0), 0.5)
    assert np.allclose(measure_spread([Predictor(networks[:1], dataset)], 0), 0)
    # A network that knows where it looks disagrees with itself in a mirror.
    assert measure_spread([Predictor([Brightness()], dataset)], 0).max() > 0.1
    each = predict_each([Brightness()] * 2, dataset[0][0][None])
    assert each.shape == (8, 1, 32, 32) and np.array_equal(each[:4], each[4:])
    mean = predict_probabilities(Brightness(), dataset[0][0][None], tta="flips").numpy()
    assert np.allclose(each.mean(axis=0), mean, atol=1e-6)


def test_each_mask_that_is_written_is_measured(tmp_path):
    found = write_masks([("a", REGION == 0, 1.0), ("b", REGION == 1, 0.5)], tmp_path)
    assert found["a"] == measure_mask(REGION == 0) | {"agreement": 1.0}
    assert found["b"] == measure_mask(REGION == 1) | {"agreement": 0.5}


def test_small_images_stay_as_they_are_for_the_choice(out_of_fold):
    assert out_of_fold.shrink() is out_of_fold


@pytest.fixture
def large(tmp_path):
    """Out-of-fold predictions of a disc in an image of two megapixels, and a small one."""
    y, x = np.mgrid[:1200, :1600]
    disc = (y - 500) ** 2 + (x - 900) ** 2 < 300**2
    for image_id, mask in (("large", disc), ("small", disc[::8, ::8])):
        image = np.repeat(mask[..., None] * np.uint8(200), 3, axis=2)
        write_pair(tmp_path, image_id, image, mask * np.uint8(255))
    training_set = load_cases(tmp_path, size=64)
    write_oof(tmp_path / "oof.npz", Brightness(), training_set)
    return OutOfFold([tmp_path / "oof.npz"], training_set.cases)


def test_large_images_are_smaller_for_the_choice_and_score_alike(large, monkeypatch):
    small = large.shrink(side=400)
    assert [letterbox.original_size for letterbox in small.letterboxes] == [(300, 400), (150, 200)]
    assert [small.get_mask(index).shape for index in (0, 1)] == [(300, 400), (150, 200)]
    assert np.array_equal(small.get_mask(1), large.get_mask(1))
    candidates = [PostProcess(threshold=value) for value in (0.3, 0.5, 0.7)]
    ours, theirs = large.score_each(candidates), small.score_each(candidates)
    assert np.allclose(ours, theirs, atol=0.005) and not np.array_equal(ours[:, 0], theirs[:, 0])
    assert np.array_equal(ours[:, 1], theirs[:, 1])
    assert large.shrink(side=100).letterboxes[0].original_size == (96, 128)  # twice the square at least
    monkeypatch.setattr("ctseg.predict.read_mask", lambda *_: pytest.fail("read again"))
    assert large.get_mask(0).shape == (1200, 1600)


@pytest.mark.parametrize("image_id", [printable("a\rb"), "a\nb", "münchen", "l\\xe9sion"])
def test_odd_ids_come_back_from_masks_and_the_submission(image_id, tmp_path):
    image = save_image(tmp_path / "image.png", np.zeros((3, 4, 3), np.uint8))
    write_masks([(image_id, np.eye(3, 4, dtype=bool), 1.0)], tmp_path / "masks")
    write_masks([(image_id, np.eye(3, 4, dtype=bool), 1.0)], tmp_path / "true")
    write_submission(tmp_path / "s.csv", read_masks(tmp_path / "masks"), [Case(image_id, image)], A0)
    assert score_masks(tmp_path / "masks", tmp_path / "true") == {image_id: 1.0}


@pytest.fixture
def lifted(tiny):
    """A data set with masks of 128 and 255, one of them empty, which a mask alone does not tell."""
    for path in sorted((tiny / "Train/Mask").iterdir()):
        stored = np.asarray(Image.open(path))
        values = np.where(stored, 255, 128) if path.stem != "case_1" else stored * 0 + 128
        Image.fromarray(values.astype(np.uint8)).save(path)
    return tiny


def test_every_reader_knows_what_is_background_in_the_set(lifted, tmp_path):
    cases = find_cases(lifted, "train", A0)
    masks = {case.image_id: read_mask(case.mask, case.mask_set) for case in cases}
    assert masks["case_1"].sum() == 0 and [mask.sum() for mask in masks.values()] == [70, 0, 98, 112]
    dataset = SegmentationDataset(cases, EvalTransform(32))
    training_set = load_training_set(dataset)
    model = make_constant_model(-9)
    assert evaluate_model(model, training_set, threshold=0.5).tolist() == [0, 1, 0, 0]
    write_oof(tmp_path / "oof.npz", model, training_set)
    assert OutOfFold([tmp_path / "oof.npz"], cases).score(PostProcess()).tolist() == [0, 1, 0, 0]
    write_masks([(*item, 1.0) for item in masks.items()], tmp_path / "masks")
    assert set(score_masks(tmp_path / "masks", lifted / "Train/Mask").values()) == {1.0}
    assert [row["mask_area"] for row in describe_cases(cases)] == [mask.mean() for mask in masks.values()]
    (lifted / "train.csv").write_text(f"ID,Mask\ncase_1,\ncase_0,{encode_rle(masks['case_0'], A0)}\n")
    check_tables(lifted, A0)
