"""Broken pictures through ingest, the local loader and `gracl.embed`: nothing uncaught, memory and time recorded.

    python -m tests.chaos.fuzz_pictures files=20000 seed=0 out=FILE.json

Pictures are made of valid files of every format (`mutations.py`), written into raw folders under names of any suffix,
and ingested with on_bad_image=skip. What ingest accepted must come through scan and training views and be described;
what it refused must be refused by `embed` as well, with an `ImageError`. Anything else is uncaught and ends in code 1.
"""

import contextlib
import json
import platform
import re
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL

import gracl
from gracl.errors import ImageError
from gracl.images.batches import MappedBatches
from gracl.images.decoding import decode
from gracl.images.ingesting import ingest_here
from gracl.images.layouts.files import IMAGE_SUFFIXES
from gracl.images.plans import scan_plan
from gracl.images.shards import ShardStore
from gracl.images.views import eval_view, train_view
from gracl.learning.encoder import Encoder, build_encoder
from tests.chaos.mutations import mutant, originals

AT_ONCE = 250
SIZE: dict[str, Any] = {"height": 32, "width": 16}
Model = tuple[Encoder, dict[str, int]]


class Found:
    """What has been seen so far."""

    def __init__(self) -> None:
        self.accepted: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.uncaught: list[str] = []
        self.slowest: tuple[float, str] = (0.0, "")

    @contextlib.contextmanager
    def watching(self, what: str) -> Any:
        """Whatever escapes here should not have."""
        try:
            yield
        except Exception as error:
            self.uncaught.append(f"{what}: {type(error).__name__}: {error}")


def class_of(reason: str) -> str:
    """A reason without what differs from picture to picture: numbers, bytes, names."""
    reason = re.sub(r"b'[^']*'|b\"[^\"]*\"|'[^']*'|\{.*\}|\[.*\]|0x[0-9a-f]+", "...", reason.splitlines()[0])
    return re.sub(r"-?\d+(\.\d+)?", "N", reason)[:120]


def fuzz(files: int, seed: int) -> dict[str, Any]:
    """Sends so many pictures through; returns the figures."""
    found, begun, before = Found(), time.perf_counter(), peak_mb()
    whole = originals()
    encoder = build_encoder(backbone="resnet18", feature_size=8, bn_group=0).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damage that it reads over
        for first in range(0, files, AT_ONCE):
            with tempfile.TemporaryDirectory() as folder:
                made = make(Path(folder), range(first, min(first + AT_ONCE, files)), seed, whole)
                judge(Path(folder), made, found, (encoder, dict(SIZE)))
    return {
        "files": files,
        "seed": seed,
        "accepted": sum(found.accepted.values()),
        "refused": sum(found.refused.values()),
        "uncaught": found.uncaught,
        "seconds": round(time.perf_counter() - begun, 1),
        "peak_rss_mb": peak_mb(),
        "rss_mb_before": before,
        "slowest_decode_s": round(found.slowest[0], 3),
        "slowest": found.slowest[1],
        "accepted_by_kind": dict(sorted(found.accepted.items())),
        "refused_by_kind": dict(sorted(found.refused.items())),
        "refused_by_reason": dict(found.reasons.most_common()),
        "versions": {"python": platform.python_version(), "pillow": PIL.__version__, "numpy": np.__version__},
    }


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def make(folder: Path, numbers: range, seed: int, whole: dict[str, bytes]) -> dict[str, tuple[str, bytes]]:
    """Writes the mutants of these numbers into folder/raw, and one whole picture, so that a split is never empty."""
    (folder / "raw").mkdir()
    made: dict[str, tuple[str, bytes]] = {}
    for number in numbers:
        kind, how, content = mutant(number, seed, whole)
        name = f"{number:07d}{IMAGE_SUFFIXES[number % len(IMAGE_SUFFIXES)]}"
        made[name] = (f"{kind}: {how}", content)
        (folder / "raw" / name).write_bytes(content)
    (folder / "raw/whole.png").write_bytes(whole["png"])
    return made


def judge(folder: Path, made: dict[str, tuple[str, bytes]], found: Found, model: Model) -> None:
    """Ingest, loader and embed must agree about each picture of a folder, and nothing else may happen."""
    with found.watching("ingest"):
        manifest = ingest_here(str(folder / "raw"), str(folder / "shards"), "unlabelled", on_bad_image="skip")["train"]
        bad = {image.path: image.reason for image in manifest.bad_images}
        for name, (what, content) in made.items():
            kind = what.split(":")[0]
            (found.refused if name in bad else found.accepted)[kind] += 1
            begun = time.perf_counter()
            with contextlib.suppress(ImageError) if name in bad else found.watching(f"decode {name} ({what})"):
                decode(content)
            found.slowest = max(found.slowest, (time.perf_counter() - begun, f"{name} ({what})"))
        found.reasons.update(class_of(reason) for reason in bad.values())
        load(folder, len(made) + 1 - len(bad), found)
        describe(folder, made, bad, found, model)


def load(folder: Path, images: int, found: Found) -> None:
    """Every accepted picture comes through a scan and as a training picture."""
    store = ShardStore.open(str(folder / "shards"), "train")
    views = {"eval_view": partial(eval_view, **SIZE), "train_view": partial(train_view, **SIZE, pad=2)}
    batches = MappedBatches({"train": store}, train="train", **views, **SIZE, scan_batch=64)
    for what, stream in (("scan", batches.scan("train")), ("picks", batches.picks(scan_plan(images, 64)))):
        with found.watching(what):
            seen = np.concatenate([batch.indices for batch in stream])
            if seen.tolist() != list(range(images)):
                found.uncaught.append(f"{what}: {images} images, but not every one came once")


def describe(folder: Path, made: dict[str, tuple[str, bytes]], bad: dict[str, str], found: Found, model: Model) -> None:
    """Accepted pictures are described; a refused one is refused as such."""
    with found.watching("embed"):
        names = [name for name in made if name not in bad]
        features = gracl.embed(model, [folder / "raw" / name for name in names])
        if features.shape != (len(names), 8) or not np.isfinite(features).all():
            found.uncaught.append(f"embed: {features.shape} for {len(names)} pictures")
    for name in bad:
        with found.watching(f"embed {name} ({made[name][0]})"):
            try:
                gracl.embed(model, [folder / "raw" / name])
                found.uncaught.append(f"embed {name}: described, but ingest refused it: {bad[name]}")
            except ImageError:
                continue


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
    figures = fuzz(int(settings.get("files", 20000)), int(settings.get("seed", 0)))
    text = json.dumps(figures, indent=1) + "\n"
    if "out" in settings:
        Path(settings["out"]).write_text(text)
    print(text)
    raise SystemExit(1 if figures["uncaught"] else 0)


if __name__ == "__main__":
    main()
