"""What a contest's own tables say of its submission, and data sets like those of public contests."""

import re
import shlex

import numpy as np
import pytest
from formats import FORMATS, write_format
from PIL import Image

from ctseg.config import Config, fill_settings, parse_value
from ctseg.contest import A0, Contest
from ctseg.data import find_cases, read_mask
from ctseg.submission import check_submission, encode_rle, write_submission
from ctseg.tables import check_tables

NEEDED = {"mask_suffix": "_mask"}  # what no table can tell


@pytest.fixture(scope="module", params=FORMATS)
def contest(request, tmp_path_factory):
    """(name, root, true test masks) of a data set like a public contest's."""
    root = tmp_path_factory.mktemp(request.param)
    return request.param, root, write_format(request.param, root, n_train=6)


def make(parameters: dict) -> Config:
    return Config(**fill_settings(parameters))


def read_advice(error: Exception) -> dict:
    """The parameters that an error advises."""
    words = shlex.split(str(error).rpartition("; pass ")[2])
    assert words[::3] == ["-p"] * (len(words) // 3)
    given = {name: parse_value(value) for name, value in zip(words[1::3], words[2::3])}
    return {name: getattr(make(given), name) for name in given}


def needed(name: str) -> dict:
    return {key: value for key, value in FORMATS[name].items() if key in NEEDED}


def test_the_format_is_derived_and_its_parameters_are_printed(contest):
    name, root, _ = contest
    with pytest.raises(ValueError, match="but the settings say") as caught:
        check_tables(root, make(needed(name)))
    assert read_advice(caught.value) == {k: v for k, v in FORMATS[name].items() if k not in NEEDED}
    check_tables(root, make(needed(name) | read_advice(caught.value)))


def test_the_contests_images_become_a_submission_that_its_codes_agree_with(contest, tmp_path):
    name, root, truth = contest
    config = make(FORMATS[name])
    train, test = find_cases(root, "train", config), find_cases(root, "test", config)
    assert len(train) == 6 and [case.image_id for case in test] == list(truth)
    assert not read_mask(train[2].mask, train[2].mask_set).any()
    predictions = [
        (stem, mask if index else np.zeros_like(mask)) for index, (stem, mask) in enumerate(truth.items())
    ]
    write_submission(tmp_path / "s.csv", predictions, test, config)
    check_submission(tmp_path / "s.csv", test, config)
    header, first, *_ = (tmp_path / "s.csv").read_text().splitlines()
    assert header == config.submission_columns
    assert first == f"{test[0].image.name if config.id_with_extension else 'te_000'},{config.empty_mask}"
    # The training masks, written as a submission would be, are the contest's own codes.
    codes = (root / "train_codes.csv").read_text().splitlines()[1:]
    ours = [encode_rle(read_mask(case.mask, case.mask_set), config) for case in train]
    assert ours == [line.partition(",")[2] for line in codes]


@pytest.mark.parametrize("wrong", [{"pixel_order": "C"}, {"first_pixel": 0}, {"empty_mask": "1 1"}])
def test_a_wrong_numbering_is_found_by_the_codes_alone(tmp_path, wrong):
    write_format("ships", tmp_path, n_train=6, sample=False)
    with pytest.raises(ValueError, match="but the settings say") as caught:
        check_tables(tmp_path, make(FORMATS["ships"] | wrong))
    (name,) = wrong
    assert read_advice(caught.value) == {name: FORMATS["ships"].get(name, 1)}


def test_a_table_of_boxes_may_hold_codes_too(tiny):
    mask = read_mask(tiny / "Train" / "Mask" / "case_1.png")
    code = encode_rle(mask, Contest(pixel_order="F"))
    (tiny / "train.csv").write_text(f"image,box,rle\ncase_1,3 4 5 6,{code}\n")
    with pytest.raises(ValueError, match="pass -p pixel_order F$"):
        check_tables(tiny, A0)


@pytest.mark.parametrize("order", "CF")
def test_codes_that_count_from_0_are_found(tiny, order):
    masks = {path.stem: read_mask(path) for path in sorted((tiny / "Train" / "Mask").iterdir())}
    contest = Contest(pixel_order=order, first_pixel=0)
    rows = [f"{stem},{encode_rle(mask, contest)}" for stem, mask in masks.items()]
    (tiny / "train.csv").write_text("\n".join(["ID,Mask", *rows]))
    with pytest.raises(ValueError, match="codes|first pixel") as caught:
        check_tables(tiny, A0)
    assert read_advice(caught.value) == ({"pixel_order": "F"} if order == "F" else {}) | {"first_pixel": 0}


def test_codes_alone_tell_the_columns_too_and_a_sample_alone_its_own(tmp_path):
    for folder, tables in (("codes", {"sample": False}), ("sample", {"codes": False})):
        write_format("salt", tmp_path / folder, n_train=4, **tables)
        with pytest.raises(ValueError, match="the columns id,rle_mask, ") as caught:
            check_tables(tmp_path / folder, A0)
        assert read_advice(caught.value)["submission_columns"] == "id,rle_mask"
        assert ("pixel_order" in read_advice(caught.value)) == (folder == "codes")


def test_a_few_codes_are_enough_for_a_look_before_training(tmp_path):
    write_format("salt", tmp_path, n_train=8, n_test=1)
    lines = (tmp_path / "train_codes.csv").read_text().splitlines()
    lines[2] = lines[2].partition(",")[0] + ",1 5"
    (tmp_path / "train_codes.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="train_codes.csv, id tr_001: a run-length code of another mask"):
        check_tables(tmp_path, make(FORMATS["salt"]))
    check_tables(tmp_path, make(FORMATS["salt"]), limit=4)  # the first, the third …
    with pytest.raises(ValueError, match="-p pixel_order F"):
        check_tables(tmp_path, make(FORMATS["salt"] | {"pixel_order": "C"}), limit=4)


def write(root, name, text):
    (root / name).write_text(text)


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("id,rle", "case_9,1 1", "id,rle"),
        ("ImageId,Height,Width,Rle", "case_9,30,40,", "ImageId,Height={height},Width={width},Rle"),
        ("id,class,predicted", "case_9,lesion,", "id,class=lesion,predicted"),
        ("EncodedPixels,ImageId", "1 1,case_9", "EncodedPixels={mask},ImageId={id}"),
        ("case,Usage,answer", "case_9,Public,x", "case,Usage=Public,answer"),
        ("ImageId,EncodedPixels,PredictedClass", "case_9,1 1,0", "ImageId,EncodedPixels,PredictedClass=0"),
        ("ImageId,EncodedPixels,PredictedClass", "case_9,,0", "ImageId,EncodedPixels,PredictedClass=0"),
        ("ImageId,EncodedPixels,PredictedClass", "case_9,-1,0", "ImageId,EncodedPixels,PredictedClass=0"),
    ],
)
def test_other_columns_are_derived_from_a_sample(tiny, header, row, expected):
    write(tiny, "sample_submission.csv", f"{header}\n{row}\n")
    with pytest.raises(ValueError, match="but the settings say the columns ID,Mask") as caught:
        check_tables(tiny, A0)
    assert read_advice(caught.value) == {"submission_columns": expected}
    check_tables(tiny, make(read_advice(caught.value)))


def test_a_column_that_the_kit_cannot_know_is_said_so(tiny):
    Image.new("RGB", (40, 30)).save(tiny / "Test" / "Image" / "case_8.png")
    for rows in ("case_8,1,\ncase_9,2,", "case_8,{id},\ncase_9,{id},", 'case_8,"a,b",\ncase_9,"a,b",'):
        write(tiny, "sample_submission.csv", f"id,fold,rle\n{rows}\n")
        with pytest.raises(ValueError, match="column fold is not the same in all.*such as 'ID,fold=1,Mask'"):
            check_tables(tiny, A0)


@pytest.mark.parametrize("place", [".", ".."])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("samples_clinical_2019.csv", "patient;age\n1;44\n"),
        ("sample_metadata.csv", "patient,age\n1,44\n"),
        ("metadata.csv", "image,age\ncase_1,44\ncase_2,51\n"),
        ("metadata.csv", "image,box\ncase_1,3 4 5 6\ncase_2,10 20 3 4\n"),
        ("metadata.csv", "ID,size\ncase_1,30 40\ncase_2,30 40\n"),
        ("train.csv", "ID,Mask\ncase_1,Mask/case_1.png\n"),
        ("train.csv", "ID,Mask\ncase_1,1.png\ncase_2,2.png\n"),
        ("train.csv", "ID,Label,Mask\ncase_1,benign,\n"),
        ("empty_sample.csv", ""),
        ("resampled_spacing.csv", "ID,spacing\ncase_9,0.5\n"),
        ("sample_weights.csv", "ID,weight\ncase_1,1\ncase_9,2\n"),
        ("samples.csv", "ID,split\ncase_1,train\ncase_9,test\n"),
    ],
)
def test_tables_of_other_things_are_ignored(tiny, place, name, text):
    write(tiny / place, name, text)
    check_tables(tiny, A0)


def test_another_contests_sample_in_the_folder_above_is_ignored(tiny):
    for text in ("ImageId,EncodedPixels\nabc.jpg,1 1\n", "ID,Mask\nabc,\n", "id,rle\ncase_9,\na,\nb,\n"):
        write(tiny.parent, "sample_submission_of_ships.csv", text)
        check_tables(tiny, A0)
    write(tiny.parent, "sample_submission_of_ships.csv", "id,rle\ncase_9,\n")
    with pytest.raises(ValueError, match="pass -p submission_columns id,rle"):
        check_tables(tiny, A0)
    (tiny.parent / "sample_submission_of_ships.csv").unlink()
    write(
        tiny, "sample_submission.csv", "ImageId,EncodedPixels\nabc.jpg,1 1\n"
    )  # next to the data it is ours
    with pytest.raises(ValueError, match="its ids and the test images differ in abc.jpg, case_9 .2."):
        check_tables(tiny, A0)


def test_rows_of_several_regions_or_classes_are_no_contradiction(tiny):
    write(tiny, "train.csv", "ID,Mask\ncase_1,1 1\ncase_1,5 1\n")
    check_tables(tiny, A0)


@pytest.mark.parametrize("code", ["-1", "1 1", "0 0", "1 0", "None", ""])
def test_the_text_of_an_empty_mask_is_derived(tiny, code):
    Image.new("L", (40, 30)).save(tiny / "Train" / "Mask" / "case_1.png")
    write(tiny, "train.csv", f"ID,Mask\ncase_1,{code}\n")
    if code:
        with pytest.raises(ValueError, match=f"pass -[pr] empty_mask '?{re.escape(code)}'?$") as caught:
            check_tables(tiny, A0)
        assert ("-r empty_mask" in str(caught.value)) == (code == "None")
    check_tables(tiny, Contest(empty_mask=code))


def test_codes_after_many_empty_masks_are_read(tiny):
    rows = [f"other_{index}," for index in range(120)] + ["case_0,"]
    code = encode_rle(read_mask(tiny / "Train" / "Mask" / "case_1.png"), Contest(pixel_order="F"))
    write(tiny, "train.csv", "\n".join(["image,rle", "case_2,", *rows, f"case_1,{code}"]))
    for name in ("case_0", "case_2"):
        Image.new("L", (40, 30)).save(tiny / "Train" / "Mask" / f"{name}.png")
    with pytest.raises(ValueError, match="pass -p pixel_order F -p submission_columns image,rle$"):
        check_tables(tiny, A0)


def test_a_contest_that_takes_notebooks_only_may_list_images_that_nobody_has(tiny):
    write(tiny, "sample_submission.csv", "ID,Mask\ncase_9,\nhidden,\n")
    with pytest.raises(ValueError, match="its ids and the test images differ in hidden"):
        check_tables(tiny, A0)
    check_tables(tiny, Contest(notebooks_only=True))
    write(tiny, "sample_submission.csv", "id,height,width,predicted\nhidden,30,40,\n")
    with pytest.raises(ValueError, match="but the settings say") as caught:
        check_tables(tiny, Contest(notebooks_only=True))
    assert read_advice(caught.value) == {"submission_columns": "id,height={height},width={width},predicted"}


@pytest.mark.parametrize(
    "text",
    [
        ",ID,Mask\n0,case_9,\n",
        "ID,Mask,\ncase_9,,\n",
        "ID,Mask,Mask\ncase_9,,\n",
        "id,rle=x\ncase_9,\n",
        'id,"rle, encoded"\ncase_9,\n',
    ],
)
def test_columns_that_cannot_be_written_are_said_so(tiny, text):
    write(tiny, "sample_submission.csv", text)
    with pytest.raises(ValueError, match="which the kit cannot write; .*; remove the table to train"):
        check_tables(tiny, A0)


def test_a_sample_of_several_rows_for_an_image_is_refused(tiny):
    write(tiny, "sample_submission.csv", "ID,Mask\ncase_9,\ncase_9,\n")
    with pytest.raises(ValueError, match="has several rows for case_9 .1., .*remove the table to train"):
        check_tables(tiny, A0)


@pytest.mark.parametrize("name", ["{}.jpg", "{}.PNG", "Train/Image/{}.png", "{}"])
def test_codes_are_compared_whatever_their_ids_have_more_than_the_stem(tiny, name):
    code = encode_rle(read_mask(tiny / "Train" / "Mask" / "case_1.png"), Contest(pixel_order="F"))
    write(tiny, "train.csv", f"split,ID,Mask\ntrain,{name.format('case_1')},{code}\ntotal 1\n")
    with pytest.raises(ValueError, match="pass -p pixel_order F$"):
        check_tables(tiny, A0)


def test_codes_of_other_masks_say_how_many_and_what_may_have_been(tiny):
    write(tiny, "train.csv", "ID,Mask\ncase_1,1 5\ncase_2,3 9\n")
    with pytest.raises(ValueError, match="case_1: .*2 of 2 codes.*resized or the codes are predictions"):
        check_tables(tiny, A0)


def test_folders_and_broken_links_are_no_tables(tiny):
    (tiny / "train.csv").mkdir()
    (tiny / "sample_submission.csv").symlink_to("nowhere")
    check_tables(tiny, A0)


def test_a_sample_of_one_column_is_said_to_lack_the_other(tiny):
    write(tiny, "sample_submission.csv", "ID;Mask\ncase_9;\n")
    with pytest.raises(ValueError, match="has the columns .'ID;Mask'.; expected ids and codes, with commas"):
        check_tables(tiny, A0)


def test_without_test_images_a_sample_still_tells_the_columns(tiny):
    (tiny / "Test" / "Image" / "case_9.jpg").unlink()
    write(tiny, "sample_submission.csv", "id,rle\nx,\n")
    with pytest.raises(ValueError, match="pass -p submission_columns id,rle$"):
        check_tables(tiny, A0)


def test_a_sample_knows_the_columns_better_than_the_training_codes(tiny):
    code = encode_rle(read_mask(tiny / "Train" / "Mask" / "case_1.png"), A0)
    write(tiny, "train.csv", f"id,encoding\ncase_1,{code}\n")
    write(tiny, "sample_submission.csv", "id,predicted\ncase_9,\n")
    write(tiny, "._sample_submission.csv", "not, what, it, seems\n")
    with pytest.raises(ValueError, match="pass -p submission_columns id,predicted$") as caught:
        check_tables(tiny, A0)
    check_tables(tiny, make(read_advice(caught.value)))


def test_a_later_table_does_not_silence_an_earlier_one(tiny):
    masks = [read_mask(tiny / "Train" / "Mask" / f"case_{index}.png") for index in (1, 2)]
    codes = [encode_rle(masks[0], Contest(pixel_order="F")), encode_rle(masks[1], A0)]
    for name, index in (("a", 0), ("b", 1)):
        write(tiny, f"{name}.csv", f"ID,Mask\ncase_{index + 1},{codes[index]}\n")
    with pytest.raises(ValueError, match="a.csv has codes column by column.*pass -p pixel_order F"):
        check_tables(tiny, A0)
