"""What only a kernel does: reuse an attached run, train more of them, keep what is worth downloading."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctseg.config import CONTEST_FACTS, Config
from ctseg.contest import KAGGLE_INPUT, Contest
from ctseg.data import Case, find_cases
from ctseg.files import PARTIAL, read_json
from ctseg.folds import find_oof, train_folds
from ctseg.paths import find_run_dir, find_runs
from ctseg.postprocess import PostProcess
from ctseg.predict import OutOfFold, select_common
from ctseg.runs import PLACES, make_config, open_run
from ctseg.submission import check_submission


def attach_run(run: str, *weights: str | None) -> Path | None:
    """Copy the run of that name that is attached below Kaggle's input to `runs/`; return its folder, or None.

    A run is known by its `config.json`, whatever its folder is called. Its finished folds are used for
    prediction and not trained again. Nothing is copied where `runs/` has the run already, nor where runs are
    attached for the sake of one of the files `weights`, from which training starts.

    Raises:
        ValueError: what is attached is another run, more than one of this name, a run without a finished
            fold, or folds without their run's `config.json`: hours of training are no answer to that.
    """
    if run and find_run_dir(str(run)).exists():
        return find_run_dir(str(run))
    attached = _find_attached()
    named = [folder for folder, name in attached.items() if name == str(run)]
    if not named and any(Path(path or "").is_relative_to(KAGGLE_INPUT) for path in weights):
        return None
    for path in KAGGLE_INPUT.glob("**/best_unet_model.pth"):
        if not set(path.parents) & attached.keys():
            raise ValueError(
                f"{path} is of a fold without its run's config.json; attach the whole folder of the run"
            )
    if not attached:
        return None
    if len(named) != 1:
        listed = ", ".join(f"{name!r} in {folder}" for folder, name in sorted(attached.items()))
        raise ValueError(
            f"parameter run: got {run!r}, attached is {listed}; pass the name of one attached run to predict "
            "with it, or attach none to train"
        )
    (source,) = named
    if not any(source.glob("fold*/oof.npz")):
        raise ValueError(f"the attached run {run!r} in {source} has no finished fold; attach one that has")
    run_dir = find_run_dir(str(run))
    copy = run_dir.with_name(f"{PARTIAL}{run_dir.name}")
    shutil.rmtree(copy, ignore_errors=True)
    # The contents alone: attached files are read-only. Where the data were elsewhere means nothing here.
    ignored = shutil.ignore_patterns(PLACES)
    shutil.copytree(source, copy, copy_function=shutil.copyfile, ignore=ignored)
    for folder in [copy, *filter(Path.is_dir, copy.rglob("*"))]:
        folder.chmod(0o755)
    return copy.rename(run_dir)


def _find_attached() -> dict[Path, str]:
    """The folders of attached runs, and their names."""
    paths = KAGGLE_INPUT.glob("**/config.json")
    return {path.parent: name for path in paths if (name := _read_name(path))}


def _read_name(path: Path) -> str | None:
    """The name of the run whose `config.json` this is; None if it is that of something else."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    return content["run"] if {"run", "preset", "encoder"} <= content.keys() else None


def train_members(config: Config, members: Sequence[Mapping[str, Any]]) -> tuple[Config, Path]:
    """Train more runs in turn, each with other settings; return the config and folder of their average.

    They and the run that is trained already share the deadline. One that fails, or for which no time is left,
    is reported and left out, and so is one with which the mean has a lower Dice on validation than without
    it, as one that the deadline cut short may; if all are, the config and the folder of the first come back.
    """
    given = {name: getattr(config, name) for name in ("data_root", "use_unfinished")}
    cases = find_cases(Path(config.data_root), "train", config)
    averaged = {config.run: OutOfFold(find_oof(config, find_run_dir(config.run)), cases)}
    for changes in members:
        name = name_member(config.run, changes)
        print(f"member {name}", flush=True)
        try:
            member = _train_member(config, changes, given)
            found = OutOfFold(find_oof(member, find_run_dir(name)), cases)
            if _is_worth_it(list(averaged.values()), found, config.threshold):
                averaged[name] = found
        except Exception as error:  # the first run's submission is not lost for it
            print(f"FAILED: {name} is left out, {type(error).__name__}: {error}", flush=True)
    if len(averaged) > 1:
        facts = {name: getattr(config, name) for name in CONTEST_FACTS}
        runs = {"run": f"{config.run}-average", "runs": ",".join(averaged)}
        config = make_config(**facts | given | runs)
    return config, open_run(config, trains=len(averaged) == 1)


def name_member(run: str, changes: Mapping[str, Any]) -> str:
    """The name of a further run: the first one's, and its settings; of a path the last part."""
    texts = (f"{name}={str(value).rsplit('/', 1)[-1]}" for name, value in changes.items())
    return "-".join([run, *(re.sub(r"[^\w.=]+", "-", text) for text in texts)])


def replace_settings(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others in their place; a length, in epochs or minutes, takes the place of both."""
    lengths = {"epochs", "budget_minutes"}
    replaced = lengths if lengths & changes.keys() else set()
    return {name: value for name, value in settings.items() if name not in replaced} | dict(changes)


def _train_member(config: Config, changes: Mapping[str, Any], given: Mapping[str, Any]) -> Config:
    """Train a further run, or use the one of its name that is attached; return its config."""
    name = name_member(config.run, changes)
    if name in _find_attached().values():
        attach_run(name)
    limits = {"fold": config.fold, "deadline_minutes": config.deadline_minutes}
    settings = replace_settings(config.stored() | given | limits, changes)
    member = make_config(**settings | {"run": name})
    train_folds(member, open_run(member))
    return member


def _is_worth_it(averaged: Sequence[OutOfFold], further: OutOfFold, threshold: float) -> bool:
    """Whether a mean is as good with a further run as without it, on the images that all have; reported.

    By a plain threshold, and large images made smaller, as for the choice of a post-processing. A run with
    less than half of the first one's images, as of a single fold, would leave too few to choose by.
    """
    *others, own = select_common([*averaged, further])
    if len(own.cases) < len(averaged[0].cases) / 2:
        n_images = f"{len(own.cases)} of {len(averaged[0].cases)} validation images"
        print(f"left out: it predicted {n_images}, less than half", flush=True)
        return False
    plain = PostProcess(threshold=threshold)
    without, with_it = (
        float(np.mean(OutOfFold.average(runs).shrink().score(plain))) for runs in (others, [*others, own])
    )
    what = f"Dice {without:.4f} without it, {with_it:.4f} with it, on {len(own.cases)} validation images"
    print(what if with_it >= without else f"left out: {what}", flush=True)
    return with_it >= without


def tidy_run(run_dir: Path, test_cases: Sequence[Case], contest: Contest) -> None:
    """Copy the submission next to `runs/` and check it there; then remove the files that nobody downloads.

    That is, of all runs, test masks, and where the data were. A fold that is not finished keeps its
    checkpoint.

    Raises:
        OSError, ValueError: the submission is not there, or not valid; nothing is removed.
    """
    if not test_cases:
        raise ValueError("the data have no test images, so there is no submission; see -p test_images")
    submission = Path(shutil.copy(run_dir / "submission.csv", "submission.csv"))
    check_submission(submission, test_cases, contest)
    shutil.rmtree(run_dir / "predicted_masks", ignore_errors=True)
    for pattern in (PLACES, ".lock", f"{PARTIAL}*"):
        for path in list(find_runs().rglob(pattern)):
            path.unlink()
