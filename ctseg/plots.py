"""One look for all figures, and tables; each function returns a Matplotlib figure, or HTML for a table."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, NullFormatter

from ctseg.data import Case, png_path, read_image, read_mask
from ctseg.metrics import dice_score
from ctseg.transforms import thin_out

TRUE, PREDICTED = "lime", "magenta"  # of outlines and errors: a pair that color-blind readers tell apart too
# Of curves and bars, which they tell apart as well: Okabe & Ito, Color Universal Design, 2008.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_LOOK = {
    "axes.prop_cycle": plt.cycler(color=COLORS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}

PANELS = {  # of `plot_history`: the columns of a history, the second one dashed
    "validation Dice": ("val_dice",),
    "loss of augmented training batches; BCE dashed": ("loss", "bce"),
    "soft Dice of augmented training batches": ("train_soft_dice",),
    "learning rate": ("lr",),
}


def table(rows: Sequence[Mapping], *, max_rows: int = 20, otherwise: str = "no rows") -> HTML:
    """Show rows, with the keys of the first as columns, as an HTML table, or a text where there are none.

    Numbers have four decimals, or two digits if they are small.
    """
    if not rows:
        return HTML(f"<p>{html.escape(otherwise)}</p>")
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in rows[0])
    cells = [
        [f"<td>{html.escape(_as_text(value))}</td>" for value in row.values()] for row in rows[:max_rows]
    ]
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    more = f"<p>… {len(rows) - max_rows} more rows</p>" if len(rows) > max_rows else ""
    return HTML(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}")


def _as_text(value) -> str:
    """Floats with four decimals, small ones with two digits, anything else as it prints."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < 5e-4 else f"{value:.4f}"


def new_axes(n: int, *, columns: int, size: float, height: float | None = None) -> tuple[Figure, np.ndarray]:
    """A figure of n axes, an array (n,), in a grid, each `size` inches wide and `height` high (or square)."""
    rows = -(-n // columns)
    figsize = (columns * size, rows * (height or size))
    with plt.rc_context(_LOOK):
        figure, axes = plt.subplots(rows, columns, figsize=figsize, squeeze=False, layout="constrained")
    for spare in axes.flat[n:]:
        spare.axis("off")
    plt.close(figure)  # returned, and so shown once, by the cell that asked for it
    return figure, axes.flat[:n]


def plot_sentence(text: str) -> Figure:
    """A figure that only says why there is nothing to draw."""
    figure, (axis,) = new_axes(1, columns=1, size=8, height=0.5)
    axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=10)
    axis.axis("off")
    return figure


def add_bar(figure: Figure, shown: AxesImage, axes: Axes | list[Axes], label: str) -> None:
    """Add the color bar of a map, next to these axes."""
    bar = figure.colorbar(shown, ax=axes, shrink=0.7)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)


def use_log_axis(axis: Axes) -> None:
    """Make the x axis logarithmic, with plain numbers at 1, 2 and 5 of each decade."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def draw_outline(axis: Axes, mask: np.ndarray, color: str, style: str = "-", linewidth: float = 1.2) -> None:
    """Draw a mask's outline, if it has one."""
    if mask.any() and not mask.all() and min(mask.shape) > 1:
        axis.contour(mask, levels=[0.5], colors=color, linestyles=style, linewidths=linewidth)


def show_case(
    axis: Axes,
    image: np.ndarray,
    true_mask: np.ndarray | None,
    pred_mask: np.ndarray | None,
    title: str,
) -> None:
    """Draw an image (H, W, 3), thinned out, with its true and predicted outlines."""
    axis.imshow(thin_out(image))
    for mask, color in ((true_mask, TRUE), (pred_mask, PREDICTED)):
        if mask is not None:
            draw_outline(axis, thin_out(mask), color)
    lines = [line if len(line) <= 48 else f"{line[:24]}…{line[-22:]}" for line in title.split("\n")]
    axis.set_title("\n".join(lines), fontsize=8, parse_math=False)
    axis.axis("off")


def plot_cases(images, true_masks=None, pred_masks=None, *, titles=None, columns: int = 6) -> Figure:
    """A sheet of images (H, W, 3) with outlines of masks (H, W): true ones green, predicted ones magenta.

    Each list is as long as the list of images, or None.
    """
    columns = min(columns, len(images))
    size = 12.6 / max(columns, 3)
    tallest = max(image.shape[0] / image.shape[1] for image in images)
    figure, axes = new_axes(len(images), columns=columns, size=size, height=min(tallest, 1.2) * size + 0.25)
    blank = [None] * len(images)
    each = zip(axes, images, true_masks or blank, pred_masks or blank, titles or [""] * len(images))
    for axis, image, true_mask, pred_mask, title in each:
        show_case(axis, image, true_mask, pred_mask, title)
    return figure


def plot_predictions(
    cases: Sequence[Case],
    mask_dir: Path,
    *,
    window: tuple[float, float] | None = None,
    true_masks: Path | None = None,
) -> Figure:
    """A sheet of images with the masks `<id>.png` of `mask_dir`, and of `true_masks`, if there are any.

    All are thinned out as they are read: 48 photographs at their own size would take gigabytes.
    """
    images, pred_masks, trues, titles = [], [], [], []
    for case in cases:
        pred_mask = read_mask(png_path(mask_dir, case.image_id))
        true_mask = true_masks and read_mask(png_path(true_masks, case.image_id))
        images.append(thin_out(read_image(case.image, window=window)))
        pred_masks.append(thin_out(pred_mask))
        trues.append(true_masks and thin_out(true_mask))
        whole = {0: ", empty", 1: ", all of it"}.get(pred_mask.mean(), "")  # no outline would show
        dice = f", Dice {dice_score(pred_mask, true_mask):.3f}" if true_masks else ""
        titles.append(f"{case.image_id}{whole}{dice}")
    return plot_cases(images, trues, pred_masks, titles=titles)


def plot_history(
    histories: Mapping[int, Sequence[Mapping]],
    *,
    panels: Sequence[str] = tuple(PANELS),
    kept: Mapping[int, int] = MappingProxyType({}),
) -> Figure:
    """Curves over the epochs, one color per fold, in one row of panels; rings mark `kept` epochs."""
    figure, axes = new_axes(len(panels), columns=len(panels), size=3.6, height=2.8)
    for axis, text in zip(axes, panels):
        for fold, history in histories.items():
            epochs = [row["epoch"] for row in history]
            # A single epoch has no line; a seventh fold has the first one's color.
            marker = "" if len(history) > 50 else ".x+"[fold // len(COLORS) % 3]
            for name, style in zip(PANELS[text], ("-", "--")):
                label = f"fold {fold}" if style == "-" else None
                values = [row[name] for row in history]
                axis.plot(epochs, values, style, marker=marker, color=COLORS[fold % len(COLORS)], label=label)
                if style == "-" and fold in kept:
                    axis.plot(kept[fold], values[epochs.index(kept[fold])], "o", color="black", mfc="none")
        axis.set_title(text, fontsize=8)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=7)
    return figure


def draw_gains(axis: Axes, rows: Sequence[Mapping], names: Sequence[str], is_filled: Sequence[bool]) -> None:
    """Draw each row's gain with its interval, the first on top; filled marks, or hollow ones."""
    for place, (row, filled) in enumerate(zip(rows, is_filled)):
        spread = [[row["gain"] - row["gain_low"]], [row["gain_high"] - row["gain"]]]
        fill = COLORS[0] if filled else "white"
        axis.errorbar(row["gain"], place, xerr=spread, fmt="o", color=COLORS[0], mfc=fill, capsize=3)
    axis.axvline(0, color="gray", linewidth=1)
    axis.set_yticks(range(len(rows)), names, parse_math=False)
    axis.set_ylim(len(rows) - 0.5, -0.5)  # the first on top, none on the frame


def plot_forest(
    rows: Sequence[Mapping], fold_gains: Sequence[Sequence], effects: Sequence[Mapping]
) -> Figure:
    """Each configuration's gain over the base with its interval, and a small dot for each fold or repeat.

    All are those of a `compare.Comparison`; effects are drawn below, with hollow marks.
    """
    names = [f"{row['name']}: {row['verdict']}" for row in [*rows, *effects]]
    figure, (axis,) = new_axes(1, columns=1, size=9, height=0.26 * len(names) + 1)
    draw_gains(axis, [*rows, *effects], names, [True] * len(rows) + [False] * len(effects))
    for place, gains in enumerate(fold_gains):
        axis.plot(gains, [place] * len(gains), ".", color=COLORS[1], markersize=4, zorder=3)
    axis.set_xlabel("Dice gained over the base; simultaneous 95 % intervals, dots are folds or repeats")
    return figure
