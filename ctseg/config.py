"""Every setting of a run, declared once: a frozen dataclass of fields with ranges, and four presets."""

import ast
import datetime
import difflib
import html
import numbers
import os
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args, get_type_hints

from ctseg.contest import Contest


def _number(default: float | None, low: float, high: float):
    """A field that has to lie in [low, high] (or be None, where its type allows it)."""
    return field(default=default, metadata={"range": (low, high)})


def _choice(default: str, *options: str):
    """A field that has to be one of the options."""
    return field(default=default, metadata={"options": options})


def _augmentation(default: float, high: float, *, shown: float):
    """The strength of a random change, in [0, high]; 0 is off, `shown` is strong enough to see."""
    return field(default=default, metadata={"range": (0, high), "shown": shown})


@dataclass(frozen=True)
class Config(Contest):
    """All settings of a run, a contest's facts among them; types and ranges are checked.

    The defaults are the reference solution's recipe.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a value out of range, or no length: neither epochs nor budget_minutes.
    """

    # What and where
    preset: str = "baseline"
    data_root: str = ""  # folder of the data set; "phantom"; "" searches
    run: str = ""  # folder below runs/; "" makes a name from the settings
    runs: str = ""  # trained runs, as "a,b", whose predictions 04 averages
    predict_folder: str = ""  # folder of images to predict instead of the contest's test images
    use_unfinished: bool = False  # make do with the epochs that unfinished folds have, in 04
    fold: int | None = _number(None, 0, 99)  # one of 0 … n_folds - 1, None for all
    n_folds: int = _number(1, 1, 100)  # 1: one model on a 90/10 split
    group: str = ""  # regular expression on ids, or a CSV: what it finds alike stays in one fold
    split: str = _choice("random", "random", "stratified")  # stratified: by region size, duplicates together
    seed: int = _number(42, 0, 2**31)
    # Length
    epochs: int | None = _number(30, 1, 100_000)
    budget_minutes: float | None = _number(None, 0.01, 10_000)  # of 03, from loading to out-of-fold
    deadline_minutes: float | None = _number(None, 0.01, 10_000)  # after the notebook's start training ends
    # Input
    target_size: int = _number(256, 32, 4096)  # pixels, side of the square that the network sees
    weight_channels_by_contrast: bool = False  # scale color channels by their share of the contrast
    window_low: float | None = _number(None, -1e9, 1e9)  # stored value of 16-bit images that becomes black
    window_high: float | None = _number(None, -1e9, 1e9)  # and white; None: 0.5 and 99.5 percentiles
    # Network
    encoder: str = "unet"  # the reference's, or the name of a torchvision classification network
    weights: str = ""  # of the encoder: "" from scratch, "default" torchvision's own, else a file
    weights_digest: str = ""  # of that file, which may lie anywhere; filled in
    width: int = _number(64, 1, 1024)  # channels of the first level
    depth: int = _number(4, 1, 6)  # how many times "unet" halves the size
    bottleneck_dropout: float = _number(0.3, 0, 0.9)
    decoder_dropout: float = _number(0.2, 0, 0.9)  # in the first decoder block
    # Training
    batch_size: int = _number(8, 1, 4096)
    lr: float = _number(1e-4, 1e-8, 10)  # the schedule's maximum
    schedule: str = _choice("constant", "constant", "one_cycle")
    weight_decay: float = _number(0.0, 0, 10)  # of AdamW, on weights only; 0 makes it plain Adam
    clip_norm: float | None = _number(None, 1e-6, 1e6)  # largest norm of the gradient, None for no limit
    bce_weight: float = _number(0.5, 0, 1)  # share of BCE in the loss; the rest is soft Dice
    border_weight: float = _number(0.0, 0, 100)  # by how much more BCE counts at the border of a region
    keep: str = _choice("best", "best", "last")  # the epoch whose weights are kept, see train.find_kept
    # Augmentation: each image of a batch draws its own changes, in ranges that are symmetric about no change
    flip: float = _augmentation(0.5, 1, shown=0.5)  # probability, horizontally and again vertically
    rot90: float = _augmentation(0.5, 1, shown=0.5)  # probability; with flip at ½, 8 equal orientations
    scale: float = _augmentation(0.0, 4, shown=0.5)  # z: zoom in [1 / (1 + z), 1 + z], and a random crop
    rotation: float = _augmentation(0.0, 180, shown=30)  # largest angle, degrees
    elastic: float = _augmentation(0.0, 0.2, shown=0.03)  # deviation of 8 x 8 nodes, as a share of the side
    brightness: float = _augmentation(0.0, 1, shown=0.25)  # largest offset, as a share of white
    contrast: float = _augmentation(0.0, 1, shown=0.5)  # largest change of the factor about the mean
    gamma: float = _augmentation(0.0, 4, shown=0.8)  # g: exponent in [1 / (1 + g), 1 + g]
    color: float = _augmentation(0.0, 1, shown=0.3)  # largest change of each channel's own factor
    noise: float = _augmentation(0.0, 1, shown=0.1)  # largest standard deviation, as a share of white
    # Prediction
    tta: str = _choice("none", "none", "flips", "d4")  # orientations that are averaged: 1, 4 or 8
    threshold: float = _number(0.5, 0, 1)

    def __post_init__(self):
        for name, allowed in _TYPES.items():
            _check_type(name, getattr(self, name), allowed)
        for entry in fields(self):
            _check_value(entry.name, getattr(self, entry.name), entry.metadata)
        if not re.fullmatch(r"[\w-]+", self.slug):
            raise ValueError(
                f"parameter slug: got {self.slug!r}, expected the contest's name as its address ends"
            )
        self.read_columns()
        if None not in (self.window_low, self.window_high) and self.window_low >= self.window_high:
            raise ValueError(
                f"window_low {self.window_low:g} with window_high {self.window_high:g}; expected less"
            )
        if self.fold is not None and self.fold >= self.n_folds:
            expected = f"0 … {self.n_folds - 1}, None for all, or more n_folds"
            raise ValueError(f"fold {self.fold} with n_folds {self.n_folds}; expected {expected}")
        if self.epochs is None and self.budget_minutes is None:
            raise ValueError("neither epochs nor budget_minutes is set; set one")

    def settings(self) -> dict[str, Any]:
        """The fields that decide a run's result.

        Not among them: where things are, the fold, and the contest's facts, because the training data are
        known by their content and the submission can be written in another format at any time.
        """
        chosen = {name: value for name, value in asdict(self).items() if name not in _NO_SETTINGS}
        is_file = self.weights not in ("", "default")
        return chosen | {"weights": self.weights_digest if is_file else self.weights}

    def stored(self) -> dict[str, Any]:
        """What a run keeps of its config, to be used anywhere: all but the fold and the places of data."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_STORED}

    def augmentation(self) -> dict[str, float]:
        """The strength of each random change of training images, by name."""
        return {name: getattr(self, name) for name in AUGMENTATIONS}

    def _repr_html_(self) -> str:
        """All fields in three columns, for a notebook."""
        entries = "".join(
            f"<div>{name} = {html.escape(repr(value))}</div>" for name, value in asdict(self).items()
        )
        style = "columns: 3; font-family: monospace; overflow-wrap: anywhere"
        return f'<div style="{style}">{entries}</div>'


def list_changes(config: Config) -> dict[str, tuple[Any, Any]]:
    """The settings that differ from their preset's: {name: (the config's, the preset's)}."""
    preset = Config(**{"preset": config.preset, **PRESETS[config.preset]})
    own, expected = config.settings() | {"weights": config.weights}, preset.settings()
    return {name: (value, expected[name]) for name, value in own.items() if value != expected[name]}


NAMES = tuple(entry.name for entry in fields(Config))
CONTEST_FACTS = tuple(entry.name for entry in fields(Contest))
_NOT_STORED = {"fold", "data_root", "predict_folder", "use_unfinished", "deadline_minutes"}
_NO_SETTINGS = {*_NOT_STORED, "run", "runs", "weights_digest", *CONTEST_FACTS}
_OPTIONS = {entry.name: entry.metadata["options"] for entry in fields(Config) if "options" in entry.metadata}
_TYPES = {
    name: get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for name, hint in get_type_hints(Config).items()
}
# The random changes of training images, and of each a strength that a picture shows.
AUGMENTATIONS = {entry.name: entry.metadata["shown"] for entry in fields(Config) if "shown" in entry.metadata}


def _check_type(name: str, value: Any, allowed: tuple[type, ...]) -> None:
    """Raise TypeError unless value is of an annotated type; an int will do for a float, a bool will not."""
    accepted = {*allowed, int} if float in allowed else set(allowed)
    if type(value) not in accepted:
        expected = " or ".join("None" if kind is type(None) else kind.__name__ for kind in allowed)
        fix = ""
        if type(value) is bool and {str, type(None)} & set(allowed):
            written = "it in quotes" if str in allowed else "null for none"
            fix = f"; YAML takes off, no, on and yes for True and False: write {written}"
        if isinstance(value, list) and str in allowed:
            fix = f"; write {','.join(map(str, value))!r}"
        raise TypeError(f"parameter {name}: got {value!r} ({type(value).__name__}), expected {expected}{fix}")


def _check_value(name: str, value: Any, metadata: Mapping) -> None:
    """Raise ValueError unless value is in the field's range or among its options."""
    low, high = metadata.get("range", (None, None))
    if value is not None and low is not None and not low <= value <= high:
        raise ValueError(f"parameter {name}: got {value!r}, expected {low} … {high}")
    if "options" in metadata and value not in metadata["options"]:
        raise ValueError(f"parameter {name}: got {value!r}, expected one of {', '.join(metadata['options'])}")


_MODERN = {
    "split": "stratified",
    "keep": "last",  # validation did not pick it; better by .015 on the phantom, see the README
    "schedule": "one_cycle",  # + .018 Dice over a constant rate
    "weight_decay": 0.01,  # PyTorch's default for AdamW
    # The reference's author asked for these; six epochs did not decide.
    "scale": 0.25,
    "rotation": 20,
    "elastic": 0.01,
    "brightness": 0.1,
    "contrast": 0.2,
    "gamma": 0.2,
    "color": 0.1,
}
_QUICK = {"epochs": 20, "target_size": 128, "width": 16, "batch_size": 4, "lr": 2e-3}
_STRONG = {
    "encoder": "mobilenet_v2",
    "weights": "default",  # + .046 Dice over none
    "n_folds": 5,
    "epochs": 30,
    "target_size": 192,
    "width": 16,
    "bottleneck_dropout": 0.0,
    "decoder_dropout": 0.0,
    "batch_size": 4,
    "lr": 1e-3,
    "border_weight": 5.0,  # + .004 Dice over none in ten minutes, undecided in 25
    "tta": "d4",
}
_GPU = {  # for two T4s of Kaggle: where to start, not measured on a GPU yet
    "encoder": "efficientnet_v2_s",  # its first stages are plain 3 x 3 convolutions, fast in half precision
    "weights": "default",
    "n_folds": 6,  # even, for two GPUs
    "epochs": 60,  # twice as many as `strong`, since a GPU has the time
    "target_size": 384,  # at which its weights were evaluated
    "width": 32,  # twice `strong`, as the encoder's maps are wider
    "bottleneck_dropout": 0.0,
    "decoder_dropout": 0.0,
    "batch_size": 16,  # assumed: smaller steps may leave a GPU waiting; in `strong` 4 was no worse
    "lr": 5e-4,  # lower and with more decay than `strong`, for seven times the weights
    "weight_decay": 0.02,
    "clip_norm": 1.0,  # a step in half precision may be huge
    "border_weight": 5.0,  # as in `strong`
    "tta": "d4",
}
PRESETS = {
    "baseline": {},  # the reference: 25 hours on its CPU
    "quick": _MODERN | _QUICK,  # from scratch in minutes on two CPU cores
    "strong": _MODERN | _STRONG,  # the best we know for a CPU, from ImageNet weights
    "gpu": _MODERN | _GPU,
}
_DEFAULT_PRESET = "quick"


def fill_settings(parameters: Mapping[str, Any], stored: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Complete parameters to the values that a `Config` is made of.

    An explicit value wins. A value that is missing or None comes from a run's `stored` settings, if it has
    any and no other preset is given, else from the preset; the contest's facts always come from the run. An
    explicit epochs or budget_minutes removes the other one of the preset.

    Raises:
        ValueError: an unknown name or preset.
    """
    check_names(parameters)
    given = {name: _convert(name, value) for name, value in parameters.items() if value is not None}
    stored = stored or {}
    preset = given.get("preset") or stored.get("preset") or _DEFAULT_PRESET
    if preset not in PRESETS:
        raise ValueError(f"parameter preset: got {preset!r}, expected one of {', '.join(PRESETS)}")
    if preset != stored.get("preset"):
        facts = {name: value for name, value in stored.items() if name in CONTEST_FACTS}
        stored = {"preset": preset, **PRESETS[preset], **facts}
    length = {"epochs": None, "budget_minutes": None} if given.keys() & {"epochs", "budget_minutes"} else {}
    return {**stored, **length, **given}


_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _convert(name: str, value: Any) -> Any:
    """A value in its setting's type, where it comes in another one and says the same.

    papermill makes text of `false` and a number of a run's name 7; YAML makes text of 1e-3 and False of off;
    a command line has a tuple for the runs 48,7; a live notebook may have NumPy's numbers and paths.
    """
    allowed = _TYPES[name]
    if bool in allowed:
        return _WORDS.get(str(value).strip().lower(), value)
    if isinstance(value, bool):
        return "none" if not value and "none" in _OPTIONS.get(name, ()) else value
    if str in allowed and isinstance(value, tuple):
        return ",".join(map(str, value))
    if str in allowed:
        return str(value) if isinstance(value, numbers.Real | os.PathLike | datetime.date) else value
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return value
    return int(number) if float not in allowed and number.is_integer() else number


def check_names(names: Iterable[str], hint: str = "") -> None:
    """Raise ValueError at the first name that is not a setting's; `hint` ends the message."""
    for name in names:
        if name not in NAMES:
            close = difflib.get_close_matches(str(name), NAMES, n=1)
            meant = f", did you mean {close[0]!r}?" if close else ""
            expected = f"expected one of {', '.join(NAMES)}"
            raise ValueError(f"unknown parameter {name!r}{meant}; {expected}{hint.format(name=name)}")


def parse_value(text: str) -> Any:
    """Read a setting's value from a command line: a number, True, False, None, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text
