"""The figures of notebooks 03 and 04: how training went, and what to think of predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from ctseg.config import Config
from ctseg.contest import Contest
from ctseg.data import png_path, read_image, read_mask
from ctseg.metrics import dice_score
from ctseg.plots import (
    COLORS,
    PREDICTED,
    TRUE,
    add_bar,
    draw_gains,
    new_axes,
    plot_sentence,
    show_case,
    use_log_axis,
)
from ctseg.postprocess import PostProcess, make_mask, make_probability, postprocess_mask
from ctseg.predict import OutOfFold, Predictor, measure_spread
from ctseg.schedule import SCHEDULES
from ctseg.submission import encode_rle
from ctseg.transforms import thin_out


def plot_schedule(config: Config) -> Figure:
    """The learning rate over the course of training."""
    figure, (axis,) = new_axes(1, columns=1, size=6, height=2.2)
    done = np.linspace(0, 1, 201)
    axis.plot(100 * done, [config.lr * SCHEDULES[config.schedule](share) for share in done])
    axis.set(xlabel="training done, %", ylabel="learning rate", ylim=(0, None))
    axis.set_title(f"schedule {config.schedule}, at most {config.lr:g}", fontsize=9)
    return figure


def plot_epochs(fold_dir: Path, epochs: Sequence[int]) -> Figure:
    """The same validation cases after several epochs: a row for each, image | true mask | predictions.

    From the pictures in `val_outputs`; epochs that have none are left out.
    """
    found = {
        epoch: sorted((fold_dir / "val_outputs" / f"epoch_{epoch}").glob("[!.]*.png")) for epoch in epochs
    }
    picture_dirs = {epoch: paths[0].parent for epoch, paths in found.items() if paths}
    if not picture_dirs:
        return plot_sentence(f"{fold_dir.name} has no pictures of validation cases any more.")
    names = sorted(set.intersection(*({path.name for path in paths} for paths in found.values() if paths)))
    titles = ["image", "true mask", *(f"epoch {epoch}" for epoch in picture_dirs)]
    figure, axes = new_axes(len(names) * len(titles), columns=len(titles), size=12.6 / max(len(titles), 5))
    for row, name in zip(axes.reshape(len(names), -1), names):
        pictures = [np.asarray(Image.open(path / name)) for path in picture_dirs.values()]
        panels = [np.split(picture, 3, axis=1) for picture in pictures]
        shown = [panels[0][0], panels[0][1], *(panel[2] for panel in panels)]
        for axis, panel, title in zip(row, shown, titles):
            show_case(axis, panel, None, None, f"{Path(name).stem}: {title}" if title == "image" else title)
    return figure


def _paint_errors(image: np.ndarray, true_mask: np.ndarray, pred_mask: np.ndarray) -> np.ndarray:
    """An image uint8 (H, W, 3), thinned out, half painted over where it is missed, and where too much."""
    true_mask, pred_mask = thin_out(true_mask), thin_out(pred_mask)
    painted = thin_out(image).astype(np.float32)
    for wrong, color in ((true_mask & ~pred_mask, TRUE), (pred_mask & ~true_mask, PREDICTED)):
        painted[wrong] = 0.35 * painted[wrong] + 0.65 * 255 * np.array(to_rgb(color))
    return painted.astype(np.uint8)


def _add_legend(figure: Figure) -> None:
    """Name the two colors of errors, above the axes."""
    texts = {TRUE: "missed", PREDICTED: "too much"}
    patches = [Patch(facecolor=color, edgecolor="black", label=text) for color, text in texts.items()]
    figure.legend(handles=patches, loc="outside upper center", ncols=2, fontsize=8, frameon=False)


def plot_errors(
    validation: OutOfFold,
    indices: Sequence[int],
    steps: PostProcess,
    *,
    window: tuple[float, float] | None = None,
) -> Figure:
    """A sheet of validation cases in which missed pixels are green and pixels too much magenta.

    Args:
        indices: of the cases; `steps` make their masks, and Dice is in the titles.
        window: see `data.read_image`.
    """
    columns, size = min(4, len(indices)), 12.6 / 4
    figure, axes = new_axes(len(indices), columns=columns, size=size, height=0.8 * size + 0.25)
    for axis, index in zip(axes, indices):
        probability, letterbox, true_mask = validation.read(index)
        pred_mask, case = make_mask(probability, letterbox, steps), validation.cases[index]
        painted = _paint_errors(read_image(case.image, window=window), true_mask, pred_mask)
        show_case(axis, painted, None, None, f"{case.image_id}: Dice {dice_score(pred_mask, true_mask):.3f}")
    _add_legend(figure)
    return figure


def plot_steps(
    validation: OutOfFold, index: int, steps: PostProcess, *, window: tuple[float, float] | None = None
) -> Figure:
    """One case on its way to a mask: the image, its probability, smoothed, the threshold, all of `steps`."""
    probability, letterbox, true_mask = validation.read(index)
    image = read_image(validation.cases[index].image, window=window)
    size, aspect = 12.6 / 5, image.shape[0] / image.shape[1]
    figure, axes = new_axes(5, columns=5, size=size, height=size * min(1.3, aspect) + 0.7)
    show_case(axes[0], image, true_mask, None, f"{validation.cases[index].image_id}, true outline")
    smoothed = make_probability(probability, letterbox, steps.smoothing)
    full, smoothing = letterbox.undo(probability), f"smoothed by {steps.smoothing:g} of the side"
    plain = f"probability; plain Dice {dice_score(full > steps.threshold, true_mask):.3f}"
    maps = {plain: full, smoothing: smoothed}
    for axis, (title, values) in zip(axes[1:], maps.items()):
        shown = axis.imshow(thin_out(values), vmin=0, vmax=1, cmap="cividis")
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    add_bar(figure, shown, axes[2], "probability")
    cut = smoothed > steps.threshold
    masks = {f"smoothed, cut at {steps.threshold:g}": cut, "no holes, largest": postprocess_mask(cut, steps)}
    for axis, (title, mask) in zip(axes[3:], masks.items()):
        text = f"{title}: Dice {dice_score(mask, true_mask):.3f}"
        show_case(axis, _paint_errors(image, true_mask, mask), None, None, text)
    _add_legend(figure)
    return figure


def plot_scores(scores: np.ndarray, areas: np.ndarray) -> Figure:
    """Dice of each image (N,): its histogram with the mean marked, and against the region's size (N,).

    Sizes are shares of the image, on a log axis; empty masks have no place there and are counted.
    """
    figure, (left, right) = new_axes(2, columns=2, size=6, height=2.8)
    left.hist(scores, bins=np.linspace(0, 1, 41))
    left.axvline(np.mean(scores), color=COLORS[5], label=f"mean {np.mean(scores):.4f}")
    left.axvline(np.median(scores), color=COLORS[1], linestyle="--", label=f"median {np.median(scores):.4f}")
    left.set(xlabel="Dice of an image", ylabel="images")
    left.legend(fontsize=8)
    is_shown = areas > 0
    right.plot(100 * areas[is_shown], scores[is_shown], "o", markersize=3, alpha=0.6)
    use_log_axis(right)
    right.set(xlabel="true mask, % of the image", ylabel="Dice", ylim=(-0.02, 1.02))
    if n_empty := int(np.sum(~is_shown)):
        right.set_title(f"{n_empty} images with an empty mask are not shown", fontsize=9)
    return figure


def plot_thresholds(rows: Sequence[Mapping], threshold: float) -> Figure:
    """The mean Dice by threshold with its band, rows of `tabulate_thresholds`; the plain one marked."""
    figure, (axis,) = new_axes(1, columns=1, size=6, height=2.6)
    thresholds = [row["threshold"] for row in rows]
    axis.fill_between(
        thresholds, [row["low"] for row in rows], [row["high"] for row in rows], alpha=0.25, label="95 %"
    )
    axis.plot(thresholds, [row["dice"] for row in rows], ".-", label="mean")
    axis.axvline(threshold, color=COLORS[5], linestyle="--", label=f"plain, {threshold:g}")
    axis.set(xlabel="threshold on the probability", ylabel="validation Dice", xlim=(0, 1))
    axis.legend(fontsize=8)
    return figure


def plot_gains(rows: Sequence[Mapping]) -> Figure:
    """The gain of each post-processing over the first row, with its interval; the chosen one filled."""
    figure, (axis,) = new_axes(1, columns=1, size=7, height=0.22 * len(rows) + 0.8)
    draw_gains(axis, rows, [row["postprocess"] for row in rows], [row["chosen"] for row in rows])
    axis.set_xlabel("validation Dice gained, 95 % interval; the chosen one filled")
    return figure


def plot_uncertainty(predictors: Sequence[Predictor], suspects: Sequence[Mapping], mask_dir: Path) -> Figure:
    """Above, suspicious images with their predicted outlines; below, where predictions disagree.

    That is the standard deviation of the probability over networks and orientations, see `measure_spread`.
    `suspects` are rows of `rank_suspects`.
    """
    dataset, n = predictors[0].dataset, len(suspects)
    indices = {case.image_id: index for index, case in enumerate(dataset.cases)}
    size = 12.6 / max(n, 4)
    figure, axes = new_axes(2 * n, columns=n, size=size, height=0.8 * size + 0.25)
    for above, below, row in zip(axes, axes[n:], suspects):
        name = row["image_id"]
        image = read_image(dataset.cases[indices[name]].image, window=dataset.window)
        title = f"{name}\n{row['suspicious'] or 'nothing suspicious'}"
        show_case(above, image, None, read_mask(png_path(mask_dir, name)), title)
        spread = thin_out(measure_spread(predictors, indices[name]))
        shown = below.imshow(spread, vmin=0, vmax=0.5, cmap="cividis")
        below.axis("off")
    add_bar(figure, shown, list(axes), "standard deviation of the probability")
    return figure


def plot_code(mask: np.ndarray, contest: Contest) -> Figure:
    """A small mask, bool (H, W), with the numbers of its pixels in the contest, and its code as title."""
    height, width = mask.shape
    figure, (axis,) = new_axes(1, columns=1, size=0.5 * width + 1, height=0.5 * height + 0.6)
    axis.imshow(mask, cmap=ListedColormap(["white", COLORS[4]]), vmin=0, vmax=1)
    numbers = np.arange(mask.size).reshape(mask.shape, order=contest.pixel_order) + contest.first_pixel
    for row, column in np.ndindex(*mask.shape):
        axis.text(column, row, numbers[row, column], ha="center", va="center", fontsize=8)
    axis.set(xticks=[], yticks=[])
    axis.set_title(f"code: {encode_rle(mask, contest)}", fontsize=9)
    return figure
