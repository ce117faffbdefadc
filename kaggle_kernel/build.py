"""Build one Kaggle notebook out of the package and the notebooks, and the metadata to push it with.

`make kernel ARGS="-p name value -f best.yaml"`; `python kaggle_kernel/build.py --help` lists the rest. The
same sources give the same bytes.
"""

import argparse
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from papermill.parameterize import parameterize_notebook

from ctseg.arguments import add_parameters, parse_arguments, read_arguments
from ctseg.config import Config, check_names, fill_settings, list_changes, parse_value
from ctseg.contest import A0
from ctseg.files import print_anywhere, read_json, write_json, write_text
from ctseg.model import check_encoder
from ctseg.pairs import KERNELSPEC, find_notebooks, find_tried, reset_parameters
from ctseg.runs import count_operations, measure_step_memory
from ctseg.weights import check_pretrained
from kaggle_kernel.session import name_member, replace_settings

REPOSITORY = Path(__file__).resolve().parent.parent
_UNPACKED = "/tmp/ctseg_kernel"  # below /kaggle/working it would become output
_MAX_BYTES = 900_000  # of the JSON text that is sent; Kaggle's limit is 1,000,000
_DEFAULTS = {"preset": "gpu", "deadline_minutes": 600}  # of the 720 that Kaggle gives
_T4_RATE = 4e12  # operations a second in half precision; assumed, of the 65e12 that NVIDIA states
_SECRETS = (
    r"KGAT_\w{16,}",  # Kaggle's API token
    r"[\"']key[\"']\s*:\s*[\"']\w{16,}",  # of kaggle.json
    r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])",  # Kaggle's key, wherever it is
    r"AKIA[0-9A-Z]{16}",
    r"\b(gh[pousr]|github_pat|hf|sk|xox[bp])[_-]\w{20,}",
    r"-----BEGIN [A-Z ]*PRIVATE KEY",
)
_SUBMISSION = """# The submission

Next to `runs/`, and valid; the masks and other files that nobody downloads are removed."""
_NOT_SENT = {"compare.py", "cluster.py", "sweep.py", "pairs.py", "execute.py"}
_CHECK = """import torch

from ctseg.device import check_gpus

print(check_gpus())
if preset == "gpu" and not torch.cuda.is_available():
    preset = "strong"
    print("preset strong instead of gpu, which is made for GPUs")"""
_ATTACH = """from kaggle_kernel.session import attach_run, tidy_run

if attach_run(run, weights{more}):
    preset = None  # what the run says"""
_UNPACK = f"""import os
import shutil
import sys

shutil.rmtree("{_UNPACKED}", ignore_errors=True)
os.makedirs("{_UNPACKED}/ctseg")
os.makedirs("{_UNPACKED}/kaggle_kernel")
sys.path.insert(0, "{_UNPACKED}")
os.environ["PYTHONPATH"] = "{_UNPACKED}"  # of the processes that train a fold each"""


def build_kernel(root: Path, parameters: dict, members: Sequence[dict] = ()) -> NotebookNode:
    """Make the notebook from the repository at `root`, with `parameters` as papermill would inject them.

    `members` are the settings of more runs, other than those of the first: they are trained after it, and
    what is submitted is their average.
    """
    folders = ("ctseg", "kaggle_kernel", "notebooks")
    sources = sorted(path for folder in folders for path in root.glob(f"{folder}/*.py"))
    notebooks = [_read_notebook(path) for path in find_notebooks(root)]
    of_members = [member["weights"] for member in members if member.get("weights")]
    cells = [
        new_markdown_cell(_describe_origin(root, sources, parameters)),
        *_find_parameters(notebooks),
        new_markdown_cell(
            "## The package\n\nOne cell per file, in the order of the map in `ctseg/__init__.py`."
        ),
        new_code_cell(_UNPACK),
        *map(_write_file, _sort_by_map(root)),
        new_markdown_cell("## Ready?\n\nThe GPUs; a run of the same name, if one is attached; the settings."),
        new_code_cell(_CHECK),
        new_code_cell(_ATTACH.format(more="".join(f", {path!r}" for path in of_members))),
        new_code_cell("from ctseg.runs import make_config, open_run, read_parameters"),
        _find_cells(_find_training(notebooks), "setup")[1],
        *(cell for notebook in notebooks[:-1] for cell in _find_body(notebook)),
        *_make_member_cells(members),
        *_find_body(notebooks[-1]),
        new_markdown_cell(_SUBMISSION),
        new_code_cell('tidy_run(run_dir, test.cases, config)\nprint(open("submission.csv").read(200))'),
    ]
    kernel = _inject(cells, parameters)
    for index, cell in enumerate(kernel.cells):  # nbformat draws ids at random
        cell.id = hashlib.sha256(f"{index} {cell.source}".encode()).hexdigest()[:8]
    return kernel


def _make_member_cells(members: Sequence[dict]) -> list[NotebookNode]:
    """The cells that train more runs; none without members."""
    if not members:
        return []
    listed = "".join(f"    {member!r},\n" for member in members)
    text = (
        "## More runs\n\nWith these settings in place of the first one's. What follows is of their average."
    )
    code = "from kaggle_kernel.session import train_members\n\n"
    code += f"config, run_dir = train_members(config, [\n{listed}])"
    return [new_markdown_cell(text), new_code_cell(code)]


def _inject(cells: Sequence[NotebookNode], parameters: dict) -> NotebookNode:
    """A notebook of the cells with papermill's text of the parameters at the end of its parameters cell.

    In a cell of its own, as papermill leaves it, the next papermill would replace all of them.
    """
    for cell in cells:
        cell.metadata.setdefault("tags", [])  # papermill looks at every cell's
    metadata = {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}, "papermill": {}}
    kernel = parameterize_notebook(new_notebook(cells=cells, metadata=metadata), parameters)
    (declared,) = _find_cells(kernel.cells, "parameters")
    (injected,) = _find_cells(kernel.cells, "injected-parameters")
    declared.source += f"\n\n{injected.source.rstrip()}"
    kernel.cells.remove(injected)
    del kernel.metadata["papermill"]
    return kernel


def _describe_origin(root: Path, sources: Sequence[Path], parameters: dict) -> str:
    """The first cell: that it is generated, and from what."""
    digest = hashlib.sha256()
    for path in sources:
        digest.update(f"{path.relative_to(root)}\n{path.read_text(encoding='utf-8')}\n".encode())
    return (
        f"# {parameters.get('slug', A0.slug)}: from the data to the submission\n\n"
        "Generated by `make kernel` of the kit **ctseg**: its package as plain text (folded away), then the "
        "cells of its notebooks. Change the kit and build again, rather than this copy.\n\n"
        f"Sources: sha256 `{digest.hexdigest()}`{_find_commit(root)}"
    )


def _find_commit(root: Path) -> str:
    """The last commit of the sources as ", commit …"; "" if they have changed since, or without git."""
    folders = ["--", "ctseg", "notebooks", "kaggle_kernel"]
    try:
        changes, commit = (
            subprocess.run(
                ["git", "-C", root, *command, *folders], capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (["status", "--porcelain"], ["log", "-1", "--format=%H"])
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f", commit `{commit}`" if commit and not changes else ""


def _find_cells(cells: Sequence[NotebookNode], *tags: str) -> list[NotebookNode]:
    """The cells that have one of the tags."""
    return [cell for cell in cells if set(tags) & set(cell.metadata.get("tags", []))]


def _read_notebook(path: Path) -> list[NotebookNode]:
    """The cells of a notebook, with its parameters' defaults: values that were tried and saved stay here.

    Raises:
        ValueError: its tagged cells are not a text, the parameters and the settings, in this order.
    """
    try:
        cells = reset_parameters(jupytext.read(path)).cells
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    tags = [tag for cell in cells for tag in cell.metadata.get("tags", []) if tag in ("parameters", "setup")]
    if tags != ["setup", "parameters", "setup"]:
        raise ValueError(
            f"{path.name} has the tags {tags}; expected setup, parameters, setup, as in 01_eda.py"
        )
    return cells


def _find_parameters(notebooks: Sequence[Sequence[NotebookNode]]) -> list[NotebookNode]:
    """The longest parameters cell, which is training's, and the text above it."""
    cells = _find_training(notebooks)
    text, *_ = _find_cells(cells, "setup")
    return [text, *_find_cells(cells, "parameters")]


def _find_training(notebooks: Sequence[Sequence[NotebookNode]]) -> Sequence[NotebookNode]:
    """The notebook that trains: it has the longest parameters cell."""
    return max(notebooks, key=lambda cells: len(_find_cells(cells, "parameters")[0].source))


def _find_body(notebook: Sequence[NotebookNode]) -> list[NotebookNode]:
    """The cells of a notebook without its parameters and settings, which the kernel has once and for all."""
    own = _find_cells(notebook, "parameters", "setup")
    return [cell for cell in notebook if cell not in own]


def _sort_by_map(root: Path) -> list[Path]:
    """The files of the package in the order of its map, new ones last; then the kernel's own one.

    Those of sweeps stay here, since a kernel is a single run, and those of notebooks as files.
    """
    text = (root / "ctseg" / "__init__.py").read_text(encoding="utf-8")
    order = ["__init__.py", *re.findall(r"\w+\.py", text)]
    places = {name: place for place, name in enumerate(order)}
    sources = [path for path in root.glob("ctseg/*.py") if path.name not in _NOT_SENT]
    files = sorted(sources, key=lambda path: (places.get(path.name, len(places)), path.name))
    return [*files, root / "kaggle_kernel" / "session.py"]


def _write_file(path: Path) -> NotebookNode:
    """The cell that writes a file of the sources, folded away."""
    text = path.read_text(encoding="utf-8").removesuffix("\n")
    folded = {"_kg_hide-input": True, "_kg_hide-output": True}
    return new_code_cell(f"%%writefile {_UNPACKED}/{path.parent.name}/{path.name}\n{text}", metadata=folded)


def _check_kernel(kernel: NotebookNode, root: Path) -> int:
    """Return the size in bytes of the text that is sent.

    Raises:
        ValueError: it is too large, holds something that looks like a credential, or a path of this machine.
    """
    size = len(json.dumps(kernel))  # as the client encodes it
    if size > _MAX_BYTES:
        raise ValueError(
            f"the kernel has {size:,} bytes, expected at most {_MAX_BYTES:,}; shorten what it is built from"
        )
    variables = {name: value for name, value in os.environ.items() if re.search("KAGGLE.*(KEY|TOKEN)", name)}
    known = [value for value in variables.values() if len(value) > 7]
    for cell in kernel.cells:
        where = f"in the kernel's cell that begins with {cell.source.splitlines()[0][:80]!r}"
        is_secret = any(re.search(pattern, cell.source) for pattern in _SECRETS)
        if is_secret or any(value in cell.source for value in known):
            raise ValueError(
                f"something that looks like a credential {where}; remove it, and renew it if it was seen "
                "elsewhere"
            )
        for private in (str(root), str(Path.home())):
            if re.search(rf"{re.escape(private)}(?![\w.-])", cell.source):
                raise ValueError(f"a path of this machine, {private}, {where}; remove it")
    return size


def _check_parameters(parameters: dict, *, internet: bool, attached: bool) -> Config:
    """The config of parameters; those that would fail on Kaggle are refused.

    Raises:
        ValueError, TypeError: an unknown name, preset or encoder, a value of the wrong type or range, or data
            or weights that are not on Kaggle.
    """
    config = Config(**fill_settings(parameters))
    check_encoder(config.encoder)
    if config.weights == "default":
        check_pretrained(config.encoder)
    if config.runs:
        raise ValueError("runs: a kernel trains what it averages; give each further run with --member")
    for name in ("data_root", "weights"):
        value = getattr(config, name)
        if value not in ("", "default") and not value.startswith("/kaggle/input/"):
            otherwise = {
                "data_root": "nothing, which finds the contest's data",
                "weights": "'default', or '' for scratch",
            }
            raise ValueError(
                f"{name} {value!r} is not on Kaggle; expected a path below /kaggle/input, where data sets "
                f"and models are mounted, or {otherwise[name]}"
            )
    if config.weights and not internet and not attached:
        raise ValueError(
            f"weights {config.weights!r} without internet; attach the file with --dataset owner/slug (or "
            "--model), or --internet"
        )
    return config


def _read_member(text: str, parameters: Mapping) -> dict:
    """The settings of a further run, from `name=value,name=value`, in place of the first one's `parameters`.

    Raises:
        ValueError: other words, a name that is no setting, or another encoder with the first one's weights.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    member = {name.strip(): parse_value(value.strip()) for name, _, value in pairs}
    check_names(member)
    if not all(sign for _, sign, _ in pairs) or not member.keys() <= Config().settings().keys() - {"preset"}:
        raise ValueError(
            f"--member {text!r}: expected settings, as encoder=convnext_small,target_size=384; what is no "
            "setting, and the preset, is the same for all"
        )
    if (
        "encoder" in member
        and "weights" not in member
        and parameters.get("weights") not in (None, "", "default")
    ):
        raise ValueError(f"--member {text!r}: weights are for another encoder; add weights=…")
    return member


def _check_different(configs: Sequence[Config], members: Sequence[dict]) -> None:
    """Raise ValueError if a further run has the settings, or the name, of one before it."""
    texts = [str(config.settings() | {"weights": config.weights}) for config in configs]
    names = [name_member("", member) for member in ({}, *members)]
    for index, member in enumerate(members, start=1):
        if texts[index] in texts[:index] or names[index] in names[:index]:
            raise ValueError(
                f"--member {member}: another run of this kernel has these settings, or a weights file so "
                "named; leave it out, or rename the file"
            )


def _describe_cost(configs: Sequence[Config]) -> str:
    """What training costs on Kaggle's two T4s, by a count of operations and not by a measurement."""
    hours = sum(map(_model_hours, configs))
    memory = max(map(measure_step_memory, configs)) / 2 / 1e9  # half precision, in which weights are few
    cost = f"{hours:.1f} hours on two T4s with 1,000 images, at least {memory:.1f} GB of a GPU's 15"
    deadline = (configs[0].deadline_minutes or math.inf) / 60
    cut = f"; the deadline of {deadline:.1f} hours will cut it short" if hours > deadline else ""
    return f"modelled, not measured: {cost}{cut}"


def _model_hours(config: Config) -> float:
    """The hours that two T4s train a run on 1,000 images, validation after each epoch included."""
    budget = config.budget_minutes / 60 if config.budget_minutes else math.inf
    if config.epochs is None:
        return budget
    validated = 1 / config.n_folds if config.n_folds > 1 else 0.1
    n_trained = config.n_folds if config.fold is None else 1
    # A validation image passes forward alone, a third of what an image costs that is trained on.
    operations = 1000 * (1 - validated * 2 / 3) * config.epochs * count_operations(config)
    return min(budget, math.ceil(n_trained / 2) * operations / _T4_RATE / 3600)


def _make_metadata(
    user: str,
    title: str,
    *,
    slug: str,
    internet: bool,
    datasets: Sequence[str],
    models: Sequence[str],
    kernels: Sequence[str],
) -> dict:
    """The content of `kernel-metadata.json`, every field written out (the client's defaults differ).

    Raises:
        ValueError: a title or a source that the client or Kaggle would refuse, or misread.
    """
    if not re.fullmatch(r"[A-Za-z0-9]+([ -][A-Za-z0-9]+)*", title) or not 5 <= len(title) <= 50:
        raise ValueError(
            f"title {title!r}: expected 5 to 50 letters, digits and single spaces, from which Kaggle makes "
            "the address"
        )
    _check_sources(datasets=datasets, kernels=kernels, models=models)
    return {
        "id": f"{user}/{title.lower().replace(' ', '-')}",
        "title": title,
        "code_file": "ctseg.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_tpu": False,
        "enable_internet": internet,
        "machine_shape": "NvidiaTeslaT4",
        "competition_sources": [slug],
        "dataset_sources": list(datasets),
        "kernel_sources": list(kernels),
        "model_sources": list(models),
        "keywords": [],
    }


def _check_sources(*, datasets: Sequence[str], kernels: Sequence[str], models: Sequence[str]) -> None:
    """Raise ValueError unless each source has the form of its kind."""
    for kind, form, sources in (
        ("dataset", "owner/slug", datasets),
        ("kernel", "owner/slug", kernels),
        ("model", "owner/model/framework/variation/version", models),
    ):
        for source in sources:
            if not re.fullmatch(rf"[\w.-]+(/[\w.-]+){{{form.count('/')}}}", source):
                raise ValueError(f"{kind} source {source!r}: expected {form}")


def _find_user() -> str:
    """The user's name on Kaggle, from KAGGLE_USERNAME or kaggle.json.

    Raises:
        ValueError: neither gives a name.
    """
    path = Path(os.environ.get("KAGGLE_CONFIG_DIR", Path.home() / ".kaggle")) / "kaggle.json"
    try:
        user = os.environ.get("KAGGLE_USERNAME") or read_json(path)["username"]
    except (OSError, ValueError, KeyError, TypeError):
        user = ""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", user):
        raise ValueError(
            f"no Kaggle user name, got {user!r}; set KAGGLE_USERNAME, or save Kaggle's API key as {path}"
        )
    return user


def _read_parameters(given: argparse.Namespace) -> dict:
    """The parameters of the command line; a file's data_root is that of another machine, and is dropped."""
    parameters = read_arguments(given)
    if given.file and "data_root" not in {name for name, _ in (*given.p, *given.r)}:
        parameters.pop("data_root", None)
    if "run" in parameters:
        parameters["run"] = str(parameters["run"])
    return _DEFAULTS | parameters


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, again = parser.add_argument, {"action": "append", "default": []}
    add_parameters(parser)
    add(
        "--member",
        **again,
        metavar="NAME=VALUE,…",
        help="a further run with other settings; what is submitted is their average; may be given again",
    )
    add("--title", help="on Kaggle; its address is made from it; a contest's kernel has its own by default")
    switch = argparse.BooleanOptionalAction
    add("--internet", action=switch, default=True, help="on: torchvision downloads the encoder")
    for name in ("dataset", "model", "kernel"):
        add(f"--{name}", **again, help=f"a {name} on Kaggle to attach; may be given again")
    add("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    return parse_arguments(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Build the kernel and its metadata as the command line says, or say why not and exit with status 1."""
    arguments = _parse(argv)
    internet = arguments.internet
    sources = {"datasets": arguments.dataset, "models": arguments.model, "kernels": arguments.kernel}
    try:
        parameters = _read_parameters(arguments)
        members = [_read_member(text, parameters) for text in arguments.member]
        given = {"internet": internet, "attached": any(sources.values())}
        configs = [
            _check_parameters(replace_settings(parameters, member), **given) for member in ({}, *members)
        ]
        _check_different(configs, members)
        kernel = build_kernel(REPOSITORY, parameters, members)
        size = _check_kernel(kernel, REPOSITORY)
        slug = parameters.get("slug", A0.slug)
        title = arguments.title or (
            "ctseg segmentation" if slug == A0.slug else f"ctseg {slug}"[:50].rstrip("-")
        )
        metadata = _make_metadata(_find_user(), title, slug=slug, internet=internet, **sources)
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"kernel not built: {error}")
    path = arguments.out / metadata["code_file"]
    write_text(nbformat.writes(kernel, indent=1) + "\n", path)
    write_json(metadata, arguments.out / "kernel-metadata.json")
    print(f"{path}: {len(kernel.cells)} cells, {size:,} bytes as sent, for {metadata['id']}")
    for title, values in (("", parameters), *(("member: ", member) for member in members)):
        print(title + ", ".join(f"{name} {value}" for name, value in values.items()))
    for name, (value, expected) in list_changes(configs[0]).items():
        print(f"differs from {configs[0].preset}: {name} {value!r} instead of {expected!r}")
    print(_describe_cost(configs))
    for source in find_notebooks(REPOSITORY):
        for name, value in find_tried(jupytext.read(source)).items():
            print(f'left out: {name} = {value}, saved in {source.stem}; to pass it, ARGS="-p {name} …"')


if __name__ == "__main__":
    print_anywhere()
    main()
