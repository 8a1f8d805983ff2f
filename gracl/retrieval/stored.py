"""A search index that lies in a folder of this machine: built once, kept, added to, asked.

What faiss proposes is scored again with the embeddings themselves, which are mapped into memory: similarities are
exact, and only who is proposed may not be.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int32, Int64
from numpy import ndarray

from gracl.checksums import sha256_of
from gracl.errors import ConfigError, GraclError, StoredIndexError, expected
from gracl.randomness import rng
from gracl.retrieval.engines import Engine, Kind, choose, sample_size
from gracl.retrieval.index_files import (
    AGAIN,
    INDEX,
    SCHEMA_VERSION,
    Facts,
    Segment,
    Some,
    flush,
    keep,
    mapped,
    read_facts,
    rows_of,
    tidy,
    write_facts,
)
from gracl.similarity import top_k
from gracl.types import EMPTY, UNKNOWN, Feature

RECALL_AT, RECALL_ROWS = 10, 200
# Where nobody says how much a question looks at, it is as much as finds so many of the true nearest, if any may.
WANTED_RECALL = 0.95
# Candidates of an engine that holds the rows coarsely, for each result that is asked for.
_SPARE = {"flat": 1, "hnsw": 4, "ivf_pq": 20}
_MORE = 16
_BLOCK = 2**16


@dataclass(frozen=True)
class Origin:
    """Where embeddings come from: digest and place of the model, mirror images averaged or not, table, source and its
    digest."""

    model: str
    checkpoint: str
    flip: bool
    table: str
    source: str
    data_digest: str = ""


def build(
    folder: str | Path,
    parts: Iterable[Some],
    rows: int,
    origin: Origin,
    *,
    kind: Kind | None = None,
    effort: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Facts:
    """Makes an index of a table.

    Args:
        folder: for it; without an index so far.
        parts: of the table, in order.
        rows: in all of them together.
        origin: of the table.
        kind: of the engine; None: by the number of rows.
        effort: of a question, see `Engine`; 0: the least of its `efforts` that reaches a recall of
            `WANTED_RECALL`, or the largest.
        progress: called with the number of rows that an engine took in.

    Raises:
        ConfigError: there is an index, nothing to put into one, or a kind that these rows do not allow.
        GraclError: other embeddings than unit rows of one size.
    """
    place = Path(folder)
    if (place / INDEX).exists():
        raise ConfigError(expected("a folder without an index", place, "choose another out=, or say add=true"))
    if not rows:
        raise ConfigError(expected("embeddings to search among", "none", "extract some pictures first"))
    place.mkdir(parents=True, exist_ok=True)
    kind = kind or choose(rows)
    segment, features = keep(place, Segment(0, rows, origin.table, origin.source, origin.data_digest), parts)
    engine = Engine.make(kind, _sample(features, sample_size(kind, rows)), rows, effort)
    facts = Facts(
        schema_version=SCHEMA_VERSION,
        kind=kind,
        rows=rows,
        feature_size=features.shape[1],
        dtype=str(features.dtype),
        model=origin.model,
        flip=origin.flip,
        checkpoint=origin.checkpoint,
        effort_asked=effort,
        effort=effort,
        recall=1.0,
        segments=(segment,),
        engine="",
        engine_sha256="",
    )
    return _finish(place, facts, engine, features, progress)


def add(
    folder: str | Path,
    parts: Iterable[Some],
    rows: int,
    origin: Origin,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> Facts:
    """Puts one more table into an index. Arguments as `build`.

    Raises:
        ConfigError: another model's embeddings, or a table that is in the index already.
        StoredIndexError: no index, or a torn one.
    """
    index = StoredIndex(folder)
    facts = index.facts
    check_model(facts, origin.model, origin.flip, "the table's")
    if any(segment.table == origin.table for segment in facts.segments):
        what = f"a table that {index.folder} does not hold"
        raise ConfigError(expected(what, origin.table, "extract the new pictures into a table of their own"))
    if not rows:
        raise ConfigError(expected("embeddings to add", "none", "extract some pictures first"))
    number = facts.segments[-1].number + 1
    written = Segment(number, rows, origin.table, origin.source, origin.data_digest)
    segment, features = keep(index.folder, written, parts, dtype=facts.dtype)
    if features.shape[1] != facts.feature_size:
        raise GraclError(expected(f"embeddings of size {facts.feature_size}", features.shape[1], "see the model"))
    grown = replace(facts, schema_version=SCHEMA_VERSION, rows=facts.rows + rows, segments=(*facts.segments, segment))
    return _finish(index.folder, grown, index.engine, features, progress)


def check_model(facts: Facts, model: str, flip: bool, whose: str) -> None:
    """Refuses features that cannot be compared with those of an index.

    Raises:
        ConfigError: of another model, or averaged with mirror images where the others are not.
    """
    if (model, flip) != (facts.model, facts.flip):
        raise ConfigError(
            expected(
                f"the index's model {facts.model[:12]}, flip={str(facts.flip).lower()}",
                f"{whose} {model[:12]}, flip={str(flip).lower()}",
                "describe both sides by one checkpoint, or build another index",
            )
        )


class StoredIndex:
    """An index that is there, open for questions from one thread.

    Args:
        folder: of it.
        made: facts and engine of one that is just being made, and of which the folder does not tell yet.

    Raises:
        StoredIndexError: there is none, or it is torn or of another schema.
        ConfigError: faiss is not installed.
    """

    def __init__(self, folder: str | Path, *, made: tuple[Facts, Engine] | None = None) -> None:
        self.folder = Path(folder)
        self.facts = facts = made[0] if made else read_facts(self.folder / INDEX)
        compared = made is None  # what is just being made was looked at when it was opened, or written by us
        self._features = [mapped(self.folder, segment, facts, compared=compared) for segment in facts.segments]
        self._rows = [rows_of(self.folder, segment, compared=compared) for segment in facts.segments]
        self._firsts = np.cumsum([0, *(segment.rows for segment in facts.segments)])
        if made:
            self.engine = made[1]
            return
        if facts.kind == "flat":
            self.engine = Engine.make("flat", np.zeros((1, facts.feature_size), np.float32), facts.rows, facts.effort)
            for features in self._features:
                self.engine.add(features)
            return
        path = self.folder / facts.engine
        if not path.is_file() or sha256_of(path) != facts.engine_sha256:
            came = "another content" if path.is_file() else "no such file"
            raise StoredIndexError(expected(f"the index {path}", came, AGAIN))
        self.engine = Engine.read(path, facts.kind, facts.effort)

    def __len__(self) -> int:
        return self.facts.rows

    def search(
        self,
        query: Float32[ndarray, "queries dim"],
        k: int = 10,
        *,
        allowed: Bool[ndarray, "rows"] | None = None,
    ) -> tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
        """The most similar rows of each query, most similar first, equal ones in order of row; -1 and -inf where there
        are not so many.

        Args:
            query: unit rows.
            k: results, >= 1.
            allowed: which rows may be found; None: all.

        Raises:
            ConfigError: k below 1.
            GraclError: queries of another size, or not finite.
        """
        if k < 1:
            raise ConfigError(expected("k >= 1", k, "ask for one result or more"))
        if query.shape[1] != self.facts.feature_size or not np.isfinite(query).all():
            came = f"{query.shape[1]} values, {int((~np.isfinite(query)).sum())} of all not finite"
            raise GraclError(expected(f"queries of {self.facts.feature_size} finite values", came, "see the model"))
        count = min(len(self), _SPARE[self.facts.kind] * k + _MORE)
        room = len(self) if allowed is None else int(allowed.sum())
        rows = np.full((len(query), k), EMPTY, np.int64)
        similarities = np.full((len(query), k), -np.inf, np.float32)
        if not len(query) or not room:
            return rows, similarities
        proposed = self.engine.propose(query, count, allowed)
        for number, some in enumerate(proposed):
            there = np.unique(some[some != EMPTY])
            scores = self.features(there) @ query[number]
            best = np.lexsort((there, -scores))[:k]
            rows[number, : len(best)], similarities[number, : len(best)] = there[best], scores[best]
        short = np.flatnonzero(rows[:, min(k, room) - 1] == EMPTY)
        if len(short):  # a walk or a few cells met too few of the rows that are allowed
            rows[short], similarities[short] = self.exact(query[short], k, allowed=allowed)
        return rows, similarities

    def exact(
        self, query: Float32[ndarray, "queries dim"], k: int = 10, *, allowed: Bool[ndarray, "rows"] | None = None
    ) -> tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
        """The same by looking at every row."""
        rows = np.full((len(query), k), EMPTY, np.int64)
        similarities = np.full((len(query), k), -np.inf, np.float32)
        for first, features in self._blocks():
            here = np.arange(first, first + len(features))
            if allowed is not None:
                here, features = here[allowed[here]], features[allowed[here]]
            if not len(here):
                continue
            found, scores = top_k(query, np.ascontiguousarray(features, np.float32), k, device="cpu")
            every = np.concatenate([rows, here[found]], axis=1)
            values = np.concatenate([similarities, scores], axis=1)
            best = np.argsort(-values, axis=1, kind="stable")[:, :k]
            rows, similarities = (np.take_along_axis(one, best, axis=1) for one in (every, values))
        return rows, similarities

    def features(self, rows: Int64[ndarray, "rows"]) -> Float32[ndarray, "rows dim"]:
        """The embeddings of some rows."""
        found = np.empty((len(rows), self.facts.feature_size), np.float32)
        for segment, places in self._places(rows):
            found[places] = self._features[segment][rows[places] - self._firsts[segment]]
        return found

    def about(self, rows: Int64[ndarray, "rows"]) -> list[dict[str, Any]]:
        """Path, index, camera, track and source of some rows."""
        found: list[dict[str, Any]] = [{}] * len(rows)
        for segment, places in self._places(rows):
            taken = self._rows[segment].take(pa.array(rows[places] - self._firsts[segment])).to_pylist()
            source = self.facts.segments[segment].source
            for place, row in zip(places.tolist(), taken, strict=True):
                found[place] = row | {"source": source}
        return found

    @cached_property
    def cameras(self) -> tuple[list[str], Int32[ndarray, "rows"]]:
        """The names of all cameras in order, and the number of each row's among them, -1 where unknown: what `allowed`
        is made of. Read once: a question among some cameras reads no row."""
        named = pa.chunked_array([part for rows in self._rows for part in rows["camera"].chunks], pa.string())
        names = sorted(named.unique().drop_null().to_pylist())
        numbers = pc.index_in(named, value_set=pa.array(names, pa.string())).fill_null(UNKNOWN)
        return names, numbers.to_numpy()

    def digests(self) -> dict[str, str]:
        """The digest of each source: what lies there must have it, for its pictures to be those of the rows."""
        return {segment.source: segment.data_digest for segment in self.facts.segments}

    def _places(self, rows: Int64[ndarray, "rows"]) -> list[tuple[int, Int64[ndarray, "some"]]]:
        """For each segment that some rows lie in, which of them."""
        homes = np.searchsorted(self._firsts, rows, side="right") - 1
        return [(int(home), np.flatnonzero(homes == home)) for home in np.unique(homes)]

    def _blocks(self) -> Iterable[tuple[int, Feature[ndarray, "rows dim"]]]:
        for first, features in zip(self._firsts, self._features, strict=False):
            for start in range(0, len(features), _BLOCK):
                yield int(first) + start, features[start : start + _BLOCK]


def _finish(
    place: Path, facts: Facts, engine: Engine, features: Feature[ndarray, "rows dim"], progress: Callable[[int], None]
) -> Facts:
    """Fills the engine with new rows, keeps it, measures its recall, and lets the index be what it is now."""
    for start in range(0, len(features), _BLOCK):
        block = features[start : start + _BLOCK]
        engine.add(block)
        progress(len(block))
    if facts.kind != "flat":
        name = f"engine-{facts.segments[-1].number:04}.faiss"
        engine.write(place / name)
        flush(place / name)
        facts = replace(facts, engine=name, engine_sha256=sha256_of(place / name))
        facts = _measured(StoredIndex(place, made=(facts, engine)))
    write_facts(place, facts)
    tidy(place, facts)
    return facts


def _measured(index: StoredIndex) -> Facts:
    """The facts of an index with its recall: the share of the true nearest of some stored rows, themselves not counted,
    that a search finds; and with the effort, where none was asked for."""
    drawn = np.sort(rng(0, "recall").permutation(len(index))[:RECALL_ROWS])
    query, k = index.features(drawn), min(len(index), RECALL_AT + 1)
    true = _others(drawn, index.exact(query, k)[0])
    recall = 1.0
    for effort in [index.facts.effort_asked] if index.facts.effort_asked else index.engine.efforts():
        index.engine.effort = effort
        found = _others(drawn, index.search(query, k)[0])
        hits = sum(len(np.intersect1d(one, other)) for one, other in zip(found, true, strict=True))
        recall = hits / max(1, sum(map(len, true)))
        if recall >= WANTED_RECALL:
            break
    return replace(index.facts, recall=recall, effort=index.engine.effort)


def _others(rows: Int64[ndarray, "rows"], found: Int64[ndarray, "rows k"]) -> list[Int64[ndarray, "_"]]:
    """What each row found beside itself, as many as all can have."""
    return [line[line != row][: found.shape[1] - 1] for row, line in zip(rows, found, strict=True)]


def _sample(features: Feature[ndarray, "rows dim"], size: int) -> Feature[ndarray, "sample dim"]:
    return np.asarray(features[np.sort(rng(0, "index").permutation(len(features))[:size])])
