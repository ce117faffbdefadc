"""`python -m ctseg.child PID MODULE ARGUMENTS…` runs a module as a program that ends when its parent does."""

import os
import runpy
import sys
import threading
import time


def watch(parent: int) -> None:
    """End this process, at once and whatever it does, when it is no longer a child of `parent`.

    However the parent died, it can no longer tell its children; a kernel does the same with its own parent.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=watch, args=[int(sys.argv[1])], daemon=True).start()
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
