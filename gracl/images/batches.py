"""Batches read straight from memory-mapped shards by the process that uses them.

This is the twin of the Ray stream (`runtime/stream.py`): the same plans, the same loader, the same pictures, without
Ray. `gracl.local` uses it, and so do training workers whose shards lie on their own disk (`scale.stream: mapped`).
"""

from collections.abc import Iterator, Mapping
from functools import partial

from gracl.images.loading import Drawer, Made, View, load, share_tickets
from gracl.images.plans import scan_plan
from gracl.images.shards import ShardStore
from gracl.randomness import rng
from gracl.types import Batch, Plan


class MappedBatches:
    """One rank's view on open shard stores; the `Batches` port of `learning/fit.py`.

    Args:
        stores: open stores by name of split.
        train: the split that plans pick from.
        eval_view: bytes -> uint8 [height, width, 3], for scans.
        train_view: the same with dice, for picks.
        height, width: pixels of both views.
        scan_batch: images of a scan's ticket, all ranks together.
        seed: the dice of training views hang on (seed, epoch, ticket, place).
        made: pictures of a split that are there already, by its name (`pixel_files.py`).
        drawer: for views that are made on the device, see `load`; `train_view` is not used then.
    """

    def __init__(
        self,
        stores: Mapping[str, ShardStore],
        *,
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
        made: Mapping[str, Made] | None = None,
        drawer: Drawer | None = None,
    ) -> None:
        self._stores, self._train = stores, train
        self._eval_view = eval_view
        self._altered = {"view": eval_view, "drawer": drawer} if drawer else {"view": train_view}
        self._scan_batch, self._seed = scan_batch, seed
        self._share = {"rank": rank, "ranks": ranks}
        self._load, self._made = partial(load, height=height, width=width, threads=threads), made or {}

    def images(self, split: str) -> int:
        """How many images a split has."""
        return len(self._stores[split])

    def scan(self, split: str) -> Iterator[Batch]:
        """This rank's share of a split, every image once, seen plainly."""
        plan = scan_plan(self.images(split), self._scan_batch)
        tickets = share_tickets(self._stores[split].read, plan, **self._share)
        return self._load(tickets, self._eval_view, seed=None, made=self._made.get(split))

    def picks(self, plan: Plan, first: int = 0) -> Iterator[Batch]:
        """This rank's share of a plan from its ticket `first` on, seen as training images."""
        tickets = share_tickets(self._stores[self._train].read, plan, **self._share, first=first)
        return self._load(tickets, **self._altered, seed=self._seed, made=self._made.get(self._train))

    def again(self, epoch: int) -> Iterator[Batch]:
        """This rank's share of the train split, every image once, seen as a training image of dice of its own."""
        plan = scan_plan(self.images(self._train), self._scan_batch, epoch=epoch)
        tickets = share_tickets(self._stores[self._train].read, plan, **self._share)
        seed = seed_of_again(self._seed)
        return self._load(tickets, **self._altered, seed=seed, made=self._made.get(self._train))


def seed_of_again(seed: int) -> int:
    """The seed of `again`: an epoch's scan and its picks count tickets and places alike, and must not share dice."""
    return int(rng(seed, "again").integers(2**31))
