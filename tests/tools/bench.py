"""Times of this machine: `make bench`, on your data `make bench DATA=… PRESET=… ARGS="-p name value"`.

Every time is the median of three; times to compare are taken in turn in the same run. The table of Dice
against training seconds comes from fold 0 trained anew for each of `--minutes`, the schedule fitted to it:
the worth of that much time, and not a longer run's state by then.
"""

import argparse
import itertools
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from scipy import ndimage

from ctseg.augment import Augment, TrainTransform
from ctseg.config import PRESETS, Config, parse_value
from ctseg.contest import A0
from ctseg.data import (
    SegmentationDataset,
    TrainingSet,
    load_training_set,
    map_threads,
    read_image,
    read_size,
)
from ctseg.device import choose_precision, find_device, use_threads
from ctseg.files import atomic_path, write_json
from ctseg.folds import assign_folds, train_fold
from ctseg.paths import find_run_dir
from ctseg.plots import COLORS, new_axes
from ctseg.postprocess import PostProcess, choose_postprocess, choose_without, score_own
from ctseg.predict import ORIENTATIONS, OutOfFold, predict_probabilities, predict_training_set
from ctseg.runs import make_config, make_dataset, make_network
from ctseg.seeds import make_generator
from ctseg.submission import decode_rle, encode_rle
from ctseg.train import Learner, count_batches, evaluate_model, read_history


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
    """Print GFLOP/s of a 2048 x 2048 matrix product in each precision; return those worth trying.

    It is the yardstick between machines.
    """
    rates = {}
    for dtype in dict.fromkeys((torch.float32, torch.bfloat16, choose_precision(find_device()))):
        matrix = torch.randn(2048, 2048, device=find_device()).to(dtype)
        rates[dtype] = 2 * 2048**3 / measure(partial(torch.matmul, matrix, matrix)) / 1e9
        print(f"matrix product, {dtype}: {rates[dtype]:.0f} GFLOP/s", flush=True)
    return [dtype for dtype, rate in rates.items() if rate > rates[torch.float32] / 3]


def bench_step(name: str, config: Config, dtypes: list[torch.dtype]) -> None:
    """Print seconds per training step by precision and memory format, and the ratio to float32 in NCHW."""
    device, size = find_device(), config.target_size
    pixels = torch.randint(0, 256, (config.batch_size, 4, size, size), dtype=torch.uint8)
    formats = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
    reference = None
    for dtype, (text, memory_format) in itertools.product(dtypes, formats.items()):
        learner = Learner(make_network(config), config, device)
        chosen = "  <- chosen" if (dtype, memory_format) == (learner.dtype, learner.memory_format) else ""
        learner.dtype, learner.memory_format = dtype, memory_format
        learner.model.to(memory_format=memory_format)
        seconds = measure(partial(learner.step, pixels, make_generator(0)))
        reference = reference or seconds
        rate = config.batch_size / seconds
        speed = f"{seconds:.3f} s, {rate:.1f} img/s, x {seconds / reference:.2f}"
        print(f"step, {name}, {dtype}, {text}: {speed}{chosen}", flush=True)


def bench_images(config: Config) -> None:
    """Print images per second of reading, of loading, of augmentation, of prediction with and without TTA."""
    train = make_dataset(config, "train")
    sample = SegmentationDataset(train.cases[:64], train.transform, train.window)
    megapixels = np.mean([np.prod(read_size(case.image)) for case in sample.cases]) / 1e6
    seconds = measure(
        lambda: list(map_threads(lambda case: read_image(case.image, window=train.window), sample.cases))
    )
    print(f"reading images of {megapixels:.2f} megapixels: {len(sample) / seconds:.0f} img/s", flush=True)
    seconds = measure(lambda: load_training_set(sample))
    print(f"loading at {config.target_size} with masks: {len(sample) / seconds:.0f} img/s", flush=True)
    training_set, device = load_training_set(sample), find_device()
    transform = TrainTransform(Augment(**config.augmentation()), device)
    seconds = measure(lambda: transform(training_set.pixels, make_generator(0)))
    print(f"augmentation: {len(training_set) / seconds:.0f} img/s", flush=True)
    model = make_network(config).to(device)
    for tta in ORIENTATIONS:
        seconds = measure(partial(predict_probabilities, model, training_set.pixels[:, :3], tta=tta))
        print(f"prediction, tta {tta}: {len(training_set) / seconds:.1f} img/s", flush=True)


def bench_waiting(config: Config) -> None:
    """Print what surrounds a step: what the host does while another device trains, and validation's share.

    The host draws, gathers and packs on one thread; the rest of a step is the device's.
    """
    training_set = load_training_set(make_dataset(config, "train"))
    pixels = training_set.pixels.nbytes / 1e6
    peak = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    )
    print(f"loading {len(training_set)} images: {training_set.seconds:.1f} s, {pixels:.0f} MB", flush=True)
    print(f"memory of this process at most: {peak:.0f} MB", flush=True)
    learner = Learner(make_network(config), config, find_device())
    augment, n = Augment(**config.augmentation()), config.batch_size
    indices = torch.randperm(len(training_set), generator=make_generator(0))[:n]
    with use_threads(1):
        gather = measure(lambda: training_set.get_batch(indices))
        draw = measure(lambda: augment.draw(n, make_generator(0)))
    host = f"{1000 * (gather + draw):.1f} ms a batch of {n} at {config.target_size}"
    print(f"the host's work: {host}, {1000 * gather:.1f} of them gathering", flush=True)
    step = measure(lambda: learner.step(training_set.get_batch(indices, learner.device), make_generator(0)))
    validation = training_set.select(range(0, len(training_set), 5))
    seconds = measure(lambda: evaluate_model(learner.model, validation))
    steps = count_batches(len(training_set) - len(validation), n)
    share = seconds / (seconds + steps * step)
    what = f"{seconds:.2f} s for {len(validation)} images, after {steps} steps of {1000 * step:.0f} ms"
    predicting = measure(lambda: list(predict_training_set(learner.model, validation)))
    scoring = f"without the network {1000 * (seconds - predicting) / len(validation):.1f} ms an image"
    print(f"validation: {what}: {share:.1%} of an epoch; {scoring}", flush=True)
    bench_choice(training_set)


def bench_choice(training_set: TrainingSet) -> None:
    """Print the time of the choice of a post-processing, on blurred true masks in place of predictions."""
    targets = training_set.pixels[training_set.rows, 3].numpy() / np.float32(255)
    probabilities = [
        np.round(255 * ndimage.gaussian_filter(target, 1.5)).astype(np.uint8) for target in targets
    ]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "oof.npz"
        ids = [case.image_id for case in training_set.cases]
        sizes = [letterbox.original_size for letterbox in training_set.letterboxes]
        np.savez(path, image_ids=ids, sizes=sizes, probabilities=probabilities, scores=np.zeros(len(ids)))
        validation = OutOfFold([path], training_set.cases)
    started = time.perf_counter()
    small = validation.shrink()
    chosen = choose_postprocess(small.score_each, PostProcess())
    choices = choose_without(small.score_each, PostProcess(), validation.folds)
    searched = time.perf_counter() - started
    fitted = score_own(validation.score_each, choices)
    seconds = f"{searched:.0f} s, {time.perf_counter() - started - searched:.0f} s for the final scores"
    print(
        f"choice of a post-processing, {len(ids)} images: {seconds} ({chosen}, {fitted.mean():.4f})",
        flush=True,
    )


def bench_codes() -> None:
    """Print milliseconds to encode a mask of 12 megapixels, and to decode it."""
    y, x = np.mgrid[:3000, :4000]
    mask = (y - 1500) ** 2 + (x - 2000) ** 2 < 1e6 + 1e5 * np.sin(x / 50)
    rle = encode_rle(mask, A0)
    seconds = measure(lambda: encode_rle(mask, A0)), measure(lambda: decode_rle(rle, mask.shape, A0))
    there, back = (f"{1000 * value:.0f} ms" for value in seconds)
    print(f"run-length code of {mask.size / 1e6:.0f} megapixels: {there}, and back {back}", flush=True)


def bench_training(config: Config, minutes: list[float], run_dir: Path) -> None:
    """Train fold 0 for each of `minutes`; print and write validation Dice against training seconds."""
    training_set = load_training_set(make_dataset(config, "train"))
    fold_of_case = assign_folds(config, run_dir, training_set)
    rows = []
    figure, (axis,) = new_axes(1, columns=1, size=6, height=4)
    for budget in minutes:
        with tempfile.TemporaryDirectory() as scratch:
            ends_at = time.monotonic() + 60 * budget
            train_fold(config, Path(scratch), training_set, fold_of_case, 0, ends_at=ends_at)
            history = read_history(Path(scratch) / "fold0")
        seconds = np.cumsum([row["seconds"] for row in history])
        row = {"minutes": budget, "seconds": float(seconds[-1]), "epochs": len(history)}
        rows.append(row | {"val_dice": history[-1]["val_dice"]})
        axis.plot(seconds, [row["val_dice"] for row in history], color="lightgray", marker=".")
    axis.plot([row["seconds"] for row in rows], [row["val_dice"] for row in rows], "o-", color=COLORS[0])
    axis.set(xlabel="seconds of training and validation", ylabel="validation Dice of the last epoch")
    with atomic_path(run_dir / "curve.png") as partial:
        figure.savefig(partial, dpi=110)
    write_json({"config": config.settings(), "rows": rows}, run_dir / "curve.json")
    for row in rows:
        length = f"{row['seconds']:.0f} s of training, {row['epochs']} epochs"
        print(f"fold 0, {length}: validation Dice {row['val_dice']:.4f}", flush=True)
    print(run_dir / "curve.png")


def main() -> None:
    """Print all figures for the data and the settings of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="phantom")
    parser.add_argument("--preset", default="quick", choices=PRESETS)
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a setting of that preset"
    )
    parser.add_argument(
        "--minutes", type=float, nargs="*", default=[0.25, 0.5, 1.0], help="of training, for the table"
    )
    arguments = parser.parse_args()
    given = {"data_root": arguments.data, "run": "bench"} | {
        name: parse_value(value) for name, value in arguments.p
    }
    config = make_config(preset=arguments.preset, **given)
    cores = f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads"
    print(f"{cores}, device {find_device()}, torch {torch.__version__}", flush=True)
    dtypes = bench_matrix_products()
    for preset in PRESETS:
        others = make_config(preset=preset, data_root=arguments.data, weights="")
        bench_step(preset, config if preset == arguments.preset else others, dtypes)
    bench_images(config)
    bench_waiting(config)
    bench_codes()
    if arguments.minutes:
        bench_training(config, arguments.minutes, find_run_dir("bench"))


if __name__ == "__main__":
    main()
