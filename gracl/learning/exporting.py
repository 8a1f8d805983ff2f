"""An encoder as one file that runs without gracl: ONNX, or a program of torch.export; held against PyTorch.

Both take pictures as bytes, uint8 [batch, height, width, 3], red first, of any batch, and give float32 rows of length
1: normalising is inside, so that nobody can forget it.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.export
from jaxtyping import Float32, UInt8
from numpy import ndarray
from torch import Tensor, nn

from gracl.errors import ConfigError, GraclError, expected
from gracl.learning.encoder import Encoder
from gracl.learning.pixels import normalise

Format = Literal["onnx", "torch_export"]
FILES: dict[Format, str] = {"onnx": "exported.onnx", "torch_export": "exported.pt2"}
PICTURES, FEATURES = "pictures", "features"
OPSET = 18
FACTS = "gracl.json"
_NEEDED = ("onnx", "onnxruntime", "onnxscript")

Run = Callable[[UInt8[ndarray, "_ _ _ 3"]], Float32[ndarray, "_ _"]]


class PixelEncoder(nn.Module):
    """An encoder that takes pictures as bytes. The encoder is put into evaluation mode."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.eval()

    def forward(self, pictures: UInt8[Tensor, "batch height width 3"]) -> Float32[Tensor, "batch dim"]:
        """Pictures, red first, to rows of length 1."""
        features: Tensor = self.encoder(normalise(pictures))
        return features


@dataclass(frozen=True)
class Differences:
    """How far an exported model is from PyTorch, over all pictures that were shown to both.

    Attributes:
        pictures: how many these were.
        largest: the largest difference of any number of any feature; NaN where one is no number.
        smallest_cosine: the smallest inner product of a picture's two features; 1 where they are the same.
    """

    pictures: int
    largest: float
    smallest_cosine: float


def require(form: Format) -> None:
    """Refuses a format whose packages are not there, before any work.

    Raises:
        ConfigError: with what to install.
    """
    lacking = [name for name in _NEEDED if form == "onnx" and find_spec(name) is None]
    if lacking:
        raise ConfigError(
            expected(
                f"{', '.join(_NEEDED)} for format=onnx",
                f"no package {', '.join(lacking)}",
                "pip install 'gracl[export]', or take format=torch_export",
            )
        )


def export(
    encoder: Encoder,
    path: Path,
    *,
    form: Format,
    height: int,
    width: int,
    facts: Mapping[str, str],
    opset: int = OPSET,
) -> None:
    """Writes the file, on the CPU, with a batch of any size.

    Args:
        encoder: on the CPU; put into evaluation mode.
        path: of the file, in a folder that exists. Weights of more than about 2 GB of ONNX lie in `path`.data beside.
        form: "onnx" or "torch_export".
        height: rows of the pictures.
        width: columns of the pictures.
        facts: put into the file, so that it can say what it is: metadata of ONNX, `gracl.json` of torch.export.
        opset: of ONNX.

    Raises:
        GraclError: no such file can be made of this encoder, or not of that opset.
    """
    # Two pictures: of one, torch would take it for a constant.
    module, example = PixelEncoder(encoder), (torch.zeros((2, height, width, 3), dtype=torch.uint8),)
    any_batch = ({0: torch.export.Dim("batch")},)
    with torch.no_grad(), _without_chatter():
        try:
            if form == "torch_export":
                program = torch.export.export(module, example, dynamic_shapes=any_batch)
                torch.export.save(program, path, extra_files={FACTS: json.dumps(dict(facts))})
                return
            made: Any = torch.onnx.export(
                module,
                example,
                dynamo=True,
                dynamic_shapes=any_batch,
                input_names=[PICTURES],
                output_names=[FEATURES],
                opset_version=opset,
                verbose=False,
            )
        except Exception as error:  # the exporters of torch fail in many ways, each with pages of advice on their code
            came = f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"
            what = f"an encoder that torch can write as {form}"
            raise GraclError(expected(what, came, "try the other format, or report the backbone")) from error
    given = made.model.opset_imports.get("")
    if given != opset:
        raise GraclError(expected(f"an ONNX file of opset {opset}", f"one of {given}", f"ask for opset={OPSET}"))
    made.model.metadata_props.update(facts)
    made.save(path)


def load_exported(path: Path) -> Run:
    """The exported model as a function, on the CPU: by onnxruntime, or by torch.

    Args:
        path: what `export` wrote.
    """
    if path.name != FILES["onnx"]:
        module = torch.export.load(path).module()

        def by_torch(pictures: ndarray) -> ndarray:
            with torch.inference_mode():
                return np.asarray(module(torch.from_numpy(pictures)).numpy())

        return by_torch
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda pictures: np.asarray(session.run([FEATURES], {PICTURES: pictures})[0])


def differences(encoder: Encoder, run: Run, batches: Iterable[UInt8[ndarray, "_ _ _ 3"]]) -> Differences:
    """Shows the same pictures to PyTorch and to the exported model.

    Args:
        encoder: on the CPU.
        run: the exported model.
        batches: pictures; batches of different sizes show that any size is taken.

    Raises:
        GraclError: features of another shape or dtype than PyTorch's; no pictures.
    """
    plain, count, gaps, cosines = PixelEncoder(encoder), 0, [], []
    for pictures in batches:
        with torch.inference_mode():
            wanted = plain(torch.from_numpy(pictures)).numpy()
        found = run(pictures)
        if (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
            came = f"{found.dtype} {list(found.shape)}"
            raise GraclError(
                expected(f"features as {wanted.dtype} {list(wanted.shape)}", came, "do not use this export")
            )
        count += len(pictures)
        gaps.append(np.abs(found - wanted).max())
        cosines.append((found.astype(np.float64) * wanted).sum(1).min())
    if not count:
        raise GraclError(expected("pictures to compare", "none", "give at least one"))
    return Differences(count, float(np.max(gaps)), float(np.min(cosines)))  # both keep a NaN


def refuse_beyond(tolerance: float, found: Differences, what: str) -> None:
    """Refuses an export that is not PyTorch's model.

    Raises:
        GraclError: a difference that is larger than the tolerance, or no number.
    """
    if not found.largest <= tolerance:
        raise GraclError(
            expected(
                f"features within tolerance={tolerance} of PyTorch's",
                f"a difference of {found.largest:.3g} in {found.pictures} {what} pictures",
                "try the other format or another opset; nothing was written",
            )
        )


def drawn(dice: np.random.Generator, count: int, *, height: int, width: int) -> Iterator[UInt8[ndarray, "_ _ _ 3"]]:
    """Pictures of which every pixel is drawn by itself, in batches of one, of two, and of at most 32."""
    sizes = [1, 2]
    while count > 0:
        rows = min(sizes.pop(0) if sizes else 32, count)
        yield dice.integers(0, 256, (rows, height, width, 3), np.uint8)
        count -= rows


@contextmanager
def _without_chatter() -> Iterator[None]:
    """What the exporters say of packages that we do not use, and Python of theirs, tells the user nothing."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        log.setLevel(before)
