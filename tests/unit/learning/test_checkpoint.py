import dataclasses

import numpy as np
import pytest
import torch

from gracl.errors import CheckpointError, StorageError
from gracl.learning.checkpoint import STATE_FILE, Midway, TrainState, check_recipe, load_encoder, load_state, save_state
from gracl.learning.encoder import build_encoder
from gracl.learning.optim import build_optimizer
from gracl.types import Assignment, CameraProxies, Consensus, Instances, Proxies, RetrievalReport


def trained(*, seed=0, rate=1e-3, steps=2):
    """A small encoder and its optimizer after some steps."""
    encoder = build_encoder(backbone="mobilenet_v2", bn_group=0, feature_size=4, seed=seed)
    optimizer = build_optimizer(encoder.parameters(), rate=rate)
    for number in range(steps):
        learn(encoder, optimizer, number)
    return encoder, optimizer


def views(number):
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(number))


def learn(encoder, optimizer, number):
    encoder.train()
    optimizer.zero_grad()
    encoder(views(number))[:, 0].sum().backward()
    optimizer.step()


@pytest.fixture(scope="module")
def pair():
    return trained()


def state_of(pair, **changes):
    encoder, optimizer = pair
    state = TrainState(
        epoch=3,
        model=encoder.state_dict(),
        optimizer=optimizer.state_dict(),
        best=0.5,
        best_epoch=2,
        recipe={"loss.momentum": 0.1, "relations.k1": 30, "data.roots": ["a", "b"], "encoder.weights": None},
        encoder=encoder.options,
        view={"height": 32, "width": 32},
    )
    return dataclasses.replace(state, **changes)


def pending(images=6, clusters=2, dim=3):
    """Labels and proxies as they come out of Ray's object store: not to be written to."""
    dice = np.random.default_rng(0)
    tables = [dice.random((clusters, dim), np.float32) for _ in range(3)]
    places = [np.arange(clusters), np.arange(clusters) + clusters]
    proxies = Proxies(tables[0], tables[1], places[0], places[1], tables[2])
    labels = np.arange(images) % (clusters + 1) - 1
    shown = Instances(np.array([[1, 4, 1], [2, 5, 2]]), dice.random((4, dim), np.float32))
    told = Consensus(np.array([[-1, -1], [0, 1]] * 3, np.int32), dice.random((images, 2), np.float32))
    seen = CameraProxies(tables[0], np.arange(2), np.array([4, 1]), labels.copy())
    more = [array for part in (shown, told, seen) for array in vars(part).values()]
    for array in (labels, *tables, *places, *more):
        array.flags.writeable = False
    return Assignment(2, labels, proxies, {"knn_s": 0.5}, instances=shown, consensus=told, camera_proxies=seen)


def same(a, b):
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and same(vars(a), vars(b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_what_is_saved_comes_back_whole(pair, tmp_path):
    state = state_of(pair)
    path = save_state(state, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / STATE_FILE
    loaded = load_state(path.parent)
    for field in dataclasses.fields(state):
        assert same(getattr(state, field.name), getattr(loaded, field.name)), field.name
    assert load_state(path).epoch == 3


@pytest.mark.filterwarnings("error")
def test_labels_that_wait_for_the_next_epoch_come_back_whole(pair, tmp_path):
    state = state_of(pair, assignment=pending())
    save_state(state, tmp_path)
    assert same(load_state(tmp_path).assignment, state.assignment)
    payload = torch.load(tmp_path / STATE_FILE, weights_only=True)
    assert isinstance(payload["assignment"]["labels"], torch.Tensor)
    encoder, view = load_encoder(tmp_path)
    assert view == {"height": 32, "width": 32}
    assert same(dict(encoder.state_dict()), dict(pair[0].state_dict()))


def drop(packed, name):
    del packed["proxies"][name]


@pytest.mark.parametrize(
    "tear",
    [
        lambda packed: packed.pop("labels"),
        lambda packed: drop(packed, "intra"),
        lambda packed: packed.update(labels=[0, 1]),
        lambda packed: packed.update(labels=packed["labels"].float()),
        lambda packed: packed.update(labels=packed["labels"][:3]),
        lambda packed: packed.update(labels=packed["labels"] + 1),
        lambda packed: packed.update(labels=packed["labels"][:0]),
        lambda packed: packed["proxies"].update(other=torch.zeros(2)),
        lambda packed: packed["proxies"].update(inter=torch.zeros(3, 3)),
        lambda packed: packed["proxies"].update(cluster_sums=torch.zeros(2, 4)),
        lambda packed: packed["proxies"].update(intra_image=torch.tensor([0, 6])),
        lambda packed: packed["proxies"].update(inter_image=torch.tensor([-1, 0])),
        lambda packed: packed.pop("proxies"),
        lambda packed: packed["instances"].update(images=torch.tensor([[1, 4, 1], [2, 5, 3]])),
        lambda packed: packed["instances"].update(rows=torch.zeros(5, 3)),
        lambda packed: packed["instances"].pop("images"),
        lambda packed: packed["consensus"].update(clusters=torch.full((6, 2), 2, dtype=torch.int32)),
        lambda packed: packed["camera_proxies"].update(rows=torch.zeros(2, 4)),
        lambda packed: packed["camera_proxies"].update(of_image=torch.zeros(6, dtype=torch.int64)),
        lambda packed: packed["camera_proxies"].update(clusters=torch.tensor([1, 0])),
        lambda packed: packed["camera_proxies"].update(cameras=torch.zeros(3, dtype=torch.int64)),
        lambda packed: packed["consensus"].update(shares=torch.zeros(5, 2)),
    ],
)
def test_labels_and_proxies_that_do_not_belong_together_are_refused(pair, tmp_path, tear):
    path = save_state(state_of(pair, assignment=pending()), tmp_path)
    payload = torch.load(path, weights_only=True)
    tear(payload["assignment"])
    torch.save(payload, path)
    with pytest.raises(CheckpointError, match="whole assignment"):
        load_state(tmp_path)


def test_an_assignment_may_hold_proxies_alone(pair, tmp_path):
    bare = dataclasses.replace(pending(), instances=None, consensus=None, camera_proxies=None)
    save_state(state_of(pair, assignment=bare), tmp_path)
    assert same(load_state(tmp_path).assignment, bare)


@pytest.mark.parametrize(
    ("schema", "without"), [(1, ["assignment", "teacher", "midway"]), (2, ["teacher", "midway"]), (3, ["midway"])]
)
def test_a_checkpoint_of_an_older_schema_is_read(pair, tmp_path, schema, without):
    path = save_state(state_of(pair), tmp_path)
    payload = torch.load(path, weights_only=True)
    for name in without:
        del payload[name]
    torch.save(payload | {"schema": schema}, path)
    state = load_state(tmp_path)
    assert all(getattr(state, name) is None for name in without)
    assert same(state, state_of(pair))
    torch.save(payload, path)
    with pytest.raises(CheckpointError, match="schema 4"):
        load_state(tmp_path)


def test_the_teacher_is_the_model_to_use(pair, tmp_path):
    teacher, _ = trained(seed=5)
    save_state(state_of(pair, teacher=teacher.state_dict()), tmp_path)
    encoder, _ = load_encoder(tmp_path)
    assert same(dict(encoder.state_dict()), dict(teacher.state_dict()))
    assert same(dict(load_state(tmp_path).model), dict(pair[0].state_dict()))


def test_a_run_goes_on_from_its_checkpoint_as_if_unbroken(tmp_path):
    encoder, optimizer = trained()
    save_state(state_of((encoder, optimizer)), tmp_path)
    learn(encoder, optimizer, 9)
    state = load_state(tmp_path)
    other = build_encoder(**state.encoder)
    other.load_state_dict(state.model)
    resumed = build_optimizer(other.parameters(), rate=1e-3)
    resumed.load_state_dict(state.optimizer)
    learn(other, resumed, 9)
    assert same(dict(encoder.state_dict()), dict(other.state_dict()))
    assert same(optimizer.state_dict(), resumed.state_dict())


def test_before_the_first_evaluation_there_is_no_best(pair, tmp_path):
    save_state(state_of(pair, best=None, best_epoch=None), tmp_path)
    loaded = load_state(tmp_path)
    assert loaded.best is None
    assert loaded.best_epoch is None


def test_the_encoder_is_rebuilt_in_evaluation_mode(pair, tmp_path):
    encoder = pair[0]
    save_state(state_of(pair), tmp_path)
    for source in (tmp_path, str(tmp_path / STATE_FILE)):
        loaded, view = load_encoder(source)
        assert view == {"height": 32, "width": 32}
        assert not any(module.training for module in loaded.modules())
        encoder.eval()
        with torch.inference_mode():
            assert torch.equal(loaded(views(0)), encoder(views(0)))


def test_weights_of_another_encoder_are_refused(pair, tmp_path):
    save_state(state_of(pair, encoder=pair[0].options | {"feature_size": 5}), tmp_path)
    with pytest.raises(CheckpointError, match="an encoder and its weights in .*'feature_size': 5"):
        load_encoder(tmp_path)


def test_saving_replaces_and_leaves_nothing_else(pair, tmp_path):
    for epoch in (1, 2):
        save_state(state_of(pair, epoch=epoch), tmp_path)
    assert load_state(tmp_path).epoch == 2
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_a_failed_save_keeps_the_old_file(pair, tmp_path, monkeypatch):
    save_state(state_of(pair, epoch=1), tmp_path)

    def full_disk(payload, stream):
        stream.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(StorageError, match=f"room and leave to write {tmp_path}.*no space"):
        save_state(state_of(pair, epoch=2), tmp_path)
    assert load_state(tmp_path).epoch == 1
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"best": np.float64(0.5)}, "best"),
        ({"recipe": {"a.b": np.int64(1)}}, "recipe"),
        ({"recipe": {"a.b": [1, {2}]}}, "recipe"),
        ({"optimizer": {"param_groups": [{"lr": np.float64(1)}]}}, "param_groups"),
    ],
)
def test_values_that_could_not_be_read_back_are_not_written(pair, tmp_path, changes, place):
    with pytest.raises(CheckpointError, match=place):
        save_state(state_of(pair, **changes), tmp_path)
    assert not (tmp_path / STATE_FILE).exists()


def test_a_missing_checkpoint_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere.pt"):
        with pytest.raises(CheckpointError, match="no such file"):
            load_state(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.9999])
def test_a_torn_file_is_refused(pair, tmp_path, share):
    path = save_state(state_of(pair), tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="whole checkpoint"):
        load_state(tmp_path)


def test_a_flipped_bit_is_refused(pair, tmp_path):
    path = save_state(state_of(pair), tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum"):
        load_state(tmp_path)


@pytest.mark.parametrize(
    "payload", [{"schema": 0, "epoch": 1}, {"epoch": 1}, {"schema": 2, "epoch": 1}, {"schema": "4"}, [1, 2]]
)
def test_another_schema_is_refused(tmp_path, payload):
    torch.save(payload, tmp_path / STATE_FILE)
    with pytest.raises(CheckpointError, match="schema 4"):
        load_state(tmp_path)


def test_equal_recipes_pass_tuples_and_lists_alike():
    check_recipe({"a.b": [1, 2], "a.c": None}, {"a.c": None, "a.b": (1, 2)})
    check_recipe({}, {})


def test_each_differing_setting_is_listed_with_both_values():
    saved = {"loss.momentum": 0.1, "relations.k1": 30, "same": 1, "gone": True}
    wanted = {"loss.momentum": 0.2, "relations.k1": 20, "same": 1, "new": "x"}
    with pytest.raises(CheckpointError) as caught:
        check_recipe(saved, wanted)
    for part in (
        "loss.momentum: 0.1 in the checkpoint, 0.2 now",
        "relations.k1: 30 in the checkpoint, 20 now",
        "gone: True in the checkpoint, 'absent' now",
        "new: 'absent' in the checkpoint, 'x' now",
    ):
        assert part in str(caught.value)
    assert "same" not in str(caught.value).replace("the same", "")


def test_names_and_whole_sections_can_be_left_out():
    saved = {"tracking.uri": "a", "train.epochs": 5, "trackingless": 1}
    check_recipe(saved, saved | {"tracking.uri": "b", "train.epochs": 9}, ignore=("tracking", "train.epochs"))
    with pytest.raises(CheckpointError, match="trackingless"):
        check_recipe(saved, saved | {"trackingless": 2}, ignore=("tracking",))


def test_a_fresh_state_knows_the_encoder_and_has_no_weights_yet(pair):
    state = TrainState.fresh(pair[0], {"a.b": 1}, height=32, width=16)
    assert (state.epoch, state.model, state.optimizer, state.best, state.best_epoch) == (0, {}, {}, None, None)
    assert state.encoder == pair[0].options
    assert state.encoder is not pair[0].options
    assert state.view == {"height": 32, "width": 16}


def test_an_epoch_later_the_best_is_kept_and_every_figure_remembered(pair):
    encoder, optimizer = pair
    state = TrainState.fresh(encoder, {}, height=32, width=32)
    seen = []
    for figures in ({"train/loss": 1.0}, {"val/mAP": 0.4}, {"val/mAP": 0.3}, {"val/mAP": 0.4}, {"val/mAP": 0.6}):
        before, state = state, state.after(figures, encoder=encoder, optimizer=optimizer)
        assert state.epoch == before.epoch + 1
        assert state.history == [*before.history, figures]
        seen.append((state.best, state.best_epoch))
    assert seen == [(None, None), (0.4, 2), (0.4, 2), (0.4, 4), (0.6, 5)]
    assert same(dict(state.model), dict(encoder.state_dict()))


def under_way(ranks=2, step=3):
    report = RetrievalReport(0.5, 0.25, {1: 0.5, 5: 1.0}, 1, 0, *np.ones((2, 1), np.float32), np.ones(1, bool))
    moved = {"inter": torch.rand(2, 3), "intra": torch.rand(2, 3)}
    losses = torch.arange(ranks * step * 5).reshape(ranks, step, 5).float()
    return Midway(step, pending(), moved, losses, {"scan": 1.5, "epoch": 2.5}, report)


@pytest.mark.parametrize("untrained", [True, False])
def test_a_state_within_an_epoch_comes_back_as_it_was(pair, tmp_path, untrained):
    midway = under_way() if untrained else dataclasses.replace(under_way(), untrained=None)
    state = state_of(pair).within(midway, encoder=pair[0], optimizer=pair[1], assignment=pending())
    assert (state.epoch, state.history) == (3, [])
    save_state(state, tmp_path)
    assert same(load_state(tmp_path), state)
    encoder, _ = load_encoder(tmp_path)
    assert same(dict(encoder.state_dict()), dict(pair[0].state_dict()))


@pytest.mark.parametrize(
    "tear",
    [
        lambda packed: packed.pop("moved"),
        lambda packed: packed.pop("assignment"),
        lambda packed: packed.update(assignment=None),
        lambda packed: packed.update(step=0),
        lambda packed: packed.update(step=2),
        lambda packed: packed.update(losses=packed["losses"][0]),
        lambda packed: packed["untrained"].pop("cmc"),
        lambda packed: packed.update(more=1),
    ],
)
def test_an_epoch_under_way_that_lacks_something_is_refused(pair, tmp_path, tear):
    path = save_state(state_of(pair, midway=under_way()), tmp_path)
    payload = torch.load(path, weights_only=True)
    tear(payload["midway"])
    torch.save(payload, path)
    with pytest.raises(CheckpointError, match="whole of an epoch under way"):
        load_state(tmp_path)


def test_the_end_of_an_epoch_has_nothing_under_way(pair):
    state = state_of(pair, midway=under_way())
    assert state.after({}, encoder=pair[0], optimizer=pair[1]).midway is None


def test_losses_of_other_ranks_are_their_mean():
    midway, device = under_way(), torch.device("cpu")
    assert same(midway.rows(1, 2, device), list(midway.losses[1]))
    assert same(midway.rows(0, 1, device), list((midway.losses[0] + midway.losses[1]) / 2))
