"""The documentation is held against the code: tree, links, settings, commands, dependencies, the README's example."""

import doctest
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

import gracl
from gracl import config, experiments, uses
from gracl.cli import fields, load_config
from tests.architecture.imports import ROOT

README = ROOT / "README.md"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/**/*.md"))
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
each_page = pytest.mark.parametrize("page", PAGES, ids=IDS)

# The door's file says which config it takes.
CONFIGS = vars(config) | vars(experiments) | vars(uses)
DOOR_FILES = {path.stem: path for path in [ROOT / "deploy/serve.py", *sorted(ROOT.glob("pipelines/*.py"))]}
DOORS = {door: CONFIGS[re.findall(r"\bdoor\((\w+),", path.read_text())[0]] for door, path in DOOR_FILES.items()}
SETTINGS = {name: field for schema in DOORS.values() for name, field, _ in fields(schema)}
SECTIONS = {name.split(".")[0] for name in SETTINGS if "." in name}
NOT_A_SETTING = {"surroundings.npy", "data.digest"}  # stands beside the settings in a recipe


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def in_code_font(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", without_blocks(text))


def listed_files(block: str) -> Iterator[tuple[str, str]]:
    """Path and meaning of every line of an indented tree; folders end in a slash and have no meaning of their own."""
    way: list[str] = []
    for line in filter(None, block.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, meaning = line.strip().partition(" ")
        way = [*way[:depth], name.rstrip("/")]
        if not name.endswith("/"):
            yield "/".join(way), meaning.strip()


def test_the_tree_is_the_disk():
    text = (ROOT / "docs/walk.md").read_text()
    (block,) = (block for block in code_blocks(text) if block.startswith("gracl/\n"))
    listed = dict(listed_files(block))
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("gracl", "pipelines", "tune_configs", "benchmarks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml") and "__pycache__" not in path.parts
    }
    assert sorted(found - set(listed)) == [], "on the disk, but not in docs/walk.md"
    assert sorted(set(listed) - found) == [], "in docs/walk.md, but not on the disk"
    assert [name for name, meaning in listed.items() if not meaning] == []


def headings(page: Path) -> set[str]:
    """The anchors that a page offers, as code hosts make them."""
    titles = re.findall(r"^#+ (.*)$", without_blocks(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_every_relative_link_leads_somewhere(page):
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        if not place.exists() or (anchor and anchor not in headings(place)):
            lost.append(target)
    assert lost == []


def test_every_page_is_in_the_readme():
    text = README.read_text()
    assert [page.name for page in sorted(ROOT.glob("docs/*.md")) if f"docs/{page.name}" not in text] == []


def test_every_page_that_the_code_names_is_there():
    lost = []
    for path in (path for folder in ("gracl", "pipelines") for path in (ROOT / folder).rglob("*.py")):
        for name in re.findall(r"docs/decisions/[\w-]*\w", path.read_text()):
            if not list(ROOT.glob(f"{name}*.md")):
                lost.append((path.name, name))
    assert lost == []


@each_page
def test_every_setting_exists(page):
    unknown = []
    for code in in_code_font(page.read_text()):
        found = re.fullmatch(r"([a-z_0-9]+(?:\.[a-z_0-9]+)+)(?:=.*)?", code)
        if found and found[1].split(".")[0] in SECTIONS and found[1] not in {*SETTINGS, *NOT_A_SETTING}:
            unknown.append(code)
    assert unknown == []


def test_the_method_names_the_defaults():
    assignments = [code.split("=", 1) for code in in_code_font((ROOT / "docs/method.md").read_text()) if "=" in code]
    named = [(name, value) for name, value in assignments if name in SETTINGS]
    assert len(named) > 20
    assert [(name, value) for name, value in named if value.lower() != str(SETTINGS[name].get_default()).lower()] == []


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Door and arguments of every command that a page shows, also behind `ray job submit --`."""
    text = page.read_text().replace("\\\n", " ")
    lines = [line for block in code_blocks(text) for line in block.splitlines()] + in_code_font(text)
    for line in lines:
        found = re.search(r"python (?:pipelines|deploy)/(\w+)\.py(.*)", line)
        if found and found[1] in DOORS:
            yield found[1], shlex.split(found[2], comments=True)


@each_page
def test_every_command_parses(page, monkeypatch):
    monkeypatch.chdir(ROOT)  # presets are named from there
    for door, arguments in commands(page):
        load_config(DOORS[door], [argument for argument in arguments if argument not in ("--help", "--print")])


def test_the_readme_shows_every_door():
    assert {door for door, _ in commands(README)} == set(DOORS)


@pytest.mark.parametrize("door", DOORS)
def test_the_commands_in_a_doors_docstring_name_real_presets_and_settings(door):
    text = DOOR_FILES[door].read_text()
    shown = re.findall(rf"python \w+/{door}\.py (.*)", text)
    assert shown
    for arguments in map(shlex.split, shown):
        presets = [name for name in arguments if name.endswith(".yaml")]
        assert [name for name in presets if not (ROOT / name).is_file()] == []
        names = [name.split("=")[0] for name in arguments if "=" in name]
        assert [name for name in names if name not in {one for one, _, _ in fields(DOORS[door])}] == []


def test_the_readmes_example_runs():
    (example,) = (block for block in code_blocks(README.read_text()) if ">>>" in block)
    test = doctest.DocTestParser().get_doctest(example, {}, "README", str(README), 0)
    assert len(test.examples) > 5
    result = doctest.DocTestRunner().run(test)
    assert result.failed == 0


def test_every_public_name_is_there_and_in_the_readme():
    words = in_code_font(README.read_text()) + [block for block in code_blocks(README.read_text()) if ">>>" in block]
    shown = " ".join(words)
    for name in gracl.__all__:
        assert getattr(gracl, name).__name__ == name
        assert re.search(rf"\b{name}\b", shown), f"{name} is not in the README"


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) < 150


def bare(requirement: str) -> str:
    return re.split(r"[<>=;! \[]", requirement, maxsplit=1)[0].lower()


def test_every_dependency_has_a_reason_and_its_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for some in project["optional-dependencies"].values() for one in some)]
    pins = dict(line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    rows = {
        bare(cells[0]): cells
        for line in (ROOT / "docs/dependencies.md").read_text().splitlines()
        if line.startswith("| ")
        for cells in [[cell.strip() for cell in line.strip("| ").split(" | ")]]
    }
    assert [name for name in map(bare, wanted) if name not in rows] == []
    told = {name: rows[name][1] for name in map(bare, wanted)}
    assert told == {name: pins.get(name, "not pinned") for name in told}


def test_every_config_has_a_door():
    roots = {
        one
        for one in CONFIGS.values()
        if isinstance(one, type) and issubclass(one, BaseModel) and one.__name__.endswith("Config")
    }
    assert roots - {uses.ModelConfig, uses.ClusteringConfig} == set(DOORS.values())
