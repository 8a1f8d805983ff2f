"""The doors as a person meets them: programs with arguments, exit codes, stderr and one JSON line."""

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from gracl.cli import fields, load_config
from gracl.config import IngestConfig, SynthesizeConfig, TrainConfig
from gracl.experiments import CompareConfig
from gracl.images.shards import ShardStore
from gracl.runtime.grid import grid
from gracl.uses import (
    CalibrateConfig,
    EvaluateConfig,
    ExportConfig,
    ExtractConfig,
    GroupConfig,
    IndexConfig,
    SearchConfig,
    ServeConfig,
)

ROOT = Path(__file__).parents[2]
DOORS = {
    "calibrate": CalibrateConfig,
    "compare": CompareConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "extract": ExtractConfig,
    "index": IndexConfig,
    "group": GroupConfig,
    "ingest": IngestConfig,
    "search": SearchConfig,
    "serve": ServeConfig,
    "synthesize": SynthesizeConfig,
    "train": TrainConfig,
}
# What a door cannot do without; the values need not exist for --print.
NEEDED = {
    "calibrate": ["checkpoint=c", "data.root=d"],
    "compare": ["presets.plain=[]", "data.world=data.root=d", "out=o"],
    "evaluate": ["checkpoint=c", "data.root=d"],
    "export": ["checkpoint=c", "out=o"],
    "extract": ["checkpoint=c", "data.root=d", "out=o"],
    "index": ["embeddings=e", "out=o"],
    "group": ["embeddings=t", "out=o"],
    "ingest": ["raw=r", "out=o", "layout=market1501"],
    "search": ["index=i", "queries=q"],
    "serve": ["index=i"],
    "synthesize": ["out=o"],
    "train": ["data.root=d"],
}
REFUSED = {
    ("calibrate", "data.splt=train"): "data.splt: no such setting; did you mean data.split?",
    ("calibrate", "batch=0"): "batch: Input should be greater than or equal to 1; came 0",
    ("compare", "seed=[1]"): "seed: no such setting; did you mean seeds?",
    ("compare", "baseline=other"): "expected a baseline of the arms plain; came 'other'",
    ("compare", "nowhere.yaml"): "nowhere.yaml, which is not there",
    ("evaluate", "bach=2"): "bach: no such setting; did you mean batch?",
    ("evaluate", "scale.workers=0"): "scale.workers: Input should be greater than or equal to 1; came 0",
    ("evaluate", "nowhere.yaml"): "nowhere.yaml, which is not there",
    ("export", "opst=19"): "opst: no such setting; did you mean opset?",
    ("export", "format=coreml"): "format: Input should be 'onnx' or 'torch_export'; came 'coreml'",
    ("export", "nowhere.yaml"): "nowhere.yaml, which is not there",
    ("extract", "splitt=query"): "splitt: no such setting; did you mean split?",
    ("extract", "precision=float8"): "precision: Input should be 'auto', 'float32' or 'bfloat16'; came 'float8'",
    ("extract", "nowhere.yaml"): "nowhere.yaml, which is not there",
    ("index", "kid=flat"): "kid: no such setting; did you mean kind?",
    ("index", "kind=lsh"): "kind: Input should be 'auto', 'flat', 'hnsw' or 'ivf_pq'; came 'lsh'",
    ("serve", "ports=80"): "ports: no such setting; did you mean port?",
    ("serve", "port=70000"): "port: Input should be less than or equal to 65535; came 70000",
    ("serve", "nowhere.yaml"): "nowhere.yaml, which is not there",
    ("search", "camera=[a]"): "camera: no such setting; did you mean cameras?",
    ("search", "false_match_rate=1"): "false_match_rate: Input should be less than 1; came 1",
    ("group", "relations.esp=0.5"): "relations.esp: no such setting; did you mean relations.eps?",
    ("group", "tracks=all"): "tracks: Input should be 'use' or 'ignore'; came 'all'",
    ("group", "nowhere.yaml"): "nowhere.yaml, which is not there",
    ("ingest", "on_bad_imag=skip"): "on_bad_imag: no such setting; did you mean on_bad_image?",
    ("ingest", "shard_mb=0"): "shard_mb: Input should be greater than or equal to 1; came 0",
    ("ingest", "nowhere.yaml"): "nowhere.yaml, which is not there",
    ("synthesize", "shot=3"): "shot: no such setting; did you mean shots?",
    ("synthesize", "cameras=1"): "cameras: Input should be greater than or equal to 2; came 1",
    ("synthesize", "nowhere.yaml"): "nowhere.yaml, which is not there",
    ("train", "loss.inter_temprature=1"): "did you mean loss.inter_temperature?",
    ("train", "optim.rate=0"): "optim.rate: Input should be greater than 0; came 0",
    ("train", "nowhere.yaml"): "nowhere.yaml, which is not there",
}
SECONDS_WITHOUT_RAY = 30  # of which five on an idle machine; that Ray was not begun is seen from its folder


@dataclass(frozen=True)
class Answer:
    """What a door did; `ray` says whether it began a cluster."""

    code: int
    out: str
    err: str
    seconds: float
    ray: bool


def program(door: str) -> str:
    return f"{'deploy' if door == 'serve' else 'pipelines'}/{door}.py"


def call(door: str, *arguments: str, home: Path) -> Answer:
    """Runs a door in a process with a home and a folder for Ray of its own."""
    home.mkdir(parents=True, exist_ok=True)
    apart = {"HOME": str(home), "RAY_TMPDIR": str(home / "ray"), "OMP_NUM_THREADS": "1"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, program(door), *arguments],
        cwd=ROOT,
        env=inherited | apart,
        capture_output=True,
        text=True,
        timeout=120,
    )
    seconds = time.monotonic() - started
    return Answer(done.returncode, done.stdout, done.stderr, seconds, (home / "ray").exists())


def assert_refused(answer: Answer, kind: str, message: str) -> None:
    assert answer.code == 2, answer.err
    assert f"{kind}: " in answer.err
    assert message in answer.err.partition(f"{kind}: ")[2]
    assert answer.err.count("Error: ") == 1
    assert "Traceback" not in answer.err
    assert answer.out == ""
    assert not answer.ray
    assert answer.seconds < SECONDS_WITHOUT_RAY


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(scope="module")
def answers(homes):
    """All the quick calls, two at a time: most of each is Python starting."""
    calls = [(door, "--help") for door in DOORS] + [(door, "--print", *NEEDED[door]) for door in DOORS]
    calls += [(door, *NEEDED[door], wrong) for door, wrong in REFUSED]
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda place: call(*calls[place], home=homes / str(place)), range(len(calls)))
        return dict(zip(calls, done, strict=True))


@pytest.mark.parametrize("door", DOORS)
def test_help_names_every_setting(answers, door):
    answer = answers[door, "--help"]
    assert (answer.code, answer.err) == (0, "")
    lines = [line.split() for line in answer.out.splitlines()]
    named = {words[0] for words in lines if words}
    assert {name for name, _, _ in fields(DOORS[door])} <= named
    assert f"python {program(door)} " in answer.out
    assert not answer.ray


@pytest.mark.parametrize("door", DOORS)
def test_print_shows_the_config_that_would_run_and_runs_nothing(answers, door):
    answer = answers[door, "--print", *NEEDED[door]]
    assert (answer.code, answer.err) == (0, "")
    assert DOORS[door].model_validate(yaml.safe_load(answer.out)) == load_config(DOORS[door], NEEDED[door])
    assert not answer.ray


@pytest.mark.parametrize(("door", "wrong"), REFUSED)
def test_a_wrong_argument_is_one_message_and_exit_code_2(answers, door, wrong):
    assert_refused(answers[door, *NEEDED[door], wrong], "ConfigError", REFUSED[door, wrong])


@pytest.mark.parametrize(
    ("door", "kind", "message"),
    [
        ("evaluate", "ConfigError", "a split named 'query' in"),
        ("export", "CheckpointError", "no such file"),
        ("extract", "ConfigError", "a split named 'gallery' in"),
        ("calibrate", "ConfigError", "a split named 'train' in"),
        ("group", "ShardError", "an embedding table in"),
        ("index", "ShardError", "an embedding table in"),
        ("search", "StoredIndexError", "an index in"),
        ("ingest", "LayoutError", "nowhere"),
        ("train", "ConfigError", "a split named 'train' in"),
    ],
)
def test_data_that_are_not_there_are_refused_before_ray_starts(homes, door, kind, message):
    nowhere = homes / "nowhere"
    given = {"checkpoint": nowhere, "data.root": nowhere, "raw": nowhere, "embeddings": nowhere, "layout": "market1501"}
    given |= {"out": homes / "out", "index": nowhere, "queries": nowhere}
    known = {name for name, _, _ in fields(DOORS[door])}
    arguments = [f"{name}={value}" for name, value in given.items() if name in known]
    assert_refused(call(door, *arguments, home=homes / f"nowhere-{door}"), kind, message)


@pytest.mark.ray
@pytest.mark.slow
def test_synthesize_and_ingest_end_with_one_json_line(homes):
    world, shards = homes / "world", homes / "shards"
    size = ["train_objects=3", "test_objects=2", "cameras=2", "shots=2", "height=16", "width=8"]
    drawn = call("synthesize", f"out={world}", *size, home=homes / "synthesize")
    assert drawn.code == 0, drawn.err
    (line,) = drawn.out.splitlines()
    pictures = json.loads(line)["pictures"]
    assert pictures["bounding_box_train"] == len(list((world / "bounding_box_train").iterdir())) > 0
    assert not drawn.ray

    again = call("synthesize", f"out={world}", *size, home=homes / "synthesize")
    assert_refused(again, "ConfigError", "an empty or new folder")

    with tempfile.TemporaryDirectory(prefix="gr-", ignore_cleanup_errors=True) as home:  # short: sockets lie in it
        packed = call("ingest", "layout=market1501", f"raw={world}", f"out={shards}", home=Path(home))
    assert packed.code == 0, packed.err
    splits = json.loads(packed.out.splitlines()[-1])["splits"]
    assert splits["train"]["images"] == pictures["bounding_box_train"] == len(ShardStore.open(str(shards), "train"))
    assert packed.ray, "the ingest is meant to have run on Ray, in the folder that these tests look at"


@pytest.mark.parametrize("preset", sorted((ROOT / "pipelines" / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_a_config_of_its_door(preset):
    schema, needed = (SynthesizeConfig, ["out=o"]) if "world" in preset.stem else (TrainConfig, ["data.root=d"])
    config = load_config(schema, [str(preset), *needed])
    assert config != load_config(schema, needed), "a preset that sets nothing"


@pytest.mark.parametrize(
    "name", sorted((ROOT / "pipelines" / "comparisons").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_comparison_is_a_config_whose_runs_are_configs(name, monkeypatch):
    monkeypatch.chdir(ROOT)  # presets are named from there
    config = load_config(CompareConfig, [str(name)])
    assert len(grid(config)) == len(config.presets) * len(config.data) * len(config.seeds) > 1


def test_a_run_of_a_comparison_whose_data_are_not_there_is_refused_before_ray_starts(homes):
    arguments = ["presets.plain=[]", f"data.world=data.root={homes / 'nowhere'}", f"out={homes / 'compared'}"]
    answer = call("compare", *arguments, home=homes / "nowhere-compare")
    assert_refused(answer, "ConfigError", "a split named 'train' in")
    assert not (homes / "compared").exists()
