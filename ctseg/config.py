"""Every number of a run in one place: a frozen dataclass, three presets, and the reading of notebook parameters."""

import ast
import difflib
import hashlib
import html
import json
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ctseg.data import find_data_root, find_repository
from ctseg.files import write_json
from ctseg.model import ENCODERS, VIEWS
from ctseg.transforms import Augment


def number(default: float | None, low: float, high: float):
    """A field that has to lie in [low, high] (or be None, where its type allows it)."""
    return field(default=default, metadata={"range": (low, high)})


def choice(default: str, *options: str):
    """A field that has to be one of the options."""
    return field(default=default, metadata={"options": options})


@dataclass(frozen=True)
class Config:
    """All settings of a run. The defaults are the reference solution's recipe, number by number; ranges are checked.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a value out of range, or no length (neither epochs nor budget_minutes).
    """

    # What and where
    preset: str = "baseline"
    data_root: str = ""  # folder with Train and Test; "phantom"; "" searches
    run: str = ""  # folder below runs/; "" makes a name from the settings
    fold: int | None = number(None, 0, 99)  # one of 0 … n_folds - 1, None for all
    n_folds: int = number(1, 1, 100)  # 1: one model on a 90/10 split
    split: str = choice("random", "random", "stratified")  # stratified by region size, near-duplicates together
    seed: int = number(42, 0, 2**31)
    # Length
    epochs: int | None = number(30, 1, 100_000)
    budget_minutes: float | None = number(None, 0.01, 10_000)  # of training and validation, all folds together
    # Input
    target_size: int = number(256, 32, 4096)  # pixels, side of the square the network sees
    favour_contrast: bool = False  # scale colour channels by their contrast
    window_low: float | None = number(None, -1e9, 1e9)  # stored value of 16-bit images that becomes black; None: 0.5 percentile
    window_high: float | None = number(None, -1e9, 1e9)  # and white; None: 99.5 percentile
    # Network
    encoder: str = choice("unet", *ENCODERS)
    weights: str = ""  # of the encoder: "" from scratch, "default" torchvision's own, else a file
    width: int = number(64, 1, 1024)  # channels of the first level
    depth: int = number(4, 1, 6)  # times that "unet" halves the size
    bottleneck_dropout: float = number(0.3, 0, 0.9)
    decoder_dropout: float = number(0.2, 0, 0.9)  # first decoder block
    # Training
    batch_size: int = number(8, 1, 4096)
    lr: float = number(1e-4, 1e-8, 10)  # largest of the schedule
    schedule: str = choice("constant", "constant", "one_cycle")
    weight_decay: float = number(0.0, 0, 10)
    clip_norm: float | None = number(None, 1e-6, 1e6)  # largest norm of the gradient
    bce_weight: float = number(0.5, 0, 1)  # the rest is soft Dice
    keep: str = choice("best", "best", "last")  # which epoch's weights
    # Augmentation, see transforms.Augment
    flip: float = number(0.5, 0, 1)  # probability, each axis
    turn: float = number(0.5, 0, 1)  # probability of a quarter turn
    scale: float = number(0.0, 0, 4)  # 0.25: zoom 0.8 … 1.25
    rotation: float = number(0.0, 0, 180)  # degrees
    elastic: float = number(0.0, 0, 0.2)  # share of the side
    brightness: float = number(0.0, 0, 1)
    contrast: float = number(0.0, 0, 1)
    gamma: float = number(0.0, 0, 4)
    colour: float = number(0.0, 0, 1)
    noise: float = number(0.0, 0, 1)
    # Prediction
    tta: str = choice("none", *VIEWS)  # orientations of an image that are averaged
    threshold: float = number(0.5, 0, 1)

    def __post_init__(self):
        for name, hint in get_type_hints(Config).items():
            check_type(name, getattr(self, name), hint)
        for entry in fields(self):
            check_value(entry.name, getattr(self, entry.name), entry.metadata)
        if self.fold is not None and self.fold >= self.n_folds:
            raise ValueError(f"fold {self.fold} with n_folds {self.n_folds}; expected 0 … {self.n_folds - 1}, or None for all")
        if self.epochs is None and self.budget_minutes is None:
            raise ValueError("neither epochs nor budget_minutes is set; set one")

    def settings(self) -> dict[str, Any]:
        """The fields that decide a run's result: all but the folder's name and the fold."""
        return {name: value for name, value in asdict(self).items() if name not in ("run", "fold")}

    def augment(self) -> Augment:
        """The training augmentation."""
        return Augment(**{entry.name: getattr(self, entry.name) for entry in fields(Augment)})

    def _repr_html_(self) -> str:
        """All fields in three columns, for a notebook."""
        entries = "".join(f"<div>{name} = {html.escape(repr(value))}</div>" for name, value in asdict(self).items())
        return f'<div style="columns: 3; font-family: monospace">{entries}</div>'


def check_type(name: str, value: Any, hint: Any) -> None:
    """Raise TypeError unless value is of the annotated type; an int is fine for a float, a bool is no number."""
    allowed = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    accepted = {*allowed, int} if float in allowed else set(allowed)
    if type(value) not in accepted:
        expected = " or ".join("None" if kind is type(None) else kind.__name__ for kind in allowed)
        fix = f"; write {value.capitalize()}" if bool in allowed and str(value).lower() in ("true", "false") else ""
        raise TypeError(f"parameter {name}: got {value!r} ({type(value).__name__}), expected {expected}{fix}")


def check_value(name: str, value: Any, metadata: Mapping) -> None:
    """Raise ValueError unless value is in the field's range or among its options."""
    low, high = metadata.get("range", (None, None))
    if value is not None and low is not None and not low <= value <= high:
        raise ValueError(f"parameter {name}: got {value!r}, expected {low} … {high}")
    if "options" in metadata and value not in metadata["options"]:
        raise ValueError(f"parameter {name}: got {value!r}, expected one of {', '.join(metadata['options'])}")


MODERN = {
    "split": "stratified",
    "keep": "last",
    "schedule": "one_cycle",
    "weight_decay": 0.01,
    "scale": 0.25,
    "rotation": 20,
    "elastic": 0.01,
    "brightness": 0.1,
    "contrast": 0.2,
    "gamma": 0.2,
    "colour": 0.1,
}
QUICK = {"epochs": 20, "target_size": 128, "width": 16, "batch_size": 4, "lr": 2e-3}
STRONG = {
    "encoder": "mobilenet_v2",
    "weights": "default",
    "n_folds": 5,
    "epochs": 30,
    "target_size": 192,
    "width": 16,
    "bottleneck_dropout": 0.0,
    "decoder_dropout": 0.0,
    "batch_size": 4,
    "lr": 1e-3,
    "tta": "turns",
}
PRESETS = {
    "baseline": {},  # the reference: 25 hours on its CPU
    "quick": MODERN | QUICK,  # from scratch in minutes on two CPU cores
    "strong": MODERN | STRONG,  # the best we know, from ImageNet weights
}
DEFAULTS = {"preset": "quick", "data_root": "", "run": ""}  # of the notebooks' parameters that are not None


def make_config(parameters: Mapping[str, Any], *, of_run: bool = False) -> Config:
    """Build the config from parameters, usually a notebook's `globals()`.

    None means what the preset says; an explicit value wins. Of epochs and budget_minutes an explicit one replaces the preset's other.
    data_root is looked up and weights made absolute, so that the settings mean the same from every folder.

    Args:
        parameters: names and values. From a notebook's globals everything that is not plain data, or private, is passed over.
        of_run: take what is not given from the existing run of that name, as notebook 04 does.

    Raises:
        ValueError, TypeError: an unknown name, preset or value, or a wrong type.
        FileNotFoundError: no data set, or no such weights file.
    """
    given = {name: value for name, value in plain_data(parameters).items() if value is not None}
    names = [entry.name for entry in fields(Config)]
    # Where `config` exists already, a cell is being run again in a live notebook whose other variables are the user's own business.
    unknown = [] if "config" in parameters else [name for name in given if name not in names]
    if unknown:
        close = difflib.get_close_matches(unknown[0], names, n=1)
        raise ValueError(
            f"unknown parameter {unknown[0]!r}{f', did you mean {close[0]!r}?' if close else ''}; expected one of {', '.join(names)}"
        )
    given = {name: value for name, value in given.items() if name in names}
    given |= {name: str(given[name]) for name in ("run", "data_root") if name in given}
    preset = given.setdefault("preset", DEFAULTS["preset"])
    if preset not in PRESETS:
        raise ValueError(f"parameter preset: got {preset!r}, expected one of {', '.join(PRESETS)}")
    values = dict(PRESETS[preset])
    if of_run and given.get("run") and (path := find_run(given["run"]) / "config.json").is_file():
        values = json.loads(path.read_text())
        given = {name: value for name, value in given.items() if DEFAULTS.get(name) != value}
    if "epochs" in given or "budget_minutes" in given:
        values |= {"epochs": None, "budget_minutes": None}
    values |= given
    values["data_root"] = str(find_data_root(values.get("data_root", "")))
    if given.get("weights", "default") not in ("", "default"):
        values["weights"] = str(find_weights(given["weights"]))
    config = Config(**values)
    if not config.run:
        digest = hashlib.sha256(json.dumps(config.settings(), sort_keys=True).encode()).hexdigest()[:8]
        config = Config(**values | {"run": f"{preset}-{digest}"})
    return config


def parse_value(text: str) -> Any:
    """Read a setting's value from a command line: a number, True, False, None, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def plain_data(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The public names of a namespace that hold plain data; not IPython's In and Out, nor what papermill tells about its files."""
    plain = (type(None), bool, int, float, str, list, tuple, dict)
    hidden = ("_", "PAPERMILL_")
    return {n: v for n, v in namespace.items() if isinstance(v, plain) and not n.startswith(hidden) and n not in ("In", "Out")}


def find_weights(weights: str) -> Path:
    """Find a weights file from the current folder, then from the repository root."""
    places = [Path(weights).expanduser().resolve(), (find_repository() / weights).resolve()]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"no weights file {weights!r}: looked for {' and '.join(map(str, places))}; pass an existing one, or '' for scratch"
    )


def find_run(run: str) -> Path:
    """The folder of a run, below `runs/` at the repository root; ValueError if the name would lead out of it."""
    if Path(run).name != run or run in ("", ".", ".."):
        raise ValueError(f"parameter run: got {run!r}, expected a plain folder name below runs/")
    return find_repository() / "runs" / run


def open_run(config: Config) -> Path:
    """Return the run's folder with its `config.json`, made if it is new.

    Raises:
        ValueError: the folder holds a run with other settings; it is left as it is.
    """
    folder = find_run(config.run)
    path = folder / "config.json"
    settings = config.settings()
    if not path.is_file():
        write_json(settings | {"run": config.run}, path)
    there = json.loads(path.read_text())
    differing = [f"{name}: got {value!r}, there {there.get(name)!r}" for name, value in settings.items() if value != there.get(name)]
    if differing:
        raise ValueError(
            f"{folder} holds a run with other settings ({'; '.join(differing)}); choose another run name, or pass its own settings with "
            f"papermill's '-f {path}'"
        )
    return folder
