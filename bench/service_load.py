"""Simulated nodes for bench/service.py, in a process of their own: they report, poll and time their own calls.

    python bench/service_load.py PLAN.json

Each node has a certificate of the vault, keeps two connections as a real one does (a long poll; reports), and sends what a real
node with so many items sends: every item's state with its last twelve cycles, the inventory, and on the target's side the point that
each item got since the last report and the one that retention gave up for it. Prints the seconds of each report as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from secondsite.model.ids import NodeId
from secondsite.ship.client import Endpoint, JsonClient
from secondsite.ship.identity import Credentials

CYCLES = 12
CHANGED = 1 << 20


class SimulatedNode:
    """One node of the plan: {id, folder, role, items, first_sequence, vms}."""

    def __init__(self, endpoint: Endpoint, plan: dict[str, Any], every_s: float, points: int) -> None:
        folder = Path(plan["folder"])
        credentials = Credentials(folder / "node.pem", folder / "node.key", folder / "ca.pem")
        self.reports = JsonClient(endpoint, credentials, timeout_s=60)
        self.polls = JsonClient(endpoint, credentials, timeout_s=60)
        self.plan = plan
        self.every_s = every_s
        self.points = points
        self.seconds: list[float] = []
        self.failed = 0
        self.reported = 0
        self.whole: str | None = None
        self.sequence = int(plan["first_sequence"])

    def body(self) -> dict[str, Any]:
        """The report of now: each item has sealed one point more."""
        self.sequence += 1
        now = datetime.now(UTC)
        # A real node tells each item's whole list every twelve hours, one item after the other.
        self.reported += 1
        turn, rest = divmod(self.reported, max(1, round(12 * 3600 / self.every_s / len(self.plan["items"]))))
        self.whole = None if rest else self.plan["items"][turn % len(self.plan["items"])]
        source = self.plan["role"] == "source"
        make = self._source if source else self._target
        body: dict[str, Any] = {
            "items": [make(item, now) for item in self.plan["items"]],
            "points": {} if source else {item: self._points(item, now) for item in self.plan["items"]},
            "events": [],
            "inventory": self.plan["inventory"],
        }
        return body

    def _common(self, item: str, role: str) -> dict[str, Any]:
        return {"item": item, "epoch": 1, "role": role, "phase": "idle", "sequence": None, "point_time": None, "lag_s": None,
                "progress": None, "error": None, "counters": {}, "test": None}  # fmt: skip

    def _source(self, item: str, now: datetime) -> dict[str, Any]:
        cycles = [
            {"kind": "delta", "sequence": sequence, "seconds": 0.412, "bytes_changed": CHANGED, "bytes_shipped": CHANGED // 2}
            for sequence in range(self.sequence - CYCLES + 1, self.sequence + 1)
        ]  # fmt: skip
        count = self.sequence
        return self._common(item, "source") | {
            "counters": {"cycles": count, "bytes_changed": count * CHANGED, "bytes_shipped": count * CHANGED // 2},
            "paused": False, "warnings": [], "retry_in_s": None, "app_consistent": {"time": None, "problem": None},
            "group": None, "last_cycle": cycles[-1], "cycles": cycles, "sequence": self.sequence,
            "point_time": stamp(now), "lag_s": 0.4,
            "hops": {"source": {"bytes": 0, "eta_s": None}, "link": {"rate": 0}},
        }  # fmt: skip

    def _target(self, item: str, now: datetime) -> dict[str, Any]:
        fold = {"points": 0, "bytes": 0, "eta_s": 0.0}
        return self._common(item, "target") | {
            "sequence": self.sequence, "point_time": stamp(now), "lag_s": 0.4,
            "journal": {"bytes": 20 << 30, "points": self.points, "to_fold": fold, "free": 1 << 40, "total": 1 << 42,
                        "growth": 1000.0, "runway_s": 90_000},
        }  # fmt: skip

    def _points(self, item: str, now: datetime) -> dict[str, Any]:
        point = {"sequence": self.sequence, "epoch": 1, "time": stamp(now), "consistency": "crash", "kind": "delta",
                 "digest": digest(item, self.sequence), "changed": CHANGED, "stored": CHANGED, "group": None}  # fmt: skip
        if self.whole == item:
            older = [
                {**point, "sequence": n, "digest": digest(item, n)}
                for n in range(self.sequence - self.points + 1, self.sequence)
            ]
            return {"points": [*older, point], "complete": True}
        return {"points": [point], "gone": [self.sequence - self.points], "complete": False}

    def run(self, start: float, end: float) -> None:
        """Report from `start` (monotonic) on, every so many seconds, until `end`."""
        due = start
        while due < end:
            time.sleep(max(0.0, due - time.monotonic()))
            body = self.body()
            begun = time.perf_counter()
            try:
                self.reports.post("/node/v1/report", body)
                self.seconds.append(time.perf_counter() - begun)
            except Exception as error:  # noqa: BLE001 - counted, and told at the end
                self.failed += 1
                print(f"a report failed: {error}", file=sys.stderr)
            due += self.every_s

    def poll(self, end: float) -> None:
        """Poll as a node does, until `end`."""
        mark = ""
        while (left := end - time.monotonic()) > 0:
            answer = self.polls.post(
                "/node/v1/poll", {"wait_s": min(20.0, left), "running": [], "removed": mark}
            )
            mark = answer.get("removed", {}).get("mark", mark)


def digest(item: str, sequence: int) -> str:
    """The point's digest: one that no other point has."""
    return f"{item.replace('-', '')}{sequence:032x}"


def stamp(moment: datetime) -> str:
    """The time as nodes write it."""
    return (moment - timedelta(seconds=0.4)).isoformat()


def main() -> None:
    """Run the plan; print the timings."""
    sys.setswitchinterval(
        0.0005
    )  # twenty nodes in one process: none may keep the others from noting their times
    plan = json.loads(Path(sys.argv[1]).read_text())
    endpoint = Endpoint(plan["host"], plan["port"], NodeId(plan["service"]))
    nodes = [SimulatedNode(endpoint, node, plan["every_s"], plan["points"]) for node in plan["nodes"]]
    begin = time.monotonic() + 0.5
    end = begin + plan["seconds"]
    threads = []
    for index, node in enumerate(nodes):
        # Real nodes are not in step: their reports are spread over the interval.
        start = begin + index * plan["every_s"] / len(nodes)
        threads.append(threading.Thread(target=node.run, args=(start, end), daemon=True))
        threads.append(threading.Thread(target=node.poll, args=(end,), daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(
        json.dumps(
            {"reports": [s for node in nodes for s in node.seconds], "failed": sum(n.failed for n in nodes)}
        )
    )


if __name__ == "__main__":
    main()
