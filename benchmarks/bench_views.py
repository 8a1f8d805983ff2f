r"""From shards to training pictures: images per CPU-second, beside what people would write without gracl.

    python pipelines/synthesize.py out=world train_objects=120 test_objects=2 cameras=4 shots=4 height=256 width=128
    python pipelines/ingest.py layout=market1501 raw=world out=shards/w256
    python -m benchmarks.bench_views out=FILE.json root=shards/w256 height=256 width=128 seconds=8 rounds=3

Each way runs in a process of its own and shows the train split again and again, by batches of `objects` (16) times 16
pictures in plans of `steps` (200, as the presets have them), for at least that many seconds after those that are not
counted; of `rounds` (1) through all `ways` (or some, by commas) the medians are told. `decode` is the JPEG decoder
alone (the limit of anything that decodes each picture), `views` the decoder and the altered view of training, `loader`
the product's local loader (shards, tickets, dice, threads, batches), `kept` the same with decoded pictures on this
disk (`scale.keep_pixels`), `stream` the same batches as `loader` by Ray Data as a training worker gets them, on a
private Ray; `loader_late`, `kept_late` and `stream_late` leave the altering to the device (`scale.views_on=device`;
what it costs there is not counted, see bench_step), and `dataloader` torch's DataLoader with one worker that stays,
over the files' bytes in memory, with Pillow and NumPy doing the same views (resize, mirror, pad and crop, erase),
normalised to floats as the peers do. CPU seconds are those of the process and of its children, for the streams also
those of Ray's own processes.
"""

import io
import json
import statistics
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.bench_epoch import machine
from benchmarks.measuring import in_a_child
from gracl.images.batches import MappedBatches
from gracl.images.decoding import decode
from gracl.images.pixel_files import PixelFile
from gracl.images.plans import identity_plan
from gracl.images.shards import ShardStore
from gracl.images.views import draw_augmentation, eval_view, train_view
from gracl.learning.fit import Batches
from gracl.randomness import rng
from gracl.runtime.board import open_board
from gracl.runtime.session import Demand, session
from gracl.runtime.stream import STREAM, StreamBatches, open_stream
from gracl.types import IMAGENET_MEAN, IMAGENET_STD

IMAGES_PER_OBJECT = 16
WARM = 1280  # pictures that are not counted where the first plan makes nothing
# What every run has, since all others are told beside them.
BESIDE = ("views", "dataloader")
WAYS = ("decode", "views", "loader", "loader_late", "kept", "kept_late", "stream", "stream_late", "dataloader")


@dataclass(frozen=True)
class Asked:
    """What all ways are told alike: where the pictures are, their size, plans of `steps` batches."""

    root: str
    height: int
    width: int
    objects: int = 16
    steps: int = 200
    seconds: float = 8.0
    rounds: int = 1
    ways: str = ",".join(WAYS)

    def __post_init__(self) -> None:
        chosen = self.ways.split(",")
        if not {*BESIDE} <= {*chosen} <= {*WAYS}:
            raise SystemExit(f"expected ways among {','.join(WAYS)} with {' and '.join(BESIDE)}, got {self.ways}")

    @property
    def size(self) -> dict[str, Any]:
        """Height and width as views and loaders have them."""
        return {"height": self.height, "width": self.width}

    @property
    def batch(self) -> int:
        """Pictures in a batch."""
        return self.objects * IMAGES_PER_OBJECT


class Peers(torch.utils.data.Dataset[torch.Tensor]):
    """The same views as the peers have them: Pillow, then floats."""

    def __init__(self, images: list[bytes], height: int, width: int) -> None:
        self._images, self._size = images, (height, width)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> torch.Tensor:
        height, width = self._size
        picture = Image.open(io.BytesIO(self._images[number])).convert("RGB")
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        if torch.rand(()) < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        padded = Image.new("RGB", (width + 20, height + 20))
        padded.paste(picture, (10, 10))
        left, top = (int(torch.randint(0, 21, ())) for _ in range(2))
        pixels = torch.from_numpy(np.array(padded.crop((left, top, left + width, top + height)))).permute(2, 0, 1)
        floats = pixels.float().div_(255)
        mean, scale = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        floats = floats.sub_(mean).div_(scale)
        if torch.rand(()) < 0.5:
            rows, columns = height // 3, width // 3
            down, right = int(torch.randint(0, height - rows, ())), int(torch.randint(0, width - columns, ()))
            floats[:, down : down + rows, right : right + columns] = 0
        return floats


def common(way: str, size: dict[str, int]) -> dict[str, Any]:
    """What loader and stream are told alike."""
    views: dict[str, Any] = {"eval_view": partial(eval_view, **size), "train_view": partial(train_view, **size)}
    late = {"drawer": partial(draw_augmentation, **size)} if way.endswith("_late") else {}
    return {"train": "train", **views, **late, **size, "threads": 1}


def streamed(way: str, store: ShardStore, size: dict[str, int]) -> Batches:
    """The stream's end of one worker, without Ray Train."""
    board, bytes_of_one = open_board(), float(np.mean([len(image) for image in store.read(np.arange(64))]))
    digests = {"train": store.digest}
    datasets, order = open_stream(
        board, root=store.root, cache=None, digests=digests, image_bytes=bytes_of_one, task_cpus=0.5, ranks=1
    )
    (end,) = order.configure(datasets, 1, None, None)
    sizes = {"train": len(store)}
    return StreamBatches(end[STREAM], board, sizes=sizes, barrier=lambda: None, wait_s=300, **common(way, size))


def shown(way: str, asked: Asked) -> Generator[int, None, None]:
    """Pictures, batch by batch and without end, by one of the ways; how many each time."""
    store, size = ShardStore.open(asked.root, "train"), asked.size
    images = store.read(np.arange(len(store)))
    labels, epoch = store.identities().object_ids, 0  # of a benchmark that learns nothing: batches as training has them
    peers = Peers([bytes(image) for image in images], asked.height, asked.width)
    peer_loader = torch.utils.data.DataLoader(peers, asked.batch, shuffle=True, num_workers=1, persistent_workers=True)

    def seen(batches: Batches) -> Iterator[int]:
        plan = identity_plan(
            labels, epoch=epoch, objects=asked.objects, images_per_object=IMAGES_PER_OBJECT, steps=asked.steps
        )
        for batch in batches.picks(plan):
            yield len(batch.images)

    while True:
        if way in ("decode", "views"):
            for start in range(0, len(images), asked.batch):
                some = images[start : start + asked.batch]
                for number, image in enumerate(some):
                    if way == "decode":
                        decode(image)
                    else:
                        train_view(image, rng(0, "bench", epoch, start + number), **size)
                yield len(some)
        elif way in ("loader", "loader_late"):
            batches: Batches = MappedBatches({"train": store}, **common(way, size))
            yield from seen(batches)
        elif way in ("kept", "kept_late"):
            if epoch == 0:
                folder = TemporaryDirectory(prefix="gr-")
                made = {"train": PixelFile(Path(folder.name), store.digest, len(store), **size)}
            yield from seen(MappedBatches({"train": store}, made=made, **common(way, size)))
        elif way in ("stream", "stream_late"):
            if epoch == 0:
                batches = streamed(way, store, size)
            yield from seen(batches)
        else:
            for pixels in peer_loader:
                yield len(pixels)
        epoch += 1


def spent_by_all() -> dict[tuple[int, float], float]:
    """CPU seconds of this process and of each of its children that live."""
    ours, spent = psutil.Process(), {}
    for one in (ours, *ours.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # an idle worker that Ray lets go; its last moments are not counted
            spent[one.pid, one.create_time()] = sum(one.cpu_times()[:2])
    return spent


def rate(way: str, asked: Asked) -> dict[str, float]:
    """Images per CPU-second and per second of one way."""
    torch.set_num_threads(1)
    # A whole plan where something is made in the first one: the stream's tasks are there then, and pictures kept.
    warm = asked.steps * asked.batch if way.startswith(("stream", "kept")) else WARM
    if way in ("stream", "stream_late"):
        with session(Demand(cpus=1.0, gpus=0.0, parts="the stream's tasks")):
            return counted(shown(way, asked), warm, asked.seconds)
    return counted(shown(way, asked), warm, asked.seconds)


def counted(pictures: Generator[int, None, None], warm: int, seconds: float) -> dict[str, float]:
    """Images per CPU-second and per second, after as many that are not counted."""
    with closing(pictures):
        while warm > 0:
            warm -= next(pictures)
        begun, before, images = time.perf_counter(), spent_by_all(), 0
        while time.perf_counter() - begun < seconds:
            images += next(pictures)
        took, after = time.perf_counter() - begun, spent_by_all()
    spent = sum(used - before.get(process, 0.0) for process, used in after.items())
    return {"images_per_cpu_s": round(images / spent, 1), "images_per_s": round(images / took, 1)}


def main() -> None:
    """One line for each way; the file holds all of them."""
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    way, out = given.pop("way", None), given.pop("out", None)
    kinds: dict[str, Any] = {one.name: one.type for one in fields(Asked)}
    asked = Asked(**{name: kinds[name](value) for name, value in given.items()})
    if way and way not in WAYS:
        raise SystemExit(f"expected a way among {','.join(WAYS)}, got {way}")
    if way:
        print(json.dumps(rate(way, asked)))
        return
    if not out:
        raise SystemExit("expected out=FILE.json to write to")
    rounds = [
        {way: in_a_child("benchmarks.bench_views", way=way, **asdict(asked)) for way in asked.ways.split(",")}
        for _ in range(asked.rounds)
    ]
    rows = {
        way: {name: statistics.median(one[way][name] for one in rounds) for name in first}
        for way, first in rounds[0].items()
    }
    for way, row in rows.items():
        print(json.dumps({"way": way} | row), flush=True)
    split = ShardStore.open(asked.root, "train")
    peers, alone = rows["dataloader"]["images_per_cpu_s"], rows["views"]["images_per_cpu_s"]
    print(f"{'way':12s}{'per CPU-second':>16s}{'of the peers':>14s}{'of views':>10s}")
    for way, row in rows.items():
        own = row["images_per_cpu_s"]
        print(f"{way:12s}{own:16,.0f}{own / peers:14.2f}{own / alone:10.2f}")
    facts = {"machine": machine(), "size": [asked.height, asked.width], "images": len(split), "seconds": asked.seconds}
    facts |= {"batch": asked.batch, "steps": asked.steps}
    Path(out).write_text(json.dumps(facts | {"ways": rows, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
