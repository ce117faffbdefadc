"""A child ends when its parent does, however that died."""

import os
import signal
import subprocess
import sys
import time

from conftest import REPOSITORY, wait

# A parent that starts a child, says its number, and waits.
PARENT = """
import os, subprocess, sys, time
words = ["timeit", "-n1", "-r1", "import time; time.sleep(60)"]
command = [sys.executable, "-m", "ctseg.child", str(os.getpid()), *words]
print(subprocess.Popen(command).pid, flush=True)
time.sleep(60)
"""


def is_alive(pid):
    """Whether a process is there and no zombie."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_a_child_ends_with_its_parent():
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        time.sleep(1.5)
        assert is_alive(child)
        parent.send_signal(signal.SIGKILL)
    wait(lambda: not is_alive(child))


def test_a_child_is_the_module_with_its_arguments_and_status():
    command = [sys.executable, "-m", "ctseg.child", str(os.getpid()), "json.tool", "--compact"]
    done = subprocess.run(command, cwd=REPOSITORY, input='{"a": 1}', capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == '{"a":1}\n'
    assert subprocess.run([*command, "--typo"], cwd=REPOSITORY, capture_output=True).returncode == 2
