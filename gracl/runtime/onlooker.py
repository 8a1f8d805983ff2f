"""Pages on a training that is under way: made where the labels are, beside the training, each n epochs.

The relation actor has the features, labels and proxies of each epoch at hand, so a page costs no second look at the
images: some pictures are read from the shards, and a thread draws while the ranks train. Identities of the train split
are not known here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy import ndarray

from gracl.errors import GraclError
from gracl.images import storage
from gracl.images.shards import ShardStore
from gracl.measuring import require_memory
from gracl.retrieval.page import page
from gracl.runtime.checkpoints import epoch_folder, load_run_state
from gracl.runtime.describe import describe_train
from gracl.runtime.drawing import Latest
from gracl.runtime.pages import Seen, judged_lines, parts
from gracl.runtime.progress import say
from gracl.runtime.runs import Run, latest_epoch
from gracl.runtime.session import refusals
from gracl.runtime.sheets import draw_ranked
from gracl.runtime.tracking import attempt, leave_text
from gracl.runtime.waiting import answer_of
from gracl.types import UNKNOWN, Assignment, Feature

PAGES = "review-epoch-*.html"


def page_name(epoch: int) -> str:
    """The file of a page on the weights after `epoch` epochs."""
    return f"review-epoch-{epoch:04d}.html"


@dataclass(frozen=True)
class Onlooker:
    """Draws a page each `every` epochs into the run's folder and its MLflow run.

    Attributes:
        every: epochs.
        root, cache, splits: of the shards; names of train, query and gallery, the last two "" for none.
        folder: the run's.
        recipe: the run's settings, as they stand on the page.
        mlflow: URI and run id.
        clusters, queries: on each sheet.
    """

    every: int
    root: str
    cache: str | None
    splits: tuple[str, str, str]
    folder: str
    recipe: Mapping[str, Any]
    mlflow: tuple[str, str]
    clusters: int = 4
    queries: int = 9

    def has(self, epoch: int) -> bool:
        """Whether the page on the weights after `epoch` epochs is there, from an earlier start of the run."""
        return storage.exists(self._place(epoch))

    def draw(
        self,
        epoch: int,
        features: Feature[ndarray, "images dim"],
        assignment: Assignment,
        judged: Latest,
        history: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Writes the page.

        Args:
            epoch: epochs that the weights have learnt.
            features: of the train split, by these weights.
            assignment: labels and proxies of these features.
            judged: epochs done, report and ranking of the last evaluation; None where there was none.
            history: figures of all epochs, where they are known.

        Raises:
            ShardError, ImageError, StorageError, GraclError: shards that are not here, a folder that takes nothing, too
                little memory.
        """
        if features.dtype != np.float32:
            require_memory(4 * features.size, "a second copy of the features, for a page", "set review_every=0")
        stores = {name: ShardStore.open(self.root, name, cache=self.cache) for name in self.splits if name}
        train = stores[self.splits[0]]
        objects = np.full(len(train), UNKNOWN, np.int64)
        seen = Seen(train, np.asarray(features, np.float32), train.camera_ids(), assignment, objects)
        ranked, figures = None, list[list[object]]()
        if judged:
            query, gallery = stores[self.splits[1]], stores[self.splits[2]]
            ranked = draw_ranked(*judged[1:], query=query, gallery=gallery, title="", queries=self.queries)
            figures = [["judged after epochs", judged[0]], *judged_lines(judged[1])]
        sections = parts(
            seen, recipe=self.recipe, history=history, figures=figures, ranked=ranked, clusters=self.clusters
        )
        name = Path(self.folder).name
        text = page(f"gracl review: {name} after {epoch} epochs", sections)
        storage.write_bytes(self._place(epoch), text.encode())
        uri, run_id = self.mlflow
        attempt(uri, partial(leave_text, run_id, text, page_name(epoch)), f"the page on epoch {epoch}")

    def _place(self, epoch: int) -> str:
        return storage.join(self.folder, page_name(epoch))


def onlooker_of(run: Run, uri: str) -> Onlooker:
    """Who draws a run's pages on the way."""
    data = run.config.data
    return Onlooker(
        every=run.config.review_every,
        root=run.root,
        cache=data.cache,
        splits=(data.train, data.query, data.gallery),
        folder=run.folder,
        recipe=run.recipe,
        mlflow=(uri, run.record["mlflow_run_id"]),
    )


def draw_last_page(run: Run, actor: Any) -> None:
    """The page on a run's last checkpoint, described with what the ranks had reserved; says which pages are missing.

    The relation actor clusters and draws, with all that it has: its GPU, its shards, what it judged last.
    """
    epoch = latest_epoch(run.folder)
    checkpoint = storage.join(run.folder, epoch_folder(epoch))
    try:
        parts = [ray.put(part) for part in describe_train(run.config, checkpoint)]
        with refusals():
            asked = actor.last_page.remote(epoch, parts, load_run_state(checkpoint).history)
            missed = answer_of(asked, "the last page from the relation actor", run.config.scale.wait_s)
    except (GraclError, ray.exceptions.RayError) as error:
        missed = [f"epoch {epoch}: {type(error).__name__}: {error}"]
    for words in missed:
        say(f"note: no page on {words}")
