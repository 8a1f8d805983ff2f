import threading

import numba
import numpy as np
import pytest
import torch

from gracl import kernels
from gracl.errors import ConfigError
from gracl.kernels import compiled, dot, over_rows, readable, real, thread_count
from gracl.randomness import rng


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 1000])
def test_over_rows_covers_every_row_once_and_in_order(rows, threads):
    told = []
    runs = over_rows(
        lambda start, stop: list(range(start, stop)), rows, threads=threads, progress=lambda *at: told.append(at)
    )
    assert [row for run in runs for row in run] == list(range(rows))
    assert not rows or told[-1] == (rows, rows)
    assert [done for done, _ in told] == np.cumsum([len(run) for run in runs]).tolist()


def test_over_rows_uses_other_threads_only_when_asked():
    here = threading.get_ident()
    assert set(over_rows(lambda *_: threading.get_ident(), 500, threads=1)) == {here}
    assert here not in set(over_rows(lambda *_: threading.get_ident(), 500, threads=2))


def test_a_kernel_that_fails_is_heard():
    with pytest.raises(ZeroDivisionError):
        over_rows(lambda start, stop: 1 // 0, 200, threads=2)


def test_thread_count():
    assert thread_count(0) == torch.get_num_threads()
    assert thread_count(3) == 3
    with pytest.raises(ConfigError, match="threads >= 0"):
        thread_count(-1)


def test_dot_is_exact_to_double_precision_and_the_same_both_ways():
    a, b = rng(0, "dot").standard_normal((2, 777)).astype(np.float32)
    assert dot(a, b) == pytest.approx(sum(float(x) * float(y) for x, y in zip(a, b, strict=True)), abs=1e-12)
    assert dot(a, b) == dot(b, a)
    assert np.isnan(dot(a * np.float32(np.nan), b))


def test_compiles_where_no_folder_is_writable(monkeypatch):
    real = numba.njit

    def refuses_cache(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    monkeypatch.setattr(kernels.numba, "njit", refuses_cache)

    def double(x):
        return 2 * x

    assert compiled(double)(4) == 8


def test_half_rows_are_read_exactly():
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]

    @compiled
    def read(bits, out):
        for i in range(bits.size):
            out[i] = real(bits[i])

    out = np.empty(len(finite))
    read(readable(finite), out)
    np.testing.assert_array_equal(out, finite.astype(np.float64))


def test_dot_of_half_rows_is_that_of_the_same_numbers():
    rows = rng(0, "half").standard_normal((2, 300)).astype(np.float16)
    exact = float(rows[0].astype(np.float64) @ rows[1].astype(np.float64))
    assert dot(*readable(rows)) == pytest.approx(exact, abs=1e-12)
    assert dot(*readable(rows)) == dot(*rows.astype(np.float32))


def test_readable_copies_nothing_that_is_contiguous():
    for rows in (np.zeros((3, 4), np.float16), np.zeros((3, 4), np.float32)):
        assert np.shares_memory(readable(rows), rows)
