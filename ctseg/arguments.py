"""Parameters on a command line, as papermill has them: `-p name value`, `-r name text`, `-f file.yaml`."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ctseg.config import check_names, parse_value

_VALUE = "="  # before a value, so that argparse does not take -mask for an option


def add_parameters(parser: argparse.ArgumentParser) -> None:
    """Let a parser take parameters."""
    again = {"action": "append", "default": []}
    parser.add_argument(
        "-p", nargs=2, **again, metavar=("NAME", "VALUE"), help="a parameter of the notebooks"
    )
    parser.add_argument(
        "-r", nargs=2, **again, metavar=("NAME", "TEXT"), help="the same, as text in any case"
    )
    parser.add_argument(
        "-f", "--file", type=Path, **again, help="YAML or JSON with parameters, such as a run's config.json"
    )


def parse_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line (None: the program's own) in which a parameter's value may begin with a dash."""
    words = list(sys.argv[1:] if argv is None else argv)
    values = [place + 2 for place, word in enumerate(words[:-2]) if word in ("-p", "-r")]
    for place in values:
        words[place] = _VALUE + words[place]
    given = parser.parse_args(words)
    for pairs in (given.p, given.r):
        pairs[:] = [(name, value.removeprefix(_VALUE)) for name, value in pairs]
    return given


def read_arguments(given: argparse.Namespace, also: Iterable[str] = ()) -> dict[str, Any]:
    """The parameters that a command line gives, files first, single values over them; None is left out.

    `also` are names that are not settings and may be given.

    Raises:
        OSError, ValueError: a file that cannot be read or does not hold names and values, or an unknown name.
    """
    parameters = {}
    for path in given.file:
        try:
            text = path.read_text(encoding="utf-8-sig")
            content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except FileNotFoundError:
            raise FileNotFoundError(f"no file {path}; expected one of parameters, YAML or JSON") from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not YAML or JSON: {error}; write 'name: value' lines") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds {type(content).__name__}, expected 'name: value' lines")
        parameters |= content
    parameters |= {name: parse_value(value) for name, value in given.p} | dict(given.r)
    check_names(name for name in parameters if name not in also)
    return {name: value for name, value in parameters.items() if value is not None}
