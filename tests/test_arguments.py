"""Parameters on a command line, as papermill has them."""

import argparse

import pytest

from ctseg.arguments import add_parameters, parse_arguments, read_arguments


def read(*words) -> dict:
    parser = argparse.ArgumentParser()
    add_parameters(parser)
    return read_arguments(parse_arguments(parser, [str(word) for word in words]))


def test_single_values_win_over_files_and_later_files_over_earlier_ones(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 0.1\nepochs: 3\nrun: a\nseed:\n")
    (tmp_path / "b.json").write_text('{"epochs": 4, "lr": 5e-05}')
    given = read("-p", "run", "7", "-f", tmp_path / "a.yaml", "-r", "tta", "none", "-f", tmp_path / "b.json")
    assert given == {"lr": 5e-05, "epochs": 4, "run": 7, "tta": "none"}
    assert read() == {}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("-p", "lr", "1e-3"), {"lr": 0.001}),
        (("-p", "epochs", "None"), {}),
        (("-p", "empty_mask", "-1"), {"empty_mask": -1}),
        (("-p", "empty_mask", "1 1"), {"empty_mask": "1 1"}),
        (("-r", "run", "007"), {"run": "007"}),
        (
            ("-p", "mask_suffix", "-mask", "-r", "mask_prefix", "--f"),
            {"mask_suffix": "-mask", "mask_prefix": "--f"},
        ),
        (("-p", "group", "{[]: 1}"), {"group": "{[]: 1}"}),
        (("-p", "submission_columns", "id,h={height},rle"), {"submission_columns": "id,h={height},rle"}),
        (("-p", "group", r"^(v\d+)_"), {"group": r"^(v\d+)_"}),
    ],
)
def test_values_are_read_as_papermill_reads_them(words, expected):
    assert read(*words) == expected


def test_a_name_that_is_no_setting_and_a_file_that_is_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown parameter 'lrr', did you mean 'lr'"):
        read("-p", "lrr", "1")
    with pytest.raises(OSError, match="none.yaml"):
        read("-f", tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="bytes.yaml is not YAML or JSON"):
        read("-f", tmp_path / "bytes.yaml")
    (tmp_path / "broken.json").write_text('{"lr": 1,}')
    with pytest.raises(ValueError, match="broken.json is not YAML or JSON: .*; write"):
        read("-f", tmp_path / "broken.json")
