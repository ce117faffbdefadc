"""A run: from parameters to its config, its folder, its data set and its network."""

import ast
import difflib
import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ctseg.config import NAMES, Config, check_names, fill_settings
from ctseg.contest import KAGGLE_INPUT
from ctseg.data import SegmentationDataset, find_cases, find_window
from ctseg.files import read_json, write_json
from ctseg.model import UNet, check_encoder, make_model
from ctseg.paths import find_data_root, find_run_dir, find_weights_file
from ctseg.transforms import EvalTransform

_PLAIN = (type(None), bool, int, float, str, list, tuple, dict)
_HINT = "; if it is a variable of the notebook, begin its name with an underscore, or run 'del {name}'"


def read_parameters(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Read a notebook's parameters from its `globals()`: the settings among its variables of plain data.

    Other variables are let alone, unless they look like a misspelled setting: those of a parameters cell (one
    that papermill injects, or that sets a setting and does little else), and those with a name close to a
    setting's that a cell sets to a literal. Without IPython's list of cells, any close name is one.

    Raises:
        ValueError: a name that is not a setting's.
    """
    hidden = ("_", "PAPERMILL_")
    public = {name: value for name, value in namespace.items() if not name.startswith(hidden)}
    plain = {name: value for name, value in public.items() if isinstance(value, _PLAIN)}
    cells = namespace.get("In")
    if isinstance(cells, list) and all(isinstance(cell, str) for cell in cells):
        declared = set().union(*map(_find_declared, cells))
    else:
        declared = {name for name in plain if _is_close(name)}
    check_names(sorted(declared & plain.keys()), hint=_HINT)
    return {name: value for name, value in plain.items() if name in NAMES}


def _find_declared(cell: str) -> set[str]:
    """The names that a cell sets as parameters; see `read_parameters`."""
    try:
        with warnings.catch_warnings(action="ignore"):
            statements = ast.parse(cell).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # IPython keeps cells that failed to parse
        return set()
    assignments = [statement for statement in statements if not isinstance(statement, ast.Expr)]
    if not all(isinstance(statement, ast.Assign | ast.AnnAssign) for statement in assignments):
        return set()
    nodes = [node for statement in assignments for node in ast.walk(statement)]
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    close = set(filter(_is_close, names))
    if names & set(NAMES) or cell.startswith("# Parameters"):  # papermill's first line
        return close | (names - used)  # a name that others are computed from is a helper
    return close if all(_is_literal(statement.value) for statement in assignments) else set()


def _is_literal(value: ast.expr | None) -> bool:
    """Whether an expression is plain data written out."""
    return value is not None and not any(isinstance(node, ast.Name | ast.Call) for node in ast.walk(value))


def _is_close(name: str) -> bool:
    """Whether a name is nearly a setting's."""
    return bool(difflib.get_close_matches(name, NAMES, n=1, cutoff=0.75))


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
    stored = read_json(path)
    if unknown := sorted(stored.keys() - set(NAMES)):
        raise ValueError(
            f"{path} has the setting {unknown[0]!r}, which this version of the kit does not know; train a "
            "new run, or use the version that made it"
        )
    return _complete(parameters, stored)


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

    A window for 16-bit images is no difference where all training images have 8 bits: test images may have
    more, and need one.

    Raises:
        ValueError: the folder holds a run with other settings; it is left as it is.
    """
    run_dir = find_run_dir(config.run)
    path = run_dir / "config.json"
    settings = config.settings()
    if not path.is_file():
        write_json(settings | {"run": config.run}, path)
    stored = read_json(path)
    differing = [name for name, value in settings.items() if value != stored.get(name)]
    only_window = set(differing) <= {"window_low", "window_high"}
    if differing and (not only_window or _uses_window(config)):
        found = "; ".join(
            f"{name}: got {settings[name]!r}, stored {stored.get(name)!r}" for name in differing
        )
        raise ValueError(
            f"{run_dir} holds a run with other settings ({found}); choose another run name, "
            f"or pass its own settings with papermill's '-f {path}'"
        )
    return run_dir


def _uses_window(config: Config) -> bool:
    """Whether training images have 16 bits."""
    return find_window(find_cases(Path(config.data_root), "train")) is not None


def make_dataset(config: Config, subset: str) -> SegmentationDataset:
    """The cases of "train" or "test" as this run's network sees them.

    A 16-bit window always comes from the training images.
    """
    root = Path(config.data_root)
    window = find_window(find_cases(root, "train"), config.window_low, config.window_high)
    transform = EvalTransform(config.target_size, config.weight_channels_by_contrast)
    return SegmentationDataset(find_cases(root, subset), transform, window)


def make_network(config: Config, weights: Path | None = None) -> UNet:
    """The run's network with a file's weights, else with the config's, as training starts it.

    Raises:
        FileNotFoundError: no such file, or torchvision's own weights are nowhere and cannot be downloaded.
    """
    try:
        return make_model(
            config.encoder,
            width=config.width,
            depth=config.depth,
            dropout=(config.bottleneck_dropout, config.decoder_dropout),
            weights=weights or config.weights,
            attached=KAGGLE_INPUT,
        )
    except FileNotFoundError as error:
        if weights or config.weights != "default":
            raise
        raise FileNotFoundError(
            f"{error}; on Kaggle turn the internet on, or attach a data set or model that contains the file "
            "(dataset_sources or model_sources in kernel-metadata.json)"
        ) from error
