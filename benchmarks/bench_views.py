r"""From shards to training pictures: images per CPU-second, beside what people would write without gracl.

    python pipelines/synthesize.py out=world train_objects=120 test_objects=2 cameras=4 shots=4 height=256 width=128
    python pipelines/ingest.py layout=market1501 raw=world out=shards/w256
    python -m benchmarks.bench_views out=FILE.json root=shards/w256 height=256 width=128 seconds=8 rounds=3

Each way runs in a process of its own and shows the train split again and again, by batches of 64, for at least that
many seconds; of `rounds` (1) through all ways the medians are told. `decode` is the JPEG decoder alone (the limit of
anything that decodes each picture), `views` the decoder and the altered view of training, `loader` the product's local
loader (shards, tickets, dice, threads, batches), `kept` the same with decoded pictures on this disk
(`scale.keep_pixels`), `stream` the same batches as `loader` by Ray Data as a training worker gets them, on a private
Ray; `loader_late`, `kept_late` and `stream_late` leave the altering to the device (`scale.views_on=device`; what it
costs there is not counted, see bench_step), and `dataloader` torch's DataLoader with one worker that stays, over the
files' bytes in memory, with Pillow and NumPy doing the same views (resize, mirror, pad and crop, erase), normalised to
floats as the peers do. CPU seconds are those of the process and of its children, for the streams also those of Ray's
own processes. Plans are of 100 steps.
"""

import io
import json
import statistics
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
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

BATCH = 64
STEPS = 100
WAYS = ("decode", "views", "loader", "loader_late", "kept", "kept_late", "stream", "stream_late", "dataloader")


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
        board, root=store.root, cache=None, digests=digests, image_bytes=bytes_of_one, task_cpus=0.5
    )
    (end,) = order.configure(datasets, 1, None, None)
    sizes = {"train": len(store)}
    return StreamBatches(end[STREAM], board, sizes=sizes, barrier=lambda: None, wait_s=300, **common(way, size))


def seen(batches: Batches, labels: np.ndarray, epoch: int) -> Iterator[int]:
    """The pictures of an epoch, as many at a time as a batch has."""
    for batch in batches.picks(identity_plan(labels, epoch=epoch, objects=4, steps=STEPS)):
        yield len(batch.images)


def shown(way: str, root: str, height: int, width: int) -> Generator[int, None, None]:
    """Pictures, batch by batch and without end, by one of the ways; how many each time."""
    store = ShardStore.open(root, "train")
    images = store.read(np.arange(len(store)))
    size: dict[str, Any] = {"height": height, "width": width}
    labels, epoch = store.identities().object_ids, 0  # of a benchmark that learns nothing: batches as training has them
    peers = Peers([bytes(image) for image in images], height, width)
    peer_loader = torch.utils.data.DataLoader(peers, BATCH, shuffle=True, num_workers=1, persistent_workers=True)
    while True:
        if way in ("decode", "views"):
            for start in range(0, len(images), BATCH):
                some = images[start : start + BATCH]
                for number, image in enumerate(some):
                    if way == "decode":
                        decode(image)
                    else:
                        train_view(image, rng(0, "bench", epoch, start + number), **size)
                yield len(some)
        elif way in ("loader", "loader_late"):
            batches: Batches = MappedBatches({"train": store}, **common(way, size))
            yield from seen(batches, labels, epoch)
        elif way in ("kept", "kept_late"):
            if epoch == 0:
                folder = TemporaryDirectory(prefix="gr-")
                made = {"train": PixelFile(Path(folder.name), store.digest, len(store), **size)}
            yield from seen(MappedBatches({"train": store}, made=made, **common(way, size)), labels, epoch)
        elif way in ("stream", "stream_late"):
            if epoch == 0:
                batches = streamed(way, store, size)
            yield from seen(batches, labels, epoch)
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


def rate(way: str, root: str, height: int, width: int, seconds: float) -> dict[str, float]:
    """Images per CPU-second and per second of one way."""
    torch.set_num_threads(1)
    if way in ("stream", "stream_late"):
        with session(Demand(cpus=1.0, gpus=0.0, parts="the stream's tasks")):
            return counted(shown(way, root, height, width), seconds)
    return counted(shown(way, root, height, width), seconds)


def counted(pictures: Generator[int, None, None], seconds: float) -> dict[str, float]:
    """Images per CPU-second and per second, after an epoch that is not counted."""
    with closing(pictures):
        warm = STEPS * BATCH  # an epoch: the stream's tasks are there, and the next has begun
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
    size = int(given["height"]), int(given["width"])
    if "way" in given:
        print(json.dumps(rate(given["way"], given["root"], *size, float(given["seconds"]))))
        return
    asked = {"root": given["root"], "height": size[0], "width": size[1], "seconds": float(given.get("seconds", 8))}
    rounds = [
        {way: in_a_child("benchmarks.bench_views", way=way, **asked) for way in WAYS}
        for _ in range(int(given.get("rounds", 1)))
    ]
    rows = {way: {name: statistics.median(one[way][name] for one in rounds) for name in rounds[0][way]} for way in WAYS}
    for way, row in rows.items():
        print(json.dumps({"way": way} | row), flush=True)
    split = ShardStore.open(given["root"], "train")
    peers, alone = rows["dataloader"]["images_per_cpu_s"], rows["views"]["images_per_cpu_s"]
    print(f"{'way':12s}{'per CPU-second':>16s}{'of the peers':>14s}{'of views':>10s}")
    for way, row in rows.items():
        own = row["images_per_cpu_s"]
        print(f"{way:12s}{own:16,.0f}{own / peers:14.2f}{own / alone:10.2f}")
    facts = {"machine": machine(), "size": list(size), "images": len(split), "seconds": asked["seconds"]}
    Path(given["out"]).write_text(json.dumps(facts | {"ways": rows, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
