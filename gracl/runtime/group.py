"""group(config): an embedding table to groups, in this process, without Ray.

`groups.parquet` and `groups.html` are written first and `groups.json` last: a folder without it is not finished, and
who repeats the command writes all three anew. The same table and settings give the same bytes; no file holds a time.
"""

import io
import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64
from numpy import ndarray
from pydantic import ValidationError

from gracl.errors import CheckpointError, ConfigError, ShardError, expected
from gracl.images import storage
from gracl.images.embeddings import EmbeddingTable, Rows
from gracl.learning.identity import model_digest
from gracl.locks import holding
from gracl.measuring import require_memory
from gracl.relations import grouping
from gracl.relations.grouping import Groups
from gracl.relations.tracks import LEAST, fewer_neighbours
from gracl.retrieval.group_sheets import mean_confidences
from gracl.retrieval.page import page
from gracl.runtime.album import Album
from gracl.runtime.checkpoints import load_any_state, load_model, relations_of, takes_surroundings
from gracl.runtime.group_page import parts
from gracl.runtime.progress import SECONDS_BETWEEN_LINES, say
from gracl.sections import Grouping
from gracl.types import NOISE, UNKNOWN
from gracl.uses import GroupConfig

SCHEMA_VERSION = 1
GROUPS, PAGE, SUMMARY = "groups.parquet", "groups.html", "groups.json"


@dataclass(frozen=True)
class _Known:
    """What the table knows beside features, by number: -1 is unknown. `tracks` is None where they are not used."""

    cameras: Int64[ndarray, "images"]
    tracks: Int64[ndarray, "images"] | None


def group(config: GroupConfig) -> dict[str, Any]:
    """Groups the images of a table; writes who is in which group, a summary, and a page with pictures.

    Returns:
        Folder, images, groups, the share of images in no group, seconds.

    Raises:
        ConfigError: settings that cannot be run on this table; groups are there already, or being written.
        ShardError: no such table, or an unfinished one.
        CheckpointError: `checkpoint` was given and cannot be read.
    """
    out = storage.absolute(config.out)
    with holding(out, f"the groups in {out}"):
        return _grouped(config, out)


def _grouped(config: GroupConfig, out: str) -> dict[str, Any]:
    started = time.perf_counter()
    if storage.exists(storage.join(out, SUMMARY)):
        raise ConfigError(expected("a new folder for groups", f"{out}, which holds some", "choose another out="))
    table = EmbeddingTable(config.embeddings)
    if len(table) < 2:
        raise ConfigError(expected(f"2 images or more in {table.root}", len(table), "extract more pictures"))
    relations, origin = _relations(config, table)
    rows = _read(table)
    known = _known(rows, config)
    relations = _for_tracks(relations, config, known)
    if relations.wants_cameras and (known.cameras == UNKNOWN).all():
        raise ConfigError(
            expected(
                f"cameras in {table.root}, since relations of {origin} ask for them",
                "none",
                "set relations.centre=none and relations.camera_aware=false, or extract from a list with camera_id",
            )
        )
    found = grouping.group(
        rows.features,
        cameras=known.cameras,
        tracks=known.tracks,
        **relations.options(),
        threads=config.threads,
        device=config.device,
        progress=_teller(),
    )
    summary = _summary(table, rows, found, known, relations, origin)
    if not summary["groups"]:
        say("note: every image is in no group; raise relations.eps or lower relations.min_samples")
    storage.write_bytes(storage.join(out, GROUPS), _parquet(rows, found))
    storage.write_bytes(storage.join(out, PAGE), _page(config, table, rows, found, known, summary))
    storage.write_bytes(storage.join(out, SUMMARY), (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())
    say(f"{summary['groups']} groups of {len(rows)} images in {out}; look at {storage.join(out, PAGE)}")
    return {
        "out": out,
        **{name: summary[name] for name in ("images", "groups", "in_no_group")},
        "seconds": round(time.perf_counter() - started, 2),
    }


def _teller() -> Callable[[str, int, int], None]:
    """A line at the end of each phase, and every few seconds within one."""
    said = time.monotonic()

    def tell(phase: str, done: int, rows: int) -> None:
        nonlocal said
        if done == rows or time.monotonic() - said >= SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            say(f"{phase}: {done:,} of {rows:,}")

    return tell


def _relations(config: GroupConfig, table: EmbeddingTable) -> tuple[Grouping, str]:
    """The settings, and whose they are where none was given: those of a checkpoint, or the defaults.

    Raises:
        CheckpointError: the one that was named cannot be read.
    """
    base, origin = Grouping(), "the defaults"
    given = {name: getattr(config.relations, name) for name in config.relations.model_fields_set}
    if config.checkpoint:
        base, origin = _of_checkpoint(config.checkpoint, given), storage.absolute(config.checkpoint)
    elif config.checkpoint is None:
        try:
            encoder, view = load_model(table.checkpoint)
            if model_digest(encoder, view) != table.asked.model:
                came = "another model"
                raise CheckpointError(expected(f"the table's model at {table.checkpoint}", came, "name its own"))
            base, origin = _of_checkpoint(table.checkpoint, given), table.checkpoint
        except CheckpointError as error:
            say(f"note: relations are the defaults where none are given, not those of the training: {error}")
    try:
        return Grouping.model_validate(base.options() | given), origin
    except ValidationError as error:  # a rule over several settings, of which some were given
        raise ConfigError(expected("relations that go together", str(error), "give the others, too")) from error


def _for_tracks(relations: Grouping, config: GroupConfig, known: _Known) -> Grouping:
    """The settings with fewer neighbours where tracks are rows, for those that were not given."""
    if known.tracks is None:
        return relations
    images, names = len(known.tracks), set(LEAST) - config.relations.model_fields_set
    rows = len(np.unique(known.tracks[known.tracks != UNKNOWN])) + int((known.tracks == UNKNOWN).sum())
    before = {name: getattr(relations, name) for name in sorted(names)}
    fewer = fewer_neighbours(before, images, rows)
    say(
        f"{rows} tracks and single images of {images} images; neighbours count these, so where they are not given: "
        + ", ".join(f"{name}={fewer[name]} for {k}" for name, k in before.items() if fewer[name] != k)
    )
    return relations.model_copy(update=fewer)


def _of_checkpoint(uri: str, given: Collection[str]) -> Grouping:
    state = load_any_state(storage.absolute(uri))
    found = relations_of(state)
    settings = {name: getattr(found, name) for name in Grouping.model_fields}
    if takes_surroundings(state.recipe):
        # A table has no pictures whose surroundings could be looked at, and cameras that are recorded are others.
        asked = {"centre": ("camera", "none"), "camera_aware": (True, False)}
        replaced = {name: without for name, (taken, without) in asked.items() if settings[name] == taken}
        settings |= replaced
        if set(replaced) - set(given):
            say(
                "note: the training took groups of surroundings for cameras, and a table has no pictures: features are "
                "grouped without; give relations.centre=camera where the table's own cameras shall be used"
            )
    return Grouping(**settings)


def _read(table: EmbeddingTable) -> Rows:
    """The whole table, where there is memory for it.

    Raises:
        ShardError: it does not hold the rows that its manifest says.
    """
    width = {"float32": 4, "float16": 2}[table.asked.dtype]
    needed = 2 * len(table) * table.asked.feature_size * width  # twice while its parts are joined
    require_memory(needed, f"{len(table)} embeddings", "run it on a larger machine, or extract with dtype=float16")
    rows = table.read()
    if len(rows) != len(table):
        raise ShardError(expected(f"{len(table)} rows in {table.root}", len(rows), "extract again into a new folder"))
    return rows


def _known(rows: Rows, config: GroupConfig) -> _Known:
    tracks = _numbers(rows.tracks)
    has_tracks = bool((tracks != UNKNOWN).any())
    if not has_tracks and config.tracks == "use" and "tracks" in config.model_fields_set:
        raise ConfigError(
            expected("tracks in the table, for tracks=use", "none", "extract from a list with the column track")
        )
    return _Known(_numbers(rows.cameras), tracks if has_tracks and config.tracks == "use" else None)


def _numbers(words: pa.ChunkedArray) -> Int64[ndarray, "images"]:
    """The words as numbers in their order; -1 for null."""
    numbers = words.combine_chunks().dictionary_encode()
    order = np.argsort(np.argsort(np.array(numbers.dictionary.to_pylist(), object)))
    codes = numbers.indices.fill_null(-1).to_numpy().astype(np.int64)
    return np.asarray(np.concatenate([order, [UNKNOWN]])[codes], np.int64)


def _parquet(rows: Rows, found: Groups) -> memoryview:
    is_centre = np.zeros(len(rows), bool)
    is_centre[found.centres] = True
    table = pa.table(
        {
            "path": rows.paths,
            "index": pa.array(rows.indices, pa.int64()),
            "camera": rows.cameras,
            "track": rows.tracks,
            "group": pa.array(found.labels, pa.int64()),
            "confidence": pa.array(found.confidence, pa.float32()),
            "centre": pa.array(is_centre),
        }
    )
    file = io.BytesIO()
    pq.write_table(
        table, file, compression="zstd", use_dictionary=["camera", "track", "group"], write_page_checksum=True
    )
    return file.getbuffer()


def _summary(
    table: EmbeddingTable, rows: Rows, found: Groups, known: _Known, relations: Grouping, origin: str
) -> dict[str, Any]:
    """What groups.json holds; seconds and memory, which differ from run to run, are not among it."""
    sizes = np.bincount(found.labels[found.labels != NOISE])
    tracks = known.tracks
    return {
        "schema_version": SCHEMA_VERSION,
        "table": table.root,
        "source": table.asked.source,
        "data_digest": table.asked.data_digest,
        "model": table.asked.model,
        "checkpoint": table.checkpoint,
        "images": len(rows),
        "groups": len(sizes),
        "in_no_group": float((found.labels == NOISE).mean()),
        "cameras": len(np.unique(known.cameras[known.cameras != UNKNOWN])),
        "tracks": None if tracks is None else len(np.unique(tracks[tracks != UNKNOWN])),
        "related": found.rows,
        **{name: found.stats[name] for name in ("eps", "knn_recall") if name in found.stats},
        "relations": relations.options(),
        "relations_of": origin,
        "sizes": sizes.tolist(),
        "confidences": [round(float(one), 6) for one in mean_confidences(found.labels, found.confidence)],
        "centres": rows.indices[found.centres].tolist(),
    }


def _page(
    config: GroupConfig, table: EmbeddingTable, rows: Rows, found: Groups, known: _Known, summary: dict[str, Any]
) -> bytes:
    sizes, sure = summary["sizes"], found.confidence[found.labels != NOISE]
    figures: list[list[object]] = [
        ["images", f"{summary['images']:,}"],
        ["groups", f"{summary['groups']:,}"],
        ["images in no group", f"{summary['in_no_group']:.1%}"],
        ["cameras", summary["cameras"] or "not known"],
        ["tracks", "not used" if summary["tracks"] is None else f"{summary['tracks']:,}"],
    ]
    if sizes:
        figures += [
            ["images of a group, median", f"{np.median(sizes):g}"],
            ["images of the largest", f"{sizes[0]:,}"],
            ["confidence, mean over grouped images", f"{sure.mean(dtype=np.float64):.3f}"],
        ]
    figures += [[name, f"{summary[name]:.4g}"] for name in ("eps",) if name in summary]
    figures += [["table", table.root], ["source", table.asked.source], ["relations of", summary["relations_of"]]]
    album = Album(table.asked.source, table.asked.data_digest, storage.absolute(config.cache) if config.cache else None)
    settings = {f"relations.{name}": value for name, value in summary["relations"].items()}
    settings |= {"tracks": config.tracks, "model": table.asked.model}
    sections = parts(rows, found, known.cameras, album, figures=figures, settings=settings, each=config.groups)
    if album.told():
        say(f"note: {album.told()}")
    return page(f"gracl groups: {PurePosixPath(table.root).name}", sections).encode()
