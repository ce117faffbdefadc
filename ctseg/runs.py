"""A run: from parameters to its config, its folder, its data set and its network."""

import ast
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ctseg.config import Config, fill_settings
from ctseg.contest import KAGGLE_INPUT
from ctseg.data import SegmentationDataset, find_cases, find_window
from ctseg.files import read_json, write_json
from ctseg.model import UNet, check_encoder, find_pretrained, make_model
from ctseg.paths import find_data_root, find_run_dir, find_weights_file
from ctseg.transforms import EvalTransform

_PLAIN = (type(None), bool, int, float, str, list, tuple, dict)


def read_parameters(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Read a notebook's parameters from its `globals()`: public names that hold plain data.

    In a live notebook these are the names that were set by cells that do nothing else, and set at least one
    of them to a literal: the parameters cell, the cell that papermill injects, one of your own such as `lr =
    0.01`. Names that only other cells made, and those of IPython and papermill, are ignored. Without
    IPython's list of cells, every public name that holds plain data counts.
    """
    hidden = ("_", "PAPERMILL_")
    public = {name: value for name, value in namespace.items() if not name.startswith(hidden)}
    plain = {name: value for name, value in public.items() if isinstance(value, _PLAIN)}
    if "In" not in namespace:
        return plain
    names = set().union(*map(_find_assigned, namespace["In"]))
    return {name: value for name, value in plain.items() if name in names}


def _find_assigned(cell: str) -> set[str]:
    """The names that a cell sets, if it does nothing else and sets one of them to a literal; else none."""
    try:
        statements = ast.parse(cell).body
    except SyntaxError:  # a magic, perhaps
        return set()
    only_sets = all(isinstance(statement, ast.Assign | ast.AnnAssign) for statement in statements)
    if not only_sets or not any(_is_literal(statement.value) for statement in statements):
        return set()
    nodes = [node for statement in statements for node in ast.walk(statement)]
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _is_literal(value: ast.expr | None) -> bool:
    """Whether an expression names nothing; papermill writes infinity as float('inf')."""
    names = {node.id for node in ast.walk(value) if isinstance(node, ast.Name)} if value else {""}
    return names <= {"float"}


def make_config(**parameters: Any) -> Config:
    """Build the config from parameters; None means what the preset says, an explicit value wins.

    data_root is looked up and a weights file's path made absolute, so that the settings mean the same from
    every folder. A run without a name is named by its preset and its settings.

    Raises:
        ValueError, TypeError: an unknown name, preset, encoder or value, or a wrong type.
        FileNotFoundError: no data set, or no such weights file.
    """
    return _complete(parameters)


def make_config_of_run(**parameters: Any) -> Config:
    """As `make_config`, but what is not given comes from the existing run of that name, if there is one."""
    run = parameters.get("run")
    path = find_run_dir(str(run)) / "config.json" if run not in (None, "") else None
    if path is None or not path.is_file():
        return make_config(**parameters)
    return _complete(parameters, read_json(path))


def _complete(parameters: Mapping[str, Any], stored: Mapping[str, Any] | None = None) -> Config:
    """Check the settings, find the data and a weights file that is given, and name the run.

    The weights file that a stored run started from is not looked for: a trained run does not need it.
    """
    config = Config(**fill_settings(parameters, stored))
    check_encoder(config.encoder)
    config = replace(config, data_root=str(find_data_root(config.data_root)))
    if parameters.get("weights") not in (None, "", "default"):
        config = replace(config, weights=str(find_weights_file(config.weights)))
    if config.run:
        return config
    digest = hashlib.sha256(json.dumps(config.settings(), sort_keys=True).encode()).hexdigest()[:8]
    return replace(config, run=f"{config.preset}-{digest}")


def open_run(config: Config) -> Path:
    """Return the run's folder with its `config.json`, made if it is new.

    Raises:
        ValueError: the folder holds a run with other settings; it is left as it is.
    """
    run_dir = find_run_dir(config.run)
    path = run_dir / "config.json"
    settings = config.settings()
    if not path.is_file():
        write_json(settings | {"run": config.run}, path)
    stored = read_json(path)
    differing = [
        f"{name}: got {value!r}, stored {stored.get(name)!r}"
        for name, value in settings.items()
        if value != stored.get(name)
    ]
    if differing:
        raise ValueError(
            f"{run_dir} holds a run with other settings ({'; '.join(differing)}); choose another run name, "
            f"or pass its own settings with papermill's '-f {path}'"
        )
    return run_dir


def make_dataset(config: Config, subset: str) -> SegmentationDataset:
    """The cases of "train" or "test" as this run's network sees them.

    A 16-bit window always comes from the training images.
    """
    root = Path(config.data_root)
    window = find_window(find_cases(root, "train"), config.window_low, config.window_high)
    transform = EvalTransform(config.target_size, config.weight_channels_by_contrast)
    return SegmentationDataset(find_cases(root, subset), transform, window)


def make_network(config: Config, weights: Path | None = None) -> UNet:
    """The run's network with a file's weights, else with the config's, as training starts it."""
    if weights is None and config.weights == "default":
        weights = find_pretrained(config.encoder, KAGGLE_INPUT)
    elif weights is None and config.weights:
        weights = Path(config.weights)
    return make_model(
        config.encoder,
        width=config.width,
        depth=config.depth,
        dropout=(config.bottleneck_dropout, config.decoder_dropout),
        weights=weights,
    )
