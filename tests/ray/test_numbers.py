"""Two ranks, of which one alone has a number that is none, or another weight: both end, and say why."""

import json
import time
from functools import partial

import pytest

from gracl.errors import GraclError, NonFiniteLoss, NonFiniteValue, RanksDiffer
from gracl.runtime.train import train
from tests.ray_jobs import train_spoilt
from tests.toy import toy_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Far below the time that a collective waits for a rank that has gone.
PATIENCE = 600


@pytest.fixture(scope="module")
def runs(tmp_path_factory, with_mlflow):
    return with_mlflow(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def ended(ray_cluster, toy_shards, runs, monkeypatch):
    """Trains with two ranks, the second spoilt, and returns the error and the run's folder."""

    def end(spoil, **changes):
        monkeypatch.setattr("gracl.runtime.train.train_worker", partial(train_spoilt, spoil))
        config = toy_config(toy_shards, runs, name=spoil, scale__workers=2, eval_untrained=False, **changes)
        begun = time.monotonic()
        with pytest.raises(GraclError) as error:
            train(config)
        assert time.monotonic() - begun < PATIENCE
        folder = runs / spoil
        assert not list(folder.glob("epoch-*")), "nothing of a bad epoch is kept"
        return error.value, folder

    return end


@pytest.mark.long
def test_a_feature_that_is_none_on_one_rank_stops_both_before_the_step_with_the_batch_kept(ended):
    error, folder = ended("step")
    assert type(error) is NonFiniteLoss
    (file,) = folder.glob("non_finite-*")
    assert file.name == "non_finite-epoch-0000-step-0001.json"
    assert f"kept for study in {file}" in str(error)
    found = json.loads(file.read_text())
    assert found["bad_ranks"] == [1]
    first, second = found["ranks"]
    assert first["bad_features"] == []
    assert isinstance(first["loss"], float)
    assert second["bad_features"] == second["images"][:1]
    assert second["loss"] == "nan"
    assert len(first["images"]) == len(second["images"]) == len(second["labels"]) == 8
    assert found["bad_weights"] == [], "the step before was sound, and this one was not taken"


@pytest.mark.long
def test_a_feature_that_is_none_in_the_scan_of_one_rank_is_refused_to_both(ended):
    error, folder = ended("scan", scale__stream="mapped")
    assert type(error) is NonFiniteValue
    assert "expected finite features; came 1 other rows" in str(error)
    (file,) = folder.glob("non_finite-*")
    assert file.name == "non_finite-epoch-0000-scan-rank-1.json"
    assert f"{folder}/non_finite-epoch-0000-scan-rank-" in str(error)
    found = json.loads(file.read_text())
    assert (found["rank"], len(found["images"])) == (1, 1)


@pytest.mark.long
def test_one_bit_of_one_weight_of_one_rank_is_found(ended):
    error, folder = ended("bit", scale__check_ranks_every=3, scale__stream="mapped")
    assert type(error) is RanksDiffer
    assert "same weights on all 2 ranks at epoch 0, step 2; came others on ranks [1]" in str(error)
    assert not list(folder.glob("non_finite-*"))
