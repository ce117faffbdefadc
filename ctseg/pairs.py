"""Notebooks as files: whether both halves of a pair agree, what git keeps of them, and no values from a try.

`python -m ctseg.pairs check` is what make asks before it uses them, and `strip` the filter through which git
reads them.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jupytext
import nbformat
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
    "use_unfinished": False,
}  # defaults other than None


def check_pairs(root: Path) -> None:
    """Check that both halves of each pair have the same cells, in the tree and in the last commit.

    Raises:
        ValueError: two do not; the first pair is named.
    """
    names = sorted({path.stem for path in (root / "notebooks").glob("[0-9][0-9]_*.py")})
    for name in names:
        halves = [root / "notebooks" / f"{name}{suffix}" for suffix in (".py", ".ipynb")]
        if not _agree([path.read_text(encoding="utf-8") if path.is_file() else None for path in halves]):
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
        [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]
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
        ValueError: a cell of its own sets a parameter.
    """
    parameters = _find_parameters(notebook)
    for cell in notebook.cells[: notebook.cells.index(parameters)] + _list_between(notebook, parameters):
        nodes = _walk(cell.source) if cell.cell_type == "code" else []
        stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        if found := sorted(stored & set(NAMES)):
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


def _list_between(notebook: NotebookNode, parameters: NotebookNode) -> list[NotebookNode]:
    """The cells between a notebook's parameters and its settings, as somebody has put them there."""
    start = notebook.cells.index(parameters) + 1
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells[start:]]
    end = next((place for place, names in enumerate(tags) if "setup" in names), len(tags))
    return notebook.cells[start : start + end]


def _find_parameters(notebook: NotebookNode) -> NotebookNode:
    """The cell that is tagged parameters."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(
            f"{len(cells)} cells are tagged parameters, expected one; tag it, or restore the file"
        )
    return cells[0]


def _walk(source: str) -> list[ast.AST]:
    """The nodes of a cell's syntax tree; none if it is not Python alone, but has a line such as %pwd."""
    try:
        return list(ast.walk(ast.parse(source)))
    except SyntaxError:
        return []


def _list_values(source: str) -> Iterator[tuple[str, ast.expr]]:
    """Each name that a parameters cell sets, with its value; ValueError if it is not Python."""
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(f"the parameters cell is not Python, line {error.lineno}: {error.msg}") from None
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            yield statement.targets[0].id, statement.value
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id, statement.value


def main(words: Sequence[str]) -> None:
    """Do what the command line says, or say why not and exit with status 1."""
    try:
        if words == ["strip"]:
            notebook = nbformat.reads(sys.stdin.buffer.read().decode(), as_version=4)
            print(nbformat.writes(strip_notebook(notebook), indent=1))
        else:
            check_pairs(Path.cwd())
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    print_anywhere()
    main(sys.argv[1:])
