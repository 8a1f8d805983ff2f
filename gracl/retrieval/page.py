"""One HTML page that holds everything, pictures too, and opens from the disk."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #202020; margin: 2em auto; max-width: 1100px; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd; }
img { max-width: 100%; height: auto; } table { border-collapse: collapse; font-size: 13px; }
td, th { padding: 2px 10px; text-align: right; border-bottom: 1px solid #eee; }
td:first-child, th:first-child { text-align: left; }
figure { margin: 1em 0; overflow-x: auto; } .note { color: #555; max-width: 50em; } nav a { margin-right: 1em; }
"""


@dataclass(frozen=True)
class Part:
    """A section of the page: words, tables (rows of cells, the first the heads), then pictures (PNG) with captions.

    Paragraphs of the words stand apart by an empty line; one whose lines begin with "- " is a list. `folded` tables are
    shown on a click.
    """

    title: str
    words: str = ""
    tables: Sequence[Sequence[Sequence[object]]] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    folded: bool = False


def page(title: str, parts: Sequence[Part]) -> str:
    """The page as text. Nothing in it is fetched from anywhere and nothing in it runs."""
    links = " ".join(f'<a href="#{number}">{html.escape(part.title)}</a>' for number, part in enumerate(parts))
    body = "\n".join(_part(number, part) for number, part in enumerate(parts))
    name = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{name}</h1>\n<nav>{links}</nav>\n{body}\n</body></html>\n"
    )


def _part(number: int, part: Part) -> str:
    lines = [f'<h2 id="{number}">{html.escape(part.title)}</h2>']
    lines += [_words(block) for block in part.words.split("\n\n") if block]
    tables = [_table(rows) for rows in part.tables]
    lines += [f"<details><summary>as a table</summary>{table}</details>" for table in tables] if part.folded else tables
    for caption, picture in part.pictures.items():
        data = base64.b64encode(picture).decode()
        words = html.escape(caption)
        lines.append(
            f'<figure><figcaption>{words}</figcaption><img alt="{words}" src="data:image/png;base64,{data}"></figure>'
        )
    return "\n".join(lines)


def _words(block: str) -> str:
    """A paragraph, or a list."""
    if not block.startswith("- "):
        return f'<p class="note">{html.escape(block)}</p>'
    points = "".join(f"<li>{html.escape(point)}</li>" for point in block.removeprefix("- ").split("\n- "))
    return f'<ul class="note">{points}</ul>'


def _table(rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""
    heads = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in rows[0])
    lines = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>\n" for row in rows[1:]
    )
    return f"<table><tr>{heads}</tr>\n{lines}</table>"
