"""`make mutants` fits the sources; whether the tests notice each fault, it tells itself."""

import mutants
import pytest
from conftest import REPOSITORY


@pytest.mark.parametrize("fault", mutants.FAULTS, ids=lambda fault: fault[0])
def test_the_text_of_a_fault_is_once_in_its_module(fault):
    _, module, text, instead = fault
    assert (REPOSITORY / "ctseg" / f"{module}.py").read_text().count(text) == 1 and text != instead


def test_no_two_faults_have_the_same_name():
    assert len({name for name, *_ in mutants.FAULTS}) == len(mutants.FAULTS) >= 57
