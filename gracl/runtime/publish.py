"""publish(config): a checkpoint as an MLflow model, registered, and the champion where it beats the present one."""

import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

import gracl
from gracl.errors import ConfigError, expected
from gracl.images import storage
from gracl.learning.checkpoint import TrainState, save_state
from gracl.learning.served import Served
from gracl.randomness import rng
from gracl.retrieval.card import model_card
from gracl.runtime.checkpoints import load_run_state
from gracl.runtime.progress import say
from gracl.runtime.runs import origin
from gracl.runtime.tracking import without_password
from gracl.uses import PublishConfig

# What the encoder imports; the code of gracl itself travels with the model.
NEEDED = ("torch", "numpy", "jaxtyping", "scipy", "numba", "psutil")
CHAMPION = "champion"


def publish(config: PublishConfig) -> dict[str, Any]:
    """Writes the model and its card into the run of the training, registers it, and moves the alias where it is due.

    Returns:
        Name, version, URI and MLflow run; mAP (None where it was not judged), whether it is the champion now, and why.

    Raises:
        ConfigError: a checkpoint of no run, or no MLflow to register with.
        CheckpointError: missing, torn, of another schema.
    """
    started = time.perf_counter()
    found = origin(config.checkpoint)
    if found is None:
        what = "a checkpoint in the folder of its run"
        raise ConfigError(expected(what, config.checkpoint, "name one as runs/NAME/epoch-XXXX of a training"))
    uri = config.tracking_uri or found.tracking_uri
    if uri is None:
        raise ConfigError(expected("tracking_uri", "none, and the run does not say it", "name the run's MLflow"))
    without_password(uri)
    state, run_id = load_run_state(storage.absolute(config.checkpoint)), found.mlflow_run_id
    client, artifact = MlflowClient(uri), f"model-{found.epoch}"
    with tempfile.TemporaryDirectory() as near:
        path = Path(near, "model")
        save_model(state, path)
        (path / "README.md").write_text(model_card(f"{found.run}/{found.epoch}", state.recipe, state.history))
        client.log_artifacts(run_id, str(path), artifact)
    source = f"{client.get_run(run_id).info.artifact_uri}/{artifact}"
    if not client.search_registered_models(f"name = '{config.model}'"):
        client.create_registered_model(config.model)
    judged = state.history[-1].get("val/mAP") if state.history else None
    tags = {"gracl.mAP": "" if judged is None else repr(judged), "gracl.judged_on": judged_on(state)}
    made = client.create_model_version(config.model, source, run_id, tags=tags)
    champion, why = crowned(client, config.model, judged, judged_on(state))
    if champion:
        client.set_registered_model_alias(config.model, CHAMPION, made.version)
    say(f"model {config.model}, version {made.version}: {why}")
    return {
        "model": config.model,
        "version": int(made.version),
        "uri": f"models:/{config.model}/{made.version}",
        "mlflow_run_id": run_id,
        "tracking_uri": uri,
        "mAP": judged,
        "champion": champion,
        "why": why,
        "seconds": round(time.perf_counter() - started, 2),
    }


def save_model(state: TrainState, path: Path) -> None:
    """The model as MLflow keeps it: weights without the optimizer's, gracl's code, signature, an example, packages."""
    height, width = state.view["height"], state.view["width"]
    # Two pictures, so that nobody takes one for all that a batch can have.
    example = rng(0, "example").integers(0, 256, (2, height, width, 3), np.uint8)
    with tempfile.TemporaryDirectory() as weights:
        save_state(replace(state, optimizer={}, assignment=None), weights)
        dim = Served(weights).predict(example).shape[1]
        mlflow.pyfunc.save_model(
            path,
            loader_module="gracl.learning.served",
            data_path=weights,
            code_paths=[str(Path(gracl.__file__).parent)],
            signature=ModelSignature(
                Schema([TensorSpec(np.dtype(np.uint8), (-1, height, width, 3))]),
                Schema([TensorSpec(np.dtype(np.float32), (-1, dim))]),
            ),
            input_example=example,
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in NEEDED],
        )


def judged_on(state: TrainState) -> str:
    """What the figures of two versions have to have in common to be compared: query and gallery."""
    return ",".join(str(state.recipe.get(f"data.{role}_digest", "")) for role in ("query", "gallery"))


def crowned(client: MlflowClient, model: str, judged: float | None, data: str) -> tuple[bool, str]:
    """Whether a version with this mAP is to be the champion, and why."""
    if judged is None:
        return False, "not judged, so never the champion by itself"
    models = client.search_registered_models(f"name = '{model}'")
    if not models or CHAMPION not in models[0].aliases:
        return True, "the champion, being the first that was judged"
    present = client.get_model_version_by_alias(model, CHAMPION)
    if present.tags.get("gracl.judged_on") != data:
        return False, f"version {present.version} stays the champion: it was judged on other images"
    theirs = float(present.tags["gracl.mAP"])
    if judged > theirs:
        return True, f"the champion: mAP {judged:.1%} after version {present.version} with {theirs:.1%}"
    return False, f"version {present.version} stays the champion: mAP {theirs:.1%}, here {judged:.1%}"
