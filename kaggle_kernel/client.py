"""Push, fetch and submit with Kaggle's own client, whose exit status 0 does not mean success.

`make push`, `make output`, `make submit RUN=name` and `make download` call it.
"""

import argparse
import importlib.util
import lzma
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctseg.arguments import add_parameters, parse_arguments, read_arguments
from ctseg.config import Config
from ctseg.data import find_cases
from ctseg.files import PARTIAL, print_anywhere, read_json, write_json
from ctseg.paths import find_data_root, find_repository, find_run_dir
from ctseg.report import describe_environment
from ctseg.runs import read_config
from ctseg.submission import check_submission

FOLDER = Path(__file__).parent
_PUSHED = "pushed.json"  # the kernel's id and version
_RULES = "join the contest and accept its rules on its page, Rules, with the account of the key"
_KEY = "save Kaggle's API key as ~/.kaggle/kaggle.json, or set KAGGLE_API_TOKEN"
_QUOTA = (
    "GPU hours are 30 per week; wait, or push with machine_shape and enable_gpu changed in "
    "kernel-metadata.json"
)
_ADVICE = {  # pattern in the output: the way out
    "from notebooks": "this contest takes versions of kernels: make submit ARGS='-p notebooks_only True'",
    r"Authentication required|\b401\b|Unauthenticated": _KEY,
    "competition sources": _RULES,
    r"\b403\b|Forbidden|rules": _RULES,
    "quota": _QUOTA,
    "session": "two GPU sessions run at once; stop one on kaggle.com, or wait for it",
    "sources": "make sure that the name is right and that this account may use it",
    r"\b404\b|not find|not found": "make sure that the name is right, of the user too (KAGGLE_USERNAME)",
}


class Refused(Exception):
    """Kaggle or its client refused: why, and the way out."""


def _call_kaggle(*arguments: str | Path, expect: str, refuse: str = "$^") -> str:
    """Run the client, show what it prints, and return it.

    Raises:
        Refused: the client is missing or failed, or its output lacks the pattern `expect` or has the pattern
            `refuse`.
    """
    if importlib.util.find_spec("kaggle") is None:
        raise Refused("Kaggle's client is not installed; pip install -e '.[kaggle]' in this environment")
    command = [sys.executable, "-m", "kaggle", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, end="", flush=True)
    if done.returncode or not re.search(expect, done.stdout) or re.search(refuse, done.stdout):
        found = (text for pattern, text in _ADVICE.items() if re.search(pattern, done.stdout, re.IGNORECASE))
        what = f"'kaggle {arguments[0]} {arguments[1]}' did not succeed, see above"
        raise Refused("; ".join([what, *found][:2]))
    return done.stdout


def _read_metadata() -> dict:
    """The metadata of the last kernel that was built."""
    path = FOLDER / "kernel-metadata.json"
    if not path.is_file():
        raise Refused(f"no {path}; make kernel first")
    return read_json(path)


def push() -> None:
    """Push the kernel and note its version.

    A source that Kaggle dropped is a failure, since the kernel would run without it.
    """
    metadata = _read_metadata()
    pushed = r"Kernel version (\d+) successfully pushed"
    printed = _call_kaggle("kernels", "push", "-p", FOLDER, expect=pushed, refuse="not valid")
    version = int(re.search(pushed, printed)[1])
    noted = {"id": metadata["id"], "version": version, "slug": metadata["competition_sources"][0]}
    write_json(noted, FOLDER / _PUSHED)
    print(f"{metadata['id']} runs; when it is done: make output")


def _find_kernel() -> str:
    """The id of the kernel that was pushed last from here, else of the one that was built."""
    path = FOLDER / _PUSHED
    return (read_json(path) if path.is_file() else _read_metadata())["id"]


def fetch_output(data_root: str, parameters: Mapping[str, Any]) -> None:
    """Fetch a finished kernel's output, move its runs to `runs/`, and check its submission as its run has it.

    A run that is here already under the name of one of them is left as it is; the new one gets a number.
    """
    kernel = _find_kernel()
    folder = find_run_dir("kaggle")
    if (folder / "config.json").is_file():
        raise Refused(f"{folder} is a run of your own, and the output would replace it; rename it first")
    fetched = folder.with_name(f"{PARTIAL}kaggle")
    _call_kaggle("kernels", "status", kernel, expect=r"COMPLETE\b")
    shutil.rmtree(fetched, ignore_errors=True)
    _call_kaggle("kernels", "output", kernel, "-p", fetched, "--force", expect="")
    homes = _bring_all_home(sorted(path.parent for path in fetched.glob("runs/*/config.json")))
    if not (fetched / "submission.csv").is_file():
        raise Refused(
            f"the kernel made no submission; its runs are in {folder.parent}, its log and the rest in "
            f"{fetched}"
        )
    submitted = [home.name for home in homes if _is_same(home / "submission.csv", fetched / "submission.csv")]
    run = submitted[0] if submitted else "kaggle"
    shutil.rmtree(folder, ignore_errors=True)
    fetched.rename(folder)
    _check_here(folder / "submission.csv", data_root, read_config(**{"run": run} | parameters))
    print(f"{folder / 'submission.csv'}: valid; to submit it: make submit RUN={run}")


def _bring_all_home(run_dirs: Sequence[Path]) -> list[Path]:
    """Move runs to `runs/`, and last those that average others, whose names may be new ones then."""
    configs = {path: read_json(path / "config.json") for path in run_dirs}
    trained, averages = (
        [path for path in run_dirs if bool(configs[path].get("runs")) == kind] for kind in (False, True)
    )
    homes = {path.name: _bring_home(path) for path in trained}
    known = "|".join(sorted(map(re.escape, homes), key=len, reverse=True))  # a name may have commas
    for path in averages:
        runs = re.sub(
            rf"(?<![^,])({known})(?![^,])", lambda found: homes[found[0]].name, configs[path]["runs"]
        )
        write_json(configs[path] | {"runs": runs}, path / "config.json")
        homes[path.name] = _bring_home(path)
    return list(homes.values())


def _is_same(path: Path, other: Path) -> bool:
    """Whether two files are there and have the same content."""
    return path.is_file() and other.is_file() and path.read_bytes() == other.read_bytes()


def _bring_home(run_dir: Path) -> Path:
    """Move a run to `runs/`, with a number where another one of its name is; return where it is then."""
    names = (run_dir.name, *(f"{run_dir.name}-{number}" for number in range(2, 1000)))
    for home in map(find_run_dir, names):
        if not home.exists():
            run_dir.rename(home)
            if home.name != run_dir.name:
                print(f"{find_run_dir(run_dir.name)} exists and is left as it is; the kernel's run is {home}")
            return home
        if _find_results(home) == _find_results(run_dir):
            return home
    raise Refused(f"{run_dir.name} is in runs/ a thousand times; remove some")


def _find_results(run_dir: Path) -> dict[str, bytes]:
    """By which a run is known as the same: its finished folds' predictions, or what else there is."""
    others = (run_dir / "config.json", run_dir / "submission.csv", *run_dir.glob("fold*/history.csv"))
    paths = [*run_dir.glob("fold*/oof.npz")] or others
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in paths if path.is_file()}


def submit(run: str, data_root: str, parameters: Mapping[str, Any]) -> None:
    """Check a run's submission and submit it; the message names the run and the commit.

    Where a contest takes notebooks only, the version of the kernel that was pushed last is submitted.
    """
    contest = read_config(**{"run": run} | parameters)
    if contest.notebooks_only:
        _submit_kernel()
        return
    path = find_run_dir(run) / "submission.csv"
    _check_here(path, data_root, contest)
    message = f"{run}, commit {describe_environment()['git_commit'] or 'unknown'}"
    options = ["-c", contest.slug, "-f", path, "-m", message]
    _call_kaggle("competitions", "submit", *options, expect="Successfully submitted")


def _submit_kernel() -> None:
    """Submit the version of the kernel that was pushed last to its contest, which runs it once more."""
    path = FOLDER / _PUSHED
    if not path.is_file():
        raise Refused(
            "this contest takes versions of kernels, and none was pushed from here; make push first"
        )
    kernel, version, slug = (read_json(path)[name] for name in ("id", "version", "slug"))
    print(f"this contest takes notebooks only: submitting version {version} of {kernel}", flush=True)
    _call_kaggle("kernels", "status", kernel, expect=r"COMPLETE\b")
    options = ["-c", slug, "-f", "submission.csv", "-k", kernel, "-v", version, "-m", f"{kernel} {version}"]
    _call_kaggle("competitions", "submit", *options, expect="Successfully submitted")


def _check_here(path: Path, data_root: str, contest: Config) -> None:
    """Check a submission against the test images."""
    if not path.is_file():
        raise Refused(f"no {path}; 04_postprocess_submit writes it, on Kaggle too: see the kernel's log")
    cases = find_cases(find_data_root(data_root or contest.data_root, contest), "test", contest)
    if not cases:
        raise Refused(
            f"no test images here to check {path} against; make download, or pass DATA= to make submit, "
            "which checks it too"
        )
    check_submission(path, cases, contest)


def download(parameters: Mapping[str, Any]) -> None:
    """Download the contest's data and unpack it to `data/`."""
    contest = read_config(**parameters)
    folder = find_repository() / "data" / contest.slug
    _call_kaggle("competitions", "download", "-c", contest.slug, "-p", folder, expect="")
    archive, unpacked = folder / f"{contest.slug}.zip", folder.with_name(f"{PARTIAL}{contest.slug}")
    if not archive.is_file():
        raise Refused(f"the client wrote no {archive}; see above")
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as content:
            content.extractall(unpacked)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError) as error:
        shutil.rmtree(unpacked, ignore_errors=True)
        raise Refused(f"{archive} is not a whole archive ({error}); delete it, and download again") from error
    for path in unpacked.iterdir():
        _replace(path, folder / path.name)
    unpacked.rmdir()
    archive.unlink()
    print(f"data in {find_data_root(folder, contest)}")


def _replace(path: Path, target: Path) -> None:
    """Move a file or folder to where an older one may be."""
    if target.is_dir():
        shutil.rmtree(target)
    path.replace(target)


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the command line says, or say why not and exit with status 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("push", "output", "submit", "download"))
    parser.add_argument("--run", default="kaggle", help="whose submission to submit")
    parser.add_argument("--data", default="", help="the data set, to check a submission against")
    add_parameters(parser)
    given = parse_arguments(parser, argv)
    actions = {
        "push": push,
        "output": lambda: fetch_output(given.data, read_arguments(given)),
        "submit": lambda: submit(given.run, given.data, read_arguments(given)),
        "download": lambda: download(read_arguments(given)),
    }
    try:
        actions[given.action]()
    except (Refused, OSError, ValueError, TypeError) as error:
        sys.exit(f"{given.action}: {error}")


if __name__ == "__main__":
    print_anywhere()
    main()
