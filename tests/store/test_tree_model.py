"""The rules of trees hold in every order of their steps, and each looser reading of one fails."""

import pytest

from tests.store.tree_model import LOOSER, Rules

CHAIN_OF_TWO = [[], [0]]
CHAIN_OF_THREE = [[], [0], [1]]


TOGETHER = [(1, 0, 1), (1, 1, 0), (0, 1, 1)]
"""They have tens of thousands of states each, and ask the model alone."""
LONG = [pytest.mark.faults, pytest.mark.slow]


@pytest.mark.parametrize(
    ("crashes", "cancels", "resubmits"),
    [(1, 0, 0), (0, 1, 0), (0, 0, 1), *(pytest.param(*each, marks=LONG) for each in TOGETHER)],
)
def test_rules_hold_in_every_order_of_steps(crashes: int, cancels: int, resubmits: int) -> None:
    rules = Rules(CHAIN_OF_TWO)

    assert rules.explore(crashes=crashes, cancels=cancels, resubmits=resubmits) == ""


@pytest.mark.parametrize("looser", LOOSER)
def test_looser_reading_of_a_rule_leaves_a_root_unfinished(looser: str) -> None:
    rules = Rules(CHAIN_OF_THREE, looser)

    assert rules.explore(crashes=1, cancels=1, resubmits=1) == "the root never ends"
