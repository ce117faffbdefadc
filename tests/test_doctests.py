"""The examples in the docstrings are true."""

import doctest
import importlib

import pytest
from conftest import REPOSITORY

MODULES = sorted(path.stem for path in (REPOSITORY / "ctseg").glob("[!_]*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_are_true(module):
    assert doctest.testmod(importlib.import_module(f"ctseg.{module}")).failed == 0


@pytest.mark.parametrize("module", ["metrics", "postprocess", "submission", "train", "transforms"])
def test_functions_that_a_small_array_explains_have_examples(module):
    assert doctest.testmod(importlib.import_module(f"ctseg.{module}")).attempted >= 2
