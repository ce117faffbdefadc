"""Worker processes: where they work, what they say, and how they end."""

import time

import pytest
from conftest import wait

from ctseg.files import FolderBusy
from ctseg.log import Log, Relay
from ctseg.workers import Stage, WorkerPool, find_gpus, plan_stages


def describe(stages):
    """Each stage's folds, and the threads of each place."""
    return [
        (list(stage.folds), [int(place["OMP_NUM_THREADS"]) for place in stage.environments])
        for stage in stages
    ]


@pytest.mark.parametrize(
    ("n_folds", "n_cores", "n_useful", "expected", "weights"),
    [
        (5, 2, 2, [([0, 1, 2, 3], [1, 1]), ([4], [2])], [1, 0.61]),
        (4, 2, 2, [([0, 1, 2, 3], [1, 1])], [1]),
        (1, 2, 2, [([0], [])], [1]),
        (5, 1, 1, [([0, 1, 2, 3, 4], [])], [1]),
        (5, 16, 16, [([0, 1, 2, 3, 4], 5 * [3])], [1]),
        (5, 8, 3, [([0, 1, 2], 3 * [2]), ([3, 4], 2 * [4])], [1, 0.61]),
        (5, 8, 1, [([0, 1, 2, 3, 4], [])], [1]),
        (5, 3, 3, [([0, 1, 2], 3 * [1]), ([3, 4], 2 * [1])], [1, 1]),  # no more threads, no less time
        (5, 4, 4, [([0, 1, 2, 3], 4 * [1]), ([4], [4])], [1, 0.61**2]),
    ],
)
def test_a_cpus_cores_are_divided_among_folds(cores, n_folds, n_cores, n_useful, expected, weights):
    cores(n_cores)
    stages = plan_stages(range(n_folds), n_gpus=0, n_useful=n_useful)
    assert describe(stages) == expected
    assert [stage.weight for stage in stages] == pytest.approx(weights)
    # PyTorch listens to MKL's number of threads before OpenMP's.
    names = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
    names |= {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
    assert all(given.keys() == names for stage in stages for given in stage.environments)


def test_each_gpu_has_its_share_of_the_cores(cores, monkeypatch):
    cores(4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    (stage,) = plan_stages(range(5), n_gpus=2, n_useful=4)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in stage.environments] == ["GPU-a", "GPU-b"]
    assert describe([stage]) == [([0, 1, 2, 3, 4], [2, 2])] and len(stage.split()) == 3
    assert plan_stages(range(5), n_gpus=1, n_useful=4) == [Stage(range(5))]
    assert plan_stages([3], n_gpus=2, n_useful=4) == [Stage([3])]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert find_gpus(2) == ["0", "1"]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write the module `job`, which workers can run."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return (tmp_path / "job.py").write_text


def test_a_workers_lines_are_passed_on_and_its_place_is_its_environment(module):
    module("import os, sys\nprint(sys.argv[1:], os.environ['OMP_NUM_THREADS'])\nprint('last', flush=True)")
    lines, pool = [], WorkerPool([{"OMP_NUM_THREADS": "7"}])
    pool.run("job", ["a", 1], on_line=lines.append)
    assert lines == ["['a', '1'] 7\n", "last\n"]
    assert pool.free.qsize() == 1 and not pool.running


def test_files_of_the_current_folder_hide_no_module_from_a_worker(module, tmp_path, monkeypatch):
    module("print('here')")
    (tmp_path / "here").mkdir()
    for name in ("threading.py", "runpy.py", "ctseg.py"):
        (tmp_path / "here" / name).write_text("raise SystemExit('hidden')")
    monkeypatch.chdir(tmp_path / "here")
    lines = []
    WorkerPool([{}]).run("job", [], on_line=lines.append)
    assert lines == ["here\n"]


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (
            "raise ValueError('bad')",
            RuntimeError,
            "^its process ended with status 1: ValueError: bad\nTraceback",
        ),
        (
            "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError('bad') from error",
            RuntimeError,
            "^its process ended with status 1: ValueError: bad\nTraceback(?s:.)*ZeroDivisionError",
        ),
        ("import os, signal\nos.kill(os.getpid(), 9)", RuntimeError, "status -9, killed, most often because"),
        ("import os\nprint('fold0 is busy', flush=True)\nos._exit(75)", FolderBusy, "^fold0 is busy$"),
        ("import os\nos._exit(130)", KeyboardInterrupt, None),
    ],
)
def test_how_a_worker_ended_is_told(module, code, error, message):
    module(code)
    pool = WorkerPool([{"N": "1"}])
    lines = []
    with pytest.raises(error, match=message) as raised:
        pool.run("job", [], on_line=lines.append)
    assert pool.free.qsize() == 1 and not pool.running
    if error is RuntimeError and "bad" in code:
        assert "Traceback" in raised.value.__notes__[0] and lines == []


def test_a_worker_that_gives_no_sign_is_killed_and_one_that_does_is_not(module):
    module(
        "import time\nfor _ in range(6):\n    print('here', flush=True)\n    time.sleep(1)\ntime.sleep(600)"
    )
    lines, pool, started = [], WorkerPool([{}]), time.monotonic()
    with pytest.raises(RuntimeError, match="killed because it had given no sign for 0.2 minutes: here\n"):
        pool.run("job", [], silence=10.0, on_line=lines.append)
    assert len(lines) == 6 and time.monotonic() - started < 100


def test_an_error_stops_all_workers_those_too_that_do_not_listen(module):
    module(
        "import signal, sys, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN if sys.argv[1] == '1' else "
        "signal.default_int_handler)\nprint('here', flush=True)\ntime.sleep(600)"
    )
    pool, here = WorkerPool([{}, {}]), []

    def work(number):
        if number == 2:
            wait(lambda: len(here) == 2)
            raise KeyboardInterrupt
        pool.run("job", [number], on_line=here.append)

    pool.n = 3  # a thread more, for the error
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        pool.map(work, [0, 1, 2])
    assert not pool.running
    with pytest.raises(KeyboardInterrupt):
        pool.run("job", [0], on_line=here.append)  # nothing is begun any more


def test_a_worker_that_cannot_be_started_leaves_its_place(monkeypatch):
    def fail(*_, **__):
        raise OSError("cannot allocate memory")

    pool = WorkerPool([{}])
    monkeypatch.setattr("subprocess.Popen", fail)
    with pytest.raises(OSError, match="cannot allocate memory"):
        pool.run("job", [], on_line=print)
    assert pool.free.qsize() == 1


def test_where_a_worker_is_goes_to_the_bar_and_not_to_the_reader(tmp_path, capsys, monkeypatch):
    ticks = iter([0.0, 0.0, 0.5, 1.5, 1.5])
    monkeypatch.setattr("ctseg.workers.time.monotonic", lambda: next(ticks))
    relay = Relay([tmp_path / "fold3"])
    for share in (0.25, 0.5, 0.75):
        relay.on_step(tmp_path / "fold3", 2, 5, share)
    lines = capsys.readouterr().out.splitlines(keepends=True)
    assert lines == ["fold3 step 2/5 0.2500\n", "fold3 step 2/5 0.7500\n"]  # one a second
    log, seen = Log([tmp_path / "fold3"]), []
    log.on_step = lambda *place: seen.append(place)
    for line in [*lines, "fold3 stepped out\n"]:
        log.pass_on(line)
    assert seen == [(tmp_path / "fold3", 2, 5, 0.25), (tmp_path / "fold3", 2, 5, 0.75)]
    assert capsys.readouterr().out == "fold3 stepped out\n"
