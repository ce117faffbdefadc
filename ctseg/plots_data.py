"""The figures of notebooks 01 and 02, in the look of `plots`; each function returns a Matplotlib figure."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from ctseg.explore import Example, average_channels, find_difference, make_round_trips
from ctseg.metrics import dice_score
from ctseg.plots import (
    COLORS,
    PREDICTED,
    TRUE,
    add_bar,
    draw_outline,
    new_axes,
    plot_cases,
    plot_sentence,
    show_case,
    use_log_axis,
)
from ctseg.transforms import ResizeAndPad, find_stride

_EARLY = COLORS[4]  # the outline of a mask that was thresholded early
_CHANNEL_COLORS = {"red": COLORS[5], "green": COLORS[2], "blue": COLORS[0]}
# Of a pixel by what the true mask and the prediction say: neither, true, predicted, both.
_PIXELS = {
    "background, right": "#ffffff",
    "missed": TRUE,
    "too much": PREDICTED,
    "common": COLORS[4],
}


def plot_examples(
    examples: Sequence[Example],
    titles: Sequence[str] | None = None,
    *,
    otherwise: str = "There is no pair of image and mask that can be read.",
) -> Figure:
    """A sheet of small cases with their masks outlined, by default with their ids; a sentence of none."""
    if not examples:
        return plot_sentence(otherwise)
    titles = titles or [example.image_id for example in examples]
    images, masks = [example.image for example in examples], [example.mask for example in examples]
    return plot_cases(images, masks, titles=titles)


def plot_dice(true_mask: np.ndarray, pred_masks: Mapping[str, np.ndarray]) -> Figure:
    """Draw each predicted mask, bool (H, W) by name, over the true one, pixel by pixel, with its Dice."""
    figure, axes = new_axes(len(pred_masks), columns=len(pred_masks), size=2.5, height=2.6)
    n_true = np.count_nonzero(true_mask)
    for axis, (name, pred_mask) in zip(axes, pred_masks.items()):
        n_common, n_pred = np.count_nonzero(true_mask & pred_mask), np.count_nonzero(pred_mask)
        score = f"2·{n_common} / ({n_true} + {n_pred}) = {dice_score(pred_mask, true_mask):.2f}"
        colors = ListedColormap(list(_PIXELS.values()))
        axis.pcolormesh(true_mask + 2 * pred_mask, cmap=colors, vmin=0, vmax=3, edgecolors="gray")
        axis.set_title(f"{name}\n{score}", fontsize=9)
        axis.set_aspect("equal")
        axis.invert_yaxis()  # the first row on top, as in an image
        axis.axis("off")
    patches = [Patch(facecolor=color, edgecolor="gray", label=name) for name, color in _PIXELS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def plot_sizes(train: Sequence[Mapping], test: Sequence[Mapping], target_size: int) -> Figure:
    """Width and height of `describe_cases`' rows, larger marks for more images, and the network's square."""
    figure, (axis,) = new_axes(1, columns=1, size=7.4, height=4.2)
    for name, rows, marker, fill in (("training", train, "o", COLORS[0]), ("test", test, "s", "none")):
        pairs = np.array([(row["width"], row["height"]) for row in rows]).reshape(-1, 2)
        sizes, counts = np.unique(pairs, axis=0, return_counts=True)
        if len(rows):
            area = 25 + 250 * counts / len(rows)
            label = f"{len(rows)} {name} images, {len(sizes)} sizes"
            edge = COLORS[0] if marker == "o" else COLORS[5]
            axis.scatter(*sizes.T, area, marker=marker, color=fill, edgecolor=edge, alpha=0.7, label=label)
    label = f"the network's square, {target_size} × {target_size}"
    square = {"fill": False, "linestyle": "--", "edgecolor": "black", "label": label}
    axis.add_patch(Rectangle((0, 0), target_size, target_size, **square))
    longest = max(*(max(row["width"], row["height"]) for row in (*train, *test)), target_size)
    axis.set(xlim=(0, 1.08 * longest), ylim=(0, 1.08 * longest), aspect="equal")
    axis.set(xlabel="width, pixels", ylabel="height, pixels")
    legend = figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    for handle in legend.legend_handles[:-1]:
        handle.set_sizes([40])
    return figure


def plot_average_mask(average: np.ndarray) -> Figure:
    """Draw the mean of all masks, float (side, side), as a map with a color bar."""
    figure, (axis,) = new_axes(1, columns=1, size=4.4, height=3.6)
    drawn = axis.imshow(average, cmap="viridis", vmin=0, extent=(0, 1, 1, 0))
    axis.set(xlabel="share of the width", ylabel="share of the height")
    add_bar(figure, drawn, axis, "share of masks")
    return figure


def plot_areas(descriptions: Sequence[Mapping], border_costs: Sequence[Mapping], target_size: int) -> Figure:
    """How large the regions are, and what a border one pixel off costs, both by area on a log axis.

    Empty masks have no place on it: the title counts them.
    """
    areas = np.array([100 * row["mask_area"] for row in descriptions])
    n_empty, drawn = np.count_nonzero(areas == 0), areas[areas > 0]
    if not drawn.size:
        return plot_sentence(f"All {n_empty} masks are empty.")
    figure, (counts, costs) = new_axes(2, columns=2, size=5.2, height=3.2)
    costs.sharex(counts)
    counts.hist(drawn, bins=np.geomspace(0.9 * drawn.min(), 1.1 * drawn.max(), 31))
    counts.set_ylabel("masks")
    counts.yaxis.get_major_locator().set_params(integer=True)
    empty = f"; {n_empty} more are empty" if n_empty else ""
    counts.set_title(f"{drawn.size} masks{empty}", fontsize=9)
    for name, text, marker in (("grown", "one pixel too large", "^"), ("shrunk", "one pixel too small", "v")):
        x, y = [100 * row["mask_area"] for row in border_costs], [row[f"dice_{name}"] for row in border_costs]
        costs.scatter(x, y, 14, marker=marker, alpha=0.6, linewidths=0, label=text)
    costs.set_ylabel("Dice")
    costs.set_title(f"border off by one of {target_size} pixels", fontsize=9)
    costs.legend(fontsize=8)
    for axis in (counts, costs):
        axis.set_xlabel("mask, % of the image")
        use_log_axis(axis)
    return figure


def plot_colors(train: Sequence[Mapping], test: Sequence[Mapping]) -> Figure:
    """Each channel's mean in an image, and the contrast, of `describe_cases`' rows; test images as lines.

    Where the three channels are equal in all images, they have one panel.
    """
    rows = [*train, *test]
    is_gray = all(row["mean_r"] == row["mean_g"] == row["mean_b"] for row in rows)
    colors = {"gray": "gray"} if is_gray else _CHANNEL_COLORS
    figure, axes = new_axes(len(colors) + 1, columns=len(colors) + 1, size=3.1, height=2.7)
    for axis, (name, color) in zip(axes, colors.items()):
        key = f"mean_{name[0]}"  # of gray images, green's
        _draw_shares(axis, [row[key] for row in train], [row[key] for row in test], color=color)
        axis.set_xlabel(f"mean of {name} in an image, 0 … 255")
    contrast = average_channels(train, "std"), average_channels(test, "std")
    _draw_shares(axes[-1], *contrast, color=COLORS[3], high=128)
    axes[-1].set_xlabel("contrast: standard deviation in an image")
    axes[0].set_ylabel("share of images")
    axes[-1].legend(fontsize=8)
    return figure


def _draw_shares(axis: Axes, train: Sequence[float], test: Sequence[float], color, high: float = 255) -> None:
    """Draw the shares of training images, filled, and of test images, outlined, in 26 bins from 0 to high."""
    bins = np.linspace(0, high, 27)
    axis.hist(
        train, bins, weights=np.full(len(train), 1 / len(train)), color=color, alpha=0.6, label="training"
    )
    if len(test):
        shares = np.full(len(test), 1 / len(test))
        axis.hist(test, bins, weights=shares, histtype="step", color="black", linewidth=1.4, label="test")


def plot_near_duplicates(examples: Sequence[Example]) -> Figure:
    """Near-duplicates side by side: examples 0 and 1 are a pair, and so on; test images have no mask."""
    if not examples:
        return plot_sentence(
            "There are no near-duplicates, within the training set or across to the test set."
        )
    subsets = ["test" if example.mask is None else "training" for example in examples]
    titles = [
        f"pair {place // 2 + 1}, {subset}\n{example.image_id}"
        for place, (subset, example) in enumerate(zip(subsets, examples))
    ]
    return plot_examples(examples, titles)


def plot_channels(rows: Sequence[Mapping]) -> Figure:
    """The area under the curve of each of `tabulate_channels`' rows, and where regions are lower."""
    if not rows:
        return plot_sentence("There is no mask with a region and a background to tell apart.")
    figure, (axis,) = new_axes(1, columns=1, size=6, height=0.26 * len(rows) + 1)
    for place, row in enumerate(rows):
        text = f"lower inside in {100 * row['lower_inside']:.0f} % of images"
        axis.plot([0.5, row["auc"]], [place, place], color="lightgray", zorder=1)
        axis.plot(row["auc"], place, "o", color=COLORS[0])
        axis.annotate(text, (row["auc"], place), (5, 0), textcoords="offset points", va="center", fontsize=7)
    axis.set(yticks=range(len(rows)), yticklabels=[row["channel"] for row in rows])
    axis.set(xlim=(0.48, 1.0), ylim=(len(rows) - 0.5, -0.5))
    axis.axvline(0.5, color="gray", linewidth=1)
    axis.set_xlabel("area under the curve: 0.5 tells nothing, 1 tells region and background apart")
    return figure


def plot_batch(images: Tensor, targets: Tensor, *, titles=None, columns: int = 6) -> Figure:
    """A sheet of images (B, 3, S, S) with their targets (B, 1, S, S), in [0, 1], outlined at one half."""
    pictures = list(images.permute(0, 2, 3, 1).clamp(0, 1).numpy())
    return plot_cases(pictures, list(targets[:, 0].numpy() > 0.5), titles=titles, columns=columns)


def plot_undo(image: np.ndarray, mask: np.ndarray, target_size: int) -> Figure:
    """One image as stored, in the square, back, and the border that an early threshold changes most.

    Args:
        image: uint8 (H, W, 3).
        mask: bool (H, W).
    """
    square, target, _ = ResizeAndPad(target_size)(image, mask)
    late, early = make_round_trips(mask, target_size)
    figure, axes = new_axes(4, columns=4, size=3.2, height=3.6)
    (height, width), side = mask.shape, max(12, max(mask.shape) // 8)
    show_case(axes[0], image, mask, None, f"the image, {width} × {height}")
    show_case(axes[1], square, target > 127, None, f"in its square, {target_size} × {target_size}")
    show_case(axes[2], image, None, late, f"back at {width} × {height}, late threshold")
    zoom = find_difference(late, early, side)
    axes[3].imshow(image[zoom])
    outlines = {
        "true": (mask, TRUE, "-", 4.0),
        f"late threshold: Dice {dice_score(late, mask):.4f}": (late, PREDICTED, "-", 1.5),
        f"early threshold: Dice {dice_score(early, mask):.4f}": (early, _EARLY, "--", 2.0),
    }
    for name, (outline, color, style, linewidth) in outlines.items():
        draw_outline(axes[3], outline[zoom], color, style, linewidth)
        axes[3].plot([], [], style, color=color, linewidth=linewidth, label=name)
    axes[3].axis("off")
    axes[3].legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), fontsize=8, frameon=False)
    top, left = (part.start for part in zoom)
    box = {"fill": False, "edgecolor": "white", "linestyle": ":", "linewidth": 1.5}
    every = find_stride(mask)
    axes[2].add_patch(Rectangle((left / every, top / every), side / every, side / every, **box))
    axes[3].set_title("the dotted box, larger", fontsize=8)
    return figure


def plot_changes(changes: Mapping[str, Tensor]) -> Figure:
    """Draw `make_changes`' random changes, two per row: the original and two draws, with targets."""
    if not changes:
        return plot_sentence("This run changes nothing at random.")
    figure, axes = new_axes(3 * len(changes), columns=6, size=2.1, height=2.35)
    for place, (text, stack) in enumerate(changes.items()):
        titles = ("original", text, "")
        for axis, pixels, title in zip(axes[3 * place :], stack.numpy(), titles):
            show_case(axis, pixels[:3].transpose(1, 2, 0), pixels[3] > 0.5, None, title)
    return figure


def plot_round_trip(rows: Sequence[Mapping], target_size: int) -> Figure:
    """The Dice of exact targets by the square's size, thresholded late and early; this run's is marked."""
    figure, (axis,) = new_axes(1, columns=1, size=6, height=3)
    sizes = [row["target_size"] for row in rows]
    for name, style, text in (
        ("dice", "o-", "threshold at the image's own size"),
        ("dice_thresholded_early", "s--", "threshold in the square"),
    ):
        axis.plot(sizes, [row[name] for row in rows], style, markersize=4, label=text)
    axis.axvline(target_size, color="gray", linestyle=":", label=f"this run: {target_size}")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.set(xlabel="side of the square, pixels", ylabel="mean Dice")
    axis.legend(fontsize=8)
    return figure
