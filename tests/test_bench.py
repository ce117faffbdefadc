"""`make bench` runs, on settings small enough for a test; its figures are not looked at."""

import json
import re

import bench
import torch

from ctseg.paths import find_run_dir
from ctseg.runs import make_config


def test_the_bench_prints_its_figures_and_writes_the_curve(phantom, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = {"target_size": 32, "width": 2, "depth": 2}
    config = make_config(preset="quick", data_root=str(phantom), run="bench", **small)
    assert torch.float32 in bench.bench_matrix_products()
    bench.bench_step("quick", config, [torch.float32])
    bench.bench_images(config)
    bench.bench_waiting(config)
    bench.bench_codes()
    bench.bench_training(config, [0.02, 0.03], find_run_dir("bench"))
    printed = capsys.readouterr().out
    for pattern in (
        r"matrix product, torch.float32: \d+ GFLOP/s",
        r"step, quick, torch.float32, NCHW: .* x 1.00",
        r"step, quick, torch.float32, NHWC: .* x \d",
        r"reading images of 0\.\d+ megapixels: \d+ img/s",
        r"augmentation: \d+ img/s",
        r"prediction, tta d4: ",
        r"the host's work: \d+\.\d ms a batch of \d+ at 32, \d",
        r"validation: .* s for 5 images, after \d+ steps of \d+ ms: \d+\.\d% of an epoch",
        r"of an epoch; without the network -?\d+\.\d ms an image",
        r"choice of a post-processing, 24 images: \d+ s, \d+ s for the final scores",
        r"run-length code of 12 megapixels: \d+ ms",
        r"fold 0, \d+ s of training, \d+ epochs: validation Dice 0\.\d{4}",
    ):
        assert re.search(pattern, printed), pattern
    assert (tmp_path / "runs" / "bench" / "curve.png").stat().st_size > 5000
    curve = json.loads((tmp_path / "runs" / "bench" / "curve.json").read_text())
    assert [row["minutes"] for row in curve["rows"]] == [0.02, 0.03]
