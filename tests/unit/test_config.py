import inspect

import pytest
from pydantic import ValidationError

from gracl.config import IngestConfig, SynthesizeConfig, TrainConfig
from gracl.idle import idle
from gracl.images.ingesting import ingest_here
from gracl.images.plans import identity_plan
from gracl.images.synthetic import write_world
from gracl.images.views import train_view
from gracl.learning.encoder import build_encoder
from gracl.learning.fit import fit
from gracl.learning.losses import ProxyContrast
from gracl.learning.optim import build_optimizer, rate_factor
from gracl.local import surroundings_of
from gracl.relations.grouping import group
from gracl.relations.relate import relate
from gracl.retrieval.expansion import expand
from gracl.retrieval.reranking import reranked
from gracl.sections import (
    Checkpoints,
    EncoderSection,
    Grouping,
    Loss,
    Optim,
    Relations,
    Sampling,
    Scale,
    Schedule,
    Surroundings,
    Views,
)
from gracl.use_sections import Expansion, Reranking
from gracl.uses import EvaluateConfig

SECTIONS = [
    # section, the function it is unpacked into, arguments that come from elsewhere
    (Views, train_view, {"image", "dice", "room", "scratch", "height", "width"}),
    (Surroundings, surroundings_of, {"store", "height", "width", "seed", "threads"}),
    (Sampling, identity_plan, {"labels", "epoch", "cameras", "seed"}),
    (
        Relations,
        relate,
        {"features", "epoch", "cameras", "previous", "find", "threads", "device", "progress", "overlap"},
    ),  # the last is fit's
    (EncoderSection, build_encoder, {"seed"}),
    (Grouping, group, {"features", "cameras", "tracks", "threads", "device", "progress"}),
    (Loss, ProxyContrast, set()),
    (Optim, build_optimizer, {"parameters"}),
    (Schedule, rate_factor, {"epoch"}),
    (Expansion, expand, {"query", "gallery", "threads"}),
    (Reranking, reranked, {"query", "gallery", "threads"}),
    (IngestConfig, ingest_here, {"tasks"}),
    (SynthesizeConfig, write_world, {"folder", "out"}),
]


@pytest.mark.parametrize(
    ("section", "function", "elsewhere"), SECTIONS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_section_is_the_keyword_list_of_its_function(section, function, elsewhere):
    wanted = {
        name: one.default for name, one in inspect.signature(function).parameters.items() if name not in elsewhere
    }
    offered = {
        name: inspect.Parameter.empty if one.is_required() else one.default
        for name, one in section.model_fields.items()
        if name not in elsewhere
    }
    assert offered == wanted


def test_fit_takes_its_options_from_the_root_of_the_config():
    parameters = inspect.signature(fit).parameters
    for name in ("eval_every", "eval_untrained", "eval_stability", "precision", "clip_norm"):
        assert TrainConfig.model_fields[name].default == parameters[name].default
    assert Relations.model_fields["overlap"].default == parameters["overlap"].default
    assert Scale.model_fields["check_ranks_every"].default == parameters["check_ranks_every"].default


def test_fit_takes_when_to_keep_a_state_from_the_section_checkpoint():
    parameters = inspect.signature(fit).parameters
    assert Checkpoints().options() == {name: parameters[name].default for name in ("every_steps", "every_minutes")}


@pytest.mark.parametrize("bad", [{"every_steps": -1}, {"every_minutes": -0.5}, {"every_steps": 1.5}])
def test_checkpoints_within_an_epoch_cannot_be_asked_for_backwards(bad):
    with pytest.raises(ValidationError):
        Checkpoints(**bad)


def test_stability_is_not_looked_at_on_labels_of_other_weights():
    with pytest.raises(ValidationError, match="eval_stability=0 with relations.overlap"):
        TrainConfig(data={"root": "x"}, relations={"overlap": True}, eval_stability=2)


def test_what_is_looked_at_is_no_part_of_the_recipe():
    looked = TrainConfig(data={"root": "x"}, eval_stability=2, review_every=3, checkpoint={"every_steps": 9})
    assert looked.fingerprint() == TrainConfig(data={"root": "x"}).fingerprint()


def test_relate_is_not_told_of_the_overlap_and_the_recipe_is():
    assert set(Relations().options()) == set(Relations.model_fields) - {"overlap"}
    fresh, stale = (TrainConfig(data={"root": "x"}, relations={"overlap": overlap}) for overlap in (False, True))
    assert fresh.fingerprint() != stale.fingerprint()


def test_a_run_begun_before_there_was_a_policy_goes_on_and_another_policy_is_another_recipe():
    plain = TrainConfig(data={"root": "x"})
    assert not [name for name in plain.recipe() if "collapse" in name or "relax" in name or "least" in name]
    kept, relaxed, more = (
        TrainConfig(data={"root": "x"}, relations=changes).recipe()
        for changes in ({"on_collapse": "keep_previous"}, {"on_collapse": "relax_eps"}, {"least_clusters": 3})
    )
    assert set(kept) - set(plain.recipe()) == {"relations.on_collapse"}
    assert set(relaxed) - set(kept) == {"relations.relax_factor", "relations.relax_tries"}
    assert set(more) - set(plain.recipe()) == {"relations.least_clusters"}


def test_a_config_cannot_be_changed():
    config = TrainConfig(data={"root": "x"})
    with pytest.raises(ValidationError):
        config.epochs = 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": {"workers": 3}}, "sampling.objects that the workers can share"),
        ({"scale": {"workers": 16}, "encoder": {"bn_group": 64}}, "bn_group that divides"),
        ({"scale": {"workers": 2}, "encoder": {"bn_group": 256}}, "bn_group that one worker can hold"),
        ({"scan_batch": 255, "scale": {"workers": 2}}, "scan_batch that the workers can share"),
        ({"scale": {"workers": 2, "min_workers": 3}}, "scale.min_workers of at most scale.workers"),
        ({"scale": {"workers": 2, "min_workers": 1}, "encoder": {"bn_group": 0}}, "bn_group above 0 with"),
        ({"scale": {"workers": 4, "min_workers": 2}}, "16 objects and 3 workers"),
        ({"data": {"root": "x", "query": ""}}, "together, or neither"),
        ({"loss": {"inter_weight": 0, "intra_weight": 0}}, "instance_weight or camera_weight above 0"),
        ({"loss": {"instance_weight": 1}}, "relations.instances and loss.instance_weight together"),
        ({"relations": {"instances": 4}}, "relations.instances and loss.instance_weight together"),
        ({"loss": {"smoothing": 0.1}}, "relations.consensus and loss.smoothing together"),
        ({"loss": {"camera_weight": 1}}, "relations.camera_proxies and loss.camera_weight together"),
        ({"relations": {"shards": 2, "search": "approximate"}}, "relations.shards of 1"),
        ({"relations": {"shards": 2, "camera_aware": True}}, "relations.shards of 1"),
        ({"relations": {"shards": 2, "centre": "local"}}, "relations.shards of 1"),
        ({"relations": {"search": "approximate", "backend": "torch"}}, "relations.search=exact with"),
        ({"relations": {"search": "approximate", "camera_aware": True}}, "relations.search=exact with"),
        ({"relations": {"k2_intra": 7}}, "k2_intra and k2_inter of at most"),
        ({"relations": {"k2_inter": 22}}, "k2_intra and k2_inter of at most"),
        ({"relations": {"eps": "auto", "clustering": "hdbscan"}}, "relations.eps as a number, or auto with"),
        ({"relations": {"eps": "auto", "clustering": "infomap"}}, "relations.eps as a number, or auto with"),
        ({"relations": {"reliability": 0.5, "clustering": "infomap"}}, "an eps between 0.02 and 0.98"),
        ({"relations": {"reliability": 0.5, "eps": 0.98}}, "an eps between 0.02 and 0.98"),
        ({"relations": {"reliability": 0.5, "eps": 0.06, "eps_first": 0.3}}, "an eps between 0.02 and 0.98"),
        (
            {"relations": {"on_collapse": "relax_eps", "clustering": "hdbscan"}},
            "clustering=dbscan with relations.on_coll",
        ),
        (
            {"relations": {"on_collapse": "relax_eps", "clustering": "infomap"}},
            "clustering=dbscan with relations.on_coll",
        ),
        ({"relations": {"eps_first": 0.9, "clustering": "hdbscan"}}, "relations.eps_first=1 with clustering=hdbscan"),
        ({"relations": {"foreign": "centroids", "inter_rule": "cluster_mean"}}, "with relations.foreign=centroids"),
        ({"relations": {"space": "jaccard", "foreign": "centroids"}}, "with relations.space=jaccard"),
        ({"relations": {"space": "jaccard", "inter_rule": "log_sum_exp"}}, "with relations.space=jaccard"),
    ],
)
def test_combinations_that_cannot_run_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        TrainConfig(**{"data": {"root": "x"}} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expansion": {"k": 3}}, "expand=true beside settings of it"),
        ({"rerank": True, "expansion": {"database": True}}, "expand=true beside settings of it"),
        ({"reranking": {"k1": 30}}, "rerank=true beside settings of it"),
        ({"rerank": True, "reranking": {"k1": 5}}, "reranking.k2 of at most reranking.k1; came k2=6, k1=5"),
        ({"rerank": True, "reranking": {"original_weight": 1.1}}, "less than or equal to 1"),
        ({"expand": True, "expansion": {"alpha": -1}}, "greater than or equal to 0"),
    ],
)
def test_post_processing_that_would_be_dropped_or_cannot_be_done_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        EvaluateConfig(**{"data": {"root": "x"}, "checkpoint": "c"} | changes)


def test_post_processing_is_named_with_its_settings():
    plain = {"data": {"root": "x"}, "checkpoint": "c"}
    assert EvaluateConfig(**plain).processing() == {}
    asked = EvaluateConfig(**plain, flip=True, expand=True, rerank=True, reranking={"k1": 9})
    assert asked.processing() == {
        "flip": True,
        "expand": {"k": 5, "alpha": 3.0, "database": False},
        "rerank": {"k1": 9, "k2": 6, "original_weight": 0.3},
    }


def test_the_recipe_leaves_out_what_does_not_change_what_is_learnt():
    one = TrainConfig(data={"root": "x"})
    other = TrainConfig(data={"root": "y"}, scale={"workers": 2}, epochs=3, name="n", runs="r", eval_every=1)
    assert one.recipe() == other.recipe()
    assert one.fingerprint() == other.fingerprint()
    assert one.fingerprint() != TrainConfig(data={"root": "x"}, loss={"momentum": 0.2}).fingerprint()


@pytest.mark.parametrize("eps", ["auto", 0.01, 0.99])
def test_eps_is_a_number_or_auto(eps):
    config = TrainConfig(data={"root": "x"}, relations={"eps": eps})
    assert config.relations.options()["eps"] == eps
    assert idle(config) == []


@pytest.mark.parametrize("eps", ["knee", 0, 1, -0.5, float("nan")])
def test_another_eps_is_refused(eps):
    with pytest.raises(ValidationError, match=r"relations\.eps"):
        TrainConfig(data={"root": "x"}, relations={"eps": eps})


def test_a_recipe_of_before_there_was_a_rising_eps_is_still_the_same():
    assert not {"relations.eps_first", "relations.eps_rise", "start"} & set(TrainConfig(data={"root": "x"}).recipe())
    rising = TrainConfig(data={"root": "x"}, relations={"eps_first": 0.9}).recipe()
    assert (rising["relations.eps_first"], rising["relations.eps_rise"]) == (0.9, 6)
