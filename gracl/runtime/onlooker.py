"""Pages on a training that is under way: made where the labels are, beside the training, each n epochs.

The relation actor has the features, labels and proxies of each epoch at hand, so a page costs no second look at the
images: some pictures are read from the shards, and a thread draws while the ranks train. A page that fails is logged
and missed, never the training. Identities of the train split are not known here.
"""

import logging
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from gracl.images import storage
from gracl.images.shards import ShardStore
from gracl.retrieval.page import page
from gracl.runtime.pages import Seen, judged_lines, parts
from gracl.runtime.runs import Run
from gracl.runtime.sheets import draw_ranked
from gracl.runtime.tracking import attempt, write_text
from gracl.types import UNKNOWN, Assignment, Ranking, RetrievalReport

LOG = logging.getLogger(__name__)


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

    def wants(self, epoch: int) -> bool:
        """Whether a page is due on the weights after `epoch` epochs."""
        return epoch > 0 and epoch % self.every == 0

    def begin(
        self,
        epoch: int,
        features: Float32[ndarray, "images dim"],
        assignment: Assignment,
        judged: tuple[int, RetrievalReport, Ranking] | None,
    ) -> threading.Thread:
        """Draws in a thread of its own, which is returned.

        Args:
            epoch: epochs that the weights have learnt.
            features: of the train split, by these weights.
            assignment: labels and proxies of these features.
            judged: epochs done, report and ranking of the last evaluation; None where there was none.
        """
        thread = threading.Thread(
            target=self._draw_or_log, args=(epoch, features, assignment, judged), name=page_name(epoch), daemon=True
        )
        thread.start()
        return thread

    def _draw_or_log(self, epoch: int, *found: Any) -> None:
        try:
            self.draw(epoch, *found)
        except Exception:
            LOG.exception("no page on epoch %s; the training goes on", epoch)

    def draw(
        self,
        epoch: int,
        features: Float32[ndarray, "images dim"],
        assignment: Assignment,
        judged: tuple[int, RetrievalReport, Ranking] | None,
    ) -> None:
        """Writes the page. Arguments: as `begin`."""
        stores = {name: ShardStore.open(self.root, name, cache=self.cache) for name in self.splits if name}
        train = stores[self.splits[0]]
        objects = np.full(len(train), UNKNOWN, np.int64)
        seen = Seen(train, np.asarray(features, np.float32), train.camera_ids(), assignment, objects)
        ranked, figures = None, list[list[object]]()
        if judged:
            with tempfile.TemporaryDirectory() as folder:
                picture = Path(folder, "ranked.png")
                query, gallery = stores[self.splits[1]], stores[self.splits[2]]
                draw_ranked(picture, *judged[1:], query=query, gallery=gallery, title="", queries=self.queries)
                ranked = picture.read_bytes()
            figures = [["judged after epochs", judged[0]], *judged_lines(judged[1])]
        sections = parts(seen, recipe=self.recipe, history=[], figures=figures, ranked=ranked, clusters=self.clusters)
        name = Path(self.folder).name
        text = page(f"gracl review: {name} after {epoch} epochs", sections)
        storage.write_bytes(storage.join(self.folder, page_name(epoch)), text.encode())
        uri, run_id = self.mlflow
        attempt(uri, partial(write_text, run_id, text, page_name(epoch)), f"the page on epoch {epoch}")


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
