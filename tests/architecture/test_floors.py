"""Arrows point down, wings do not know each other (docs/architecture.md)."""

import pytest

from tests.architecture.imports import imports, sources

FLOORS = {
    "gracl.errors": 1,
    "gracl.randomness": 1,
    "gracl.kernels": 1,
    "gracl.measuring": 1,
    "gracl.checksums": 1,
    "gracl.types": 2,
    "gracl.config": 2,
    "gracl.sections": 2,
    "gracl.idle": 2,
    "gracl.experiments": 2,
    "gracl.uses": 2,
    "gracl.use_sections": 2,
    "gracl.cli": 3,
    "gracl.locks": 3,
    "gracl.similarity": 3,
    "gracl.images": 3,
    "gracl.learning": 3,
    "gracl.relations": 4,
    "gracl.retrieval": 4,
    "gracl.local": 5,
    "gracl.embedding": 5,
    "gracl.runtime": 5,
    "pipelines": 6,
    "benchmarks": 6,
}
WINGS = ("images", "relations", "learning", "retrieval")
PURE = ("gracl.images", "gracl.relations", "gracl.learning", "gracl.retrieval", "gracl.similarity")
PURE += ("gracl.local", "gracl.embedding")
FILES = sources("gracl", "pipelines", "benchmarks")


def floor(module: str) -> int | None:
    parts = module.split(".")
    return next((FLOORS[".".join(parts[:n])] for n in (2, 1) if ".".join(parts[:n]) in FLOORS), None)


def within(module: str, place: str) -> bool:
    return module == place or module.startswith(f"{place}.")


def test_every_file_has_a_floor():
    assert [module for module in FILES if module != "gracl" and floor(module) is None] == []


@pytest.mark.parametrize("module", FILES)
def test_no_arrow_points_up(module):
    up = [
        name
        for name, _ in imports(FILES[module])
        if module != "gracl" and floor(name) is not None and floor(name) > floor(module)
    ]
    assert up == []


@pytest.mark.parametrize("module", [module for module in FILES if any(within(module, place) for place in PURE)])
def test_the_pure_part_knows_neither_ray_nor_mlflow_nor_config(module):
    forbidden = (
        "ray",
        "mlflow",
        "gracl.config",
        "gracl.sections",
        "gracl.idle",
        "gracl.experiments",
        "gracl.uses",
        "gracl.use_sections",
        "gracl.runtime",
    )
    assert [name for name, _ in imports(FILES[module]) if any(within(name, one) for one in forbidden)] == []


@pytest.mark.parametrize("wing", WINGS)
def test_wings_are_strangers(wing):
    others = [f"gracl.{other}" for other in WINGS if other != wing]
    met = [
        (module, name)
        for module, path in FILES.items()
        if within(module, f"gracl.{wing}")
        for name, _ in imports(path)
        if any(within(name, other) for other in others)
    ]
    assert met == []


def test_the_library_does_not_know_its_users():
    users = ("pipelines", "tests", "benchmarks")
    met = [
        (module, name)
        for module, path in FILES.items()
        if within(module, "gracl")
        for name, _ in imports(path)
        if any(within(name, user) for user in users)
    ]
    assert met == []


def test_the_stream_knows_no_labels():
    names = [name for name, _ in imports(FILES["gracl.runtime.stream"])]
    assert not any(within(name, "gracl.runtime.relation_actor") or within(name, "gracl.relations") for name in names)


def test_no_late_import_of_our_own():
    late = [
        (module, name)
        for module, path in FILES.items()
        for name, top in imports(path)
        if not top and module != "gracl" and within(name, "gracl")  # the face is lazy on purpose
    ]
    assert late == []


def test_there_is_no_circle():
    arrows = {
        module: {name for name, _ in imports(path) if name in FILES and name != module}
        for module, path in FILES.items()
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for other in arrows[module]:
                visit(other, (*way, module))
            done.add(module)

    for module in arrows:
        visit(module, ())
