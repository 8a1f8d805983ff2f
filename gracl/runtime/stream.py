"""plan -> Ray Data -> batches: the stream of encoded images that feeds the ranks.

One dataset serves the whole run. Its source is the plan itself: whenever the ranks begin to iterate, Ray Data asks
`PlanSource` for its read tasks, and these are the present reading's tickets, cut for as many ranks as read it. A task
fetches the *encoded* bytes of several tickets from the shards; the ranks decode and augment in threads (an image is
eight times smaller on the way). One row is one rank's part of one ticket, so the equal split of Ray Train can drop or
shorten nothing, and each row says which reading, ticket and rank it is for: a row that is not what the plan says is an
error.

Measured (docs/decisions/0003): few large blocks, and no second dataset for scans, since every dataset costs a
coordinator process and every block about 20 ms. The first blocks of a reading are small, so that the ranks can begin.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from jaxtyping import Int64
from numpy import ndarray
from ray.data import DataContext, Dataset, Datasource, ExecutionOptions, ExecutionResources, ReadTask
from ray.data.block import BlockMetadata
from ray.train import DataConfig

from gracl.errors import ShardError, StreamError, expected
from gracl.images.batches import seed_of_again
from gracl.images.loading import Drawer, Made, Ticket, View, load
from gracl.images.plans import scan_plan
from gracl.images.shards import ShardStore
from gracl.runtime.board import Reading
from gracl.runtime.session import refusals
from gracl.runtime.waiting import BOARD_S, answer_of, each_within
from gracl.types import EMPTY, Batch, Plan

STREAM = "images"
PLACE = ("reading", "ticket", "rank")
FIRST_TICKETS, MOST_TICKETS, GROWTH = 4, 64, 4
BLOCK_BYTES = 32 << 20
WAITING_BLOCKS = 8


class PlanSource(Datasource):
    """The present reading on the board, as read tasks: task b holds consecutive tickets of rank b modulo ranks.

    Args:
        board: the run's `Board`.
        root, cache: where the shards are, and the node-local folder for those of a remote root.
        digests: of the splits' manifests when the run was begun.
        image_bytes: mean size of an encoded image, by which tickets are packed into blocks.
    """

    def __init__(
        self,
        board: Any,
        *,
        root: str,
        cache: str | None,
        digests: Mapping[str, str],
        image_bytes: float,
    ) -> None:
        self._board, self._open = board, partial(open_store, root, cache=cache)
        self._digests = dict(digests)
        self._image_bytes = image_bytes

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: it differs from reading to reading, and blocks must not be split."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """The tasks of the present reading; none before the first."""
        reading: Reading | None = answer_of(self._board.reading.remote(), "the board's answer", BOARD_S)
        if reading is None:
            return []
        tickets, batch = reading.plan.tickets.shape
        most = max(1, min(MOST_TICKETS, int(BLOCK_BYTES / (self._image_bytes * batch / reading.ranks))))
        runs = runs_of(reading.first, tickets, most)
        return [self._task(reading, rank, steps) for steps in runs for rank in range(reading.ranks)]

    def _task(self, reading: Reading, rank: int, steps: range) -> ReadTask:
        indices = reading.plan.share(rank, reading.ranks)[steps.start : steps.stop]
        fetch = partial(
            fill,
            partial(self._open, reading.split, digest=self._digests[reading.split]),
            (reading.number, rank),
            np.asarray(steps, np.int64),
            indices,
        )
        size = int(self._image_bytes * indices.size)
        return ReadTask(fetch, BlockMetadata(num_rows=len(steps), size_bytes=size, exec_stats=None, input_files=None))


def runs_of(first: int, tickets: int, most: int) -> list[range]:
    """The tickets from `first` on, cut into the runs that a block holds: a few, then four times as many each, up to
    `most`."""
    runs, size = [], min(FIRST_TICKETS, most)
    while first < tickets:
        runs.append(range(first, min(first + size, tickets)))
        first, size = first + size, min(GROWTH * size, most)
    return runs


def open_store(root: str, split: str, *, cache: str | None, digest: str) -> ShardStore:
    """The split that the run was begun on.

    Raises:
        ShardError: another one stands there now.
    """
    store = ShardStore.open(root, split, cache=cache)
    if store.digest != digest:
        raise ShardError(
            expected(
                f"split {split!r} of {root} with digest {digest[:12]}",
                f"digest {store.digest[:12]}: it was ingested anew",
                "start a new run on it",
            )
        )
    return store


def fill(
    open_split: Callable[[], ShardStore],
    mark: tuple[int, int],
    tickets: Int64[ndarray, "rows"],
    indices: Int64[ndarray, "rows places"],
) -> list[pa.Table]:
    """One block: for every ticket its indices and the encoded bytes of its images, in one column of lists."""
    store = open_split()
    number, rank = mark
    images = [store.read(row[row != EMPTY]) for row in indices]
    ends = np.cumsum([0, *(len(row) for row in images)], dtype=np.int32)
    flat = _binary([image for row in images for image in row])
    block = {
        "reading": np.full(len(tickets), number),
        "rank": np.full(len(tickets), rank),
        "ticket": tickets,
        "indices": pa.array(list(indices), pa.list_(pa.int64())),
        "images": pa.ListArray.from_arrays(pa.array(ends), flat),
    }
    return [pa.table(block)]


def _binary(images: list[memoryview]) -> pa.Array:
    """The images as one column. `pa.array` would do, but of each memoryview that it is given pyarrow 25 keeps another
    for good: 184 bytes for each image of each epoch."""
    ends = np.cumsum([0, *(image.nbytes for image in images)], dtype=np.int64)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(images))]
    return pa.Array.from_buffers(pa.large_binary(), len(images), buffers)


def images_of(block: pa.RecordBatch) -> Iterator[list[memoryview]]:
    """The images of each row of a block that `fill` has made, as views of its bytes.

    By the places at which they begin: to ask Arrow for each image by itself takes twenty times as long.
    """
    rows = block.column("images")
    flat = rows.values
    if flat.type != pa.large_binary():
        raise StreamError(
            expected(
                "a column of large_binary from Ray Data", flat.type, "set scale.stream=mapped, and report this release"
            )
        )
    _, ends, content = flat.buffers() if len(flat) else (None, bytes(8), b"")
    places = np.frombuffer(ends, np.int64)[flat.offset :].tolist()
    seen = memoryview(content)
    for start, stop in itertools.pairwise(rows.offsets.to_pylist()):
        yield [seen[one:other] for one, other in itertools.pairwise(places[start : stop + 1])]


def open_stream(
    board: Any,
    *,
    root: str,
    cache: str | None,
    digests: Mapping[str, str],
    image_bytes: float,
    task_cpus: float,
    ranks: int,
) -> tuple[dict[str, Dataset], DataConfig]:
    """The run's one dataset and how Ray Train must split it, as keyword values for `TorchTrainer`.

    Tasks fetch faster than ranks decode. For each of `ranks` (the most that there may be) `WAITING_BLOCKS` of full size
    may lie in the object store, those that ranks have at hand among them, and as many tasks may be at work: Ray Data
    takes the blocks to come for as small as the first ones of a reading, so that those come on top. Without a limit it
    fills a quarter of the store.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = None  # a block that is split would go to two ranks
    source = PlanSource(board, root=root, cache=cache, digests=digests, image_bytes=image_bytes)
    most = WAITING_BLOCKS * ranks
    dataset = ray.data.read_datasource(source, num_cpus=task_cpus, override_num_blocks=1, concurrency=most)
    held = ExecutionResources.for_limits(object_store_memory=most * BLOCK_BYTES)
    # Blocks go round the ranks in order only with order preserved and without regard to where they lie.
    options = ExecutionOptions(preserve_order=True, resource_limits=held)
    order = DataConfig(execution_options=options, enable_shard_locality=False)
    return {STREAM: dataset}, order


class StreamBatches:
    """One rank's end of the stream; the `Batches` port of `learning/fit.py`.

    Args:
        stream: this rank's part of the dataset.
        board: the run's `Board`.
        sizes: images by name of split.
        barrier: waits for all ranks. No reading may be posted before every rank has emptied the one before.
        wait_s: seconds that the next block may take.
        made: pictures of a split that are there already, by its name; their bytes are sent all the same.
        drawer: for views that are made on the device, see `load`; `train_view` is not used then.
    """

    def __init__(
        self,
        stream: Any,
        board: Any,
        *,
        sizes: Mapping[str, int],
        barrier: Callable[[], None],
        train: str,
        eval_view: View,
        train_view: View,
        height: int,
        width: int,
        scan_batch: int = 256,
        seed: int = 0,
        threads: int = 2,
        rank: int = 0,
        ranks: int = 1,
        wait_s: float,
        made: Mapping[str, Made] | None = None,
        drawer: Drawer | None = None,
    ) -> None:
        self._wait_s = wait_s
        self._stream, self._board, self._sizes, self._barrier = stream, board, sizes, barrier
        self._train, self._eval_view = train, eval_view
        self._altered = {"view": eval_view, "drawer": drawer} if drawer else {"view": train_view}
        self._scan_batch, self._seed, self._rank, self._ranks = scan_batch, seed, rank, ranks
        self._load, self._made = partial(load, height=height, width=width, threads=threads), made or {}
        self._number = 0

    def images(self, split: str) -> int:
        """How many images a split has."""
        return self._sizes[split]

    def scan(self, split: str) -> Iterator[Batch]:
        """This rank's share of a split, every image once, seen plainly."""
        plan = scan_plan(self.images(split), self._scan_batch)
        return self._load(self._tickets(split, plan), self._eval_view, seed=None, made=self._made.get(split))

    def picks(self, plan: Plan, first: int = 0) -> Iterator[Batch]:
        """This rank's share of a plan from its ticket `first` on, seen as training images."""
        tickets, made = self._tickets(self._train, plan, first), self._made.get(self._train)
        return self._load(tickets, **self._altered, seed=self._seed, made=made)

    def again(self, epoch: int) -> Iterator[Batch]:
        """This rank's share of the train split, every image once, seen as a training image of dice of its own."""
        plan = scan_plan(self.images(self._train), self._scan_batch, epoch=epoch)
        tickets, made = self._tickets(self._train, plan), self._made.get(self._train)
        return self._load(tickets, **self._altered, seed=seed_of_again(self._seed), made=made)

    def _tickets(self, split: str, plan: Plan, first: int = 0) -> Iterator[Ticket]:
        self._number += 1
        self._barrier()
        if self._rank == 0:
            posted = self._board.post.remote(Reading(self._number, split, plan, self._ranks, first))
            answer_of(posted, "the board's answer", BOARD_S)
        self._barrier()
        awaited, share = first, plan.share(self._rank, self._ranks)
        for block in self._blocks():
            for part in block.to_batches():
                places = zip(*(part.column(name).to_pylist() for name in PLACE), strict=True)
                for came, images in zip(places, images_of(part), strict=True):
                    _check_place(came, (self._number, awaited, self._rank))
                    yield Ticket(
                        ticket=awaited,
                        epoch=plan.epoch,
                        first_place=self._rank * share.shape[1],
                        indices=share[awaited],
                        images=images,
                    )
                    awaited += 1
        if awaited != len(share):
            raise StreamError(
                expected(
                    f"{len(share)} tickets of {split} for rank {self._rank}",
                    f"{awaited}",
                    "resume the run; if it comes back, set scale.stream=mapped and report it",
                )
            )

    def _blocks(self) -> Iterator[pa.Table]:
        with refusals():
            blocks = self._stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
            yield from each_within(blocks, "the next block of images from Ray Data", self._wait_s)


def _check_place(came: tuple[int, ...], awaited: tuple[int, int, int]) -> None:
    if came != awaited:
        raise StreamError(
            expected(
                "(reading, ticket, rank) " + str(awaited),
                str(came),
                "this release of Ray hands out blocks in another order: set scale.stream=mapped, and report it",
            )
        )
