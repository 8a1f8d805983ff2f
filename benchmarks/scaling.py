"""What an epoch would take on more GPUs and more images than were ever here: arithmetic on figures that were measured.

    python -m benchmarks.scaling        # the tables of docs/scaling.md

Rates are read from files of `benchmarks/results/`; sizes and the cost of a block are beside them. What nobody here has
measured (a network, CPUs beside a GPU, 30 images a cluster) is assumed, and said on the page. Nothing here has been
seen on a cluster of that size.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gracl.runtime.stream import MOST_TICKETS, runs_of

RESULTS = Path(__file__).parent / "results"
GPUS, IMAGES = (8, 64, 512), (10**6, 10**7, 10**8)


@dataclass(frozen=True)
class Measured:
    """Rates are images a second: of one H100 (ResNet-50, 256 x 128, bfloat16, groups of 64), of one CPU of this
    machine. The relation is of a million rows of 2,048 numbers on one H100 and 16 CPUs."""

    train: float
    scan: float
    decode: float
    view: float
    search_s: float
    rest_s: float
    rows: int
    own_mb: float
    weights: int = 23_512_129  # of ResNet-50, with the last batch norm
    dim: int = 2048
    image_bytes: float = 7225.0  # JPEG of 256 x 128 of the synthetic world
    block_s: float = 0.022  # of CPU, for each block of the stream (docs/decisions/0003)
    block_bytes: float = 32 * 2**20

    @classmethod
    def read(cls) -> "Measured":
        """From the files."""
        step = next(
            row
            for row in _file("step_resnet50_h100_202611")["variants"]
            if row["bn_group"] and row["precision"] == "bfloat16"
        )["images_per_second"]
        ways = _file("views_256x128_2cores_202611")["ways"]
        relation = _file("relate_gpu_1m_h100_202611")["result"]
        search, whole = relation["search"]["wall_s"], relation["relate"]
        return cls(
            train=step["train"],
            scan=step["scan"],
            decode=ways["decode"]["images_per_cpu_s"],
            view=ways["views"]["images_per_cpu_s"],
            search_s=search,
            rest_s=whole["wall_s"] - search,
            rows=relation["rows"],
            own_mb=whole["peak_own_mb_above"],
        )


@dataclass(frozen=True)
class Assumed:
    """Nobody here has measured these. Machines of eight GPUs, 400 Gbit/s each, 2 TB of memory; batches of 64 images a
    GPU, each image learnt once an epoch; in each machine one more GPU that looks for neighbours."""

    gpus_a_node: int = 8
    cpus_a_gpu: int = 8
    node_bytes_s: float = 50e9
    node_memory: float = 2e12
    images_a_gpu: int = 64


@dataclass(frozen=True)
class Limit:
    """One of the things that a phase waits for, and the seconds that it would take by itself."""

    what: str
    seconds: float


@dataclass(frozen=True)
class Epoch:
    """Seconds of each phase with what limits it: scan and training take as long as their slowest part, a relation the
    sum of its parts."""

    scan: Limit
    relate: Limit
    train: Limit
    memory: float

    @property
    def seconds(self) -> float:
        """Of the whole epoch, one phase after the other."""
        return self.scan.seconds + self.relate.seconds + self.train.seconds

    @property
    def bottleneck(self) -> Limit:
        """What limits the longest phase."""
        return max((self.scan, self.relate, self.train), key=lambda limit: limit.seconds)


def _file(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def step_bytes(measured: Measured, gpus: int, images_a_gpu: int) -> tuple[float, float]:
    """What each rank sends in a step: its gradients around the ring, in float32; and the features that it is given."""
    ring = 2 * (gpus - 1) / gpus * 4 * measured.weights
    return ring, 4.0 * measured.dim * images_a_gpu * (gpus - 1)


def answer_bytes(measured: Measured, images: int) -> float:
    """Labels, and two proxies and a sum of each cluster of 30 images: each rank is given its own copy."""
    return 8 * images + 3 * 4 * measured.dim * images / 30


def epoch_bytes(measured: Measured, images: int, gpus: int, nodes: int) -> dict[str, float]:
    """What crosses the network in an epoch, all nodes together, by what it is."""
    steps = images / (64 * gpus)
    gradients, rows = step_bytes(measured, gpus, 64)
    return {
        "pictures, scan and training": 2 * measured.image_bytes * images,
        "features to the relation": 2.0 * measured.dim * images,
        "labels and proxies to the ranks": answer_bytes(measured, images) * gpus,
        "gradients": gradients * nodes * steps,
        "features of the batch": rows * nodes * steps,
    }


def epoch(measured: Measured, assumed: Assumed, images: int, gpus: int, *, mapped: bool) -> Epoch:
    """An epoch of so many images on so many GPUs; `mapped`: each rank reads shards on its own disk."""
    nodes = max(1, gpus // assumed.gpus_a_node)
    cpus = gpus * assumed.cpus_a_gpu
    tickets = math.ceil(images / (gpus * assumed.images_a_gpu))
    most = max(1, min(MOST_TICKETS, int(measured.block_bytes / (measured.image_bytes * assumed.images_a_gpu))))
    blocks = gpus * len(runs_of(0, tickets, most))
    stream = [] if mapped else [Limit("coordinator of the stream", blocks * measured.block_s)]
    scan = [
        Limit("GPUs", images / (gpus * measured.scan)),
        Limit("CPUs that decode", images / (cpus * measured.decode)),
        *stream,
    ]
    steps = images / (gpus * assumed.images_a_gpu)
    gradients, rows = step_bytes(measured, gpus, assumed.images_a_gpu)
    between = gradients + rows if nodes > 1 else 0.0  # within a machine they go by its own links
    train = [
        Limit("GPUs", images / (gpus * measured.train)),
        Limit("CPUs that make views", images / (cpus * measured.view)),
        Limit("gradients and features between machines", steps * between / assumed.node_bytes_s),
        *stream,
    ]
    factor = images / measured.rows
    parts = {
        "search on GPUs": measured.search_s * factor**2 / nodes,
        "Jaccard, DBSCAN and proxies on one node": measured.rest_s * factor,
        "features to one node, and to the shards": 2 * measured.dim * images * nodes / assumed.node_bytes_s,
        "labels and proxies to the ranks": answer_bytes(measured, images) * gpus / assumed.node_bytes_s,
    }
    slowest = max(parts, key=lambda part: parts[part])
    memory = 2 * 2 * measured.dim * images + measured.own_mb * 1e6 * factor
    longest = [max(limits, key=lambda limit: limit.seconds) for limits in (scan, train)]
    return Epoch(longest[0], Limit(slowest, sum(parts.values())), longest[1], memory)


def hours(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def tables(measured: Measured, assumed: Assumed) -> str:
    """The page's tables in Markdown."""
    lines = []
    for mapped in (False, True):
        lines += [
            f"`scale.stream={'mapped' if mapped else 'ray'}`:",
            "",
            "| images | GPUs | scan | relate | train | epoch | first bottleneck | memory of the relation |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for images in IMAGES:
            for gpus in GPUS:
                one = epoch(measured, assumed, images, gpus, mapped=mapped)
                phases = " | ".join(hours(limit.seconds) for limit in (one.scan, one.relate, one.train))
                fits = "" if one.memory < assumed.node_memory else ", **too much for a node**"
                memory = f"{one.memory / 1e9:,.0f} GB{fits}"
                cells = (f"{images:,}", gpus, phases, hours(one.seconds), one.bottleneck.what, memory)
                lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
        lines.append("")
    lines += ["What crosses the network in an epoch, 64 GPUs in 8 machines, GB:", ""]
    names = list(epoch_bytes(measured, IMAGES[0], 64, 8))
    lines += [f"| images | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for images in IMAGES:
        crossing = epoch_bytes(measured, images, 64, 8).values()
        lines.append(f"| {images:,} | " + " | ".join(f"{amount / 1e9:,.0f}" for amount in crossing) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the tables."""
    print(tables(Measured.read(), Assumed()), end="")


if __name__ == "__main__":
    main()
