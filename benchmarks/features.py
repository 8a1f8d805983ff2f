"""Made-up features of any size with the structure that clustering has to cope with, and neighbour tables for them.

Identities live in districts (look-alikes), are seen by several cameras that shift them, and a tenth of the images are
of nobody. All structure lies in 96 of the dimensions, as trained features have it. Rows are in random order, float16,
in a memory-mapped file, and the table of nearest rows is exact within a district: at a million rows the whole exact
table would cost 4 PFLOP, and Jaccard and DBSCAN do not care who made it.

    python -m benchmarks.features rows=1000000 dim=2048 k=30 out=FOLDER
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from gracl.randomness import rng
from gracl.similarity import nearest
from gracl.types import Neighbors

RANK, IDENTITIES, EACH, CAMERAS, JUNK = 96, 60, 30, 8, 0.1


def district(number: int, rows: int, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features float32 [rows, dim] of unit length, identities (-1: nobody) and cameras of one district."""
    dice = rng(7, "district", number)
    spectrum = 1 / np.sqrt(1 + 0.03 * np.arange(RANK))
    person = dice.integers(0, max(1, rows // EACH), rows)
    camera = dice.integers(0, CAMERAS, rows)
    looks = dice.standard_normal((max(1, rows // EACH) // 6 + 1, RANK)) + dice.standard_normal(RANK)
    people = looks[np.arange(max(1, rows // EACH)) // 6] + dice.standard_normal((max(1, rows // EACH), RANK))
    seen = 0.8 * dice.standard_normal((max(1, rows // EACH), CAMERAS, RANK))
    spread = np.minimum(dice.lognormal(0, 0.45, rows), 4) * 1.1
    code = people[person] + seen[person, camera] + spread[:, None] * dice.standard_normal((rows, RANK))
    nobody = dice.random(rows) < JUNK
    code[nobody] = 1.4 * dice.standard_normal((int(nobody.sum()), RANK))
    features = torch.from_numpy((code * spectrum).astype(np.float32)) @ torch.from_numpy(basis)
    features = features.numpy() + 0.01 * dice.standard_normal(features.shape, np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features, np.where(nobody, -1, person + number * IDENTITIES), camera


def make(rows: int, dim: int, k: int, out: Path) -> None:
    """Writes features.npy (float16), neighbours.npy, similarities.npy, truth.npy and cameras.npy."""
    out.mkdir(parents=True, exist_ok=True)
    basis = (rng(7, "basis").standard_normal((RANK, dim)) / np.sqrt(dim)).astype(np.float32)
    where = rng(7, "order").permutation(rows)
    features = np.lib.format.open_memmap(out / "features.npy", "w+", np.float16, (rows, dim))
    ids, values = np.empty((rows, k), np.int32), np.empty((rows, k), np.float32)
    truth, cameras = np.empty(rows, np.int64), np.empty(rows, np.int64)
    for number, start in enumerate(range(0, rows, IDENTITIES * EACH)):
        here = np.sort(where[start : start + IDENTITIES * EACH])
        found, truth[here], cameras[here] = district(number, len(here), basis)
        features[here] = found
        table = nearest(features[here].astype(np.float32), k)
        ids[here], values[here] = here[table.indices], table.similarities
    for name, array in {"neighbours": ids, "similarities": values, "truth": truth, "cameras": cameras}.items():
        np.save(out / f"{name}.npy", array)
    features.flush()


def load(folder: Path) -> tuple[np.ndarray, Neighbors, np.ndarray, np.ndarray]:
    """Features (memory-mapped float16), neighbour table, identities, cameras."""
    features = np.load(folder / "features.npy", mmap_mode="r")
    table = Neighbors(np.load(folder / "neighbours.npy"), np.load(folder / "similarities.npy"))
    return features, table, np.load(folder / "truth.npy"), np.load(folder / "cameras.npy")


def main() -> None:
    """Makes one set."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    started = time.perf_counter()
    make(int(options["rows"]), int(options["dim"]), int(options["k"]), Path(options["out"]))
    print(json.dumps(options | {"seconds": round(time.perf_counter() - started, 1)}))


if __name__ == "__main__":
    main()
