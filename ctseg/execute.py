"""Run the notebooks headless, in turn, into a run's folder: papermill, and nothing left from trying values.

`python -m ctseg.execute [--only NAME] -r run NAME -p name value -f file.yaml` is what `make run` calls.
"""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from ctseg.arguments import add_parameters, parse_arguments, read_arguments
from ctseg.files import print_anywhere
from ctseg.live import leave_notebook
from ctseg.pairs import KERNELSPEC, check_pairs, find_notebooks, reset_parameters
from ctseg.paths import find_repository, find_run_dir
from ctseg.runs import read_config


def run_notebook(path: Path, output: Path, parameters: Mapping[str, Any]) -> None:
    """Run a notebook with these parameters alone; what it prints is printed, `output` is the executed copy.

    Raises:
        ValueError: the notebook's parameters cannot be put back to their defaults.
        PapermillExecutionError: a cell failed; the copy has the whole traceback.
        RuntimeError: the kernel died.
    """
    try:
        notebook = reset_parameters(nbformat.read(path, as_version=4))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    output.parent.mkdir(parents=True, exist_ok=True)
    with _quiet_kernel():
        papermill.execute_notebook(
            notebook,
            output,
            parameters=dict(parameters),
            kernel_name=KERNELSPEC["name"],  # whatever a front end has saved
            progress_bar=False,
            stdout_file=sys.stdout,
        )


@contextmanager
def _quiet_kernel() -> Iterator[None]:
    """Keep off the terminal what the kernel itself prints, of its network and when it is stopped.

    Raises:
        RuntimeError: the kernel died; the message ends with its last words.
    """
    with tempfile.TemporaryFile() as log:
        terminal = os.dup(2)
        os.dup2(log.fileno(), 2)  # the kernel inherits it
        try:
            yield
        except RuntimeError as error:  # nbclient's
            log.seek(0)
            words = log.read().decode(errors="replace").strip().splitlines()[-5:]
            raise RuntimeError("\n".join([f"{error}; is there enough memory?", *words])) from error
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the notebooks as the command line says; exit with status 1 at the first that fails."""
    parser = argparse.ArgumentParser(description="Run the notebooks headless, in turn.")
    parser.add_argument("--only", help="the name of one of them")
    add_parameters(parser)
    given = parse_arguments(parser, argv)
    root = find_repository()
    leave_notebook()
    try:
        parameters = read_arguments(given)
        paths = [path for path in find_notebooks(root) if given.only in (None, path.stem)]
        if not paths:
            raise ValueError(f"no notebook {given.only!r} in {root / 'notebooks'}")
        predicts = bool(parameters.get("predict_folder"))
        alone = {"predict_folder": "make predict IMAGES=folder", "runs": "make average"}
        for name in [] if given.only else filter(parameters.get, alone):
            raise ValueError(f"{name} is for notebook 04 alone; {alone[name]} runs it")
        run_dir = find_run_dir(read_config(**parameters).run)
        check_pairs(root)
        for path in paths:
            name = "predict" if predicts else path.stem
            print(f"{path.stem} …", flush=True)
            output = run_dir / f"{name}_unfinished.ipynb"  # an earlier copy stays until it is done
            run_notebook(path.with_suffix(".ipynb"), output, parameters)
            output.rename(run_dir / f"{name}.ipynb")
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"not run: {error}")
    except RuntimeError as error:
        sys.exit(f"{path.stem} failed: {error}")
    except PapermillExecutionError as error:
        sys.exit(f"{path.stem} failed: {error.ename}: {error.evalue} (the traceback is in {output})")
    except KeyboardInterrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it would report the cell that was stopped
        sys.exit("stopped; the same command goes on after the last whole epoch")


if __name__ == "__main__":
    print_anywhere()
    main()
