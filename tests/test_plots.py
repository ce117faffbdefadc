"""Figures and tables, drawn small."""

import io

import numpy as np
import pytest
from conftest import save_image

from ctseg.data import Case
from ctseg.plots import (
    COLORS,
    new_axes,
    plot_cases,
    plot_forest,
    plot_history,
    plot_predictions,
    table,
)
from ctseg.transforms import thin_out


def draw(figure) -> None:
    """Draw a figure, as a notebook would."""
    figure.savefig(io.BytesIO(), format="png", dpi=20)


def count_outlines(figure) -> list[int]:
    """The number of outlines in each of a figure's axes."""
    return [len(axis.collections) for axis in figure.axes]


def test_a_table_escapes_html_in_names_and_values():
    html = table([{"<b>": "a & <script>", "x": 1}]).data
    assert "<th>&lt;b&gt;</th><th>x</th>" in html
    assert "<td>a &amp; &lt;script&gt;</td><td>1</td>" in html and "<script>" not in html


def test_a_table_shows_four_decimals_and_says_if_it_is_empty():
    html = table([{"dice": 0.123456, "n": 3, "mask": None}]).data
    assert "<td>0.1235</td><td>3</td><td>None</td>" in html
    assert table([]).data == "<p>no rows</p>"


@pytest.mark.parametrize(
    ("n", "shown", "more"), [(5, 3, "… 2 more rows"), (4, 3, "… 1 more rows"), (3, 3, "")]
)
def test_a_table_stops_at_max_rows_and_says_how_many_more(n, shown, more):
    html = table([{"index": index} for index in range(n)], max_rows=3).data
    assert html.count("<td>") == shown and f"<td>{shown - 1}</td>" in html
    assert more in html and ("more rows" in html) == bool(more)


def test_cases_of_all_sizes_with_empty_and_full_masks_are_drawn():
    sizes = [(30, 40), (80, 20), (50, 50), (1500, 1100)]
    images = [np.full((*size, 3), 90, np.uint8) for size in sizes]
    disc, empty = np.zeros((30, 40), bool), np.zeros((80, 20), bool)
    disc[10:20, 10:20] = True
    full, half = np.ones((50, 50), bool), np.zeros((1500, 1100), bool)
    half[:700] = True
    figure = plot_cases(images, [disc, empty, full, half], [disc, None, ~full, ~half], titles=list("abcd"))
    draw(figure)
    assert [axis.get_title() for axis in figure.axes] == list("abcd")
    shapes = [axis.images[0].get_array().shape[:2] for axis in figure.axes]
    assert shapes == [(30, 40), (80, 20), (50, 50), (750, 550)]  # large ones thinned out


@pytest.mark.parametrize("size", [(1, 200), (3, 3000), (3000, 3)])
def test_images_too_thin_for_an_outline_are_drawn_without(size):
    mask = np.zeros(size, bool)
    mask.flat[: mask.size // 2] = True
    figure = plot_cases([np.zeros((*size, 3), np.uint8)], [mask])
    draw(figure)
    assert count_outlines(figure) == [0]


def test_predictions_are_drawn_from_files_thinned_out_and_empty_ones_named(tmp_path):
    image = np.zeros((1200, 900), np.uint8)
    cases = [Case(name, save_image(tmp_path / f"{name}.jpg", image)) for name in "ab"]
    for folder, n_rows in (("predicted", (0, 600)), ("true", (5, 600)), ("full", (1200, 1200))):
        (tmp_path / folder).mkdir()
        for case, n in zip(cases, n_rows):
            mask = np.repeat(np.arange(1200)[:, None] < n, 900, axis=1)
            save_image(tmp_path / folder / f"{case.image_id}.png", mask)
    figure = plot_predictions(cases, tmp_path / "predicted", true_masks=tmp_path / "true")
    draw(figure)
    assert [axis.get_title() for axis in figure.axes] == ["a, empty, Dice 0.000", "b, Dice 1.000"]
    assert [axis.images[0].get_array().shape[:2] for axis in figure.axes] == [(600, 450)] * 2
    assert count_outlines(figure) == [1, 2]
    assert count_outlines(plot_predictions(cases, tmp_path / "predicted")) == [0, 1]
    figure = plot_predictions(cases, tmp_path / "full")
    assert [axis.get_title() for axis in figure.axes] == ["a, all of it", "b, all of it"]


def test_a_small_region_of_a_large_mask_is_drawn():
    mask = np.zeros((3000, 2000), bool)
    mask[1501:1503, 701:703] = True
    small = thin_out(mask)
    assert small.shape == thin_out(np.zeros((3000, 2000, 3), np.uint8)).shape[:2] and small.sum() == 1
    figure = plot_cases([np.zeros((3000, 2000, 3), np.uint8)], [mask])
    draw(figure)
    assert count_outlines(figure) == [1]


def test_names_with_dollars_are_drawn_and_long_ones_shortened():
    row = {"gain": 0.0, "gain_low": 0.0, "gain_high": 0.0, "name": "a$_{$b", "verdict": "base"}
    figure = plot_forest([row], [[]], [])
    draw(figure)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["a$_{$b: base"]
    (axis,) = plot_cases([np.zeros((8, 8, 3), np.uint8)], titles=["x" * 250 + "\nshort"]).axes
    first, second = axis.get_title().split("\n")
    assert len(first) == 47 and "…" in first and second == "short"


def test_images_alone_are_drawn_without_outlines_in_a_grid():
    figure = plot_cases([np.zeros((20, 20, 3), np.uint8)] * 5, columns=3)
    draw(figure)
    assert count_outlines(figure) == [0] * 6 and [axis.axison for axis in figure.axes] == [False] * 6
    assert [len(axis.images) for axis in figure.axes] == [1] * 5 + [0]


def test_surplus_places_of_a_grid_stay_empty():
    figure, axes = new_axes(4, columns=3, size=2, height=1)
    assert figure.get_size_inches().tolist() == [6, 2] and len(axes) == 4
    assert [axis.axison for axis in figure.axes] == [True] * 4 + [False] * 2


def test_a_history_is_drawn_in_one_color_per_fold():
    history = [
        {
            "epoch": epoch,
            "loss": 1 / epoch,
            "bce": 2 / epoch,
            "train_soft_dice": 0.1,
            "val_dice": 0.2,
            "lr": 1e-3,
        }
        for epoch in (1, 2)
    ]
    figure = plot_history({0: history, 3: history[:1]})
    draw(figure)
    scores, losses, _, rates = figure.axes
    assert [line.get_color() for line in losses.lines] == [COLORS[0]] * 2 + [COLORS[3]] * 2
    assert [line.get_linestyle() for line in losses.lines] == ["-", "--"] * 2
    assert [line.get_marker() for line in scores.lines] == [".", "."]  # one epoch alone would not show
    (line,) = plot_history({0: history * 50}, panels=["validation Dice"]).axes[0].lines
    assert line.get_marker() in ("", "None")
    assert [text.get_text() for text in rates.get_legend().get_texts()] == ["fold 0", "fold 3"]
    rings = plot_history({0: history}, kept={0: 2}, panels=["validation Dice"]).axes[0].lines[1]
    assert (list(rings.get_xdata()), list(rings.get_ydata()), rings.get_marker()) == ([2], [0.2], "o")
    assert list(losses.lines[1].get_ydata()) == [2, 1] and list(rates.lines[0].get_xdata()) == [1, 2]


def test_small_numbers_keep_digits_and_no_rows_have_a_text():
    html = table([{"lr": 5.6e-06, "gain": -0.0004, "dice": 0.91234, "zero": 0.0}]).data
    for text in ("5.6e-06", "-4.0e-04", "0.9123", "0.0000"):
        assert f"<td>{text}</td>" in html
    assert table([], otherwise="nothing < 1").data == "<p>nothing &lt; 1</p>"


def test_a_panel_of_the_history_can_be_drawn_alone():
    row = {"epoch": 1, "loss": 1.0, "bce": 1.0, "train_soft_dice": 0.1, "val_dice": 0.2, "lr": 5.6e-6}
    figure = plot_history({0: [row]}, panels=["learning rate"])
    (axis,) = figure.axes
    draw(figure)
    assert axis.get_title() == "learning rate" and list(axis.lines[0].get_ydata()) == [5.6e-6]
