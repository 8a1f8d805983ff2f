"""export(config): a checkpoint as a folder that is used without gracl. Needs no Ray."""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray

import gracl
from gracl.checksums import sha256_of
from gracl.errors import ConfigError, ImageError, expected
from gracl.images import preprocess, storage
from gracl.images.layouts.files import IMAGE_SUFFIXES
from gracl.images.views import eval_view
from gracl.learning import exporting
from gracl.learning.encoder import Encoder
from gracl.learning.identity import model_digest
from gracl.locks import holding
from gracl.randomness import rng
from gracl.retrieval.card import model_card, usage
from gracl.runtime.checkpoints import load_any_state, load_model
from gracl.runtime.progress import say
from gracl.uses import ExportConfig

FACTS = "export.json"
SCHEMA = 1
_BATCH = 32


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes the model, `preprocess.py`, `README.md` (its card, and how to use it) and, last, `export.json`.

    The model is held against PyTorch before any of them is written.

    Returns:
        The folder, format, digest of the model, largest difference and seconds.

    Raises:
        ConfigError: a package that is missing, a folder that holds an export, no pictures where some were named.
        CheckpointError: missing, torn, of another schema.
        ImageError: a real picture that cannot be read.
        GraclError: features beyond the tolerance, or an encoder that cannot be exported.
    """
    started = time.perf_counter()
    exporting.require(config.format)
    out = storage.absolute(config.out)
    names = _pictures_in(config.pictures)[: config.real] if config.pictures else []
    with holding(out, f"the export in {out}"), tempfile.TemporaryDirectory() as near:
        if storage.exists(storage.join(out, FACTS)):
            raise ConfigError(expected("a new folder for the export", f"{out}, which holds one", "choose another out="))
        encoder, view = load_model(config.checkpoint)
        digest, model = model_digest(encoder, view), Path(near, exporting.FILES[config.format])
        told = {"gracl.model": digest, "gracl.height": str(view["height"]), "gracl.width": str(view["width"])}
        exporting.export(encoder, model, form=config.format, facts=told, opset=config.opset, **view)
        checked = _checked(config, encoder, view, model, names)
        state = load_any_state(config.checkpoint)
        card = model_card("/".join(Path(config.checkpoint).parts[-2:]), state.recipe, state.history)
        Path(near, "README.md").write_text(f"{card}\n{usage(config.format)}")
        Path(near, "preprocess.py").write_bytes(Path(preprocess.__file__).read_bytes())
        files = {file.name: sha256_of(file) for file in sorted(Path(near).iterdir())}
        for name in files:
            storage.write_bytes(storage.join(out, name), Path(near, name).read_bytes())
        facts = _facts(config, encoder, view) | {
            "model": digest,
            "checked": {what: asdict(found) for what, found in checked.items()} | {"tolerance": config.tolerance},
            "sha256": files,
        }
        storage.write_bytes(storage.join(out, FACTS), json.dumps(facts, indent=1).encode())
    largest = max(found.largest for found in checked.values())
    shown = sum(found.pictures for found in checked.values())
    say(f"{model.name} in {out}: at most {largest:.2g} from PyTorch in {shown} pictures")
    return {
        "out": out,
        "format": config.format,
        "model": digest,
        "largest_difference": largest,
        "seconds": round(time.perf_counter() - started, 2),
    }


def _checked(
    config: ExportConfig, encoder: Encoder, view: dict[str, int], model: Path, names: list[str]
) -> dict[str, exporting.Differences]:
    """How far the file is from PyTorch, which is refused where it is too far."""
    run = exporting.load_exported(model)
    shown = {"drawn": exporting.drawn(rng(0, "export"), config.drawn, **view)}
    if names:
        shown["real"] = _seen(names, view)
    checked = {what: exporting.differences(encoder, run, batches) for what, batches in shown.items()}
    for what, found in checked.items():
        exporting.refuse_beyond(config.tolerance, found, what)
    return checked


def _facts(config: ExportConfig, encoder: Encoder, view: dict[str, int]) -> dict[str, Any]:
    """What a program that uses the export has to know, and by what it was made."""
    onnx = config.format == "onnx"
    pictures, features = ["batch", view["height"], view["width"], 3], ["batch", encoder.feature_size]
    used = ("onnx", "onnxruntime", "onnxscript") if onnx else ()
    return {
        "schema": SCHEMA,
        "format": config.format,
        "file": exporting.FILES[config.format],
        "opset": config.opset if onnx else None,
        "view": {"height": view["height"], "width": view["width"]},
        "feature_size": encoder.feature_size,
        "input": {"name": exporting.PICTURES, "dtype": "uint8", "shape": pictures, "order": "red first"},
        "output": {"name": exporting.FEATURES, "dtype": "float32", "shape": features},
        "encoder": encoder.options,
        "made_by": {"gracl": gracl.__version__, "torch": torch.__version__} | {name: version(name) for name in used},
    }


def _pictures_in(folder: str) -> list[str]:
    """The URIs of the pictures that lie directly in a folder, by name."""
    place = storage.absolute(folder)
    names = [name for name in storage.names_in(place) if name.lower().endswith(IMAGE_SUFFIXES)]
    if not names:
        what = f"a folder with pictures ({', '.join(IMAGE_SUFFIXES)})"
        raise ConfigError(expected(what, f"{folder}, in which there are none", "name another one for pictures="))
    return [storage.join(place, name) for name in names]


def _seen(names: list[str], view: dict[str, int]) -> Iterator[UInt8[ndarray, "_ _ _ 3"]]:
    for start in range(0, len(names), _BATCH):
        yield np.stack([_eval_view(name, view) for name in names[start : start + _BATCH]])


def _eval_view(name: str, view: dict[str, int]) -> UInt8[ndarray, "height width 3"]:
    try:
        content = storage.read_plain(name, at_most=preprocess.MAX_FILE_BYTES)
        return eval_view(content, height=view["height"], width=view["width"])
    except (OSError, ImageError) as error:
        raise ImageError(
            expected(f"a picture at {name}", str(error), "mend it or leave it out of pictures=")
        ) from error
