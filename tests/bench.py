"""Figures of this machine: `make bench`, or with data and settings of one's own, `make bench DATA=… PRESET=… ARGS="-p name value"`.

Every time is the median of three; what is compared is timed in turn in the same run. The table of Dice against training seconds comes from
fold 0 trained anew for each of `--minutes`, the schedule fitted to it: what that much time buys, not what a longer run has reached by then.
"""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from ctseg.config import PRESETS, Config, find_run, make_config, parse_value
from ctseg.data import SegmentationDataset, load_squares, map_threads, read_image, read_size
from ctseg.files import atomic_path, write_json
from ctseg.folds import assign_folds, build_model, make_dataset, read_history, train_fold
from ctseg.model import VIEWS, choose_precision, find_device, predict_squares
from ctseg.plots import new_axes
from ctseg.submission import decode_rle, encode_rle
from ctseg.train import Learner, make_generator
from ctseg.transforms import TrainTransform


def measure(function: Callable, *, repeat: int = 3) -> float:
    """Median seconds of a call, after one to warm up."""
    device = find_device()

    def timed() -> float:
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    timed()
    return median(timed() for _ in range(repeat))


def bench_matrix_products() -> list[torch.dtype]:
    """GFLOP/s of a 2048 x 2048 matrix product in each precision, the yardstick between machines; returns those worth trying."""
    rates = {}
    for dtype in dict.fromkeys((torch.float32, torch.bfloat16, choose_precision(find_device()))):
        matrix = torch.randn(2048, 2048, device=find_device()).to(dtype)
        rates[dtype] = 2 * 2048**3 / measure(partial(torch.matmul, matrix, matrix)) / 1e9
        print(f"matrix product, {dtype}: {rates[dtype]:.0f} GFLOP/s", flush=True)
    return [dtype for dtype, rate in rates.items() if rate > rates[torch.float32] / 3]


def bench_step(name: str, config: Config, dtypes: list[torch.dtype]) -> None:
    """Seconds a training step of a config by precision and memory format, and the ratio to float32 in NCHW."""
    device, size = find_device(), config.target_size
    squares = torch.randint(0, 256, (config.batch_size, 3, size, size), dtype=torch.uint8)
    reference = None
    for dtype, (text, layout) in itertools.product(dtypes, {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}.items()):
        learner = Learner(build_model(config), augment=config.augment(), lr=config.lr, device=device)
        chosen = "  <- chosen" if (dtype, layout) == (learner.dtype, learner.layout) else ""
        learner.dtype, learner.layout = dtype, layout
        learner.model.to(memory_format=layout)
        seconds = measure(partial(learner.step, squares, squares[:, :1], make_generator(0)))
        reference = reference or seconds
        rate = config.batch_size / seconds
        print(f"step, {name}, {dtype}, {text}: {seconds:.3f} s, {rate:.1f} img/s, x {seconds / reference:.2f}{chosen}", flush=True)


def bench_images(config: Config) -> None:
    """Images a second of reading at native size, of loading squares, of augmentation and of prediction with and without TTA."""
    train = make_dataset(config, "Train")
    few = SegmentationDataset(train.cases[:64], train.transform, train.window)
    megapixels = np.mean([np.prod(read_size(case.image)) for case in few.cases]) / 1e6
    seconds = measure(lambda: list(map_threads(lambda case: read_image(case.image, window=train.window), few.cases)))
    print(f"reading images of {megapixels:.2f} megapixels: {len(few) / seconds:.0f} img/s", flush=True)
    print(
        f"loading squares of {config.target_size} with their masks: {len(few) / measure(lambda: load_squares(few)):.0f} img/s", flush=True
    )
    squares, device = load_squares(few), find_device()
    augment = TrainTransform(config.augment(), device)
    seconds = measure(lambda: augment(squares.images, squares.targets, make_generator(0)))
    print(f"augmentation: {len(squares) / seconds:.0f} img/s", flush=True)
    model = build_model(config).to(device)
    for tta in VIEWS:
        seconds = measure(partial(predict_squares, model, squares.images, tta=tta))
        print(f"prediction, tta {tta}: {len(squares) / seconds:.1f} img/s", flush=True)


def bench_codes() -> None:
    """Milliseconds to encode a mask of 12 megapixels, and to decode it."""
    y, x = np.mgrid[:3000, :4000]
    mask = (y - 1500) ** 2 + (x - 2000) ** 2 < 1e6 + 1e5 * np.sin(x / 50)
    rle = encode_rle(mask)
    seconds = measure(lambda: encode_rle(mask)), measure(lambda: decode_rle(rle, mask.shape))
    print(
        "run-length code of {:.0f} megapixels: {:.0f} ms, and back {:.0f} ms".format(mask.size / 1e6, *(1000 * s for s in seconds)),
        flush=True,
    )


def bench_training(config: Config, minutes: list[float], folder: Path) -> None:
    """Train fold 0 for each of `minutes`; print and write validation Dice against training seconds, as a table and a curve."""
    squares = load_squares(make_dataset(config, "Train"))
    fold_of_case = assign_folds(config, squares)
    rows = []
    figure, (axis,) = new_axes(1, columns=1, size=6, height=4)
    for budget in minutes:
        with tempfile.TemporaryDirectory() as scratch:
            train_fold(config, Path(scratch), 60 * budget, squares, fold_of_case, 0)
            history = read_history(Path(scratch) / "fold0")
        seconds = np.cumsum([row["seconds"] for row in history])
        rows.append({"minutes": budget, "seconds": float(seconds[-1]), "epochs": len(history), "val_dice": history[-1]["val_dice"]})
        axis.plot(seconds, [row["val_dice"] for row in history], color="lightgrey", marker=".")
    axis.plot([row["seconds"] for row in rows], [row["val_dice"] for row in rows], "o-", color="tab:blue")
    axis.set(xlabel="seconds of training and validation", ylabel="validation Dice of the last epoch")
    with atomic_path(folder / "curve.png") as partial:
        figure.savefig(partial, dpi=110)
    write_json({"config": config.settings(), "rows": rows}, folder / "curve.json")
    for row in rows:
        print(f"fold 0, {row['seconds']:.0f} s of training, {row['epochs']} epochs: validation Dice {row['val_dice']:.4f}", flush=True)
    print(folder / "curve.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="phantom")
    parser.add_argument("--preset", default="quick", choices=PRESETS)
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a setting of that preset")
    parser.add_argument("--minutes", type=float, nargs="*", default=[0.25, 0.5, 1.0], help="of training, for the table; may be empty")
    arguments = parser.parse_args()
    given = {"data_root": arguments.data, "run": "bench"} | {name: parse_value(value) for name, value in arguments.p}
    config = make_config({"preset": arguments.preset} | given)
    print(f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads, device {find_device()}, torch {torch.__version__}", flush=True)
    dtypes = bench_matrix_products()
    for preset in PRESETS:
        bench_step(preset, config if preset == arguments.preset else make_config({"preset": preset, "data_root": arguments.data}), dtypes)
    bench_images(config)
    bench_codes()
    if arguments.minutes:
        bench_training(config, arguments.minutes, find_run("bench"))


if __name__ == "__main__":
    main()
