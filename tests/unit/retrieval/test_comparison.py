import csv
import io
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gracl.errors import GraclError
from gracl.retrieval.charts import comparison_chart
from gracl.retrieval.comparison import RunRecord, Spread, summarise
from gracl.retrieval.tables import arms_csv, markdown, runs_csv
from tests.naive.comparison import differences, mean_and_deviation

RECORD = RunRecord(
    arm="plain",
    data="world",
    seed=0,
    run="plain-world-s0",
    epochs=2,
    fingerprint="abc",
    cameras="",
    mean_ap=0.5,
    rank1=0.75,
    best_by="val/mAP",
    best=0.625,
    best_epoch=1,
    untrained=0.25,
    epoch_seconds=3.0,
    clusters=10.0,
    noise=0.125,
    ari=0.5,
    nmi=0.75,
    purity=0.9,
    ari_all=0.25,
    objects=12.0,
)
PAGE = {"title": "T", "baseline": "plain", "metric": "val/mAP", "concurrent": 2}


def record(arm, seed, mean_ap, data="world", **changes):
    return replace(RECORD, arm=arm, data=data, seed=seed, run=f"{arm}-{data}-s{seed}", mean_ap=mean_ap, **changes)


@pytest.fixture
def records():
    """Two arms on two data sets; `other` lacks a seed on `world` and was never judged by labels on `city`."""
    nothing = dict.fromkeys(("clusters", "noise", "ari", "nmi", "purity", "ari_all", "objects"))
    return [
        record("plain", 0, 0.5),
        record("other", 0, 0.75, cameras="sampler"),
        record("plain", 1, 0.25),
        record("plain", 2, 0.375),
        record("other", 2, 0.375, cameras="sampler"),
        record("plain", 0, 0.5, data="city"),
        record("other", 0, 0.125, data="city", cameras="sampler", note="one cluster", **nothing),
    ]


def test_pairs_are_of_the_same_data_and_seed(records):
    arms = {(one.data, one.arm): one for one in summarise(records, baseline="plain", metric="val/mAP")}
    assert list(arms) == [("world", "plain"), ("world", "other"), ("city", "plain"), ("city", "other")]
    assert arms["world", "plain"].pairs == ()
    assert arms["world", "other"].pairs == (0.25, 0.0)
    assert (arms["world", "other"].better, arms["world", "other"].difference.mean) == (1, 0.125)
    assert arms["city", "other"].difference == Spread(-0.375, None, 1)
    assert arms["city", "other"].figures["ari"] == Spread(None, None, 0)


def test_the_metric_decides_what_is_compared(records):
    (_, other, *_) = summarise(records, baseline="plain", metric="val/rank1")
    assert other.pairs == (0.0, 0.0)
    assert other.reached("val/rank1").mean == 0.75


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.integers(0, 3)), st.floats(0, 1)))
def test_spreads_and_pairs_equal_the_definitions(figures):
    records = [record(arm, seed, value, data=data) for (arm, data, seed), value in figures.items()]
    for one in summarise(records, baseline="a", metric="val/mAP"):
        mine = [value for (arm, data, _), value in figures.items() if (arm, data) == (one.arm, one.data)]
        spread = one.reached("val/mAP")
        assert (spread.mean, spread.deviation) == pytest.approx(mean_and_deviation(mine), abs=1e-12)
        assert list(one.pairs) == differences(records, one.arm, one.data, "a")


def test_a_run_that_is_given_twice_is_refused(records):
    with pytest.raises(GraclError, match="each run once"):
        summarise([*records, records[0]], baseline="plain", metric="val/mAP")


def test_the_page_says_what_was_reached_and_how_to_read_it(records):
    text = markdown(summarise(records, baseline="plain", metric="val/mAP"), {"third-world-s0": "Broke:\nbadly"}, **PAGE)
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if "| " in line]
    heads, other = rows[0], next(row for row in rows if row[0] == "other")
    assert len({len(row) for row in rows}) == 1
    shown = dict(zip(heads, other, strict=True))
    assert (shown["cameras"], shown["seeds"], shown["better"]) == ("sampler", "0 2", "1/2")
    assert (shown["mAP"], shown["difference"]) == ("56.2 ± 26.5", "+12.5 ± 17.7")
    assert (shown["mAP best epoch"], shown["ARI"]) == ("62.5 ± 0.0", "0.500 ± 0.000")
    last = dict(zip(heads, rows[-1], strict=True))
    assert (last["mAP"], last["ARI"], last["difference"]) == ("12.5", "-", "-37.5")
    assert "`third-world-s0`: Broke: badly" in text
    assert "`other-city-s0`: one cluster" in text
    assert "chosen on the query and gallery splits" in text
    assert "world: 12 objects; city: 12 objects" in text


def test_lines_for_programs_hold_every_figure(records):
    runs = list(csv.DictReader(io.StringIO(runs_csv(records, {"third-world-s0": "Broke: badly"}))))
    assert len(runs) == len(records) + 1
    assert set(runs[0]) == {field.name for field in fields(RunRecord)} | {"failed"}
    assert (float(runs[1]["mean_ap"]), runs[1]["failed"]) == (0.75, "")
    assert (runs[-1]["run"], runs[-1]["failed"]) == ("third-world-s0", "Broke: badly")
    arms = list(csv.DictReader(io.StringIO(arms_csv(summarise(records, baseline="plain", metric="val/mAP")))))
    assert [(row["data"], row["arm"], row["runs"]) for row in arms][1] == ("world", "other", "2")
    assert (float(arms[1]["difference_mean"]), arms[1]["better"]) == (0.125, "1")


@pytest.mark.parametrize("count", [1, 7])
def test_the_picture_has_a_row_of_panels_for_each_data_set(records, count):
    how = {"baseline": "plain", "metric": "val/mAP"}
    picture = Image.open(io.BytesIO(comparison_chart(summarise(records[:count], **how), title="T", **how)))
    assert picture.format == "PNG"
    assert picture.width == 1320
    colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(255, 255, 255), (0x20, 0x20, 0x20)} <= colours
    assert picture.height == 120 * (1.5 + (1.55 if count == 1 else 4.2))


def test_a_comparison_of_nothing_still_has_a_page():
    assert "`a-b-s0`: Broke" in markdown([], {"a-b-s0": "Broke"}, **PAGE)
    assert arms_csv([]) == "data,arm\n"
