"""The people's API under calls made from its own OpenAPI document (schemathesis): right ones, wrong ones, and right ones on strange names.

What counts as a finding: a status of 5xx, an error that is not `{"error": {"code", "message", "hint"}}`, an answer that its own document does not
allow, a log of an unforeseen exception, a call that takes too long. The service's core is real (store on SQLite or PostgreSQL, audit, roles); nodes are
not there, so commands wait.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CheckFunction
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from secondsite.service.api.app import create_app
from secondsite.service.usecases import tokens
from secondsite.service.vocabulary import Role
from support.fuzz_loop import Finding, Outcome, own_bugs
from support.service_world import World

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import fastapi.testclient  # noqa: F401 - warns at its first import only

CALL_S: Final = 10.0
CHECKS: Final[list[CheckFunction]] = [response_schema_conformance, content_type_conformance]
STRANGE: Final = (
    "web-1", "ams", "rtm", "host-ams", "cloud-ams", "fast", "..", "../../etc/passwd", "%2e%2e", "a\0b", "x" * 3000,
    "\u202e", "' OR 1=1 --", "0", "-1", "9" * 40,
)  # fmt: skip


class ApiCampaign:
    """Calls one world's API. The world has two sites and a protected machine."""

    def __init__(self, folder: Path, *, url: str | None = None) -> None:
        self.world = World(folder, url=url)
        self.world.two_sites()
        self.world.protected()
        self.app = create_app(self.world.ctx)
        self.schema = schemathesis.openapi.from_dict(self.app.openapi())
        self.names = (*STRANGE, str(self.world.item().id))
        self.statuses: Counter[int] = Counter()
        self._tokens = 0
        self._secret = self._token()

    def close(self) -> None:
        """End the world."""
        self.world.close()

    def operations(self) -> Iterator[Any]:
        """Every operation of the document."""
        for found in self.schema.get_all_operations():
            yield found.ok()

    def run(
        self, examples: int, *, seed: int, only: str = "", until: Callable[[], bool] = lambda: False
    ) -> Outcome:
        """Call every operation (with `only` in its label) `examples` times in each mode, until something is found. Deterministic by seed."""
        outcome = Outcome("api", seed)
        began = time.monotonic()
        for operation in (found for found in self.operations() if only in found.label):
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                if until():
                    break
                self._operation(operation, mode, examples, outcome)
                if outcome.failure is not None:
                    outcome.seconds = time.monotonic() - began
                    return outcome
        outcome.seconds = time.monotonic() - began
        outcome.lines = len(self.statuses)
        return outcome

    def _operation(self, operation: Any, mode: GenerationMode, examples: int, outcome: Outcome) -> None:
        cases = operation.as_strategy(generation_mode=mode)
        names = st.sampled_from((None, None, None, *self.names))

        @hypothesis.seed(outcome.seed)
        @hypothesis.settings(
            max_examples=examples,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @hypothesis.given(case=cases, name=names)
        def each(case: Any, name: str | None) -> None:
            outcome.runs += 1
            if name is not None and case.path_parameters:
                case.path_parameters = dict.fromkeys(case.path_parameters, name)
            self._call(case, strict=mode is GenerationMode.POSITIVE)

        try:
            each()
        except hypothesis.errors.Unsatisfiable:
            return  # nothing wrong can be made of it: it takes no input
        except Exception as error:
            outcome.failure = Finding(
                f"{operation.label}, {mode.value}: {type(error).__name__}: {error}"[:2000]
            )

    def _call(self, case: Any, *, strict: bool) -> None:
        began = time.monotonic()
        with own_bugs() as logged:
            answer = case.call(app=self.app, headers={"Authorization": f"Bearer {self._secret}"})
        self.statuses[answer.status_code] += 1
        assert not logged, f"logged as a bug of its own: {logged[0]}"
        assert time.monotonic() - began < CALL_S, "the call took too long"
        assert answer.status_code < 500, f"{answer.status_code}: {answer.text[:300]}"
        if answer.status_code >= 400:
            error = answer.json()["error"]
            assert error["code"] != "internal", error
            assert isinstance(error["message"], str), error
            assert isinstance(error["hint"], str), error
        elif strict:
            case.validate_response(answer, checks=CHECKS)
        if answer.status_code == 401:
            self._secret = self._token()  # it may have revoked its own

    def _token(self) -> str:
        self._tokens += 1
        return tokens.create_token(self.world.ctx, f"fuzz-{self._tokens}", Role.CONTRIBUTOR).secret
