"""The manners of every door: `[preset.yaml] [section.key=value ...]`, `--help`, `--print`.

A door that refuses says so in one message on stderr and ends with exit code 2, before Ray starts. Its result is one
JSON line, the last line of stdout.
"""

import copy
import difflib
import importlib
import json
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from gracl.errors import ConfigError, GraclError, expected

EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
MAX_VALUES = 100_000
Config = TypeVar("Config", bound=BaseModel)


def load_config(schema: type[Config], arguments: Sequence[str]) -> Config:
    """A typed config from preset files and dotted overrides; what comes later wins.

    Args:
        schema: the pydantic model to fill.
        arguments: names of YAML files, and `section.key=value` with the value in YAML notation.

    Raises:
        ConfigError: a file that is missing or no mapping, an argument of another form, an unknown key, a value out of
            bounds; all faults of a config in one message.
    """
    return checked_config(schema, merged(arguments))


def merged(arguments: Sequence[str]) -> dict[str, Any]:
    """The settings that arguments give, not looked at yet: nested by section; what comes later wins.

    Raises:
        ConfigError: a file that is missing or no mapping, an argument of another form.
    """
    values: dict[str, Any] = {}
    for argument in arguments:
        if "=" in argument and not argument.endswith((".yaml", ".yml")):
            _override(values, argument)
        elif argument.endswith((".yaml", ".yml")):
            _merge(values, _read(argument))
        else:
            raise ConfigError(
                expected("a preset.yaml or section.key=value", repr(argument), "see --help for the settings")
            )
    return values


def checked_config(schema: type[Config], values: Mapping[str, Any]) -> Config:
    """The config of nested settings.

    Raises:
        ConfigError: an unknown key, a value out of bounds; all faults in one message.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(schema, error)) from None


def _read(name: str) -> dict[str, Any]:
    file = Path(name)
    if not file.is_file():
        known = ", ".join(sorted(str(preset) for preset in Path("pipelines/presets").rglob("*.yaml"))) or "none here"
        raise ConfigError(expected("a preset file", f"{name}, which is not there", f"presets: {known}"))
    try:
        values = read_yaml(file.read_text()) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(expected("YAML", f"{name}: {error}", "mend the file")) from None
    if not isinstance(values, dict):
        raise ConfigError(expected("a mapping of sections", f"a {type(values).__name__} in {name}", "mend the file"))
    return values


def read_yaml(text: str) -> Any:
    """The plain values of a YAML text. Nothing but plain values can be made, and not very many.

    Raises:
        yaml.YAMLError: not YAML, or nested too deeply.
        ValueError: a number or day that Python does not know.
        ConfigError: aliases that stand for more than `MAX_VALUES` values, or for themselves. A few lines could stand
            for more than memory holds, which would be noticed only where they are written out, in an error's text.
    """
    try:
        values = yaml.safe_load(text)
        count = _count(values, {})
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    if count > MAX_VALUES:
        raise ConfigError(
            expected(f"at most {MAX_VALUES} values in YAML", f"{count:.0f}", "write them without aliases")
        )
    return values


def _count(value: Any, known: dict[int, float]) -> float:
    """How many values there are with all aliases written out; infinite where one contains itself."""
    if not isinstance(value, dict | list | set | tuple):
        return 1.0
    if id(value) not in known:
        known[id(value)] = math.inf  # as long as it is open: who meets it again is inside it
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1.0 + sum(_count(part, known) for part in inner)
    return known[id(value)]


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def with_values(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with others, by dotted name, in their place; neither is changed."""
    made: dict[str, Any] = {}
    _merge(made, copy.deepcopy(dict(values)))
    for name, value in changes.items():
        _merge(made, _nested(name, value))
    return made


def _nested(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    nested: dict[str, Any] = value
    return nested


def _override(values: dict[str, Any], argument: str) -> None:
    path, _, text = argument.partition("=")
    try:
        value: Any = read_yaml(text) if text else ""
    except (yaml.YAMLError, ValueError):  # a word after all: no such number, no such day
        value = text
    if EXPONENT.fullmatch(text):  # YAML 1.1 takes 1e-3 for a word
        value = float(text)
    _merge(values, _nested(path, value))


def _explain(schema: type[BaseModel], error: ValidationError) -> str:
    faults = []
    for fault in error.errors():
        name = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            faults.append(f"{name}: no such setting{_nearest(schema, name)}")
        elif fault["type"] == "missing":
            faults.append(f"{name}: needed, but not given")
        elif fault["type"] == "value_error":
            faults.append((f"{name}: " if name else "") + fault["msg"].removeprefix("Value error, "))
        else:
            faults.append(f"{name}: {fault['msg']}; came {fault['input']!r}")
    return "\n".join(faults) + "\nsee --help for every setting and its bounds"


def _nearest(schema: type[BaseModel], name: str) -> str:
    close = difflib.get_close_matches(name, [field for field, _, _ in fields(schema)], n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def fields(schema: type[BaseModel], prefix: str = "") -> list[tuple[str, Any, str]]:
    """Every setting of a schema: dotted name, the pydantic field, its type in words."""
    found: list[tuple[str, Any, str]] = []
    for name, field in schema.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found += fields(annotation, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", field, _words(annotation)))
    return found


def _words(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    parts = [_words(part) for part in typing.get_args(annotation) if part is not ...]
    if origin is typing.Annotated:
        return parts[0]
    if origin is typing.Literal:
        return "|".join(str(value) for value in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return "|".join("none" if part == "NoneType" else part for part in parts)
    if origin is dict:
        return f"{{{parts[0]}: {parts[1]}}}"
    if origin is tuple:
        return f"[{', '.join(parts)}]"
    return getattr(annotation, "__name__", str(annotation))


def describe(schema: type[BaseModel], door: str) -> str:
    """The help text of a door: each setting, its type, default, bounds and meaning."""
    lines = [f"usage: {door} [preset.yaml ...] [section.key=value ...] [--help] [--print]", "", "settings:"]
    for name, field, words in fields(schema):
        bounds = [_bound(bound) for bound in field.metadata]
        default = "needed" if field.is_required() else f"default {json.dumps(field.default)}"
        facts = "; ".join([words, *[bound for bound in bounds if bound], default])
        lines.append(f"  {name:<28} {field.description or ''}  ({facts})")
    return "\n".join(lines)


def _bound(bound: Any) -> str:
    for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
        if hasattr(bound, name):
            return f"{sign} {getattr(bound, name)}"
    return ""


def door(schema: type[Config], verb: str, doc: str) -> None:
    """Runs one verb as a program: arguments in, one JSON line out, exit codes 0, 1 (failed), 2 (refused), 130.

    Args:
        schema: the verb's config.
        verb: `module:function`, imported only once the config holds, so that help and refusals need not wait for Ray.
        doc: the door's docstring.
    """
    arguments, name = sys.argv[1:], f"python {sys.argv[0]}"
    if "--help" in arguments or "-h" in arguments:
        print(f"{doc.strip()}\n\n{describe(schema, name)}")
        return
    try:
        config = load_config(schema, [argument for argument in arguments if argument != "--print"])
        if "--print" in arguments:
            print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).strip())
            return
        result = _find(verb)(config)
    except GraclError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None
    print(json.dumps(result), flush=True)


def _find(verb: str) -> Callable[[Any], dict[str, Any]]:
    module, _, function = verb.partition(":")
    found: Callable[[Any], dict[str, Any]] = getattr(importlib.import_module(module), function)
    return found
