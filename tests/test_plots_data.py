"""The figures of notebooks 01 and 02, drawn small."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from test_plots import count_outlines, draw

from ctseg.explore import Example
from ctseg.plots import COLORS, TRUE
from ctseg.plots_data import (
    plot_areas,
    plot_average_mask,
    plot_batch,
    plot_changes,
    plot_channels,
    plot_colors,
    plot_dice,
    plot_examples,
    plot_near_duplicates,
    plot_round_trip,
    plot_sizes,
    plot_undo,
)

ROW = {"width": 40, "height": 30, "aspect": 0.75, "mask_area": 0.1}
ROW |= {f"{statistic}_{channel}": 5.0 for statistic in ("mean", "std") for channel in "rgb"}


def make_example(name, has_mask=True) -> Example:
    """An image with a region, or without a mask."""
    mask = np.zeros((12, 16), bool)
    mask[3:8, 4:9] = True
    return Example(name, np.full((12, 16, 3), 80, np.uint8), mask if has_mask else None)


def read_sentence(figure) -> str:
    """The text of a figure that has nothing else."""
    (axis,) = figure.axes
    assert not axis.lines and not axis.images and not axis.axison
    return axis.texts[0].get_text()


def test_examples_are_drawn_with_ids_or_titles_and_outlines():
    figure = plot_examples([make_example("a"), make_example("b", has_mask=False)])
    draw(figure)
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"] and count_outlines(figure) == [1, 0]
    assert plot_examples([make_example("a")], ["why"]).axes[0].get_title() == "why"


@pytest.mark.parametrize(
    ("plot", "text"),
    [(plot_examples, "no pair"), (plot_near_duplicates, "no near-dup"), (plot_channels, "no mask")],
)
def test_nothing_to_draw_is_said(plot, text):
    figure = plot([])
    draw(figure)
    assert text in read_sentence(figure)


def test_dice_is_drawn_pixel_by_pixel_with_its_formula():
    true_mask = np.array([[1, 1, 0], [0, 0, 0]], bool)
    pred_mask = np.array([[0, 1, 1], [1, 0, 0]], bool)
    figure = plot_dice(true_mask, {"shifted": pred_mask, "empty": np.zeros((2, 3), bool)})
    draw(figure)
    shifted, empty = figure.axes
    assert shifted.get_title() == "shifted\n2·1 / (2 + 3) = 0.40"
    assert empty.get_title() == "empty\n2·0 / (2 + 0) = 0.00"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    fills = [to_hex(patch.get_facecolor()) for patch in figure.legends[0].get_patches()]
    color_of = dict(zip(fills, names))
    (cells,) = shifted.collections
    cell_names = [color_of[to_hex(color)] for color in cells.get_facecolors()]
    assert cell_names == ["missed", "common", "too much", "too much", *["background, right"] * 2]
    assert shifted.yaxis_inverted() and len(set(fills)) == 4


def test_sizes_are_drawn_with_the_networks_square_and_more_images_larger():
    figure = plot_sizes([ROW, ROW, ROW | {"width": 80}], [ROW | {"height": 20}], 64)
    draw(figure)
    (axis,) = figure.axes
    train, test = axis.collections
    assert train.get_offsets().tolist() == [[40, 30], [80, 30]] and test.get_offsets().tolist() == [[40, 20]]
    assert train.get_sizes()[0] > train.get_sizes()[1]
    (square,) = axis.patches
    assert (square.get_width(), square.get_height()) == (64, 64) and axis.get_aspect() == 1
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["3 training images, 2 sizes", "1 test images, 1 sizes", "the network's square, 64 × 64"]


def test_a_data_set_without_test_images_has_sizes_and_colors():
    figure = plot_sizes([ROW], [], 64)
    draw(figure)
    assert len(figure.axes[0].collections) == 1 and figure.axes[0].get_xlim()[1] > 64
    draw(plot_colors([ROW], []))


def test_the_mean_mask_is_drawn_upright_in_shares():
    average = np.zeros((4, 4), np.float32)
    average[0] = 0.5
    figure = plot_average_mask(average)
    draw(figure)
    axis, bar = figure.axes
    assert np.array_equal(axis.images[0].get_array(), average) and axis.images[0].get_clim() == (0, 0.5)
    assert axis.images[0].get_extent() == [0, 1, 1, 0] and bar.get_ylabel() == "share of masks"


def test_areas_are_drawn_on_a_log_axis_and_empty_masks_counted_apart():
    costs = [{"mask_area": 0.1, "dice_grown": 0.9, "dice_shrunk": 0.8}]
    figure = plot_areas([ROW, ROW | {"mask_area": 0.001}, ROW | {"mask_area": 0.0}], costs, 64)
    draw(figure)
    counts, scatter = figure.axes
    assert sum(bar.get_height() for bar in counts.patches) == 2
    assert counts.get_title() == "2 masks; 1 more are empty" and counts.get_xscale() == "log"
    points = [marks.get_offsets().tolist() for marks in scatter.collections]
    assert points == [[[10, 0.9]], [[10, 0.8]]] and scatter.get_xlim() == counts.get_xlim()
    assert read_sentence(plot_areas([ROW | {"mask_area": 0.0}], [], 64)) == "All 1 masks are empty."


def test_colors_have_a_panel_per_channel_and_gray_images_a_single_one():
    gray = plot_colors([ROW, ROW], [ROW])
    colors = plot_colors([ROW, ROW | {"mean_r": 90.0}], [ROW])
    for figure, names in ((gray, ["gray"]), (colors, ["red", "green", "blue"])):
        draw(figure)
        assert [axis.get_xlabel().split()[2] for axis in figure.axes[:-1]] == names
        assert "contrast" in figure.axes[-1].get_xlabel()
        for axis in figure.axes:  # filled bars of training, and one outline of test images
            *bars, outline = axis.patches
            assert sum(bar.get_height() for bar in bars) == pytest.approx(1)
            assert to_hex(outline.get_edgecolor()) == "#000000" and not outline.get_fill()
    assert len({to_hex(axis.patches[0].get_facecolor()) for axis in colors.axes}) == 4


def test_twins_are_named_by_pair_and_subset():
    figure = plot_near_duplicates(
        [make_example("a"), make_example("b"), make_example("a"), make_example("c", False)]
    )
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["pair 1, training\na", "pair 1, training\nb", "pair 2, training\na", "pair 2, test\nc"]


def test_channels_are_drawn_from_chance_to_their_value_the_first_on_top():
    rows = [{"channel": "red", "auc": 0.9, "lower_inside": 0.25}]
    rows += [{"channel": "hue", "auc": 0.6, "lower_inside": 1.0}]
    figure = plot_channels(rows)
    draw(figure)
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["red", "hue"] and axis.yaxis_inverted()
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [line.get_xydata().tolist() for line in dots] == [[[0.9, 0]], [[0.6, 1]]]
    texts = [text.get_text() for text in axis.texts]
    assert texts == ["lower inside in 25 % of images", "lower inside in 100 % of images"]


def test_a_batch_is_drawn_with_its_targets_outlined_at_a_half():
    targets = torch.zeros(2, 1, 16, 16)
    targets[0, 0, 4:9, 4:9], targets[1, 0, 4:9, 4:9] = 0.6, 0.4
    figure = plot_batch(torch.rand(2, 3, 16, 16) * 1.2, targets)
    draw(figure)
    assert count_outlines(figure) == [1, 0]
    draws = plot_batch(torch.rand(4, 3, 16, 16), torch.zeros(4, 1, 16, 16), columns=2)
    assert draws.axes[2].get_subplotspec().rowspan.start == 1


def test_the_way_into_the_square_and_back_is_drawn_with_a_zoom_on_the_border():
    y, x = np.mgrid[:90, :120]
    mask = np.hypot(y - 40, x - 60) < 30
    figure = plot_undo(np.full((90, 120, 3), 90, np.uint8), mask, 32)
    draw(figure)
    image, square, back, zoom = figure.axes
    assert [axis.images[0].get_array().shape[:2] for axis in figure.axes[:3]] == [
        (90, 120),
        (32, 32),
        (90, 120),
    ]
    assert [len(axis.collections) for axis in figure.axes] == [1, 1, 1, 3]
    assert image.get_title() == "the image, 120 × 90" and square.get_title() == "in its square, 32 × 32"
    (box,) = back.patches
    assert zoom.images[0].get_array().shape[:2] == (box.get_height(), box.get_width()) == (15, 15)
    assert to_hex(zoom.collections[0].get_edgecolor()[0]) == to_hex(TRUE)
    names = [text.get_text() for text in zoom.get_legend().get_texts()]
    scores = [float(name.split()[-1]) for name in names[1:]]
    assert names[0] == "true" and 0.9 < scores[1] < scores[0] < 1


@pytest.mark.parametrize("mask", [np.zeros((20, 30), bool), np.ones((20, 30), bool), np.ones((1, 40), bool)])
def test_a_mask_without_a_border_goes_there_and_back_too(mask):
    figure = plot_undo(np.zeros((*mask.shape, 3), np.uint8), mask, 16)
    draw(figure)
    assert count_outlines(figure)[0] == count_outlines(figure)[3] == 0


def test_changes_are_drawn_two_to_a_row_after_their_originals():
    stack = torch.zeros(3, 4, 16, 16)
    stack[:, 3, 4:9, 4:9] = 1
    figure = plot_changes({"rotation: ± 20°": stack, "color": stack, "flip": stack})
    draw(figure)
    titles = [axis.get_title() for axis in figure.axes[:9]]
    assert titles == ["original", "rotation: ± 20°", "", "original", "color", "", "original", "flip", ""]
    assert count_outlines(figure) == [1] * 9 + [0] * 3
    assert "nothing" in read_sentence(plot_changes({}))


def test_the_round_trip_is_drawn_for_both_places_of_the_threshold_and_the_runs_size_marked():
    rows = [
        {"target_size": size, "dice": 0.9 + size / 1e4, "dice_thresholded_early": 0.8}
        for size in (64, 96, 128)
    ]
    figure = plot_round_trip(rows, 96)
    draw(figure)
    (axis,) = figure.axes
    late, early, run = axis.lines
    assert list(late.get_xdata()) == [64, 96, 128] and list(early.get_ydata()) == [0.8] * 3
    assert late.get_color() == COLORS[0] and late.get_linestyle() != early.get_linestyle()
    assert set(run.get_xdata()) == {96} and axis.get_xscale() == "log"
    assert [text.get_text() for text in axis.get_xticklabels()] == ["64", "96", "128"]
