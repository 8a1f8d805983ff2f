"""The two things that a service does, without HTTP and Serve: it describes pictures, and looks features up."""

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray
from PIL import Image

from gracl.embedding import Description
from gracl.errors import ConfigError, GraclError, ImageError, expected
from gracl.images import storage
from gracl.images.decoding import claimed, decode
from gracl.images.sources import open_pictures
from gracl.learning.identity import model_digest
from gracl.retrieval.calibration import Calibration
from gracl.retrieval.lookup import look_up, threshold_of, told
from gracl.retrieval.stored import StoredIndex
from gracl.runtime.calibrated import calibration_of, place_of
from gracl.runtime.checkpoints import load_model

# What browsers show; anything else that a gallery holds goes out as PNG.
SHOWN = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp", "BMP": "image/bmp"}
_MOST_CAMERAS = 200


@dataclass(frozen=True)
class Described:
    """What became of a picture: its feature, or the reason why there is none; how many were described with it, and
    whether it is the one of them that tells (so that a batch is counted once).
    """

    feature: Float32[ndarray, "dim"] | None
    reason: str
    batch: int
    tells: bool


class Describer:
    """Pictures to features by a model.

    Args:
        checkpoint: of it, by URI.
        flip: average with the mirror image's feature.
        threads: that decode, and of torch.
        device: of torch.

    Raises:
        CheckpointError: missing, torn, or of another schema.
    """

    def __init__(self, checkpoint: str, *, flip: bool, threads: int, device: str) -> None:
        encoder, view = load_model(storage.absolute(checkpoint))
        self.model = model_digest(encoder, view)
        torch.set_num_threads(threads)
        self._describe = Description.of(encoder, view, batch=1, threads=threads, device=device, flip=flip)

    def __call__(self, pictures: list[bytes]) -> list[Described]:
        """What becomes of each; one that is torn does no harm to the others."""
        describe = replace(self._describe, batch=max(1, len(pictures)))
        table, bad = describe.readable(lambda rows: [pictures[row] for row in rows], len(pictures))
        features = dict(zip(table.indices.tolist(), np.asarray(table.features), strict=True))
        return [
            Described(features.get(row), str(bad.get(row, "")), len(pictures), row == 0) for row in range(len(pictures))
        ]


@dataclass(frozen=True)
class Question:
    """What is asked of a gallery beside the picture; `own_camera` is the query's, whose pictures are left out."""

    k: int = 10
    cameras: tuple[str, ...] = ()
    own_camera: str | None = None
    false_match_rate: float | None = None
    of: Literal["pair", "query"] = "pair"


class Gallery:
    """An index that is asked one question at a time, by one thread.

    Args:
        folder: of the index, on this machine.
        checkpoint: whose calibration counts, where there is one; None: the one that the index names.
        root: where pictures lie now; None: where they were found.

    Raises:
        GraclError: no index, a torn one, or a torn calibration.
        ConfigError: a calibration of another model.
    """

    def __init__(self, folder: str, *, checkpoint: str | None = None, root: str | None = None) -> None:
        self.index = StoredIndex(storage.local_path(storage.absolute(folder)))
        self._root, facts = root, self.index.facts
        checkpoint = checkpoint or facts.checkpoint
        there = storage.exists(place_of(checkpoint))
        self.calibration: Calibration | None = calibration_of(checkpoint, facts.model, facts.flip) if there else None
        self._readers: dict[str, Callable[..., Sequence[Any]]] = {}

    def about(self) -> dict[str, Any]:
        """Model, rows, kind, recall, cameras (the first 200 of them), and rates of false matches that were measured."""
        facts = self.index.facts
        cameras = self.index.cameras[0]
        points = self.calibration.points if self.calibration else ()
        return {
            "model": facts.model,
            "flip": facts.flip,
            "rows": facts.rows,
            "kind": facts.kind,
            "recall": round(facts.recall, 4),
            "cameras": cameras[:_MOST_CAMERAS],
            "rates_of_a_pair": [points[-1].rate, points[0].rate] if points else None,
        }

    def find(self, feature: Float32[ndarray, "dim"], question: Question) -> dict[str, Any]:
        """What is most like a feature, as `pipelines/search.py` says it, each with its row; paths are relative.

        Raises:
            ConfigError: cameras that the index does not know; a rate without a calibration, or beyond it.
        """
        threshold = None
        if question.false_match_rate is not None:
            if self.calibration is None:
                do = "calibrate the model (pipelines/calibrate.py) and start the service again, or leave out the rate"
                raise ConfigError(expected("a calibration beside false_match_rate", "none", do))
            threshold = threshold_of(self.calibration, question.false_match_rate, question.of, len(self.index))
        (hits,) = look_up(
            self.index,
            feature[None],
            question.k,
            cameras=[question.own_camera],
            among=question.cameras,
            other_cameras=question.own_camera is not None,
        )
        found = told(self.index, hits, threshold)
        for hit in found["results"]:
            del hit["source"]  # a folder of this machine is nobody's business
        return {"model": self.index.facts.model, "threshold": asdict(threshold) if threshold else None, **found}

    def place(self, row: int) -> dict[str, Any] | None:
        """Path, index and source of a row; None where there is no such row."""
        return self.index.about(np.array([row]))[0] if 0 <= row < len(self.index) else None

    def picture(self, place: dict[str, Any]) -> tuple[str, bytes]:
        """Type and bytes of the picture of a row, as it lies or, where browsers do not know the format, as PNG.

        Raises:
            ImageError: it cannot be read any more.
        """
        source = storage.absolute(self._root) if self._root else place["source"]
        if source not in self._readers:
            self._readers[source] = open_pictures(source, digest=self.index.digests().get(source, ""))
        try:
            (found,) = self._readers[source](np.array([place["index"]], np.int64), [place["path"]])
        except (OSError, GraclError) as error:
            raise ImageError(expected("the pictures of the gallery", str(error), "name root=")) from error
        if isinstance(found, Exception):
            raise ImageError(str(found))
        content = bytes(found)
        form = claimed(content)[0]
        if form in SHOWN:
            return SHOWN[form], content
        file = io.BytesIO()
        Image.fromarray(decode(content)).save(file, "PNG")
        return "image/png", file.getvalue()
