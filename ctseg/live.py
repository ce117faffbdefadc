"""Whether this is a notebook that somebody watches."""

import os
import sys

from IPython import get_ipython

_MARKS = ("JPY_SESSION_NAME", "VSCODE_PID")


def is_live() -> bool:
    """Whether this is a notebook in Jupyter, VS Code, Colab or Kaggle's editor.

    Not papermill, nor Kaggle's run of a whole kernel, which would keep every update.
    """
    kaggle = os.environ.get("KAGGLE_KERNEL_RUN_TYPE")
    server = kaggle is None and any(name in os.environ for name in _MARKS)
    is_watched = server or kaggle == "Interactive" or "google.colab" in sys.modules
    return is_watched and hasattr(get_ipython(), "kernel")


def leave_notebook() -> None:
    """Let the programs that this one starts not take themselves for the notebook that may have started it."""
    for name in _MARKS:
        os.environ.pop(name, None)
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        os.environ["KAGGLE_KERNEL_RUN_TYPE"] = "Batch"
