"""The page and its pictures."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from gracl.relations.proxies import mine_proxies
from gracl.retrieval.card import card_sections, model_card
from gracl.retrieval.page import Part, page
from gracl.retrieval.review_charts import confusion_chart, curves_chart, map_chart, similarity_chart
from tests.clustered import case


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


class Balanced(HTMLParser):
    """Fails where a tag is closed that is not open."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_holds_everything_and_fetches_nothing():
    picture = similarity_chart(np.linspace(0, 1, 50, dtype=np.float32), np.zeros(50, np.float32))
    parts = [
        Part("First", "words", tables=[[["figure", "value"], ["a<b", 1], ["c", "x&y"]]], pictures={"a": picture}),
        Part("Second", "one <p>\n\n- first\n  goes on\n- second", tables=[[["k"], ["v"]]], folded=True),
    ]
    text = page("a <title>", parts)
    reader = Balanced()
    reader.feed(text)
    assert reader.open == []
    assert "a &lt;title&gt;" in text
    assert "<td>a&lt;b</td><td>1</td>" in text
    assert "<td>x&amp;y</td>" in text
    (source,) = [attrs["src"] for tag, attrs in reader.seen if tag == "img"]
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == picture
    assert not re.search(r"https?://|<script|url\(", text)
    assert [attrs["href"] for tag, attrs in reader.seen if tag == "a"] == ["#0", "#1"]
    assert text.count("<details>") == 1
    assert '<p class="note">one &lt;p&gt;</p>\n<ul class="note"><li>first\n  goes on</li><li>second</li></ul>' in text


def test_what_every_card_says_is_in_sections():
    said = card_sections()
    assert list(said) == ["What it is for, and what not", "Limits"]
    card = model_card("a", {}, [])
    for title, text in said.items():
        assert f"## {title}\n\n{text}" in card
    assert "biometric" in said["What it is for, and what not"]


def test_curves_leave_out_what_no_epoch_has():
    row = {"train/loss": 2.0, "cluster/number": 9.0, "cluster/noise_fraction": 0.1}
    bare = [{"epoch": 1.0} | row, {"epoch": 2.0} | row]
    terms = [{**one, "train/camera_loss": 1.0} for one in bare]
    assert (pixels(curves_chart(terms, ["camera"])) != pixels(curves_chart(terms, []))).any()
    judged = [bare[0], bare[1] | {"val/mAP": 0.5, "val/rank1": 0.7}]
    assert pixels(curves_chart(judged)).shape[1] > pixels(curves_chart(bare)).shape[1]


@pytest.mark.parametrize("rows", [12, 80])
def test_the_map_shows_every_kind_of_image(rows):
    features, labels = case(1, rows, 3, dim=16, spread=0.5)
    proxies = mine_proxies(features, labels)
    drawn = pixels(map_chart(features, labels, proxies))
    assert drawn.std() > 5
    assert (drawn != pixels(map_chart(features, (labels + 1) % 3, proxies))).any()
    assert (drawn == pixels(map_chart(features, labels, proxies))).all()
    assert pixels(map_chart(features, labels, proxies, most=10)).std() > 5


def test_a_perfect_clustering_is_a_diagonal_and_a_bad_one_is_not():
    objects = np.repeat(np.arange(8), 6)
    perfect, one = pixels(confusion_chart(objects, objects)), pixels(confusion_chart(np.arange(48) % 8, objects))
    assert (perfect[..., 0] < 40).sum() > (one[..., 0] < 40).sum() + 1000
    some = np.where(np.arange(48) < 6, -1, objects)
    assert (pixels(confusion_chart(some, objects)) != perfect).any()
    assert pixels(confusion_chart(np.full(48, -1), np.where(objects == 0, -1, objects))).std() > 5
