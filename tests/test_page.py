"""Pages in one file: their pictures and figures."""

import io
import re
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from ctseg.page import caption, draw_case, draw_svg, embed, fold_away, keep_figure, write_page
from ctseg.plots import new_axes


def draw():
    figure, (axis,) = new_axes(1, columns=1, size=2)
    axis.plot([0, 1], [1, 2], "o-", mfc="white", label="a")
    axis.set_title("größer")
    axis.legend()
    return figure


def test_a_figure_is_drawn_in_the_pages_ink_and_paper_and_the_same_each_time():
    text = draw_svg(draw())
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg") and "größer" in text
    colors = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", text))
    assert {"var(--ink)", "var(--paper)"} <= colors
    assert not {"#000000", "#ffffff", "black", "white"} & colors
    assert "prefers-color-scheme: dark" in text and draw_svg(draw()) == text


def test_a_figure_is_kept_as_vector_or_if_it_has_images_as_pixels(tmp_path):
    figure = draw()
    assert keep_figure(figure, tmp_path, "1 lines") is figure
    images, (axis,) = new_axes(1, columns=1, size=2)
    axis.imshow(np.zeros((9, 9)))
    keep_figure(images, tmp_path, "2 images, many")
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["1 lines.svg", "2 images, many.webp"]
    assert Image.open(tmp_path / "figures" / names[1]).format == "WEBP"
    assert plt.get_fignums() == []


def read(picture):
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def test_a_case_is_drawn_small_with_both_outlines():
    image = np.full((600, 300, 3), 90, np.uint8)
    true_mask, pred_mask = np.zeros((600, 300), bool), np.zeros((600, 300), bool)
    true_mask[100:200, 50:250] = pred_mask[300:400, 50:250] = True
    drawn = read(draw_case(image, true_mask, pred_mask, side=300))
    assert drawn.shape == (300, 150, 3)
    # lossy, so colors are about those
    green, magenta = drawn[50, 75], drawn[150, 75]
    assert green[1] > 150 > max(green[0], green[2]) and min(magenta[0], magenta[2]) > 150 > magenta[1]
    assert abs(drawn[75, 75] - 90).max() < 15 and abs(drawn[250, 75] - 90).max() < 15


def test_empty_whole_and_thin_masks_are_drawn():
    for shape in [(40, 50), (1, 900), (900, 1)]:
        image = np.zeros((*shape, 3), np.uint8)
        for mask in (np.zeros(shape, bool), np.ones(shape, bool)):
            assert read(draw_case(image, None, mask)).shape[:2] == tuple(
                max(1, round(length * 320 / max(shape))) for length in shape
            )


def test_a_page_escapes_what_it_shows(tmp_path):
    body = caption(embed(b"x", ".webp", 'a "<b>'), "<c>") + fold_away("<d>", "e")
    write_page(tmp_path / "a.html", "<f>", body)
    text = (tmp_path / "a.html").read_text()
    assert 'alt="a &quot;&lt;b&gt;" src="data:image/webp;base64,eA=="' in text
    for escaped in ("&lt;c&gt;</figcaption>", "<summary>&lt;d&gt;</summary>", "<title>&lt;f&gt;</title>"):
        assert escaped in text
    assert not re.search(r"https?://", text)
