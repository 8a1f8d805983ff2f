"""The one source of dice. Nothing else in gracl makes a generator, and nothing seeds a global one."""

import operator
import zlib

import numpy as np
from jaxtyping import UInt32
from numpy import ndarray


def rng(seed: int, *key: int | str) -> np.random.Generator:
    """A generator that depends on `seed` and `key` alone, whichever process asks.

    Words in the key keep the dice of different purposes apart: `rng(0, "plan", 3)` and `rng(0, "view", 3)` share
    nothing.

    Args:
        seed: the run's seed, >= 0.
        key: whole numbers >= 0 or words.
    """
    parts = (zlib.crc32(part.encode()) if isinstance(part, str) else part for part in (seed, *key))
    numbers = [operator.index(part) for part in parts]  # NumPy's own numbers would be cut to 32 bits without a word
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(_words(numbers))))


def _words(numbers: list[int]) -> UInt32[ndarray, "words"] | list[int]:
    """What `SeedSequence` makes of numbers of 32 bits, in half its time; larger ones are left to it."""
    try:
        return np.array(numbers, np.uint32)
    except OverflowError:
        return numbers
