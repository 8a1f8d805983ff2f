"""Some hundred broken pictures through ingest, loader and embed; for more: `python -m tests.chaos.fuzz_pictures`."""

import pytest

from gracl.images.decoding import decode
from tests.chaos.fuzz_pictures import AT_ONCE, class_of, fuzz
from tests.chaos.mutations import mutant, originals


@pytest.mark.slow
def test_nothing_is_uncaught():
    figures = fuzz(AT_ONCE + 50, seed=7)
    assert figures["uncaught"] == []
    assert figures["accepted"] + figures["refused"] == AT_ONCE + 50
    assert figures["accepted"] > 20  # the attack is not so crude that nothing passes
    assert len(figures["refused_by_reason"]) > 5
    assert figures["peak_rss_mb"] - figures["rss_mb_before"] < 3000


def test_originals_are_whole():
    for kind, content in originals().items():
        height, width = (36, 48) if "sideways" in kind else (48, 36)
        assert decode(content).shape == (height, width, 3), kind


def test_a_seed_makes_the_same_mutants():
    whole = originals()
    assert [mutant(number, 3, whole) for number in range(20)] == [mutant(number, 3, whole) for number in range(20)]
    assert len({mutant(number, 3, whole)[2] for number in range(50)}) == 50


def test_reasons_are_told_apart_by_what_they_say_and_not_by_numbers():
    assert class_of("12 bytes not b'\\x00' of 'a.png'") == class_of("7 bytes not b'abc' of 'b.png'")
    assert class_of("truncated (3)") != class_of("unknown (3)")
