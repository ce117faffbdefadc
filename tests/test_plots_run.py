"""The figures of notebooks 03 and 04, drawn small: what is in them."""

import io

import numpy as np
import pytest
from conftest import save_image, write_pair
from matplotlib.colors import to_hex
from PIL import Image

from ctseg.config import Config
from ctseg.contest import A0
from ctseg.data import SegmentationDataset, find_cases
from ctseg.model import make_model
from ctseg.plots import COLORS
from ctseg.plots_run import (
    plot_code,
    plot_epochs,
    plot_errors,
    plot_gains,
    plot_schedule,
    plot_scores,
    plot_steps,
    plot_thresholds,
    plot_uncertainty,
)
from ctseg.postprocess import PostProcess
from ctseg.predict import OutOfFold, Predictor
from ctseg.transforms import EvalTransform

GREEN, MAGENTA = (0, 255, 0), (255, 0, 255)


def draw(figure) -> None:
    """Draw a figure, as a notebook would."""
    figure.savefig(io.BytesIO(), format="png", dpi=20)


def titles(figure) -> list[str]:
    """The titles of a figure's axes."""
    return [axis.get_title() for axis in figure.axes]


def test_the_schedule_is_drawn_from_start_to_end():
    (axis,) = plot_schedule(Config(lr=0.01, schedule="one_cycle")).axes
    x, y = axis.lines[0].get_data()
    assert (x[0], x[-1], y[0]) == (0, 100, 0) and y[-1] == pytest.approx(0)
    assert y.max() == pytest.approx(0.01) and x[np.argmax(y)] == 20
    (axis,) = plot_schedule(Config(lr=0.01, schedule="constant")).axes
    assert set(axis.lines[0].get_ydata()) == {0.01}


def test_the_same_cases_are_drawn_after_several_epochs(tmp_path):
    for epoch in (1, 20):
        folder = tmp_path / "val_outputs" / f"epoch_{epoch}"
        folder.mkdir(parents=True)
        for name in "ab":
            strip = np.zeros((6, 24, 3), np.uint8)
            strip[:, 8:16], strip[:, 16:] = 100, epoch
            save_image(folder / f"{name}.png", strip)
    figure = plot_epochs(tmp_path, [1, 4, 20])  # there are no pictures of epoch 4
    draw(figure)
    row = ["true mask", "epoch 1", "epoch 20"]
    assert titles(figure) == ["a: image", *row, "b: image", *row]
    assert [axis.images[0].get_array().mean() for axis in figure.axes] == [0, 100, 1, 20] * 2
    (tmp_path / "val_outputs" / "epoch_1" / "b.png").unlink()  # what all epochs have is drawn
    assert titles(plot_epochs(tmp_path, [1, 20])) == ["a: image", *row]
    (axis,) = plot_epochs(tmp_path, [4]).axes
    assert axis.texts[0].get_text().endswith("has no pictures of validation cases any more.")


@pytest.fixture
def validation(tmp_path):
    """A mask in the upper half that is predicted in the left half and a corner; and a case without a mask."""
    masks = {"a": np.zeros((8, 8), np.uint8), "b": np.zeros((8, 8), np.uint8)}
    masks["a"][:4] = 255
    for name, mask in masks.items():
        write_pair(tmp_path, name, np.full((8, 8, 3), 100, np.uint8), mask)
    cases = find_cases(tmp_path, "train", A0)
    probabilities = np.zeros((2, 8, 8), np.uint8)
    probabilities[0, :, :4], probabilities[0, 7, 7] = 255, 255
    np.savez(
        tmp_path / "oof.npz",
        image_ids=["a", "b"],
        sizes=[(8, 8), (8, 8)],
        probabilities=probabilities,
        scores=[0.5, 1.0],
    )
    return OutOfFold([tmp_path / "oof.npz"], cases)


def find_painted(axis, color):
    """The pixels of an image that lean to a color, bool (H, W)."""
    pixels = np.asarray(axis.images[0].get_array()).astype(int)
    is_on = np.array(color) > 0
    return (pixels[..., is_on] > 150).all(axis=-1) & (pixels[..., ~is_on] < 100).all(axis=-1)


def test_what_is_missed_is_green_and_what_is_too_much_magenta(validation):
    figure = plot_errors(validation, [0, 1], PostProcess())
    draw(figure)
    first, second = figure.axes[:2]
    assert np.argwhere(find_painted(first, GREEN)).tolist() == [[y, x] for y in range(4) for x in range(4, 8)]
    magenta = [[y, x] for y in range(4, 8) for x in range(4)] + [[7, 7]]
    assert np.argwhere(find_painted(first, MAGENTA)).tolist() == magenta
    assert not find_painted(second, GREEN).any() and not find_painted(second, MAGENTA).any()
    assert titles(figure)[:2] == ["a: Dice 0.492", "b: Dice 1.000"]  # 2 * 16 / (32 + 33)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["missed", "too much"]


def test_a_case_is_drawn_on_its_way_to_a_mask(validation):
    steps = PostProcess(smoothing=0.05, keep_largest_component=True)
    figure = plot_steps(validation, 0, steps)
    draw(figure)
    first, plain, smoothed, cut, final = figure.axes[:5]
    assert len(first.collections) == 1 and first.get_title() == "a, true outline"
    assert plain.images[0].get_array()[7, 7] == 1 > smoothed.images[0].get_array()[7, 7] > 0.5
    assert plain.get_title() == "probability; plain Dice 0.492"
    assert smoothed.get_title() == "smoothed by 0.05 of the side"
    assert find_painted(cut, MAGENTA)[7, 7] and not find_painted(final, MAGENTA)[7, 7]
    assert (
        cut.get_title() == "smoothed, cut at 0.5: Dice 0.492"
        and final.get_title() == "no holes, largest: Dice 0.500"
    )
    assert figure.axes[5].get_ylabel() == "probability"


def test_scores_are_drawn_with_their_mean_and_against_region_sizes():
    figure = plot_scores(np.array([0.2, 0.4, 0.9]), np.array([0.01, 0.1, 0.0]))
    draw(figure)
    left, right = figure.axes
    assert sum(bar.get_height() for bar in left.patches) == 3
    assert [line.get_xdata()[0] for line in left.lines] == pytest.approx([0.5, 0.4])  # mean, median
    x, y = right.lines[0].get_data()
    assert (x.tolist(), y.tolist(), right.get_xscale()) == ([1, 10], [0.2, 0.4], "log")
    assert right.get_title() == "1 images with an empty mask are not shown"
    assert right.get_xlabel() == "true mask, % of the image"


def test_the_threshold_is_drawn_with_its_band_and_the_plain_one():
    rows = [
        {"threshold": 0.3, "dice": 0.8, "low": 0.7, "high": 0.9},
        {"threshold": 0.6, "dice": 0.85, "low": 0.75, "high": 0.95},
    ]
    figure = plot_thresholds(rows, 0.6)
    draw(figure)
    (axis,) = figure.axes
    curve, chosen = axis.lines
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([0.3, 0.6], [0.8, 0.85])
    assert chosen.get_xdata()[0] == 0.6
    (band,) = axis.collections
    corners = band.get_paths()[0].vertices
    assert {(0.3, 0.7), (0.3, 0.9), (0.6, 0.75), (0.6, 0.95)} <= set(map(tuple, corners))


def test_the_chosen_gain_is_filled_and_each_has_its_interval():
    rows = [
        {"postprocess": "plain", "gain": 0.0, "gain_low": 0.0, "gain_high": 0.0, "chosen": False},
        {"postprocess": "smooth", "gain": 0.02, "gain_low": 0.01, "gain_high": 0.04, "chosen": True},
        {"postprocess": "fill", "gain": -0.01, "gain_low": -0.02, "gain_high": 0.0, "chosen": False},
    ]
    figure = plot_gains(rows)
    draw(figure)
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["plain", "smooth", "fill"]
    fills = [to_hex(bars.lines[0].get_markerfacecolor()) for bars in axis.containers]
    assert fills == [to_hex("white"), to_hex(COLORS[0]), to_hex("white")]
    spreads = [bars.lines[2][0].get_segments()[0][:, 0].tolist() for bars in axis.containers]
    expected = [(row["gain_low"], row["gain_high"]) for row in rows]
    assert [value for spread in spreads for value in spread] == pytest.approx(np.ravel(expected).tolist())


@pytest.fixture
def predictors(tiny):
    """Two untrained networks that differ, with the training images as new ones."""
    dataset = SegmentationDataset(find_cases(tiny, "train", A0), EvalTransform(32))
    return [Predictor([make_model(width=2, depth=2) for _ in range(2)], dataset)]


def test_disagreement_is_drawn_below_each_suspicious_image(tiny, predictors, tmp_path):
    suspects = [{"image_id": "case_2", "suspicious": "tiny"}, {"image_id": "case_0", "suspicious": ""}]
    for row in suspects:
        mask = np.asarray(Image.open(tiny / "Train" / "Mask" / f"{row['image_id']}.png"))
        save_image(tmp_path / f"{row['image_id']}.png", mask)
    figure = plot_uncertainty(predictors, suspects, tmp_path)
    draw(figure)
    above, below = figure.axes[:2], figure.axes[2:4]
    assert [axis.get_title() for axis in above] == ["case_2\ntiny", "case_0\nnothing suspicious"]
    image = np.asarray(Image.open(tiny / "Train" / "Image" / "case_2.png"))
    assert np.array_equal(above[0].images[0].get_array(), image) and len(above[0].collections) == 1
    for axis in below:
        spread = axis.images[0].get_array()
        assert spread.shape == (30, 40) and 0 < spread.max() <= 0.5 and axis.images[0].get_clim() == (0, 0.5)
    assert figure.axes[4].get_ylabel() == "standard deviation of the probability"


@pytest.mark.parametrize(
    ("contest", "code", "numbers"),
    [(Config(), "2 3", "123456"), (Config(pixel_order="F", first_pixel=0), "1 2 4 1", "024135")],
)
def test_a_code_is_drawn_with_the_numbers_that_the_contest_counts(contest, code, numbers):
    mask = np.array([[0, 1, 1], [1, 0, 0]], bool)
    figure = plot_code(mask, contest)
    draw(figure)
    (axis,) = figure.axes
    assert axis.get_title() == f"code: {code}"
    assert "".join(text.get_text() for text in axis.texts) == numbers
    places = [text.get_position() for text in axis.texts]
    assert places == [(x, y) for y in range(2) for x in range(3)]
    assert np.array_equal(axis.images[0].get_array(), mask)
