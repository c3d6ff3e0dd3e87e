"""Which recovery point a failover starts from: a sequence, the last one, or the last whose applications were quiet."""

from __future__ import annotations

from secondsite.service.store import points
from secondsite.service.store.records import Json, Point
from secondsite.service.usecases.operations import PointChoice, app_consistent_point
from secondsite.service.workflows.run import Run


def choose_point(run: Run, facts: Json, prepared: Json | None) -> Json:
    """Return {"sequence", "digest"} of what the job's parameters ask for (a step).

    `prepared`: the point of the last changes, if the source was shut down; it is the latest, and nothing was in flight.
    Without it the latest is the last point that the target's journal holds, which the target knows best.
    """

    def action() -> Json:
        parameters = facts["parameters"]
        with run.ctx.store.reading() as tx:
            if parameters["sequence"] is not None:
                return _described(points.get(tx, facts["item"], parameters["sequence"]))
            if prepared is not None:
                return {"sequence": prepared["sequence"], "digest": prepared["digest"]}
            if parameters["point"] == PointChoice.LATEST_APP_CONSISTENT:
                return _described(app_consistent_point(tx, facts["item"], facts["name"]))
            return {"sequence": None, "digest": None}

    point: Json = run.step("point", action)
    return point


def _described(point: Point) -> Json:
    return {"sequence": point.sequence, "digest": point.digest or None}
