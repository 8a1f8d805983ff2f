r"""The same model by four ways: how far are its features from PyTorch's, and is the mAP the same?

    python pipelines/synthesize.py pipelines/presets/demo_world.yaml out=world
    python pipelines/ingest.py layout=market1501 raw=world out=shards/demo
    python pipelines/train.py pipelines/presets/demo.yaml data.root=shards/demo name=demo
    python -m benchmarks.bench_export out=FILE.json checkpoint=runs/demo/epoch-0010 root=shards/demo

The ways: `pytorch` (`gracl.embed`), `onnx` and `torch_export` (what `pipelines/export.py` writes, run by onnxruntime
and by torch on what the `preprocess.py` beside it makes of the files), and `pyfunc` (the model as
`pipelines/publish.py` saves it, by MLflow's loader).
"""

import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow.pyfunc
import numpy as np
import torch

import gracl
from benchmarks.bench_epoch import machine
from gracl.images.shards import ShardStore
from gracl.learning.checkpoint import load_state
from gracl.learning.exporting import FILES, Run, load_exported
from gracl.retrieval.metrics import evaluate_retrieval
from gracl.runtime.export import export
from gracl.runtime.publish import save_model
from gracl.uses import ExportConfig

BATCH = 64
SPLITS = ("query", "gallery")


def beside(folder: Path) -> ModuleType:
    """The module `preprocess` that lies beside an export."""
    spec = importlib.util.spec_from_file_location("preprocess_of_the_export", folder / "preprocess.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ways(checkpoint: str, near: Path) -> Iterator[tuple[str, Run]]:
    """Each way but PyTorch's own: its name, and the model as a function."""
    for form in FILES:
        export(ExportConfig(checkpoint=checkpoint, out=str(near / form), format=form))
        yield form, load_exported(near / form / FILES[form])
    save_model(load_state(checkpoint), near / "pyfunc")
    yield "pyfunc", mlflow.pyfunc.load_model(str(near / "pyfunc")).predict


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    torch.set_num_threads(2)
    stores = {split: ShardStore.open(given["root"], split) for split in SPLITS}
    files = {split: [bytes(one) for one in store.read(np.arange(len(store)))] for split, store in stores.items()}
    encoder = gracl.load_encoder(given["checkpoint"])
    plain = {split: gracl.embed(encoder, files[split], batch=BATCH) for split in SPLITS}
    who = {f"{split}_identities": store.identities() for split, store in stores.items()}

    def judged(features: dict[str, np.ndarray]) -> dict[str, float]:
        report = evaluate_retrieval(features["query"], features["gallery"], **who)
        return {"mAP": report.mean_ap, "rank1": report.cmc[1]}

    found: dict[str, Any] = {"pytorch": judged(plain)}
    with tempfile.TemporaryDirectory() as near:
        for name, run in ways(given["checkpoint"], Path(near)):
            preprocess = beside(Path(near, "onnx")).preprocess
            seen = {split: np.stack([preprocess(one, **encoder[1]) for one in files[split]]) for split in SPLITS}
            features = {
                split: np.concatenate([run(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)])
                for split, rows in seen.items()
            }
            gap = max(float(np.abs(features[split] - plain[split]).max()) for split in SPLITS)
            found[name] = judged(features) | {"largest_difference": gap}
            print(name, found[name], file=sys.stderr)
    result = {
        "machine": machine(),
        "checkpoint": "/".join(Path(given["checkpoint"]).parts[-2:]),
        "encoder": encoder[0].options,
        "view": encoder[1],
        "images": {split: len(files[split]) for split in SPLITS},
        "ways": found,
        "equal_to_three_decimals": len({round(way["mAP"], 3) for way in found.values()}) == 1,
    }
    Path(given["out"]).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["ways"]))


if __name__ == "__main__":
    main()
