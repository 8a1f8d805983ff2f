import numpy as np
import pytest
from PIL import Image

from gracl.errors import GraclError
from gracl.randomness import rng
from gracl.retrieval.sheet import CORRECT, QUERY, UNJUDGED, WRONG, SheetRow, draw_sheet, pick_queries, ranked_sheet
from gracl.types import RetrievalReport

BLUE = np.zeros((32, 16, 3), np.uint8) + np.array([20, 40, 200], np.uint8)


def row(correct=(True, False, None), caption="0.912\ncam 3", note="AP 0.54"):
    correct = list(correct)
    return SheetRow(BLUE, "object 7", [BLUE] * len(correct), [caption] * len(correct), correct, note)


def report(precisions, counted=None):
    precisions = np.array(precisions, np.float32)
    counted = np.ones(len(precisions), bool) if counted is None else np.array(counted)
    return RetrievalReport(0.5, 0.5, {1: 0.5}, len(precisions), int((~counted).sum()), precisions, precisions, counted)


def pixels(picture, colour):
    return int((np.asarray(picture) == np.array(colour)).all(axis=2).sum())


def frames(picture, colour, height=32, width=16):
    """How many frames of a colour there are, legend aside: found by their area."""
    ring = (height + 8) * (width + 8) - height * width
    return pixels(picture, colour) // ring


def test_a_sheet_shows_every_picture_in_the_frame_of_its_judgement():
    sheet = draw_sheet([row((True, True, False)), row((None, True))], height=32, title="ranked results")
    assert [frames(sheet, colour) for colour in (QUERY, CORRECT, WRONG, UNJUDGED)] == [2, 3, 1, 1]
    assert pixels(sheet, (20, 40, 200)) == 7 * 32 * 16


def test_the_order_along_a_row_is_that_of_the_gallery():
    sheet = np.asarray(draw_sheet([row((True, False, True))], height=32, title=""))
    legend = 30
    places = [
        np.flatnonzero((sheet[legend:] == np.array(colour)).all(axis=2).any(axis=0)) for colour in (WRONG, CORRECT)
    ]
    assert places[1].min() < places[0].min() <= places[0].max() < places[1].max()


def test_pictures_of_any_size_are_drawn_at_one_height():
    colour = np.array([90, 30, 200], np.uint8)
    wide, high = np.tile(colour, (10, 40, 1)), np.tile(colour, (300, 100, 1))
    sheet = draw_sheet([SheetRow(BLUE, "", [wide, high], ["", ""], [True, False], "")], height=30, title="")
    assert pixels(sheet, colour) == 30 * 120 + 30 * 10


def test_nothing_is_cut_off():
    long = "a caption much wider than its picture"
    narrow = draw_sheet([row()], height=32, title="")
    for sheet in (
        draw_sheet([row(caption=long)], height=32, title=""),
        draw_sheet([row(note=long * 3)], height=32, title=""),
        draw_sheet([row()], height=32, title=long * 5),
    ):
        assert sheet.width > narrow.width
        assert (np.asarray(sheet)[:, -3:] == 255).all()
    assert (np.asarray(narrow)[-3:] == 255).all()


def test_rows_without_gallery_pictures_are_drawn():
    sheet = draw_sheet([row(()), row((True,))], height=32, title="")
    assert frames(sheet, QUERY) == 2
    assert frames(draw_sheet([row(())], height=32, title=""), QUERY) == 1


def test_the_file_is_a_png_written_whole(tmp_path):
    path = tmp_path / "sheet.png"
    path.write_bytes(b"an older one")
    ranked_sheet(path, [row()], height=32, title="one")
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(picture), np.asarray(draw_sheet([row()], height=32, title="one")))
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]


def test_a_sheet_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(OSError, match="sheet.png"):
        ranked_sheet(tmp_path / "sheet.png", [row()], height=32)
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]


def test_wrong_input_is_refused(tmp_path):
    with pytest.raises(GraclError, match="3 pictures, 2 captions, 3 judgements"):
        SheetRow(BLUE, "", [BLUE] * 3, [""] * 2, [None] * 3, "")
    with pytest.raises(GraclError, match="came 0 rows"):
        ranked_sheet(tmp_path / "sheet.png", [])
    with pytest.raises(GraclError, match="1 rows of 4"):
        ranked_sheet(tmp_path / "sheet.png", [row()], height=4)


def test_pick_takes_hardest_median_and_easiest():
    precisions = rng(0, "pick").permutation(30) / 30
    picked = pick_queries(report(precisions), 9)
    assert [round(float(precisions[row]) * 30) for row in picked] == [0, 1, 2, 13, 14, 15, 27, 28, 29]


def test_pick_leaves_out_skipped_queries_and_breaks_ties_by_index():
    counted = [True, False, True, True, True, True]
    assert pick_queries(report([0.5, 0.0, 0.5, 0.5, 0.5, 0.5], counted), 3).tolist() == [0, 3, 5]
    assert pick_queries(report([0.5, 0.0, 0.5, 0.5, 0.5, 0.5], counted), 3).dtype == np.int64


@pytest.mark.parametrize("queries", range(1, 12))
@pytest.mark.parametrize("count", range(1, 14))
def test_pick_never_repeats_and_takes_as_many_as_there_are(queries, count):
    precisions = rng(1, "pick", queries).random(queries)
    picked = pick_queries(report(precisions), count)
    assert len(set(picked.tolist())) == len(picked) == min(queries, count)
    assert (np.diff(np.asarray(precisions, np.float32)[picked]) >= 0).all()
    assert picked[0] == np.asarray(precisions, np.float32).argmin()


def test_pick_of_none_is_refused():
    with pytest.raises(GraclError, match="at least one query"):
        pick_queries(report([0.5]), 0)
