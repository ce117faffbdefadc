"""Notebooks as files: whether both halves of a pair agree, what git keeps of them, and no values from a try.

`python -m ctseg.pairs check` is what make asks before it uses them, and `strip` the filter through which git
reads them.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jupytext
import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbconvert.preprocessors import ClearOutputPreprocessor
from nbformat import NotebookNode

from ctseg.config import NAMES
from ctseg.files import print_anywhere

# As Jupyter calls the kernel of an environment, so that a save changes nothing; VS Code has other names.
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
_PAIRING = ("cell_metadata_filter", "formats", "notebook_metadata_filter")  # of jupytext's metadata
_EMPTY = {
    "data_root": "",
    "run": "",
    "predict_folder": "",
    "runs": "",
    "use_unfinished": False,
}  # defaults other than None


def find_notebooks(root: Path) -> list[Path]:
    """The .py of each pair in `root/notebooks`, in order; not copies such as 03_train-Copy1.

    One whose .ipynb alone is there is listed too.
    """
    paths = [path for suffix in (".py", ".ipynb") for path in root.glob(f"notebooks/*{suffix}")]
    return sorted({path.with_suffix(".py") for path in paths if re.fullmatch(r"\d\d_\w+", path.stem)})


def check_pairs(root: Path) -> None:
    """Check that both halves of each pair have the same cells, in the tree and in the last commit.

    Raises:
        ValueError: two do not; the first pair is named.
    """
    names = [path.stem for path in find_notebooks(root)]
    for name in names:
        halves = [root / "notebooks" / f"{name}{suffix}" for suffix in (".py", ".ipynb")]
        try:
            agree = _agree([path.read_text(encoding="utf-8") if path.is_file() else None for path in halves])
        except ValueError as error:
            raise ValueError(f"notebooks/{name}.ipynb is damaged: {str(error)[:80]}; restore it") from None
        if not agree:
            raise ValueError(
                f"notebooks/{name}.py and .ipynb differ, one was changed without the other; run make sync, "
                "which takes the newer one"
            )
    for name in names:
        texts = [_read_committed(root, f"notebooks/{name}{suffix}") for suffix in (".py", ".ipynb")]
        if any(texts) and not _agree(texts):
            raise ValueError(
                f"notebooks/{name}.py and .ipynb differ in the last commit; run make sync, and commit both"
            )


def _read_committed(root: Path, name: str) -> str | None:
    """A file as the last commit has it; None if it does not, or without git."""
    command = ["git", "-C", str(root), "show", f"HEAD:./{name}"]
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True, encoding="utf-8").stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _agree(texts: Sequence[str | None]) -> bool:
    """Whether the texts of a .py and an .ipynb have the same cells with the same tags."""
    if None in texts:
        return False
    first, second = (
        # The text half cannot hold an empty line at the end of a cell.
        [(cell.cell_type, cell.source.strip("\n"), cell.metadata.get("tags", [])) for cell in notebook.cells]
        for notebook in map(jupytext.reads, texts, ("py:percent", "ipynb"))
    )
    return first == second


def strip_notebook(notebook: NotebookNode) -> NotebookNode:
    """What git keeps of a notebook: no outputs, no counts, no metadata but tags and the kernel's name."""
    pairing = notebook.metadata.get("jupytext", {})
    notebook, _ = ClearOutputPreprocessor(enabled=True)(notebook, {})
    for cell in notebook.cells:
        cell.metadata = {name: value for name, value in cell.metadata.items() if name == "tags"}
    kept = {"jupytext": {name: pairing[name] for name in _PAIRING if name in pairing}} if pairing else {}
    notebook.metadata = nbformat.from_dict(kept | {"kernelspec": KERNELSPEC})
    return notebook


def find_tried(notebook: NotebookNode) -> dict[str, str]:
    """The values in a notebook's parameters cell that are not the defaults, as they are written, by name."""
    cell = _find_parameters(notebook)
    return {
        name: ast.unparse(value)
        for name, value in _list_values(cell.source)
        if ast.unparse(value) != repr(_EMPTY.get(name))
    }


def reset_parameters(notebook: NotebookNode) -> NotebookNode:
    """Put the defaults back into a notebook's parameters cell, whatever was tried and saved there.

    Raises:
        ValueError: another cell sets a parameter before the settings are read, or the parameters cell does so
            otherwise than name by name.
    """
    parameters = _find_parameters(notebook)
    for cell in _list_other_cells(notebook, parameters):
        if found := sorted(_list_stored(_parse(cell.source))):
            raise ValueError(
                f"a cell of its own sets {found[0]!r}; set it in the parameters cell, or pass it on the "
                "command line"
            )
    lines = parameters.source.encode().splitlines(keepends=True)  # the parser counts bytes
    for name, value in reversed(list(_list_values(parameters.source))):
        first, last = value.lineno - 1, value.end_lineno - 1
        before, after = lines[first][: value.col_offset], lines[last][value.end_col_offset :]
        default = repr(_EMPTY.get(name)).replace("'", '"').encode()
        lines[first : last + 1] = [before + default + after]
    parameters.source = b"".join(lines).decode()
    return notebook


def _list_other_cells(notebook: NotebookNode, parameters: NotebookNode) -> list[NotebookNode]:
    """The code cells other than the parameters, up to the one that reads the settings."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    settings = [place for place, cell in enumerate(cells) if "setup" in cell.metadata.get("tags", [])]
    end = settings[0] + 1 if settings else cells.index(parameters)
    return [cell for cell in cells[:end] if cell is not parameters]


def _list_stored(tree: ast.AST) -> list[str]:
    """The parameters that a syntax tree sets, each as often as it does."""
    nodes = (
        node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )
    return [node.id for node in nodes if node.id in NAMES]


def _find_parameters(notebook: NotebookNode) -> NotebookNode:
    """The cell that is tagged parameters."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(
            f"{len(cells)} cells are tagged parameters, expected one; tag it, or restore the file"
        )
    return cells[0]


def _parse(source: str) -> ast.AST:
    """A cell's syntax tree, of IPython's own lines too; an empty one if it is broken."""
    try:
        return ast.parse(TransformerManager().transform_cell(source))
    except SyntaxError:
        return ast.Module([], [])


def _list_values(source: str) -> Iterator[tuple[str, ast.expr]]:
    """Each name that a parameters cell sets, with its value.

    Raises:
        ValueError: it is not Python, or sets a parameter otherwise than by `name = value`.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ValueError(f"the parameters cell is not Python, line {error.lineno}: {error.msg}") from None
    left = _list_stored(tree)
    for statement in tree.body:
        match statement:
            case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, value):
                left = [other for other in left if other != name] if left.count(name) == 1 else left
                if value:
                    yield name, value
    if left:
        raise ValueError(f"the parameters cell sets {left[0]!r} otherwise than once, by {left[0]} = value")


def main(words: Sequence[str]) -> None:
    """Do what the command line says, or say why not and exit with status 1."""
    try:
        if words == ["strip"]:
            notebook = nbformat.reads(sys.stdin.buffer.read().decode(), as_version=4)
            text = nbformat.writes(strip_notebook(notebook), indent=1)
            sys.stdout.buffer.write(f"{text}\n".encode())  # whatever the terminal's encoding is
        elif words == ["check"]:
            check_pairs(Path.cwd())
        else:
            raise ValueError(f"got {' '.join(words)!r}, expected check or strip")
    except (ValueError, OSError, AttributeError, nbformat.ValidationError) as error:
        sys.exit(f"{type(error).__name__}: {error}" if words == ["strip"] else str(error))


if __name__ == "__main__":
    print_anywhere()
    main(sys.argv[1:])
