from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from gracl.learning.encoding import encode
from gracl.learning.flipping import average, encode_with_mirror, mirrored
from gracl.learning.pixels import normalise
from gracl.randomness import rng
from gracl.types import Augmentations, Batch, FeatureTable
from tests.dolls import small_encoder


def scan(sizes, seed=0):
    """Batches of random pictures of 8 x 6 pixels, indices counted down."""
    dice, end = rng(seed, "flipping"), sum(sizes)
    for ticket, rows in enumerate(sizes):
        yield Batch(ticket, 0, np.arange(end - 1, end - rows - 1, -1), dice.integers(0, 256, (rows, 8, 6, 3), np.uint8))
        end -= rows


def both(sizes, progress=lambda done: None):
    return encode_with_mirror(small_encoder(), scan(sizes), nullcontext(), progress)


def test_pictures_that_are_still_to_be_altered_are_not_mirrored():
    (batch,) = scan([3])
    with pytest.raises(ValueError, match="plain pictures to mirror; came augmentations beside them"):
        mirrored(replace(batch, augmentations=Augmentations.none(3)))


def test_averaged_features_are_those_made_by_hand():
    plain, averaged = both([4, 1, 3])
    assert np.array_equal(plain.indices, np.arange(7, -1, -1))
    assert np.array_equal(averaged.indices, plain.indices)
    encoder = small_encoder().eval()
    with torch.inference_mode():
        for start, batch in zip((0, 4, 5), scan([4, 1, 3]), strict=True):
            for row, picture in enumerate(batch.images, start):
                turned = picture.copy()
                for column in range(picture.shape[1]):
                    turned[:, column] = picture[:, picture.shape[1] - 1 - column]
                one, other = (encoder(normalise(torch.from_numpy(seen[None])))[0].numpy() for seen in (picture, turned))
                assert not np.allclose(one, other, atol=1e-4)
                wanted = (one + other) / np.linalg.norm(one + other)
                np.testing.assert_allclose(averaged.features[row], wanted, atol=1e-6)


def test_plain_features_are_bit_equal_to_those_without_mirror():
    plain, _ = both([4, 1, 3])
    wanted = encode(small_encoder(), scan([4, 1, 3]), nullcontext(), lambda done: None)
    assert np.array_equal(plain.features, wanted.features)


def test_an_image_and_its_mirror_image_have_one_averaged_feature():
    (batch,) = scan([3])
    encoder = small_encoder()
    one, other = (
        encode_with_mirror(encoder, iter([seen]), nullcontext(), lambda done: None)[1]
        for seen in (batch, mirrored(batch))
    )
    assert np.array_equal(one.features, other.features)
    assert np.array_equal(mirrored(mirrored(batch)).images, batch.images)


def test_progress_counts_pictures_once_and_an_empty_scan_gives_empty_tables():
    told = []
    both([4, 1, 3], told.append)
    assert told == [4, 5, 8]
    for table in both([]):
        assert table.features.shape == (0, 5)
        assert table.features.dtype == np.float32


def test_averages_have_length_one():
    dice = rng(0, "average")
    one, other = (FeatureTable(np.arange(6), dice.standard_normal((6, 4)).astype(np.float32)) for _ in range(2))
    assert np.linalg.norm(average(one, other).features, axis=1) == pytest.approx(np.ones(6), abs=1e-6)
    opposite = FeatureTable(one.indices, -one.features)
    assert not average(one, opposite).features.any()
