"""extract(config): embeddings of pictures, as Parquet, by a pool of Ray Data's actors.

The work is cut into parts of a fixed number of pictures. An actor describes a part and writes its file, whole or not at
all, under a name that follows from its number: a part that is done twice (an actor or node was lost) is written once,
and who repeats the command does what is missing.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from jaxtyping import Int64
from numpy import ndarray

from gracl.embedding import Description
from gracl.errors import ConfigError, ImageError, StorageError, expected
from gracl.images import embeddings, storage
from gracl.images.embeddings import ASKED, SCHEMA_VERSION, Asked, Part, finished_part, part_name, write_part
from gracl.images.loading import Encoded
from gracl.images.manifests import BadImage, read_manifest
from gracl.images.shards import ShardStore
from gracl.images.sources import Listing, list_source, read_pictures
from gracl.learning.identity import model_digest
from gracl.locks import holding
from gracl.runtime.checkpoints import load_model
from gracl.runtime.describe import check, demand, near
from gracl.runtime.progress import Progress, say
from gracl.runtime.session import refusals, session
from gracl.runtime.waiting import each_within
from gracl.types import UNKNOWN
from gracl.uses import ExtractConfig

# Pictures of one file where nobody says it: what is lost with an actor.
PART = 4096
Row = dict[str, Any]


class PartWriter:
    """An encoder that lives on some node, describes parts and writes their files.

    Args:
        checkpoint: URI of the model's folder.
        out: folder of the table.
        store: root, split and cache of shards; None where the pictures are files.
        root: of the files.
        options: `batch`, `precision`, `threads`, `decode_threads`, `flip`, `dtype`.
    """

    def __init__(
        self, checkpoint: str, out: str, store: tuple[str, str, str | None] | None, root: str, options: dict[str, Any]
    ) -> None:
        torch.set_num_threads(options["threads"])
        encoder, view = load_model(checkpoint)
        self._describe = Description.of(
            encoder,
            view,
            batch=options["batch"],
            threads=options["decode_threads"],
            device="cuda" if ray.get_gpu_ids() else "cpu",
            precision=options["precision"],
            flip=options["flip"],
        )
        self._out, self._root, self._dtype = out, root, options["dtype"]
        self._store = ShardStore.open(store[0], store[1], cache=store[2]) if store else None
        self._cameras = self._store.camera_ids() if self._store else None

    def __call__(self, row: Row) -> Row:
        """Writes one part; how many pictures it has, and when it was done."""
        first, images = int(row["first"]), int(row["images"])
        paths, read, cameras = self._pictures(first, images, row)
        table, bad = self._describe.readable(read, images)
        order = np.argsort(table.indices)
        rows = table.indices[order]
        tracks = row["tracks"]
        file = part_name(int(row["part"]))
        write_part(
            storage.join(self._out, file),
            paths=[paths[place] for place in rows],
            indices=first + rows,
            cameras=[cameras[place] for place in rows],
            tracks=[tracks[place] for place in rows] if len(tracks) else [None] * len(rows),
            features=table.features[order],
            dtype=self._dtype,
            bad=[BadImage(paths[place], str(bad[place])) for place in sorted(bad)],
        )
        # When it was done is not when the driver hears of it: Ray Data hands results on some at a time.
        return {"images": images, "done": time.time()}

    def _pictures(
        self, first: int, images: int, row: Row
    ) -> tuple[Sequence[str], Callable[[Int64[ndarray, "rows"]], Sequence[Encoded | ImageError]], Sequence[str | None]]:
        """Paths, a way to read some of them, and cameras of a part's pictures."""
        if self._store is not None and self._cameras is not None:
            store, here = self._store, np.arange(first, first + images)
            cameras = [None if camera == UNKNOWN else str(camera) for camera in self._cameras[here]]
            return store.paths(here), lambda rows: store.read(first + rows), cameras
        paths: list[str] = list(row["paths"])
        given = row["cameras"]
        return (
            paths,
            lambda rows: read_pictures(self._root, [paths[place] for place in rows]),
            list(given) if len(given) else [None] * images,
        )


def extract(config: ExtractConfig) -> dict[str, Any]:
    """Describes a split, or pictures that are not packed, and writes an embedding table; see `images/embeddings.py`.

    Returns:
        Folder, rows, pictures that could not be read, feature size, pictures described now (others were there), their
        number per second once each worker had a part behind it (None for no more parts), seconds.

    Raises:
        ConfigError, ShardError, LayoutError, CheckpointError: before Ray starts; a ConfigError also where another
            process is writing there, or something else was asked for before.
    """
    out = storage.absolute(config.out)
    if storage.is_in_memory(out):
        do = "name a folder or a bucket that all actors reach"
        raise ConfigError(expected("a place for embeddings beyond one process", out, do))
    with holding(out, f"the embeddings in {out}"):
        return _extracted(config, out)


def _extracted(config: ExtractConfig, out: str) -> dict[str, Any]:
    started = time.perf_counter()
    if storage.exists(storage.join(out, embeddings.MANIFEST)):
        raise ConfigError(expected("a new folder for embeddings", f"{out}, which holds some", "choose another out="))
    listing = _listing(config)
    asked = _asked(config, listing)
    begun = embeddings.asked_of(out)
    if begun is None:
        storage.write_bytes(storage.join(out, ASKED), asked.to_json())
    else:
        asked = _same(config, begun, asked, out)
    done = _finished(out, asked)
    missing = [number for number in range(-(-asked.images // asked.part)) if number not in done]
    if done:
        say(f"{len(done)} parts of {asked.part} pictures are there already; {len(missing)} to go")
    described, rate = 0, None
    if missing:
        with session(demand(config.scale)):
            described, rate = _describe(config, asked, listing, out, missing)
        done = _finished(out, asked)
    parts = _whole(out, asked, done)
    unnamed = listing.unnamed if listing else ()
    embeddings.write_manifest(out, asked, parts, unnamed, storage.absolute(config.checkpoint))
    rows, bad = sum(part.rows for part in parts), sum(len(part.bad) for part in parts) + len(unnamed)
    say(f"{rows} embeddings of size {asked.feature_size} in {out}" + (f"; {bad} pictures left out" if bad else ""))
    return {
        "out": out,
        "images": rows,
        "bad_images": bad,
        "feature_size": asked.feature_size,
        "described": described,
        "images_per_second": round(rate, 1) if rate else None,
        "seconds": round(time.perf_counter() - started, 2),
    }


def _listing(config: ExtractConfig) -> Listing | None:
    """The pictures that are not packed; None for a split of shards."""
    return list_source(storage.absolute(config.images)) if config.images else None


def _asked(config: ExtractConfig, listing: Listing | None) -> Asked:
    if listing is None:
        encoder, view = check(config, config.data, [config.split])
        root = storage.absolute(config.data.root)
        manifest = read_manifest(root, config.split)
        source, digest, images = storage.join(root, config.split), manifest.digest, manifest.num_images
    else:
        encoder, view = load_model(storage.absolute(config.checkpoint))
        source, images = storage.absolute(config.images or ""), listing.rows.num_rows
        digest = listing.digest()
    return Asked(
        schema_version=SCHEMA_VERSION,
        source=source,
        data_digest=digest,
        images=images,
        part=config.part or min(PART, -(-images // config.scale.workers)),
        model=model_digest(encoder, view),
        feature_size=encoder.feature_size,
        dtype=config.dtype,
        flip=config.flip,
        precision=_precision(config),
    )


def _precision(config: ExtractConfig) -> str:
    """What "auto" is: half precision where the actors have GPUs, so that no table is made of both."""
    if config.precision != "auto":
        return config.precision
    return "bfloat16" if config.scale.worker_gpus else "float32"


def _same(config: ExtractConfig, begun: Asked, asked: Asked, out: str) -> Asked:
    """What was begun, where it is what is asked for now; how many work on it may be another number."""
    left = () if config.part else ("part",)
    differ = [name for name, value in vars(begun).items() if name not in left and value != getattr(asked, name)]
    if differ:
        pairs = ", ".join(f"{name} {getattr(begun, name)!r} before, {getattr(asked, name)!r} now" for name in differ)
        raise ConfigError(
            expected(f"what the unfinished table in {out} was asked for", pairs, "repeat that, or choose another out=")
        )
    return begun


def _finished(out: str, asked: Asked) -> dict[int, Part]:
    """The parts that are there, by number."""
    names = set(storage.names_in(out))
    numbers = [number for number in range(-(-asked.images // asked.part)) if part_name(number) in names]
    found = {number: finished_part(out, part_name(number)) for number in numbers}
    return {number: part for number, part in found.items() if part is not None}


def _whole(out: str, asked: Asked, done: Mapping[int, Part]) -> list[Part]:
    """All parts in order.

    Raises:
        StorageError: one is not there, or does not account for each of its pictures.
    """
    total = -(-asked.images // asked.part)
    lacking = [number for number in range(total) if number not in done or _owes(done[number], number, asked)]
    if lacking:
        came = f"{len(lacking)} that are not there or not whole, the first {part_name(lacking[0])}"
        raise StorageError(expected(f"{total} parts in {out}", came, "run the same command again"))
    return [done[number] for number in range(total)]


def _owes(part: Part, number: int, asked: Asked) -> int:
    """How many pictures of a part are neither described nor listed as bad."""
    return min(asked.part, asked.images - number * asked.part) - part.rows - len(part.bad)


def _describe(
    config: ExtractConfig, asked: Asked, listing: Listing | None, out: str, missing: Sequence[int]
) -> tuple[int, float | None]:
    """Has the missing parts written; how many pictures that were, and how many a second, see `rate_of`."""
    scale, data = config.scale, config.data
    store = None if listing else (storage.absolute(data.root), config.split, near(data.cache))
    options = {
        "batch": config.batch,
        "precision": asked.precision,
        "threads": scale.worker_threads,
        "decode_threads": scale.decode_threads,
        "flip": config.flip,
        "dtype": config.dtype,
    }
    rows = [_row(number, asked, listing) for number in missing]
    workers = min(scale.workers, len(missing))
    described = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        PartWriter,
        fn_constructor_args=(
            storage.absolute(config.checkpoint),
            out,
            store,
            listing.root if listing else "",
            options,
        ),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=scale.worker_cpus,
        num_gpus=scale.worker_gpus,
    )
    progress = Progress("describe", sum(row["images"] for row in rows))
    done: list[tuple[float, int]] = []
    with refusals():
        what = f"the next part of {asked.source} described"
        for one in each_within(described.iter_rows(), what, scale.wait_s):
            done.append((float(one["done"]), int(one["images"])))
            progress(done[-1][1])
    return sum(images for _, images in done), rate_of(done, workers)


def rate_of(done: Sequence[tuple[float, int]], workers: int) -> float | None:
    """Images a second from when each worker had a part behind it, by when parts were done (seconds, images); None where
    no more came. The clocks of the nodes are taken to agree."""
    after = sorted(done)[workers - 1 :]
    warm = after[-1][0] - after[0][0] if len(after) > 1 else 0.0
    return sum(images for _, images in after[1:]) / warm if warm > 0 else None


def _row(number: int, asked: Asked, listing: Listing | None) -> Row:
    first = number * asked.part
    images = min(asked.part, asked.images - first)
    columns = listing.rows.slice(first, images) if listing else None
    given = {
        name: columns[column].to_pylist() if columns is not None and columns[column].null_count < images else []
        for name, column in (("paths", "path"), ("cameras", "camera"), ("tracks", "track"))
    }
    return {"part": number, "first": first, "images": images, **given}
