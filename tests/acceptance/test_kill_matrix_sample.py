"""A few cells of the kill matrix in each run of the tests; tools/kill_matrix.py makes the whole table.

Which ones is drawn from a seed: the same ones each time, or others with SECONDSITE_SEED.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from support.kill_matrix import Matrix, a_short_round
from support.kill_table import NOT_HIT
from support.kill_victims import Victim
from support.lab_story import LabStory, running_lab
from support.wire_meter import metered

pytestmark = [pytest.mark.acceptance, pytest.mark.fault, pytest.mark.timeout(300)]


@pytest.fixture
def lab() -> Iterator[LabStory]:
    """A lab of its own: bytes are counted in it, and its nodes listen elsewhere afterwards."""
    with running_lab() as lab:
        yield lab


def test_an_operation_with_a_kill_in_it_ends_right(lab: LabStory) -> None:
    seed = os.environ.get("SECONDSITE_SEED", "4")
    draw = random.Random(seed)
    guest = lab.guest("sample", rate=30)
    guest.start().close()
    lab.policy(compression=False)
    with metered(lab) as meter:
        matrix = Matrix(lab, guest, meter)
        lab.protect(guest.name)
        lab.wait_for_points(guest.name)
        for operation in a_short_round():
            matrix.operate(operation, draw.choice(list(Victim)), draw.randrange(4))
    print(f"\nseed {seed}:", *matrix.cells, sep="\n")
    assert any(cell.outcome != NOT_HIT for cell in matrix.cells), "nobody was killed: take another seed"
    guest.domain("primary").destroy()
