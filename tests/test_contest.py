"""A contest's facts: its name, and the columns of its submission."""

import pytest

from ctseg.config import Config
from ctseg.contest import Contest


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("ID,Mask", {"ID": "{id}", "Mask": "{mask}"}),
        ("id,height={height},rle", {"id": "{id}", "height": "{height}", "rle": "{mask}"}),
        ("rle={mask},id={id}", {"rle": "{mask}", "id": "{id}"}),
        ("rle={mask},id", {"rle": "{mask}", "id": "{id}"}),
        ("id, rle", {"id": "{id}", "rle": "{mask}"}),
        ("id,note=,rle", {"id": "{id}", "note": "", "rle": "{mask}"}),
    ],
)
def test_columns_are_the_id_the_code_and_others_with_their_values(text, columns):
    found = Contest(submission_columns=text).read_columns()
    assert list(found.items()) == list(columns.items())


@pytest.mark.parametrize(
    "text", ["", "ID", "ID,Mask,Third", "ID,ID", "ID,Mask,", "ID,Mask,ID=1", "ID,h={Height},Mask"]
)
def test_columns_that_cannot_be_are_refused(text):
    with pytest.raises(ValueError, match="submission_columns: got"):
        Contest(submission_columns=text).read_columns()


@pytest.mark.parametrize("slug", ["", "https://www.kaggle.com/competitions/x", "a/b", "..", "a b"])
def test_a_slug_is_a_contests_name_alone(slug):
    with pytest.raises(ValueError, match="parameter slug: got .* expected the contest's name"):
        Config(slug=slug)
