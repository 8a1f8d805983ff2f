"""What a sweep leaves, from records alone."""

import io

import numpy as np
import pytest
from PIL import Image

from gracl.cli import load_config
from gracl.config import TrainConfig
from gracl.experiments import TuneConfig
from gracl.runtime.points import config_of
from gracl.runtime.sweep_findings import as_csv, correlations, in_order, preset, table, written
from gracl.runtime.sweep_trial import Point

CONFIG = TuneConfig(
    base=["pipelines/presets/demo.yaml", "data.root=shards"],
    space={
        "loss.inter_temperature": {"loguniform": [0.02, 0.3]},
        "loss.intra_temperature": {"loguniform": [0.02, 0.3]},
        "encoder.pooling": {"choice": ["gem", "average"]},
    },
    trials=5,
    out="sweeps/mine",
)

BASE = {"data": {"root": "shards"}, "epochs": 2, "optim": {"rate": 0.001}}


def point(name, state, epochs, *reached, why="", temperature=0.05):
    values = {"loss.inter_temperature": temperature, "loss.intra_temperature": 0.1, "encoder.pooling": "average"}
    history = [
        {"epoch": epoch + 1.0, "val/mAP": value, "cluster/silhouette": -value, "cluster/covered_silhouette": value**2}
        for epoch, value in enumerate(reached)
    ]
    return Point(name, values, state, epochs, history, why)


POINTS = [
    point("failed", "failed", 0, why="ClusteringCollapsed: none\nat all"),
    point("early", "stopped", 1, 0.9),
    point("low", "done", 2, 0.1, 0.2),
    point("high", "done", 2, 0.1, 0.4, temperature=0.0712345678),
    point("middle", "done", 2, 0.5, 0.3),
]


def test_the_best_is_the_highest_last_epoch_of_those_that_did_all():
    ranked = in_order(POINTS, "val/mAP")
    assert [one.name for one in ranked] == ["high", "middle", "low", "early", "failed"]
    longer = point("longer", "done", 5, 0.1, 0.1, 0.1, 0.1, 0.15)
    assert [one.name for one in in_order([longer, *POINTS], "val/mAP")][3] == "longer", "epochs may be swept, too"


def test_the_table_has_every_trial_its_state_and_the_reasons():
    page = table(CONFIG, in_order(POINTS, "val/mAP"))
    assert "| high | 0.07123 | 0.1 | average | 0.4000 | 2 | done |" in page
    assert "| early | 0.05 | 0.1 | average | 0.9000 | 1 | stopped |" in page
    assert "ClusteringCollapsed: none at all" in page
    assert "| `cluster/silhouette` | -1.00 |" in page
    assert "| `cluster/covered_silhouette` | 1.00 |" in page
    assert "chosen on the query and gallery splits" in page


def test_correlations_need_three_judged_trials_that_did_all_epochs():
    assert correlations(POINTS) == pytest.approx({"cluster/silhouette": -1.0, "cluster/covered_silhouette": 1.0})
    assert correlations(POINTS[:4]) == {}
    same = [point(str(n), "done", 1, 0.5) for n in range(4)]
    assert correlations(same) == {}


def test_the_best_preset_is_what_the_training_door_takes(tmp_path):
    (tmp_path / "best.yaml").write_text(preset(CONFIG, BASE, POINTS[3]))
    taken = load_config(TrainConfig, [str(tmp_path / "best.yaml"), "data.root=elsewhere"])
    assert taken.recipe() == config_of(BASE, POINTS[3].values).recipe()
    assert taken.loss.inter_temperature == 0.0712345678
    assert (taken.name, taken.runs, taken.data.root) == ("", "runs", "elsewhere")


def test_a_start_of_all_trials_belongs_to_the_best_preset_and_one_of_a_copy_does_not():
    started = preset(CONFIG, BASE | {"start": "/runs/first/epoch-0001"}, POINTS[3])
    assert "start: /runs/first/epoch-0001" in started
    copy = Point("copy", POINTS[3].values | {"start": "t-1/start-0001"}, "done", 2, POINTS[3].history)
    steps = ["epochs 1 to 1, t-1: a", "epochs 2 to 2, copy: b"]
    text = preset(CONFIG, BASE, copy, steps)
    assert "\nstart:" not in text
    assert "# - epochs 1 to 1, t-1: a\n# - epochs 2 to 2, copy: b\n" in text


def test_the_csv_has_all_figures_of_the_last_epoch():
    lines = as_csv(CONFIG, in_order(POINTS, "val/mAP")).splitlines()
    assert lines[0].startswith(
        "run,state,epochs,loss.inter_temperature,loss.intra_temperature,encoder.pooling,cluster/"
    )
    assert lines[1].split(",")[:4] == ["high", "done", "2", "0.0712345678"]
    assert lines[-1].endswith("ClusteringCollapsed: none at all")
    assert len(lines) == 6


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_pictures_show_the_trials_and_change_with_them():
    files = written(CONFIG, BASE, POINTS, POINTS[3])
    other = written(CONFIG, BASE, POINTS[:3], None)
    for name in ("metric.png", "parallel.png"):
        assert pixels(files[name]).std() > 5
        assert files[name] != other[name]
    assert "best.yaml" in files
    assert "best.yaml" not in other
    assert set(written(CONFIG, BASE, POINTS[:1], None)) == {"table.md", "trials.csv", "sweep.yaml"}
