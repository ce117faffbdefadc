"""Whether this is a notebook that somebody watches."""

import os
import sys

from IPython import get_ipython


def is_live() -> bool:
    """Whether this is a notebook in Jupyter, VS Code, Colab or Kaggle's editor.

    Not papermill, nor Kaggle's run of a whole kernel, which would keep every update.
    """
    kaggle = os.environ.get("KAGGLE_KERNEL_RUN_TYPE")
    server = kaggle is None and bool({"JPY_SESSION_NAME", "VSCODE_PID"} & os.environ.keys())
    is_watched = server or kaggle == "Interactive" or "google.colab" in sys.modules
    return is_watched and hasattr(get_ipython(), "kernel")
