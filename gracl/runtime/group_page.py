"""The sections of a page on groups: figures, sizes, sheets of groups, images of no group, settings."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from gracl.images.embeddings import Rows
from gracl.randomness import rng
from gracl.relations.grouping import Groups
from gracl.retrieval.group_sheets import ALONE_LEGEND, GROUP_LEGEND, ShownGroup, groups_to_show, sizes_chart
from gracl.retrieval.page import Part
from gracl.retrieval.sheet import Legend, SheetRow, draw_sheet
from gracl.runtime.album import HEIGHT, Album
from gracl.similarity import top_k
from gracl.types import NOISE

_LISTED = 100
_LETTERS = 14
_NEAREST = 9


def parts(
    rows: Rows,
    groups: Groups,
    cameras: Int64[ndarray, "images"],
    album: Album,
    *,
    figures: Sequence[Sequence[object]],
    settings: Mapping[str, Any],
    each: int,
) -> list[Part]:
    """The sections of the page.

    Args:
        cameras: by number, -1 where unknown.
        figures: lines of name and value.
        settings: that were used.
        each: groups of each kind on the sheets, and images of no group.
    """
    labels, sections = groups.labels, []
    sizes = np.bincount(labels[labels != NOISE])
    if len(sizes):
        chart = {"groups by their size": sizes_chart(sizes)}
        shown = groups_to_show(labels, groups.confidence, groups.centres, cameras, each=each)
        sections.append(Part("Sizes", pictures=chart, tables=[_table(rows, groups, sizes)], folded=True))
        sheets = {
            kind: _sheet([_group_row(one, rows, groups, album) for one in some], GROUP_LEGEND)
            for kind, some in shown.items()
        }
        words = (
            "First the image that stands for the group, the most similar to the group's mean; then others, from the "
            "least sure to the surest: under each its confidence, 0 to 1, and its camera."
        )
        sections.append(Part("Groups", words, pictures=sheets))
    alone = np.sort(rng(0, "alone").permutation(np.flatnonzero(labels == NOISE))[:each])
    if len(alone):
        words = (
            "Images of no group, drawn at random, and those most similar to each: cosine, and the group they are in."
        )
        sheet = _sheet(_alone_rows(alone, rows, groups, album), ALONE_LEGEND)
        sections.append(Part("In no group", words, pictures={"in no group, and the nearest": sheet}))
    lines = [["setting", "value"], *([name, value] for name, value in sorted(settings.items()))]
    sections.append(Part("Settings", tables=[lines], folded=True))
    first = Part("Figures", album.told(), tables=[[["figure", "value"], *map(list, figures)]])
    return [first, *sections]


def _table(rows: Rows, groups: Groups, sizes: ndarray) -> list[list[object]]:
    """The first groups, which are the largest, a line each."""
    heads: list[object] = ["group", "images", "the image that stands for it"]
    lines: list[list[object]] = [
        [number, int(sizes[number]), rows.paths[int(groups.centres[number])].as_py()]
        for number in range(min(len(sizes), _LISTED))
    ]
    return [heads, *lines] + ([["...", f"{len(sizes) - _LISTED} more", ""]] if len(sizes) > _LISTED else [])


def _group_row(one: ShownGroup, rows: Rows, groups: Groups, album: Album) -> SheetRow:
    images = [one.centre, *one.members.tolist()]
    pictures = _pictures(images, rows, album)
    captions = [f"{groups.confidence[image]:.2f}\n{_camera(rows, image)}".strip() for image in images]
    cameras = f"\n{one.cameras} camera{'s' if one.cameras > 1 else ''}" if one.cameras else ""
    return SheetRow(
        query=pictures[0],
        query_caption=captions[0],
        gallery=pictures[1:],
        captions=captions[1:],
        correct=[None] * len(one.members),
        note=f"group {one.group}\n{one.size} images{cameras}\nconfidence {one.confidence:.2f}",
    )


def _alone_rows(alone: Int64[ndarray, "shown"], rows: Rows, groups: Groups, album: Album) -> list[SheetRow]:
    """Images of no group, each with the nine most similar to it."""
    found, scores = top_k(rows.features[alone], rows.features, min(_NEAREST + 1, len(rows)))
    lines = []
    for image, near, score in zip(alone.tolist(), found, scores, strict=True):
        others = [(int(one), float(value)) for one, value in zip(near, score, strict=True) if one != image][:_NEAREST]
        pictures = _pictures([image, *(one for one, _ in others)], rows, album)
        names = ["none" if groups.labels[one] == NOISE else f"#{groups.labels[one]}" for one, _ in others]
        lines.append(
            SheetRow(
                query=pictures[0],
                query_caption=_camera(rows, image),
                gallery=pictures[1:],
                captions=[f"{value:.2f}\n{name}" for (_, value), name in zip(others, names, strict=True)],
                correct=[None] * len(others),
                note="",
            )
        )
    return lines


def _pictures(images: Sequence[int], rows: Rows, album: Album) -> list[ndarray]:
    paths = [rows.paths[image].as_py() for image in images]
    return album.pictures(paths, rows.indices[np.asarray(images, np.int64)])


def _camera(rows: Rows, image: int) -> str:
    """As the table has it, a bare number with a c before it; nothing where it is unknown."""
    name = rows.cameras[image].as_py() or ""
    name = f"c{name}" if name.isdecimal() else name
    return f"{name[: _LETTERS - 2]}.." if len(name) > _LETTERS else name


def _sheet(rows: Sequence[SheetRow], legend: Legend) -> bytes:
    picture = io.BytesIO()
    draw_sheet(rows, height=HEIGHT, title="", legend=legend).save(picture, format="PNG")
    return picture.getvalue()
