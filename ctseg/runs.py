"""A run: from parameters to its config, its folder, its data set and its network."""

import ast
import difflib
import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ctseg.config import CONTEST_FACTS, NAMES, Config, check_names, fill_settings
from ctseg.contest import A0, KAGGLE_INPUT
from ctseg.data import (
    Case,
    SegmentationDataset,
    find_cases,
    find_files,
    find_training_files,
    find_window,
    printable,
)
from ctseg.files import read_json, write_json
from ctseg.fingerprint import check_training_data, is_begun, read_window
from ctseg.folders import IMAGE_SUFFIXES, find_folders
from ctseg.live import is_live
from ctseg.model import UNet, check_encoder, make_model
from ctseg.paths import find_data_root, find_file, find_repository, find_run_dir, find_runs, make_portable
from ctseg.transforms import EvalTransform
from ctseg.weights import check_pretrained

PLACES = "places.json"  # in a run's folder: where its data were, here
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
    public = {
        name: value
        for name, value in namespace.items()
        if not (name.startswith(hidden) or callable(value) or isinstance(value, ModuleType))
    }
    plain = {name: value for name, value in public.items() if isinstance(value, _PLAIN)}
    cells = namespace.get("In")
    if isinstance(cells, list) and all(isinstance(cell, str) for cell in cells):
        declared = set().union(*map(_find_declared, cells))
    else:
        declared = {name for name in plain if _is_close(name)}
    check_names(sorted(declared & plain.keys()), hint=_HINT)
    return {name: value for name, value in public.items() if name in NAMES}


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
    """Build the config from parameters.

    None means what the run of that name says, if it exists, else what the preset says; an explicit value
    wins. The data are looked for where `data_root` says, or where the run had them last and in the usual
    places, and are the phantom where there are none; new images need none. A run without a name is named by
    its preset, settings and training images.

    Raises:
        ValueError, TypeError: an unknown name, preset, encoder or value, a wrong type, or a damaged run.
        FileNotFoundError: no data set, or no such weights file.
    """
    config = read_config(**parameters)
    check_encoder(config.encoder)
    if config.weights == "default":
        check_pretrained(config.encoder)
    if config.weights in ("", "default"):
        config = replace(config, weights_digest="")
    elif parameters.get("weights"):
        config = _find_weights(config, parameters)
    if config.predict_folder:
        return config
    config = replace(config, data_root=str(_find_data(config)))
    return config if config.run else replace(config, run=_name_run(config))


def read_config(**parameters: Any) -> Config:
    """As `make_config`, but nothing is looked for but the run, and nothing filled in."""
    stored = _read_stored(parameters.get("run")) or {}
    if runs := Config(runs=fill_settings(parameters).get("runs") or stored.get("runs", "")).runs:
        return _read_average(runs, parameters, stored)
    if stored and not is_begun(find_run_dir(str(parameters["run"]))):
        # What was tried before a fold has weights is not what the run says.
        stored = {name: value for name, value in stored.items() if name in CONTEST_FACTS}
    return Config(**fill_settings(parameters, stored))


def _read_average(runs: str, parameters: Mapping[str, Any], stored: Mapping[str, Any]) -> Config:
    """The config of an average of runs: the first one's settings, a name of its own, the facts that it keeps.

    Raises:
        ValueError: no name, one that is repeated or the average's own, a run without trained folds, or
            settings.
    """
    names = _split_names(runs)
    run = str(parameters.get("run") or _name_average(names))
    for name in names:
        if not is_begun(find_run_dir(name)):
            raise ValueError(f"parameter runs: {name!r} is no run with trained folds below {find_runs()}")
    if len(names) < 2:
        raise ValueError(
            f"parameter runs: got {runs!r}, expected the names of two trained runs or more, as in a,b"
        )
    if len({*names, run}) <= len(names):
        raise ValueError(
            f"parameter runs: got {runs!r} for the run {run!r}; expected each once, and another name for it"
        )
    facts = {name: stored[name] for name in CONTEST_FACTS if name in stored}
    base = _read_stored(names[0]) | facts
    config = Config(**fill_settings({**parameters, "run": run, "runs": runs}, base))
    own = Config(**base).settings()
    changed = [name for name, value in config.settings().items() if value != own[name]]
    if set(changed) - {"window_low", "window_high"}:  # of each run, which `find_members` asks
        raise ValueError(f"parameter {changed[0]}: runs {runs!r} have their own settings; leave it out")
    return config


def _name_average(names: Sequence[str]) -> str:
    """A name made from those of the runs, short enough for a folder."""
    joined = "+".join(names).replace("/", "-")
    return joined if len(joined) <= 100 else f"average-{hashlib.sha256(joined.encode()).hexdigest()[:8]}"


def _split_names(runs: str) -> list[str]:
    """The names in "a,b"; one that has commas, as those of a sweep, is known by its folder."""
    parts, names = [part.strip() for part in runs.split(",")], []
    while parts:
        lengths = range(len(parts), 1, -1)
        length = next((n for n in lengths if _is_trained(",".join(parts[:n]))), 1)
        names.append(",".join(parts[:length]))
        del parts[:length]
    return [name for name in names if name]


def _is_trained(name: str) -> bool:
    """Whether there is a run of this name, which may be too long for one, with trained folds."""
    folder = find_runs() / name
    return os.path.isdir(folder) and is_begun(folder)


def _read_stored(run: Any) -> dict[str, Any] | None:
    """The settings of the run of that name; None if there is none."""
    path = find_run_dir(str(run)) / "config.json" if run not in (None, "") else None
    if path is None:
        return None
    if not path.is_file():
        if is_begun(path.parent):
            raise ValueError(
                f"{path.parent} has trained folds, but no config.json with their settings; copy the whole run"
            )
        return None
    stored = read_json(path)
    if unknown := sorted(stored.keys() - set(NAMES)):
        raise ValueError(
            f"{path} has the setting {unknown[0]!r}, which this version of the kit does not know; train a "
            "new run, or use the version that made it"
        )
    return stored


def _find_weights(config: Config, parameters: Mapping[str, Any]) -> Config:
    """Find the weights file that is given, and note its checksum, by which it is known anywhere.

    That of a run need not be there any more: trained folds do not need it.
    """
    try:
        path = find_file(config.weights)
    except FileNotFoundError as error:
        stored = _read_stored(config.run) or {}
        if parameters.get("weights_digest") or config.weights == stored.get("weights"):
            return config
        raise FileNotFoundError(f"{error}, or '' for scratch") from None
    return replace(config, weights=str(make_portable(path)), weights_digest=_digest(path))


def _digest(path: Path) -> str:
    """A checksum of a weights file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _find_data(config: Config) -> Path:
    """The data root; without an explicit one the run's last place, the usual ones, at last the phantom."""
    if config.data_root:
        return find_data_root(config.data_root, config)
    name = (_split_names(config.runs) or [config.run])[0]
    begun = bool(name) and is_begun(find_run_dir(name))
    last = _read_place(name)
    try:
        root = _find_again(config, last) if last else find_data_root("", config)
    except FileNotFoundError:
        if last or begun or not _may_use_phantom(config):
            raise
        root = find_data_root("phantom", config)
    if _is_phantom(root) and not begun:
        print("DATA: the synthetic phantom; data_root names your own", flush=True)
    return root


def _is_phantom(root: Path) -> bool:
    """Whether a data root is that of the phantom."""
    return root == (find_repository() / "data" / "phantom" / "Dataset").resolve()


def _may_use_phantom(config: Config) -> bool:
    """Whether a new run may do without data: none is given or in `data/`, and this is no Kaggle kernel."""
    facts = (config.train_images, config.train_masks, config.test_images, config.group)
    is_given = bool(os.environ.get("CTSEG_DATA")) or any(facts) or config.slug != A0.slug
    on_kaggle = KAGGLE_INPUT.is_dir() or "KAGGLE_KERNEL_RUN_TYPE" in os.environ
    others = [path for path in (find_repository() / "data").glob("[!.]*") if path.name != "phantom"]
    return not is_given and not on_kaggle and not others


def _read_place(run: str) -> str:
    """Where the data of a run were last; "" if that is not known."""
    path = find_run_dir(run) / PLACES if run else None
    return read_json(path).get("data_root", "") if path and path.is_file() else ""


def _find_again(config: Config, last: str) -> Path:
    """The data of a run: where they were last, or in the usual places."""
    try:
        return find_data_root(last, config)
    except FileNotFoundError:
        print(f"the data of {config.run} are no longer in {last}; looking for them", flush=True)
    try:
        return find_data_root("", config)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} (the data of {config.run} were in {last})") from None


def _name_run(config: Config) -> str:
    """A name made from the settings and the ids of the training images."""
    ids = sorted(find_training_files(find_folders(Path(config.data_root), config), config)[0])
    text = json.dumps([config.settings(), config.slug, ids], sort_keys=True)
    return f"{config.preset}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def open_run(config: Config, *, trains: bool = True) -> Path:
    """Return the run's folder with its `config.json`, made if it is new.

    Until a fold has weights its settings may change; what does not train (`trains`) keeps none but the
    contest's facts, and leaves those that training has kept. A window for 16-bit images is no difference
    where all training images have 8 bits: test images may have more, and need one. The contest's facts are no
    settings; `keep_format` keeps new ones once they have been used.

    Raises:
        ValueError: the run has folds of other settings, or of other training data; it is left as it is.
        FileNotFoundError: new images are to be predicted, and there is no run.
    """
    run_dir = find_run_dir(config.run)
    stored = _read_stored(config.run) or {}
    if config.runs and (trains or is_begun(run_dir)):
        raise ValueError(
            f"parameter runs: got {config.runs!r}; they are for 04, and for a run without folds of its own; "
            "leave them out, or choose another run name"
        )
    if config.predict_folder and not stored:
        raise FileNotFoundError(
            f"no run {run_dir} to predict new images with; pass the name of a trained run"
        )
    content = config.stored()
    if stored and is_begun(run_dir):
        check_settings(config, run_dir)
        content |= {name: stored.get(name) for name in ("window_low", "window_high", *CONTEST_FACTS)}
        if not config.predict_folder:
            check_training_data(run_dir, find_cases(Path(config.data_root), "train", config))
    elif not trains:
        content = stored | {name: content[name] for name in ("run", "runs", *CONTEST_FACTS)}
    if config.predict_folder or config.runs:  # `find_members` keeps an average
        return run_dir
    if stored != content:
        write_json(content, run_dir / "config.json")
    place = str(make_portable(Path(config.data_root)))
    # The phantom in place of data gives way, until it is trained on, to data that come.
    in_place_of_data = not trains and _is_phantom(Path(config.data_root)) and _may_use_phantom(config)
    if place != _read_place(config.run) and not in_place_of_data:
        write_json({"data_root": place}, run_dir / PLACES)
    return run_dir


def find_members(config: Config, run_dir: Path) -> list[tuple[Config, Path]]:
    """The runs, each opened, whose predictions 04 averages: those of `runs`, else the run itself.

    An average keeps the names of its runs, and the contest's facts, once all of them can be opened.
    """
    if not config.runs:
        return [(config, run_dir)]
    given = ("data_root", "predict_folder", "use_unfinished", *CONTEST_FACTS)
    names = _split_names(config.runs)
    shared, first = {name: getattr(config, name) for name in given}, _read_stored(names[0])
    for name in ("window_low", "window_high"):  # given for images of 16 bits where training had 8
        if getattr(config, name) != first.get(name):
            shared[name] = getattr(config, name)
    members = [make_config(**shared | {"run": name}) for name in names]
    opened = [(member, open_run(member, trains=False)) for member in members]
    kept = {name: getattr(config, name) for name in ("run", "runs", *CONTEST_FACTS)}
    if not config.predict_folder and (_read_stored(config.run) or {}) != kept:
        write_json(kept, run_dir / "config.json")
    return opened


def keep_format(config: Config, run_dir: Path) -> None:
    """Note the contest's facts by which a run's submission was written; they hold from now on."""
    stored = _read_stored(config.run)
    content = stored | {name: getattr(config, name) for name in CONTEST_FACTS}
    if content != stored:
        write_json(content, run_dir / "config.json")


def check_settings(config: Config, run_dir: Path) -> None:
    """Check that the settings are those that the run keeps.

    Raises:
        ValueError: they are not; those that differ are named.
        FileNotFoundError: the run keeps none: it was not opened.
    """
    content = _read_stored(config.run)
    if content is None:
        raise FileNotFoundError(
            f"no {find_run_dir(config.run)}/config.json; open the run with open_run first"
        )
    stored = Config(**content)
    settings, kept = config.settings(), stored.settings()
    differing = [name for name, value in settings.items() if value != kept[name]]
    only_window = set(differing) <= {"window_low", "window_high"}
    if differing and (not only_window or read_window(run_dir)):
        shown = settings | {"weights": config.weights}, kept | {"weights": stored.weights}
        found = "; ".join(f"{name}: got {shown[0][name]!r}, stored {shown[1][name]!r}" for name in differing)
        if "weights" in differing:
            found += " (files are compared by their content)"
        advice = "choose another run name, or pass its name alone for its own settings"
        if is_live():
            advice = (
                "in the parameters cell, give run another name, or set these back to None, which means what "
                "the run says; then run that cell and this one again"
            )
        raise ValueError(f"{run_dir} holds a run with other settings ({found}); {advice}")


def make_dataset(config: Config, subset: str) -> SegmentationDataset:
    """The cases of "train" or "test" as this run's network sees them.

    A 16-bit window always comes from the training images.
    """
    root = Path(config.data_root)
    train = find_cases(root, "train", config)
    cases = train if subset == "train" else find_cases(root, subset, config)
    window = find_window(train, config.window_low, config.window_high)
    return SegmentationDataset(cases, make_transform(config), window)


def find_new_folder(config: Config) -> Path:
    """The folder of new images that `predict_folder` names.

    Raises:
        FileNotFoundError: no such folder, or no images in it.
    """
    places = [Path(config.predict_folder).expanduser(), find_repository() / config.predict_folder]
    for place in places:
        if find_files(place):
            return place.resolve()
    raise FileNotFoundError(
        f"no images in {' or '.join(map(str, dict.fromkeys(places)))}; expected a folder with files ending "
        f"in {', '.join(sorted(IMAGE_SUFFIXES))}"
    )


def name_predictions(folder: Path) -> str:
    """A name for the predictions of new images: their folder's, and a checksum of where it is."""
    return f"{folder.name[:100] or 'root'}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"


def make_new_dataset(config: Config, run_dir: Path, folder: Path) -> SegmentationDataset:
    """The images of a folder as this run's network sees them, without its training data.

    Their ids are the files' stems or, where two files have one, the names of all.
    """
    found = find_files(folder)
    is_unique = all(len(paths) == 1 for paths in found.values())
    cases = [
        Case(stem if is_unique else printable(path.name), path)
        for stem, paths in found.items()
        for path in paths
    ]
    return SegmentationDataset(cases, make_transform(config), choose_window(config, run_dir))


def choose_window(config: Config, run_dir: Path) -> tuple[float, float] | None:
    """The window in which a trained run sees 16-bit images: the one that is given, else that of training."""
    given = config.window_low, config.window_high
    return read_window(run_dir) if None in given else given


def make_transform(config: Config) -> EvalTransform:
    """How the run's network sees an image."""
    return EvalTransform(config.target_size, config.weight_channels_by_contrast)


def measure_step_memory(config: Config) -> int:
    """Bytes that a training step needs in 32 bits: what its backward pass keeps, weights and their optimizer.

    Counted on tensors without content; what the single operations need on top is not.
    """
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    network, n = make_network(replace(config, weights="")).to("meta"), max(2, config.batch_size)
    images = torch.empty(n, 3, config.target_size, config.target_size, device="meta")
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        network(images)
    weights = sum(parameter.nbytes for parameter in network.parameters())
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) + 3 * weights


def count_operations(config: Config) -> int:
    """Floating-point operations that an image takes in training, a product and its sum counted as two.

    Three times those of the forward pass: the backward pass takes the gradients by inputs and by weights.
    Counted are convolutions and matrix products.
    """
    network = make_network(replace(config, weights="")).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, config.target_size, config.target_size, device="meta"))
    return 3 * counter.get_total_flops()


def make_network(config: Config, weights: Path | None = None) -> UNet:
    """The run's network with a file's weights, else with the config's, as training starts it.

    Raises:
        FileNotFoundError: no such file, or torchvision's own weights are nowhere and cannot be downloaded.
    """
    source = weights or config.weights
    if weights is None and config.weights not in ("", "default"):
        source = find_file(config.weights)
        if _digest(source) != config.weights_digest:
            raise ValueError(
                f"{source} is not the weights file that the run was made with; pass it as weights"
            )
    try:
        return make_model(
            config.encoder,
            width=config.width,
            depth=config.depth,
            dropout=(config.bottleneck_dropout, config.decoder_dropout),
            weights=source,
            attached=KAGGLE_INPUT,
        )
    except FileNotFoundError as error:
        if weights or config.weights != "default":
            raise
        raise FileNotFoundError(
            f"{error}; on Kaggle turn the internet on, or attach a data set or model that contains the file "
            "(dataset_sources or model_sources in kernel-metadata.json)"
        ) from error
