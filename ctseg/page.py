"""Pages that need nothing but themselves: a single HTML file with its pictures in it, light and dark."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from skimage.segmentation import mark_boundaries

from ctseg.files import atomic_path, write_text
from ctseg.plots import table

MEDIA_TYPES = {".svg": "image/svg+xml", ".webp": "image/webp"}  # of the pictures of a page
# In a vector figure black and white become the page's own ink and paper.
_SVG_STYLE = """<style>
svg {--ink: #1f2328; --paper: #ffffff}
@media (prefers-color-scheme: dark) {svg {--ink: #d1d7e0; --paper: #161b22}}
text {fill: var(--ink)}
</style>
"""
_STYLE = """
:root {color-scheme: light dark; --ink: #1f2328; --faint: #59636e; --paper: #ffffff; --line: #d1d9e0}
@media (prefers-color-scheme: dark) {
  :root {--ink: #d1d7e0; --faint: #9198a1; --paper: #161b22; --line: #3d444d}
}
body {background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif}
body {max-width: 1080px; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere}
h1 {font-size: 1.6rem} h2 {font-size: 1.2rem; margin-top: 2rem} h1, h2 {line-height: 1.25}
.big {font-size: 2.4rem; font-weight: 600; line-height: 1.1}
.faint, figcaption {color: var(--faint); font-size: 0.875rem}
.wide {overflow-x: auto} .wide img {width: 100%; min-width: 640px}
table {border-collapse: collapse; font-variant-numeric: tabular-nums}
td, th {padding: 0.2rem 0.8rem 0.2rem 0; text-align: left; border-bottom: 1px solid var(--line)}
td, th {overflow-wrap: normal}
figure {margin: 0} img {max-width: 100%; height: auto; display: block; border-radius: 4px}
.grid {display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(45%, 300px), 1fr))}
.curves img {width: 100%}
.curves {display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr))}
details {border-top: 1px solid var(--line); padding: 0.5rem 0} summary {cursor: pointer; font-weight: 600}
"""


def write_page(path: Path, title: str, body: str) -> None:
    """Write a page with the kit's style; `body` is HTML."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><link rel="icon" href="data:,"><style>{_STYLE}</style>'
    )
    write_text(
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n', path
    )


def keep_figure(figure: Figure, run_dir: Path, title: str) -> Figure:
    """Keep a figure for the run's report, as `figures/<title>`, and return it, to be shown.

    One with images in it becomes a WebP, another one an SVG in the page's colors.
    """
    if any(axis.images for axis in figure.axes):
        with atomic_path(run_dir / "figures" / f"{title}.webp") as partial:
            figure.savefig(partial, dpi=90, bbox_inches="tight", pil_kwargs={"quality": 80})
    else:
        write_text(draw_svg(figure), run_dir / "figures" / f"{title}.svg")
    return figure


def draw_svg(figure: Figure) -> str:
    """A figure as SVG text whose black and white follow the reader's theme."""
    buffer = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ctseg"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    _, _, text = buffer.getvalue().partition("<svg")  # without the XML declaration
    for color, name in (("#000000", "ink"), ("#ffffff", "paper")):
        text = text.replace(f": {color}", f": var(--{name})")
    attributes, _, content = text.partition(">")
    return f"<svg{attributes}>\n{_SVG_STYLE}{content}"


def draw_case(
    image: np.ndarray, true_mask: np.ndarray | None, pred_mask: np.ndarray, *, side: int = 320
) -> bytes:
    """Draw an image uint8 (H, W, 3) with the outlines of masks bool (H, W), as a WebP.

    True masks are green, predictions magenta; a mask without foreground has no outline.

    Args:
        side: pixels of the longer side.
    """
    height, width = image.shape[:2]
    size = tuple(max(1, round(length * side / max(height, width))) for length in (width, height))
    drawn = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) / 255
    for mask, color in ((true_mask, (0, 1, 0)), (pred_mask, (1, 0, 1))):
        if mask is not None:
            small = np.asarray(Image.fromarray(mask).resize(size))
            drawn = mark_boundaries(drawn, small, color, mode="thick")
    buffer = io.BytesIO()
    Image.fromarray((drawn * 255).round().astype(np.uint8)).save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def embed(content: bytes, suffix: str, text: str) -> str:
    """A picture within a page; `text` is for those who do not see it."""
    code = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(text)}" src="data:{MEDIA_TYPES[suffix]};base64,{code}">'


def caption(picture: str, text: str) -> str:
    """A picture of `embed` with a text below it."""
    return f"<figure>{picture}<figcaption>{html.escape(text)}</figcaption></figure>"


def fold_away(title: str, body: str) -> str:
    """A section that opens on a click."""
    return f"<details><summary>{html.escape(title)}</summary>{body}</details>"


def tabulate(rows: Sequence[Mapping], *, max_rows: int = 20) -> str:
    """A table that scrolls sideways where it is wider than the page."""
    return f'<div class="wide">{table(rows, max_rows=max_rows).data}</div>'
