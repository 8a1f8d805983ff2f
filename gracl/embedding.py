"""Pictures into features, in this process and without Ray: what a trained encoder is for."""

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray
from PIL import Image

from gracl.errors import ConfigError, GraclError, ImageError, expected
from gracl.images import storage
from gracl.images.loading import Encoded, OnBad, load, share_tickets
from gracl.images.plans import scan_plan
from gracl.images.preprocess import MAX_FILE_BYTES
from gracl.images.views import eval_view
from gracl.learning.casting import autocast
from gracl.learning.checkpoint import load_encoder
from gracl.learning.encoder import Encoder
from gracl.learning.encoding import encode
from gracl.learning.flipping import encode_with_mirror
from gracl.types import FeatureTable, Plan

# A file or URI, the bytes of a file, or pixels as uint8 [height, width, 3], red first.
Picture = str | Path | bytes | ndarray


def embed(
    model: str | Path | tuple[Encoder, dict[str, int]],
    images: Sequence[Picture],
    *,
    flip: bool = False,
    batch: int = 64,
    threads: int = 2,
    device: str = "auto",
    precision: Literal["auto", "float32", "bfloat16"] = "float32",
    progress: Callable[[int], None] = lambda done: None,
) -> Float32[ndarray, "images dim"]:
    """The features of pictures: rows of length 1, so that inner products are cosine similarities.

    Files are read batch by batch and pictures are resized as in training and evaluation, so the features are those that
    the run was judged by.

    Args:
        model: folder of a checkpoint (or its `state.pt`), or what `load_encoder` gave, which is then moved to `device`.
        images: files, URIs, bytes of files, or pixels, also mixed.
        flip: the mean of a picture's and its mirror image's feature; not where mirrored objects are other objects.
        batch: pictures at a time, >= 1.
        threads: that read and decode, >= 1.
        device: "cpu", "cuda" or another of torch's; "auto" is the GPU where torch finds one.
        precision: "bfloat16" computes in half precision; "auto" does so on a GPU.
        progress: called with the number of pictures done.

    Raises:
        CheckpointError: the checkpoint is missing or torn.
        ConfigError: a batch or a number of threads below 1.
        ImageError: a picture that cannot be read, with its number (and its name, where the file cannot be opened).
        GraclError: pixels of another kind.
    """
    if min(batch, threads) < 1:
        raise ConfigError(expected("batch and threads of at least 1", f"{batch} and {threads}", "raise them"))
    encoder, view = model if isinstance(model, tuple) else load_encoder(model)
    describe = Description.of(
        encoder, view, batch=batch, threads=threads, device=device, precision=precision, flip=flip
    )
    return np.asarray(describe(partial(_read, images), len(images), progress).features)


@dataclass(frozen=True)
class Description:
    """How pictures are described: by which encoder (on its device), at which size, how many at a time."""

    encoder: Encoder
    view: Mapping[str, int]
    batch: int
    threads: int
    casting: AbstractContextManager[object]
    flip: bool = False

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        view: Mapping[str, int],
        *,
        batch: int,
        threads: int,
        device: str = "auto",
        precision: str = "float32",
        flip: bool = False,
    ) -> "Description":
        """By an encoder, which is moved to the device; arguments as those of `embed`."""
        where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        return cls(encoder.to(where).eval(), view, batch, threads, autocast(where, precision), flip)

    def tables(
        self,
        read: Callable[[Int64[ndarray, "rows"]], Sequence[Encoded]],
        plan: Plan,
        progress: Callable[[int], None] = lambda done: None,
        on_bad: OnBad | None = None,
    ) -> tuple[FeatureTable, ...]:
        """The features of the pictures of a plan: plain, and with `flip` after them the flip-averaged ones.

        `read` gives the bytes of some; the rest as `load`.
        """
        size: dict[str, Any] = dict(self.view)
        scan = load(
            share_tickets(read, plan),
            partial(eval_view, **size),
            **size,
            seed=None,
            threads=self.threads,
            on_bad=on_bad,
        )
        try:
            with torch.inference_mode():
                if self.flip:
                    return encode_with_mirror(self.encoder, scan, self.casting, progress)
                return (encode(self.encoder, scan, self.casting, progress),)
        finally:
            scan.close()

    def __call__(
        self,
        read: Callable[[Int64[ndarray, "rows"]], Sequence[Encoded]],
        images: int,
        progress: Callable[[int], None] = lambda done: None,
        on_bad: OnBad | None = None,
    ) -> FeatureTable:
        """The features of pictures 0 to `images` - 1, flip-averaged where that is asked for."""
        return self.tables(read, scan_plan(images, self.batch), progress, on_bad)[-1]

    def readable(
        self, read: Callable[[Int64[ndarray, "rows"]], Sequence[Encoded | ImageError]], images: int
    ) -> tuple[FeatureTable, dict[int, ImageError]]:
        """The same, without those that cannot be read or decoded, and the reason of each of them by its number."""
        bad: dict[int, ImageError] = {}

        def bytes_of(rows: Int64[ndarray, "rows"]) -> list[Encoded]:
            found = read(rows)
            bad.update({int(row): one for row, one in zip(rows, found, strict=True) if isinstance(one, ImageError)})
            return [b"" if isinstance(one, ImageError) else one for one in found]

        # Where the bytes were not there, that is the reason, not that nothing can be made of no bytes.
        table = self(bytes_of, images, on_bad=bad.setdefault)
        good = ~np.isin(table.indices, np.fromiter(bad, np.int64, len(bad)))
        return FeatureTable(table.indices[good], table.features[good]), bad


def _read(images: Sequence[Picture], rows: Int64[ndarray, "rows"]) -> list[bytes]:
    return [_bytes_of(images[row], int(row)) for row in rows]


def _bytes_of(picture: Picture, number: int) -> bytes:
    """A picture as the bytes of a file."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            what = f"pixels as uint8 [height, width, 3] of image {number}"
            raise GraclError(expected(what, f"{picture.dtype} {list(picture.shape)}", "convert them, red first"))
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG", compress_level=1)
        return file.getvalue()
    try:
        return storage.read_plain(str(picture), at_most=MAX_FILE_BYTES)
    except OSError as error:
        what = f"a picture at {picture} (image {number})"
        raise ImageError(expected(what, str(error), "check the path, or leave it out")) from error
