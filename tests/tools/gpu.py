"""All that is to be measured on a GPU, in one command: `python tests/tools/gpu.py --data … --weights …`.

It needs what `ctseg` imports, but neither papermill nor jupytext, and runs no notebook. The figures are
printed as they come and written to `--out` as JSON. `--minutes` bounds each of the two trainings at the end,
of `baseline` in full and of five folds; `--small` tries the script itself, on a CPU too, in a minute.
"""

import argparse
import importlib.util
import itertools
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from ctseg.config import Config
from ctseg.data import load_training_set
from ctseg.device import check_gpus, find_device
from ctseg.files import write_json
from ctseg.folds import train_fold, train_folds
from ctseg.log import Log
from ctseg.paths import find_run_dir
from ctseg.runs import make_config, make_dataset, make_network, open_run
from ctseg.seeds import make_generator
from ctseg.train import Learner

ENCODERS = ("resnet50", "efficientnet_v2_s", "convnext_small")
TESTS = ("augment", "device", "losses", "metrics", "model", "predict", "train", "transforms", "weights")
FORMATS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}


class Report(dict):
    """Figures by name, printed as they come."""

    def add(self, name: str, value: object) -> None:
        self[name] = value
        print(f"{name}: {value}", flush=True)


def wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def run_tests(report: Report) -> None:
    """The tests of what computes, on this device; they need pytest and nbformat."""
    missing = [name for name in ("pytest", "nbformat", "PIL") if importlib.util.find_spec(name) is None]
    if missing:
        report.add("tests", f"not run, without {', '.join(missing)}")
        return
    files = [str(Path(__file__).parents[1] / f"test_{name}.py") for name in TESTS]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *files], capture_output=True, text=True)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    report.add("tests", " | ".join([*failed, *done.stdout.splitlines()[-1:]]))


def time_steps(config: Config, dtype: torch.dtype, memory_format: torch.memory_format, n: int) -> dict:
    """Median milliseconds of n steps, share of the time that the GPU computes, and its memory at most."""
    pixels = torch.randint(0, 256, (64, 4, config.target_size, config.target_size), dtype=torch.uint8)
    learner = Learner(make_network(config), config, find_device())
    learner.dtype, learner.memory_format = dtype, memory_format
    learner.scaler = torch.amp.GradScaler(learner.device.type, enabled=dtype == torch.float16)
    learner.model.to(memory_format=memory_format)
    pixels = pixels.to(learner.device)

    def step(number: int) -> float:
        started = time.perf_counter()
        learner.step(pixels[torch.arange(config.batch_size) + number % 8], make_generator(number))
        wait_for_device()
        return 1000 * (time.perf_counter() - started)

    for number in range(1 if n == 1 else 5):  # kernels are chosen
        step(number)
    figures = {"ms": round(median(map(step, range(n))), 2)}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for number in range(n):
                learner.step(pixels[: config.batch_size], make_generator(number))
            wait_for_device()
        elapsed = 1e6 * (time.perf_counter() - started)
        busy = sum(event.self_device_time_total for event in profiler.key_averages())
        figures |= {"busy": round(busy / elapsed, 2), "GB": round(torch.cuda.max_memory_allocated() / 1e9, 2)}
    return figures


def time_networks(report: Report, *, small: bool) -> None:
    """Step times by network, precision, memory format and cudnn.benchmark."""
    size, batch_size, n = (32, 2, 1) if small else (384, 16, 30)
    tiny = {"target_size": 32, "batch_size": 2, "width": 4} if small else {}
    presets = {
        name: replace(make_config(preset=name, data_root="phantom", weights=""), **tiny)
        for name in ("baseline", "strong")
    }
    large = {
        name: replace(presets["strong"], encoder=name, target_size=size, batch_size=batch_size)
        for name in ENCODERS[: 1 if small else None]
    }
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    for name, config in (presets | large).items():
        for dtype, layout, is_tuned in itertools.product(dtypes, FORMATS, (False, True)):
            torch.backends.cudnn.benchmark = is_tuned
            what = f"step, {name}, {config.target_size} x {config.batch_size}, {dtype}, {layout}"
            figures = time_steps(config, dtypes[dtype], FORMATS[layout], n)
            report.add(f"{what}, benchmark {'on' if is_tuned else 'off'}", figures)
    torch.backends.cudnn.benchmark = False


class StopAfterOne(Log):
    """Ctrl-C after the first epoch."""

    def on_epoch(self, *_) -> None:
        raise KeyboardInterrupt


def compare_repeats(report: Report, data: str, *, small: bool) -> None:
    """Trainings of one seed, again and resumed: the largest difference of a weight."""
    states = {}
    for name in ("gpu_first", "gpu_again", "gpu_resumed"):
        settings = {"epochs": 3, "n_folds": 2, "fold": 0} | ({"target_size": 32, "width": 4} if small else {})
        config = make_config(preset="quick", data_root=data, run=name, **settings)
        shutil.rmtree(find_run_dir(name), ignore_errors=True)  # of an earlier measurement
        run_dir, training_set = open_run(config), load_training_set(make_dataset(config, "train"))
        train = partial(train_fold, config, run_dir, training_set, np.arange(len(training_set)) % 2, 0)
        if name == "gpu_resumed":
            with suppress(KeyboardInterrupt):
                train(log=StopAfterOne())
        train()
        states[name] = torch.load(run_dir / "fold0" / "best_unet_model.pth", weights_only=True)["state_dict"]
    first = states.pop("gpu_first")
    for name, state in states.items():
        differences = [(state[key].float() - first[key].float()).abs().max().item() for key in first]
        report.add(f"{name} against gpu_first, largest difference", max(differences))


def train_in_full(report: Report, data: str, weights: str, minutes: float, *, small: bool) -> None:
    """`baseline` as the reference was trained, and five folds of MobileNetV2; minutes and validation Dice."""
    tiny = {"target_size": 64, "width": 4, "epochs": 1} if small else {}
    runs = {
        "gpu_baseline": {"preset": "baseline"} | tiny,
        "gpu_five_folds": {"preset": "strong", "weights": weights, "target_size": 256, "batch_size": 16}
        | tiny,
    }
    for name, settings in runs.items():
        shutil.rmtree(find_run_dir(name), ignore_errors=True)
        config = make_config(data_root=data, run=name, **settings)
        config = replace(config, deadline_minutes=None if minutes is None else _minutes_so_far() + minutes)
        started = time.monotonic()
        histories = train_folds(config, open_run(config))
        scores = {k: round(history[-1]["val_dice"], 4) for k, history in histories.items()}
        skipped = sum(row["skipped_steps"] for history in histories.values() for row in history)
        epochs = [len(history) for history in histories.values()]
        elapsed = round((time.monotonic() - started) / 60, 2)
        report.add(name, {"minutes": elapsed, "epochs": epochs, "val_dice": scores, "skipped": skipped})


_STARTED = time.monotonic()


def _minutes_so_far() -> float:
    return (time.monotonic() - _STARTED) / 60


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="phantom")
    parser.add_argument("--weights", default="", help="of MobileNetV2, for the five folds")
    parser.add_argument("--minutes", type=float, help="at most, of each of the two trainings")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--small", action="store_true")
    given, report = parser.parse_args(), Report()
    report.add("device", f"{check_gpus()}, torch {torch.__version__}")
    parts = [
        partial(run_tests, report),
        partial(time_networks, report, small=given.small),
        partial(compare_repeats, report, given.data, small=given.small),
        partial(train_in_full, report, given.data, given.weights, given.minutes, small=given.small),
    ]
    for part in parts[1 if given.small else 0 :]:
        part()
        write_json(report, given.out)


if __name__ == "__main__":
    main()
