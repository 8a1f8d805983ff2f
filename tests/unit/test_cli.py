import json
import sys

import pytest

from gracl.cli import describe, door, load_config
from gracl.config import IngestConfig, TrainConfig
from gracl.errors import ConfigError, ShardError


def test_what_comes_later_wins(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("data: {root: x, height: 64}\nepochs: 3\n")
    second.write_text("data: {width: 32}\nepochs: 4\n")
    config = load_config(
        TrainConfig, [str(first), str(second), "epochs=5", "optim.rate=1e-3", "data.query=", "data.gallery="]
    )
    assert (config.data.root, config.data.height, config.data.width) == ("x", 64, 32)
    assert config.epochs == 5
    assert config.optim.rate == 0.001


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.root=x", "loss.inter_temprature=1"], "did you mean loss.inter_temperature?"),
        (["data.root=x", "epochs=0"], "epochs: .*greater than or equal to 1; came 0"),
        (["epochs=2"], "data: needed, but not given"),
        (["nowhere.yaml"], "nowhere.yaml, which is not there"),
        (["--verbose"], "a preset.yaml or section.key=value"),
        (["data.root=x", "loss.momentum=.nan"], "loss.momentum"),
    ],
)
def test_refusals_name_the_setting_and_the_way_out(arguments, message):
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, arguments)


def test_all_faults_come_in_one_message():
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, ["data.root=x", "epochs=0", "nonsense=1"])
    assert "epochs" in str(caught.value)
    assert "nonsense: no such setting" in str(caught.value)


def test_a_preset_that_is_no_mapping_is_refused(tmp_path):
    preset = tmp_path / "list.yaml"
    preset.write_text("- 1\n")
    with pytest.raises(ConfigError, match="a mapping of sections"):
        load_config(TrainConfig, [str(preset)])


def test_the_help_names_every_setting_with_type_bounds_and_default():
    text = describe(IngestConfig, "door")
    assert "error|skip" in text
    assert "shard_mb" in text
    assert ">= 1" in text
    assert 'default "error"' in text


def _works(config):
    return {"epochs": config.epochs}


def _refuses(config):
    raise ShardError("expected shards; came none; ingest first")


def test_a_door_prints_one_json_line_last(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["door", "data.root=x", "epochs=2"])
    door(TrainConfig, f"{__name__}:_works", "doc")
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"epochs": 2}


def test_a_refusal_is_one_message_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["door", "data.root=x"])
    with pytest.raises(SystemExit) as caught:
        door(TrainConfig, f"{__name__}:_refuses", "doc")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "ShardError: expected shards; came none; ingest first\n"


def test_print_shows_the_resolved_config(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["door", "--print", "data.root=x", "loss.momentum=0.2"])
    door(TrainConfig, "nowhere:nothing", "doc")
    assert "momentum: 0.2" in capsys.readouterr().out
