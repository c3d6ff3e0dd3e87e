"""The page of states and operations is what the state machine says."""

from pathlib import Path

from secondsite.model.item import ItemState, Operation
from secondsite.model.table import page

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "operations.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), (
        "make it anew: python -m secondsite.model.table > docs/reference/operations.md"
    )


def test_the_page_names_every_state_with_every_operation():
    text = page()
    for state in ItemState:
        part = text.partition(f"### {state.value}\n")[2].partition("###")[0]
        for operation in set(Operation) - {Operation.CLEANUP_TEST}:
            assert f"| {operation.value} |" in part, (state, operation)
