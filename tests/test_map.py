"""The map of the package: which module may import which, and that a reader finds the map."""

import ast
import inspect
import itertools
import re
import sys
import tomllib

import pytest
from conftest import REPOSITORY

import ctseg
from ctseg import check, data, paths, submission

# Each module and the modules of the kit that it imports, in the order of the map; no arrow but these.
IMPORTS = {
    "contest": set(),
    "config": {"contest"},
    "arguments": {"config"},
    "seeds": set(),
    "files": set(),
    "shared": set(),
    "live": set(),
    "phantom": {"contest", "files"},
    "folders": {"contest"},
    "paths": {"contest", "folders", "phantom"},
    "data": {"contest", "device", "folders", "masks", "shared", "transforms"},
    "masks": set(),
    "transforms": set(),
    "augment": {"config", "device", "transforms"},
    "model": {"weights"},
    "weights": {"files"},
    "device": set(),
    "losses": set(),
    "metrics": set(),
    "schedule": set(),
    "log": set(),
    "train": {"augment", "config", "data", "device", "files", "log", "losses", "metrics", "predict"}
    | {"schedule", "seeds", "transforms", "weights"},
    "predict": {"contest", "data", "device", "files", "metrics", "postprocess", "transforms"},
    "postprocess": {"files", "metrics", "transforms"},
    "submission": {"contest", "data", "files"},
    "split": {"data", "transforms"},
    "tables": {"contest", "data", "folders", "submission"},
    "check": {"arguments", "config", "contest", "data", "files", "folders", "masks", "paths", "split"}
    | {"tables", "transforms"},
    "explore": {"augment", "config", "data", "folders", "metrics", "split", "transforms"},
    "diagnose": {"config", "data", "losses", "metrics", "model", "postprocess"},
    "plots": {"data", "metrics", "transforms"},
    "plots_data": {"explore", "metrics", "plots", "transforms"},
    "plots_run": {"config", "contest", "data", "metrics", "plots", "postprocess", "predict"}
    | {"schedule", "submission", "transforms"},
    "page": {"files", "plots"},
    "report": {"config", "data", "files", "metrics", "page", "plots", "postprocess", "predict", "train"},
    "fingerprint": {"data", "files"},
    "progress": {"log", "plots", "train"},
    "runs": {"config", "contest", "data", "files", "fingerprint", "folders", "model", "paths"}
    | {"live", "transforms", "weights"},
    "workers": {"device", "files", "log"},
    "folds": {"config", "data", "device", "files", "fingerprint", "live", "log", "model", "paths", "predict"}
    | {"progress", "runs", "schedule", "seeds", "shared", "split", "train", "weights", "workers"},
    "compare": {"data", "files", "fingerprint", "folds", "metrics", "page", "paths", "plots"}
    | {"postprocess", "predict", "runs", "train"},
    "child": set(),
    "cluster": {"files"},
    "pairs": {"config", "files"},
    "execute": {"arguments", "files", "live", "pairs", "paths", "runs"},
    "sweep": {"arguments", "cluster", "compare", "config", "contest", "data", "device", "files"}
    | {"fingerprint", "live", "pairs", "paths", "runs", "seeds", "train", "workers"},
}
KERNEL_IMPORTS = {
    "build": {"arguments", "config", "contest", "files", "model", "pairs", "runs", "weights"},
    "client": {"arguments", "config", "data", "files", "paths", "report", "runs", "submission"},
    "session": {
        *("config", "contest", "data", "files", "folds"),
        *("paths", "postprocess", "predict", "runs", "submission"),
    },
}
MODULES = sorted(path.stem for path in (REPOSITORY / "ctseg").glob("[!_]*.py"))
NOTEBOOKS = sorted(path.stem for path in (REPOSITORY / "notebooks").glob("*.py"))


def find_imports(path):
    """The modules of the kit that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ctseg":
            names |= (
                {node.module.partition(".")[2]} if "." in node.module else {name.name for name in node.names}
            )
        elif isinstance(node, ast.Import):
            names |= {name.name.partition(".")[2] for name in node.names if name.name.startswith("ctseg.")}
    return names


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_what_the_map_says(module):
    assert find_imports(REPOSITORY / "ctseg" / f"{module}.py") == IMPORTS[module]


@pytest.mark.parametrize("module", KERNEL_IMPORTS)
def test_the_kernel_imports_what_the_map_says(module):
    assert find_imports(REPOSITORY / "kaggle_kernel" / f"{module}.py") == KERNEL_IMPORTS[module]


def test_imports_go_one_way():
    floors = {}
    while len(floors) < len(IMPORTS):
        ready = [name for name in IMPORTS if name not in floors and IMPORTS[name] <= floors.keys()]
        assert ready, f"a circle among {sorted(IMPORTS.keys() - floors.keys())}"
        floors |= dict.fromkeys(ready, max(floors.values(), default=0) + 1)
    assert max(floors.values()) <= 9


def test_notebooks_01_and_02_know_nothing_of_folds():
    for name in NOTEBOOKS[:2]:
        assert not find_imports(REPOSITORY / "notebooks" / f"{name}.py") & {"folds", "train", "predict"}


def test_the_map_lists_every_module_once_here_and_in_the_readme():
    listed = re.findall(r"^    (\w+)\.py {2,}\S.*$", ctseg.__doc__, flags=re.MULTILINE)
    assert sorted(listed) == MODULES == sorted(IMPORTS)
    assert listed == list(IMPORTS)
    readme = (REPOSITORY / "README.md").read_text()
    for line in re.findall(r"^    \w+\.py .*$", ctseg.__doc__, flags=re.MULTILINE):
        assert line.strip() in readme


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("a0-2025-medical", "contest.py"),
        ("ID,Mask", "contest.py"),
        ('"test_masks"', "contest.py"),
        ('"train_images", "train_masks"', "folders.py"),
    ],
)
def test_the_contests_names_are_in_one_place(name, where):
    files = [
        *REPOSITORY.glob("ctseg/*.py"),
        *REPOSITORY.glob("kaggle_kernel/*.py"),
        *REPOSITORY.glob("notebooks/*.py"),
    ]
    assert sorted(path.name for path in files if name in path.read_text()) == [where]


def find_calls(path):
    """The calls in a file of functions that have a contest of their own, and whether it is passed."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CONTEST_PLACES:
            given = len(node.args) > CONTEST_PLACES[node.func.id]
            yield node, given or any(entry.arg == "contest" for entry in node.keywords)


# The kit's own contest is the default of these, for people; the kit itself never forgets another one.
CONTEST_PLACES = {
    function.__name__: list(inspect.signature(function).parameters).index("contest")
    for module in (check, data, paths, submission)
    for function in vars(module).values()
    if inspect.isfunction(function) and "contest" in inspect.signature(function).parameters
}


def test_the_kit_passes_the_contest_wherever_there_is_a_default():
    folders = (REPOSITORY / name for name in ("ctseg", "notebooks", "kaggle_kernel"))
    calls = [
        (path.name, *call) for folder in folders for path in folder.glob("*.py") for call in find_calls(path)
    ]
    assert len(calls) > 20
    assert [(name, ast.unparse(node)) for name, node, given in calls if not given] == []


def find_packages(path):
    """The packages that a file imports."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        modules += [node.module] if isinstance(node, ast.ImportFrom) else []
        modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
    return {module.split(".")[0] for module in modules}


@pytest.mark.parametrize("folder", ["ctseg", "kaggle_kernel", "notebooks", "tests"])
def test_every_package_that_is_imported_is_declared(folder):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = {
        "tests": ["test", "cluster", "browser"],
        "ctseg": ["safetensors", "cluster"],
    }  # what a part may miss
    optional = [project["optional-dependencies"][extra] for extra in extras.get(folder, ())]
    lines = [*project["dependencies"], *itertools.chain(*optional)]
    declared = {re.match(r"[\w-]+", line)[0] for line in lines}
    names = {"PIL": "pillow", "skimage": "scikit-image", "yaml": "pyyaml", "IPython": "ipython"}
    own = {path.stem for path in REPOSITORY.glob("tests/**/*.py")} | {"ctseg", "kaggle_kernel"}
    imported = set().union(*map(find_packages, REPOSITORY.glob(f"{folder}/**/*.py")))
    packages = imported - own - sys.stdlib_module_names
    assert packages and {names.get(package, package) for package in packages} <= declared
