"""`make test-browser`: the kit as people use it, in JupyterLab and a browser, and the report that they read.

The tests of a module share a clone, a server and a page, and build on each other.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest
from conftest import REPOSITORY, wait

from ctseg.pairs import check_pairs
from ctseg.phantom import write_phantom
from ctseg.train import read_history

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium; Debian's package is called chromium"),
]
NOTEBOOKS = sorted(path.stem for path in (REPOSITORY / "notebooks").glob("[0-9][0-9]_*.py"))


def git(clone: Path, *words: str) -> str:
    """What a git command prints there."""
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", *identity, *words], cwd=clone, check=True, capture_output=True, text=True
    ).stdout


def list_changes(clone: Path) -> str:
    """What git would commit of the notebooks: nothing of outputs, which its filter takes out."""
    git(clone, "add", "--update")
    return git(clone, "status", "--porcelain")


def make(*words: str) -> list[str]:
    """A make command that uses this Python's environment as it is."""
    stamps = [f"{sys.prefix}/{name}" for name in (".ctseg", ".ctseg-lab")]
    olds = [word for stamp in stamps for word in ("-o", stamp)]
    return ["make", "--no-print-directory", f"VENV={sys.prefix}", *olds, *words]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A fresh clone of this tree after `make setup`, with a phantom that is small enough for a test."""
    folder = tmp_path_factory.mktemp("browser") / "clone"
    listed = git(REPOSITORY, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    git(folder, "init", "--quiet")
    subprocess.run(make("setup"), cwd=folder, check=True)
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "all")
    write_phantom(folder / "data" / "phantom", n_train=24, n_test=4)
    return folder


class Lab:
    """A browser's page with JupyterLab."""

    def __init__(self, page, url: str):
        self.page = page
        page.goto(f"{url}/lab?reset")
        page.wait_for_function("() => window.jupyterapp && jupyterapp.started.then(() => true)")

    def run_command(self, name: str, **arguments) -> None:
        """Execute a command of JupyterLab's, to its end."""
        self.page.evaluate(
            "([name, given]) => jupyterapp.commands.execute(name, given).then(() => null)", [name, arguments]
        )

    def open(self, path: str, factory: str = "Notebook") -> None:
        """Open a file from its contents alone, as a notebook."""
        self.run_command("application:close-all")
        self.run_command("docmanager:open", path=path, factory=factory)
        self.page.wait_for_function(
            """path => { const widget = jupyterapp.shell.currentWidget
            return widget?.context?.path == path && widget.context.isReady &&
                widget.sessionContext?.session?.kernel?.status == 'idle' }""",
            arg=path,
            timeout=600_000,
        )

    def choose(self, menu: str, entry: str) -> None:
        """Choose an entry of the menu bar."""
        self.page.get_by_role("menuitem", name=menu, exact=True).click()
        self.page.get_by_role("menuitem", name=entry, exact=True).click()

    def run_all(self) -> None:
        """Run all cells, and wait for the end."""
        self.choose("Run", "Run All Cells")
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        """Wait until no cell is waiting or running."""
        self.page.wait_for_timeout(500)
        self.page.wait_for_function(
            """() => { const widget = jupyterapp.shell.currentWidget
            return widget.sessionContext.session.kernel.status == 'idle' &&
                widget.content.widgets.every(cell => cell.prompt != '*') }""",
            timeout=600_000,
        )

    def type_line(self, old: str, new: str) -> None:
        """Replace the line of a cell that begins with a text."""
        self.page.locator(".cm-line", has_text=old).first.click()
        for key in ("Home", "Shift+End"):
            self.page.keyboard.press(key)
        self.page.keyboard.type(new)

    def save(self) -> None:
        """Save, and wait until it is."""
        self.page.keyboard.press("Control+s")
        self.page.wait_for_function("() => !jupyterapp.shell.currentWidget.context.model.dirty")
        self.page.wait_for_timeout(500)

    def outputs(self) -> list[dict]:
        """The outputs of all cells, in order."""
        cells = self.page.evaluate("() => jupyterapp.shell.currentWidget.content.model.toJSON().cells")
        return [output for cell in cells for output in cell.get("outputs", [])]

    def text(self) -> str:
        """What the notebook's cells have put out: text, HTML, errors."""
        return "\n".join(map(str, self.outputs()))


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as api:
        # Without a sandbox, which containers lack; it sees files of its own and this machine's server only.
        browser = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def start_lab(command: list[str], folder: Path, browser):
    """Start JupyterLab and yield its page; stop it afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"--no-browser --allow-root --port={port} --IdentityProvider.token= "
    options += "--LabApp.expose_app_in_browser=True --LabApp.news_url=None"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [*command, *options.split()] if command[0] != "make" else [*command, f"ARGS={options}"]
    log = tempfile.NamedTemporaryFile(mode="w+")  # noqa: SIM115, the server writes it
    server = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait(lambda: answers(url), lambda: Path(log.name).read_text())
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        yield Lab(page, url)
        page.close()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(f"{url}/api/status", timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def lab(clone, browser):
    """JupyterLab as `make lab` starts it."""
    yield from start_lab(make("lab"), clone, browser)


def assert_clean(lab: Lab) -> None:
    """No cell failed, and nothing is on the red stream."""
    bad = [
        output
        for output in lab.outputs()
        if output["output_type"] == "error" or output.get("name") == "stderr"
    ]
    assert bad == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_as_cloned_every_notebook_runs_and_git_sees_no_change(lab, clone, name):
    lab.open(f"notebooks/{name}.ipynb")
    lab.run_all()
    assert_clean(lab)
    assert "DATA: the synthetic phantom" in lab.text()
    lab.save()
    check_pairs(clone)
    assert list_changes(clone) == ""
    assert "outputs" in (clone / "notebooks" / f"{name}.ipynb").read_text()


def test_the_run_is_whole_and_has_a_report(clone):
    (run_dir,) = (clone / "runs").iterdir()
    assert (run_dir / "report.html").is_file() and (run_dir / "submission.csv").is_file()
    assert (run_dir / "fold0" / "last.pth").stat().st_size < 50_000 and (
        run_dir / "fold0" / "oof.npz"
    ).is_file()


def test_a_parameter_is_edited_and_git_shows_that_alone(lab, clone):
    lab.open("notebooks/03_train.ipynb")
    lab.type_line("epochs: int = None", "epochs: int = 300")
    lab.type_line('run: str = ""', 'run: str = "long"')
    lab.save()
    check_pairs(clone)
    files = git(clone, "diff", "--name-only").split()
    assert files == ["notebooks/03_train.ipynb", "notebooks/03_train.py"]
    changed = re.findall(r"^\+[^+].*$", git(clone, "diff", "-U0"), flags=re.MULTILINE)
    assert len(changed) == 4 and all("300" in line or "long" in line for line in changed)


def stop_in_an_epoch(lab: Lab, fold_dir: Path, n_epochs: int) -> int:
    """Interrupt the kernel once a fold has so many epochs; return how many it had then."""
    wait(lambda: len(read_history(fold_dir)) >= n_epochs, lab.text)
    progress = lab.page.locator(".jp-OutputArea progress")
    assert progress.is_visible() and "epoch " in lab.text() and "best validation Dice" in lab.text()
    lab.run_command("notebook:interrupt-kernel")
    lab.wait_until_idle()
    return len(read_history(fold_dir))


def test_stopped_in_an_epoch_and_run_again_it_goes_on(lab, clone):
    fold_dir = clone / "runs" / "long" / "fold0"
    lab.choose("Run", "Run All Cells")
    n_epochs = stop_in_an_epoch(lab, fold_dir, 3)
    (error,) = [output for output in lab.outputs() if output["output_type"] == "error"]
    assert error["traceback"] == [error["evalue"]] and "run this cell again to go on" in error["evalue"]
    assert f"epochs 1 to {n_epochs} are kept" in error["evalue"]
    assert not (fold_dir / "oof.npz").exists()
    lab.choose("Run", "Run All Cells")
    assert stop_in_an_epoch(lab, fold_dir, n_epochs + 2) > n_epochs
    assert f"fold0 goes on after epoch {n_epochs} of 300" in lab.text()


def test_other_settings_are_refused_and_no_later_cell_trains(lab, clone):
    fold_dir = clone / "runs" / "long" / "fold0"
    before = read_history(fold_dir)
    lab.type_line("lr: float = None", "lr: float = 0.5")
    lab.run_all()
    assert (
        "lr: got 0.5, stored 0.002" in lab.text() and "in the parameters cell, give run another" in lab.text()
    )
    for _ in range(10):  # as somebody does who passes an error on with Shift+Enter
        lab.run_command("notebook:run-cell-and-select-next")
        lab.wait_until_idle()
    assert read_history(fold_dir) == before
    lab.save()  # else JupyterLab asks before the next one is opened


def test_04_offers_to_make_do_with_what_there_is(lab, clone):
    lab.open("notebooks/04_postprocess_submit.ipynb")
    lab.type_line('run: str = ""', 'run: str = "long"')
    lab.run_all()
    assert "or pass use_unfinished to make do with what there is" in lab.text()
    lab.type_line("use_unfinished: bool = False", "use_unfinished: bool = True")
    lab.run_all()
    assert_clean(lab)
    assert "used as it is; 03 goes on with it" in lab.text()
    assert (clone / "runs" / "long" / "submission.csv").is_file()
    assert (clone / "runs" / "long" / "fold0" / "last.pth").stat().st_size > 1_000_000  # 03 can go on
    lab.save()
    git(clone, "checkout", "notebooks")


def test_the_py_half_opens_as_a_notebook(lab, clone):
    lab.open("notebooks/01_eda.py")
    lab.run_all()
    assert_clean(lab)
    lab.save()
    check_pairs(clone)
    assert list_changes(clone) == ""


def test_started_inside_notebooks_a_save_keeps_the_pair(lab, clone, browser):
    command = [sys.executable, "-m", "jupyterlab"]
    for inner in start_lab(command, clone / "notebooks", browser):
        inner.open("02_transforms.ipynb")
        inner.type_line('run: str = ""', 'run: str = "inner"')
        inner.save()
        check_pairs(clone)
        assert 'run: str = "inner"' in (clone / "notebooks" / "02_transforms.py").read_text()
        diff = git(clone, "diff", "-U0", "--stat")
    assert "2 files changed, 2 insertions(+), 2 deletions(-)" in diff
    git(clone, "checkout", "notebooks")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("opened", [False, True])
def test_the_report_is_one_page_that_fits_and_asks_nobody(clone, browser, width, scheme, opened):
    path = max(clone.glob("runs/*/report.html"), key=lambda path: len(path.parent.name))
    assert path.stat().st_size < 4_000_000 and str(clone) not in path.read_text()
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    if opened:
        page.evaluate("() => document.querySelectorAll('details').forEach(entry => entry.open = true)")
    page.wait_for_timeout(300)
    assert said == [] and [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    pictures = page.evaluate(
        "() => [...document.images].map(image => [image.naturalWidth, image.alt.length])"
    )
    assert len(pictures) >= 20 and all(pixels and text for pixels, text in pictures)
    ink, paper = page.evaluate(
        "() => { const style = getComputedStyle(document.body); return [style.color, style.backgroundColor] }"
    )
    brightness = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ink, paper)]
    assert (brightness[0] < brightness[1]) == (scheme == "light")
    page.close()
