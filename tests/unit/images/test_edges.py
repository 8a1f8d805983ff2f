"""The colours along the edges of pictures, held against loops."""

import numpy as np
import pytest

from gracl.images.edges import COLOURS, describe_edges, edge_colours
from gracl.images.plans import scan_plan
from gracl.images.shards import ShardStore
from gracl.images.views import eval_view
from gracl.randomness import rng


def naive(picture, edge):
    """One pixel after the other, in plain Python."""
    height, width, _ = picture.shape
    rows, columns = max(1, round(edge * height)), max(1, round(edge * width))
    strips = [
        [(y, x) for y in range(rows) for x in range(width)],
        [(y, x) for y in range(height - rows, height) for x in range(width)],
        [(y, x) for y in range(height) for x in range(columns)],
        [(y, x) for y in range(height) for x in range(width - columns, width)],
    ]
    means, deviations = [], []
    for strip in strips:
        for channel in range(3):
            values = [picture[y, x, channel] / 255 for y, x in strip]
            mean = sum(values) / len(values)
            means.append(mean)
            deviations.append((sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5)
    return [*means, *deviations]


@pytest.mark.parametrize(("height", "width", "edge"), [(20, 10, 0.1), (7, 5, 0.01), (16, 8, 0.5), (33, 21, 0.25)])
def test_edges_are_those_of_loops_over_pixels(height, width, edge):
    pictures = rng(0, "edges").integers(0, 256, (3, height, width, 3)).astype(np.uint8)
    found = edge_colours(pictures, edge=edge)
    assert found.shape == (3, COLOURS)
    np.testing.assert_allclose(found, [naive(one, edge) for one in pictures], atol=1e-6)


def test_the_middle_has_no_say():
    pictures = rng(1, "edges").integers(0, 256, (1, 40, 20, 3)).astype(np.uint8)
    other = pictures.copy()
    other[:, 4:-4, 2:-2] = 255 - other[:, 4:-4, 2:-2]
    np.testing.assert_array_equal(edge_colours(pictures), edge_colours(other))
    other[0, 3, 10] = 255 - other[0, 3, 10]
    assert (edge_colours(pictures) != edge_colours(other)).any()


def test_a_picture_of_one_colour_has_no_deviation():
    found = edge_colours(np.full((1, 64, 32, 3), (10, 20, 250), np.uint8))[0]
    np.testing.assert_allclose(found[:12].reshape(4, 3), np.tile(np.array([10, 20, 250]) / 255, (4, 1)), atol=1e-7)
    np.testing.assert_array_equal(found[12:], 0)


@pytest.mark.parametrize("edge", [0.0, -0.1, 0.51])
def test_an_edge_that_is_none_is_refused(edge):
    with pytest.raises(ValueError, match="an edge above 0 and of at most 0.5"):
        edge_colours(np.zeros((1, 8, 8, 3), np.uint8), edge=edge)


def test_a_plan_of_shards_gives_the_edges_of_its_images(toy_shards):
    store = ShardStore.open(toy_shards, "train")
    plan = scan_plan(len(store), 7)
    found = describe_edges(store, plan, height=32, width=16, edge=0.2, threads=2)
    np.testing.assert_array_equal(found.indices, np.arange(len(store)))
    pictures = np.stack([eval_view(image, height=32, width=16) for image in store.read(np.arange(len(store)))])
    np.testing.assert_array_equal(found.features, edge_colours(pictures, edge=0.2))


def test_a_plan_without_images_has_no_edges(toy_shards):
    found = describe_edges(ShardStore.open(toy_shards, "train"), scan_plan(0, 4), height=32, width=16)
    assert (found.indices.shape, found.features.shape) == ((0,), (0, COLOURS))
