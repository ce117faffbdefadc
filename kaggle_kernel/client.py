"""Push, fetch and submit with Kaggle's own client, whose exit status 0 does not mean success.

`make push`, `make output`, `make submit RUN=name` and `make download` call it.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ctseg.contest import SLUG
from ctseg.data import find_cases
from ctseg.files import print_anywhere, read_json
from ctseg.paths import find_data_root, find_repository, find_run_dir
from ctseg.report import describe_environment
from ctseg.submission import check_submission

FOLDER = Path(__file__).parent
_RULES_PAGE = f"kaggle.com/competitions/{SLUG}/rules"
_RULES = f"join the contest and accept its rules, at {_RULES_PAGE}, with the account of the key"
_KEY = "save Kaggle's API key as ~/.kaggle/kaggle.json, or set KAGGLE_API_TOKEN"
_QUOTA = (
    "GPU hours are 30 per week; wait, or push with machine_shape and enable_gpu changed in "
    "kernel-metadata.json"
)
_ADVICE = {  # pattern in the output: the way out
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
    """Push the kernel; a source that Kaggle dropped is a failure, since the kernel would run without it."""
    metadata = _read_metadata()
    pushed = r"Kernel version \d+ successfully pushed"
    _call_kaggle("kernels", "push", "-p", FOLDER, expect=pushed, refuse="not valid")
    print(f"{metadata['id']} runs; when it is done: make output")


def fetch_output(data_root: str) -> None:
    """Fetch a finished kernel's output, and check its submission against the test images here."""
    kernel = _read_metadata()["id"]
    run_dir = find_run_dir("kaggle")
    _call_kaggle("kernels", "status", kernel, expect=r"COMPLETE\b")
    _call_kaggle("kernels", "output", kernel, "-p", run_dir, "--force", expect="")
    _check_here(run_dir / "submission.csv", data_root)
    print(f"{run_dir / 'submission.csv'}: valid; to submit it: make submit RUN=kaggle")


def submit(run: str, data_root: str) -> None:
    """Check a run's submission and submit it; the message names the run and the commit."""
    path = find_run_dir(run) / "submission.csv"
    _check_here(path, data_root)
    message = f"{run}, commit {describe_environment()['git_commit'] or 'unknown'}"
    options = ["-c", SLUG, "-f", path, "-m", message]
    _call_kaggle("competitions", "submit", *options, expect="Successfully submitted")


def _check_here(path: Path, data_root: str) -> None:
    """Check a submission against the test images."""
    if not path.is_file():
        raise Refused(f"no {path}; 04_postprocess_submit writes it, on Kaggle too: see the kernel's log")
    check_submission(path, find_cases(find_data_root(data_root), "test"))


def download() -> None:
    """Download the contest's data and unpack it to `data/`."""
    folder = find_repository() / "data" / SLUG
    _call_kaggle("competitions", "download", "-c", SLUG, "-p", folder, expect="")
    archive = folder / f"{SLUG}.zip"
    if not archive.is_file():
        raise Refused(f"the client wrote no {archive}; see above")
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder)
    archive.unlink()
    print(f"data in {find_data_root(folder)}")


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the command line says, or say why not and exit with status 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("push", "output", "submit", "download"))
    parser.add_argument("--run", default="kaggle", help="whose submission to submit")
    parser.add_argument("--data", default="", help="the data set, to check a submission against")
    given = parser.parse_args(argv)
    actions = {
        "push": push,
        "output": lambda: fetch_output(given.data),
        "submit": lambda: submit(given.run, given.data),
        "download": download,
    }
    try:
        actions[given.action]()
    except (Refused, OSError, ValueError) as error:
        sys.exit(f"{given.action}: {error}")


if __name__ == "__main__":
    print_anywhere()
    main()
