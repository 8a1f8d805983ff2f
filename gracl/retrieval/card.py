"""What stands beside a model for those who did not train it."""

from collections.abc import Mapping, Sequence
from typing import Literal

FIGURES = ("val/mAP", "val/mINP", "val/rank1", "val/rank5", "val/rank10", "val/rank20")
SAID = """\
## What it is for, and what not

To find pictures of the same object again among pictures like those that it was trained on. A similarity is not a proof
of identity: the figures above say how often the first answer is wrong, on the data above alone; on other cameras,
seasons or kinds of objects it is likely worse, and nothing was measured there.

- Nobody should be accused, refused or followed because of it, and nobody watched in secret. What it finds is for a
  person to look at, who may decide otherwise.
- Pictures of people are personal data, and features that tell people apart may be biometric data. For these many laws
  ask for consent or another stated reason, and they forbid some uses altogether (see the GDPR, Illinois' BIPA and the
  EU's AI Act). Whoever uses the model answers for that, and for the right to have trained it on its data.
- Features are to be kept as safe as the pictures, and deleted with them.

More, with the laws by name, is in `docs/responsible_use.md` of gracl. It is not legal advice.

## Limits

- Learnt from clusters: what the training took for one object may be several, and its faults are those of the clusters.
- Fairness over groups of people was not measured.
- Figures are of the last epoch; those of the best epoch would be chosen on the data that they are reported on.
"""
CARD = """\
# {name}

An encoder made by gracl: a picture of one object in, a feature of length 1 out; two pictures of the same object have a
high inner product.

## Figures

{figures}

## How it was made

Trained without labels (pseudo labels by clustering, contrast with proxies of the clusters) for {epochs} epochs, on the
train split of digest `{train}`.{begun}{cameras} All settings of the recipe:

{settings}

{said}
"""

USE = {
    "onnx": """\
import json, pathlib, numpy, onnxruntime
from preprocess import preprocess  # the file beside this one; needs numpy and pillow

view = json.loads(pathlib.Path("export.json").read_text())["view"]  # height and width
session = onnxruntime.InferenceSession("exported.onnx")
pictures = numpy.stack([preprocess(pathlib.Path(file).read_bytes(), **view) for file in files])
(features,) = session.run(["features"], {"pictures": pictures})
""",
    "torch_export": """\
import json, pathlib, numpy, torch
from preprocess import preprocess  # the file beside this one; needs numpy and pillow

view = json.loads(pathlib.Path("export.json").read_text())["view"]  # height and width
encoder = torch.export.load("exported.pt2").module()
pictures = numpy.stack([preprocess(pathlib.Path(file).read_bytes(), **view) for file in files])
features = encoder(torch.from_numpy(pictures)).detach().numpy()
""",
}
USAGE = """\
## How to use it

In this folder, with the names of picture files in `files`:

```python
{code}```

`features` is float32, one row of length 1 for each picture; `features @ features.T` says how like they are, from -1 to
1. Pictures go in as bytes (uint8, red first) in batches of any size: normalising is a part of the model. How far the
features are from those of PyTorch was measured before this was written, and is in `export.json`, with the digest that
names the model: features of models of different digests cannot be compared.
"""


def usage(form: Literal["onnx", "torch_export"]) -> str:
    """How an exported model is used, as Markdown that goes on a card."""
    return USAGE.format(code=USE[form])


def model_card(name: str, recipe: Mapping[str, object], history: Sequence[Mapping[str, float]]) -> str:
    """The card as Markdown.

    Args:
        name: of the checkpoint.
        recipe: the settings by which it was made.
        history: the figures of every epoch; the last one's retrieval is reported, if it was judged.
    """
    last = history[-1] if history else {}
    judged = [f"| {figure.removeprefix('val/')} | {last[figure]:.1%} |" for figure in FIGURES if figure in last]
    digests = ", ".join(f"{role} `{recipe.get(f'data.{role}_digest', 'unknown')}`" for role in ("query", "gallery"))
    figures = "\n".join(
        ["| figure | value |", "| --- | --- |", *judged, "", f"On {digests}, single query, no re-ranking."]
    )
    readers = {
        "camera_balanced": "sampler",
        "relations.camera_aware": "distances",
        "relations.camera_proxies": "loss",
    }
    used = [words for setting, words in readers.items() if recipe.get(setting)]
    used += ["features"] if recipe.get("relations.centre") == "camera" else []
    start = recipe.get("start")
    begun = f" It went on from `{start}`, a checkpoint of another run, whose settings may have been others."
    return CARD.format(
        name=name,
        figures=figures if judged else "It was not judged.",
        epochs=f"{len(history)}",
        begun=begun if start else "",
        train=recipe.get("data.train_digest", "unknown"),
        cameras=_cameras(", ".join(used), recipe.get("cameras_from") == "surroundings"),
        said=SAID.rstrip(),
        settings="\n".join(
            ["| setting | value |", "| --- | --- |", *(f"| {key} | {recipe[key]} |" for key in sorted(recipe))]
        ),
    )


def _cameras(used: str, surroundings: bool) -> str:
    """The card's sentence on who read cameras."""
    if surroundings:
        return f" No camera ids were read: groups of images with like surroundings stood for cameras in: {used}."
    return f" Camera ids of that split were read by: {used}." if used else " No camera ids were read."


def card_sections() -> dict[str, str]:
    """What every card says, whatever the model: title and text of its sections, in paragraphs and lists."""
    sections = SAID.removeprefix("## ").split("\n## ")
    return {title: text.strip() for title, _, text in (section.partition("\n") for section in sections)}
