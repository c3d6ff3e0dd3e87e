"""The people's API under calls made from its own OpenAPI document, on both databases: a clear error or a right answer, never a failure of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fuzz_api import ApiCampaign
from support.fuzz_bugs import BUGS
from support.private_postgres import PrivatePostgres

EXAMPLES = {"sqlite": 2, "postgresql": 1}


@pytest.fixture(scope="module")
def postgres() -> Iterator[PrivatePostgres]:
    server = PrivatePostgres()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def campaign(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, ApiCampaign]]:
    url = None
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").new_database()
    found = ApiCampaign(tmp_path, url=url)
    yield request.param, found
    found.close()


def test_every_operation_answers_clearly_whatever_it_is_sent(campaign: tuple[str, ApiCampaign]) -> None:
    database, api = campaign
    outcome = api.run(EXAMPLES[database], seed=0)
    assert outcome.failure is None, str(outcome)
    assert outcome.runs > 100
    assert {200, 401, 404} <= set(api.statuses)


def test_an_operation_that_fails_is_found(tmp_path: Path) -> None:
    api = ApiCampaign(tmp_path)
    with BUGS["api-uncaught"].planted():
        outcome = api.run(20, seed=0, only="/sites")
    api.close()
    assert outcome.failure is not None
    assert "sites" in str(outcome.failure)
