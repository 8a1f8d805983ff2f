"""Pictures of an embedding table, from where the table says they came from, for those that are shown on a page."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt8
from numpy import ndarray
from PIL import Image

from gracl.errors import GraclError, ShardError
from gracl.images.decoding import decode
from gracl.images.loading import Encoded
from gracl.images.sources import open_pictures

# Pictures on a sheet are this high, and at most this wide: what is wider is laid into a grey field.
HEIGHT, WIDTH = 96, 192
_GREY = 200


class Album:
    """Pictures by path and index. What cannot be read is a grey field, and `faults` holds why.

    Args:
        source: where they lie, as the table says.
        digest: of a split of shards; empty: any.
        cache: node-local folder for shards of a remote root.
    """

    def __init__(self, source: str, digest: str = "", cache: str | None = None) -> None:
        self.faults: list[str] = []
        self.shown = 0
        self._why = ""
        try:
            self._read = open_pictures(source, digest=digest, cache=cache)
        except GraclError as error:
            self._why = str(error)

    def pictures(self, paths: Sequence[str], indices: Int64[ndarray, "images"]) -> list[UInt8[ndarray, "_ _ 3"]]:
        """Pictures no larger than the sheet has room for, in the order asked."""
        self.shown += len(paths)
        found: Sequence[Encoded | Exception]
        try:
            found = [ShardError(self._why)] * len(paths) if self._why else self._read(indices, paths)
        except GraclError as error:
            found = [error] * len(paths)
        return [self._decoded(one) for one in found]

    def _decoded(self, content: Encoded | Exception) -> UInt8[ndarray, "_ _ 3"]:
        try:
            if isinstance(content, Exception):
                raise content
            return _fitted(decode(content))
        except GraclError as error:
            self.faults.append(str(error))
            return np.full((HEIGHT, HEIGHT // 2, 3), _GREY, np.uint8)

    def told(self) -> str:
        """How many of the pictures could not be shown, and why; empty where all were."""
        if not self.faults:
            return ""
        return (
            f"{len(self.faults)} of {self.shown} pictures could not be read (grey fields), the first: {self.faults[0]}"
        )


def _fitted(picture: UInt8[ndarray, "_ _ 3"]) -> UInt8[ndarray, "_ _ 3"]:
    """The picture at the height of the sheet; one that is too wide for it within a grey field."""
    rows, columns = picture.shape[:2]
    scale = min(HEIGHT / rows, WIDTH / columns)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    if size[1] == HEIGHT:
        return small
    field = np.full((HEIGHT, size[0], 3), _GREY, np.uint8)
    top = (HEIGHT - size[1]) // 2
    field[top : top + size[1]] = small
    return field
