"""Every mutant fits the code as it is; `python -m tests.mutants` runs them."""

import ast
from functools import cache

import pytest

from tests.mutants.__main__ import MUTANTS
from tests.mutants.mutant import Drop, Mutant, NotApplicableError, Replace
from tests.workers import ROOT


@cache
def unchanged(path: str) -> str:
    """Return the source of a module, as that of a mutant is written."""
    return ast.unparse(ast.parse((ROOT / path).read_text()))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: str(mutant.number))
def test_mutant_fits_the_code_and_its_tests_exist(mutant: Mutant) -> None:
    path, changed = mutant.make()
    files = [word for word in mutant.tests.split() if "/" in word]

    compile(changed, path, "exec")
    assert changed != unchanged(path)
    assert files
    assert all((ROOT / file).exists() for file in files), files


def test_mutants_have_numbers_of_their_own() -> None:
    numbers = [mutant.number for mutant in MUTANTS]

    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(
    ("symbol", "words", "message"),
    [
        ("store:no_such_verb", ("DUE",), "mutant 0 looks for store:no_such_verb"),
        ("no_such_module:claim", ("DUE",), "mutant 0 looks for no_such_module:claim"),
        ("status:MOVES", ("no_such_word",), "one part must mention no_such_word; found none"),
        ("status:MOVES", ("STARTABLE",), "one part must mention STARTABLE; found STARTABLE; STARTABLE"),
    ],
)
def test_mutant_that_does_not_fit_says_why(symbol: str, words: tuple[str, ...], message: str) -> None:
    mutant = Mutant(0, "", symbol, (Drop(words),), "")

    with pytest.raises(NotApplicableError, match=message):
        mutant.make()


def test_replacement_keeps_what_it_names() -> None:
    mutant = Mutant(0, "", "status:FINAL", (Replace(("CANCELLED",), by="[_, _]"),), "")

    assert "[JobStatus.CANCELLED, JobStatus.CANCELLED]" in mutant.make()[1]
