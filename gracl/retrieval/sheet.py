"""A picture of ranked results: one line per query, its gallery pictures after it, right and wrong by their frames."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

from gracl.errors import GraclError, expected
from gracl.types import RetrievalReport

# Green is much the darker of the two, so that they differ also for eyes that see no red and green.
CORRECT, WRONG, UNJUDGED, QUERY = (0, 120, 50), (240, 60, 40), (150, 150, 150), (30, 30, 30)
INK, PAPER = (20, 20, 20), (255, 255, 255)
GAP = 10
FRAME = 4
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Legend = Sequence[tuple[tuple[int, int, int], str]]
LEGEND: Legend = (
    (QUERY, "query"),
    (CORRECT, "same object"),
    (WRONG, "another object"),
    (UNJUDGED, "not known"),
)
CLUSTER_LEGEND: Legend = (
    (QUERY, "inter-ID proxy"),
    (CORRECT, "the cluster's most frequent object"),
    (WRONG, "another object"),
    (UNJUDGED, "not known"),
)
NOISE_LEGEND: Legend = ((QUERY, "noise"), *LEGEND[1:])


@dataclass(frozen=True)
class SheetRow:
    """One line of a sheet. Captions may hold line breaks; `note` stands at the end of the line ("AP 0.54").

    `gallery`, `captions` and `correct` go together, most similar first; `correct` is None where it is not known.
    """

    query: UInt8[ndarray, "_ _ 3"]
    query_caption: str
    gallery: Sequence[UInt8[ndarray, "_ _ 3"]]
    captions: Sequence[str]
    correct: Sequence[bool | None]
    note: str

    def __post_init__(self) -> None:
        lengths = (len(self.gallery), len(self.captions), len(self.correct))
        if len(set(lengths)) > 1:
            raise GraclError(
                expected(
                    "as many captions and judgements as gallery pictures",
                    f"{lengths[0]} pictures, {lengths[1]} captions, {lengths[2]} judgements",
                    "cut all three to the pictures that are shown",
                )
            )


def pick_queries(report: RetrievalReport, count: int) -> Int64[ndarray, "picked"]:
    """Which queries to show: the hardest, the most ordinary (around the median) and the easiest, a third each.

    By average precision, lowest first, equal ones in order of index; only queries that were counted, all of them
    where there are no more than `count`. What three does not divide goes to the hardest, then to the easiest.

    Args:
        report: the judgement of all queries.
        count: how many to pick, >= 1.

    Raises:
        GraclError: `count` below 1.
    """
    if count < 1:
        raise GraclError(expected("at least one query to show", count, "ask for one or more"))
    rows = np.flatnonzero(report.counted)
    rows = rows[np.argsort(report.average_precisions[rows], kind="stable")]
    count = min(count, len(rows))
    hard, easy = (count + 2) // 3, (count + 1) // 3
    ordinary = count - hard - easy
    middle = max(hard, (len(rows) - ordinary) // 2)
    return np.concatenate([rows[:hard], rows[middle : middle + ordinary], rows[len(rows) - easy :]])


def ranked_sheet(path: str | os.PathLike[str], rows: Sequence[SheetRow], *, height: int = 128, title: str = "") -> None:
    """Draws the rows as a PNG, written whole or not at all.

    Args:
        path: the PNG to write; its folder must exist.
        rows: at least one line.
        height: height of every picture in pixels, >= 16; widths follow.
        title: a line above the sheet.

    Raises:
        GraclError: no rows, or a height too small to see anything.
    """
    if not rows or height < 16:
        raise GraclError(
            expected("a row or more of at least 16 pixels", f"{len(rows)} rows of {height}", "pick some queries first")
        )
    temporary = f"{os.fspath(path)}.{os.getpid()}.part"
    try:
        draw_sheet(rows, height=height, title=title).save(temporary, format="PNG")
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


@dataclass(frozen=True)
class _Grid:
    """The measures all lines share, in pixels: picture height, cell widths (a frame or its caption), cell height."""

    height: int
    query_width: int
    gallery_width: int
    cell_height: int
    font: Font

    @property
    def left(self) -> int:
        """Where the gallery begins: after the query and the rule beside it."""
        return self.query_width + 3 * GAP

    def column(self, number: int) -> int:
        """Where a gallery column begins."""
        return self.left + number * (self.gallery_width + GAP)


def draw_sheet(rows: Sequence[SheetRow], *, height: int, title: str, legend: Legend = LEGEND) -> Image.Image:
    """The sheet as an RGB picture: title, legend, column numbers, then the rows."""
    font, bold = ImageFont.load_default(max(12, height // 9)), ImageFont.load_default(max(15, height // 7))
    grid = _measure(rows, height, font)
    columns = max(len(row.gallery) for row in rows)
    notes = max(_text_size(row.note, font)[0] for row in rows)
    head = GAP + (_text_size(title, bold)[1] + GAP if title else 0)
    top = head + 2 * (_text_size("0", font)[1] + GAP)
    width = max(grid.column(columns) + notes, GAP + _text_size(title, bold)[0], _legend_width(legend, font)) + GAP
    sheet = Image.new("RGB", (width, top + len(rows) * (grid.cell_height + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, INK, bold)
    _draw_legend(draw, legend, head, font)
    for column in range(columns):
        place = (grid.column(column) + grid.gallery_width // 2, top - GAP // 2)
        draw.text(place, str(column + 1), INK, font, anchor="md")
    for number, row in enumerate(rows):
        line = top + number * (grid.cell_height + GAP)
        _draw_row(sheet, row, line, grid)
        middle = line + FRAME + (height - _text_size(row.note, font)[1]) // 2
        draw.multiline_text((grid.column(columns), middle), row.note, INK, font)
    return sheet


def _draw_row(sheet: Image.Image, row: SheetRow, top: int, grid: _Grid) -> None:
    """One line: the query, a rule, the gallery pictures."""
    draw = ImageDraw.Draw(sheet)
    _draw_cell(sheet, row.query, row.query_caption, QUERY, (GAP, top), grid.query_width, grid)
    rule = grid.left - GAP
    draw.line([(rule, top), (rule, top + grid.height + 2 * FRAME)], UNJUDGED)
    for column, (picture, caption, correct) in enumerate(zip(row.gallery, row.captions, row.correct, strict=True)):
        colour = UNJUDGED if correct is None else CORRECT if correct else WRONG
        _draw_cell(sheet, picture, caption, colour, (grid.column(column), top), grid.gallery_width, grid)


def _draw_cell(
    sheet: Image.Image,
    picture: UInt8[ndarray, "_ _ 3"],
    caption: str,
    colour: tuple[int, int, int],
    corner: tuple[int, int],
    cell_width: int,
    grid: _Grid,
) -> None:
    """One framed picture, centred in its cell, with its caption under it."""
    draw = ImageDraw.Draw(sheet)
    width, height = _width(picture, grid.height), grid.height
    x, y = corner[0] + (cell_width - width) // 2, corner[1] + FRAME
    draw.rectangle([x - FRAME, y - FRAME, x + width + FRAME - 1, y + height + FRAME - 1], colour)
    sheet.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR), (x, y))
    place = (corner[0] + cell_width // 2, y + height + FRAME + 2)
    draw.multiline_text(place, caption, INK, grid.font, anchor="ma", align="center")


def _draw_legend(draw: ImageDraw.ImageDraw, legend: Legend, top: int, font: Font) -> None:
    """What the colours of the frames mean, in one line."""
    x, side = GAP, _text_size("0", font)[1]
    for colour, meaning in legend:
        draw.rectangle([x, top, x + side, top + side], outline=colour, width=3)
        draw.text((x + side + GAP // 2, top), meaning, INK, font)
        x += _legend_step(meaning, font)


def _legend_width(legend: Legend, font: Font) -> int:
    """Where the legend ends, in pixels."""
    return GAP + sum(_legend_step(meaning, font) for _, meaning in legend)


def _legend_step(meaning: str, font: Font) -> int:
    """Width of one entry of the legend: its square, its words, the space after them."""
    return _text_size("0", font)[1] + _text_size(meaning, font)[0] + 3 * GAP


def _measure(rows: Sequence[SheetRow], height: int, font: Font) -> _Grid:
    """Cells in which every framed picture fits with its caption; queries and gallery have widths of their own."""
    queries = [(row.query, row.query_caption) for row in rows]
    gallery = [cell for row in rows for cell in zip(row.gallery, row.captions, strict=True)]
    captions = max(_text_size(caption, font)[1] for _, caption in queries + gallery)
    return _Grid(
        height=height,
        query_width=_cell_width(queries, height, font),
        gallery_width=_cell_width(gallery, height, font),
        cell_height=height + 2 * FRAME + captions + GAP // 2,
        font=font,
    )


def _cell_width(cells: Sequence[tuple[UInt8[ndarray, "_ _ 3"], str]], height: int, font: Font) -> int:
    """Width in which each of the pictures fits with its frame, and its caption under it; 0 for none."""
    pictures = [_width(picture, height) + 2 * FRAME for picture, _ in cells]
    return max(pictures + [_text_size(caption, font)[0] for _, caption in cells], default=0)


def _width(picture: UInt8[ndarray, "_ _ 3"], height: int) -> int:
    """Width of a picture drawn `height` pixels high, at least 1."""
    rows, columns = picture.shape[:2]
    return max(1, round(int(columns) * height / int(rows)))


def _text_size(text: str, font: Font) -> tuple[int, int]:
    """Width and height of a text of one or more lines in pixels."""
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text or " ", font)
    return int(box[2]) + 1, int(box[3]) + 1
