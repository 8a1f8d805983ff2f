"""Who imports whom, read from the source with `ast`."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(*folders: str) -> dict[str, Path]:
    return {module_of(path): path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))}


def imports(path: Path) -> list[tuple[str, bool]]:
    """Every module that a file imports, and whether it does so at its top level."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
            found.append((str(node.module), id(node) in top))
    return found
