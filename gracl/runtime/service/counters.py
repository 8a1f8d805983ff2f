"""What a service counts of itself, in the text form that Prometheus reads."""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """How many values lie at or below each of some edges, their number and their sum."""

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges, self.counts, self.sum = tuple(edges), [0] * (len(edges) + 1), 0.0

    def add(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.edges, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str = "") -> list[str]:
        """As Prometheus reads it: cumulative."""
        found, total = [], 0
        for edge, count in zip([*(f"{edge:g}" for edge in self.edges), "+Inf"], self.counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{{labels}{"," if labels else ""}le="{edge}"}} {total}')
        around = f"{{{labels}}}" if labels else ""
        return [*found, f"{name}_sum{around} {self.sum:.6f}", f"{name}_count{around} {total}"]


class Counters:
    """Requests by way and status, seconds by way, sizes of batches, and how many are under way.

    Of one event loop: nothing here is locked.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds: dict[str, Histogram] = {}
        self.stages: dict[str, Histogram] = {}
        self.batches = Histogram(SIZES)
        self.under_way = 0

    def answered(self, way: str, status: int, seconds: float) -> None:
        """Counts one answer, refusals among them."""
        self.requests[way, status] += 1
        self.seconds.setdefault(way, Histogram(SECONDS)).add(seconds)

    def stage(self, name: str, begun: float) -> None:
        """Counts the seconds since `begun` for one of the things that a request waits for."""
        self.stages.setdefault(name, Histogram(SECONDS)).add(time.perf_counter() - begun)

    def totals(self) -> dict[str, int]:
        """Answers in all, those that were refused (4xx), put off (503) and failed (500)."""
        groups = {"refused": range(400, 500), "put_off": (503,), "failed": (500,)}
        told = {
            name: sum(self.requests[one] for one in self.requests if one[1] in some) for name, some in groups.items()
        }
        return {"answers": self.requests.total(), **told}

    def text(self) -> str:
        """All of it."""
        lines = ["# HELP gracl_requests_total Answers by way and status.", "# TYPE gracl_requests_total counter"]
        for (way, status), count in sorted(self.requests.items()):
            lines.append(f'gracl_requests_total{{way="{way}",status="{status}"}} {count}')
        lines += ["# HELP gracl_errors_total Answers with a status from 400 on.", "# TYPE gracl_errors_total counter"]
        lines.append(f"gracl_errors_total {sum(n for (_, status), n in self.requests.items() if status >= 400)}")
        lines += ["# HELP gracl_request_seconds From a request's head to its answer."]
        lines += ["# TYPE gracl_request_seconds histogram"]
        for way, histogram in sorted(self.seconds.items()):
            lines += histogram.lines("gracl_request_seconds", f'way="{way}"')
        lines += ["# HELP gracl_stage_seconds Until a picture is read, described, looked up."]
        lines += ["# TYPE gracl_stage_seconds histogram"]
        for stage, histogram in sorted(self.stages.items()):
            lines += histogram.lines("gracl_stage_seconds", f'stage="{stage}"')
        lines += ["# HELP gracl_batch_size Pictures described together.", "# TYPE gracl_batch_size histogram"]
        lines += self.batches.lines("gracl_batch_size")
        lines += ["# HELP gracl_under_way Requests with a seat in the queue.", "# TYPE gracl_under_way gauge"]
        return "\n".join([*lines, f"gracl_under_way {self.under_way}", ""])
