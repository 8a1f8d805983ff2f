"""Which images are taken for one object: Infomap (Rosvall & Bergstrom, PNAS 2008) on the sparse graph.

A random walk over the links stays long within a good module, so it can be told in few bits by naming modules and,
within them, rows. Infomap looks for the modules that make this description, the map equation, shortest.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray
from scipy.sparse import csr_array

from gracl.errors import ConfigError, expected
from gracl.relations.clusters import check_square, numbered
from gracl.types import NOISE

# The search is a chain of random moves: of several, the shortest description is kept. On 13,000 synthetic images ten
# were enough for another seed to give the same labels; five were not.
_TRIALS = 10
_SEED = 1


def infomap(distance: csr_array, *, eps: float = 0.6, min_samples: int = 4) -> Int64[ndarray, "rows"]:
    """Labels of rows among which a random walk stays, numbered by first member; -1 is noise.

    Rows within `eps` of each other are linked, with weight 1 - distance; links have no direction and modules no
    modules within them. A row without a link is noise, and so are the rows of modules below `min_samples`. The code
    of this family links otherwise: the 15 nearest rows of each, with direction, where their cosine is at least 0.5,
    and takes modules of one or two rows for noise. Here a link means the same as in the other clusterings.

    The seed and the number of searches are fixed and one thread runs them, so equal graphs have equal labels. Memory
    is about 130 bytes a link, a link being two entries.

    Args:
        distance: symmetric; what is not stored is no link. Left as it is; the diagonal need not be there.
        eps: largest distance of a link, 0 < eps < 1, in the matrix's own precision.
        min_samples: rows of the smallest module that counts, >= 1.

    Raises:
        ConfigError: options out of range, or the package infomap is missing.
        GraclError: a matrix that is not square.
    """
    if not 0 < eps < 1 or min_samples < 1:
        raise ConfigError(
            expected("0 < eps < 1 and min_samples >= 1", f"{eps} and {min_samples}", "the usual values are 0.6 and 4")
        )
    check_square(distance)
    package = _package()
    rows, links = distance.shape[0], _links(distance, eps)
    if not len(links):
        return np.full(rows, NOISE, np.int64)
    modules = _modules(package, links, rows)
    sizes = np.bincount(modules[modules != NOISE], minlength=rows)
    modules[sizes[modules] < min_samples] = NOISE
    return np.asarray(numbered(modules))


def _package() -> Any:
    """The package infomap, which not everybody has."""
    try:
        import infomap as package
    except ImportError as error:
        raise ConfigError(
            expected("the package infomap", "no such package", "pip install 'gracl[infomap]', or use clustering=dbscan")
        ) from error
    return package


def _links(distance: csr_array, eps: float) -> Float64[ndarray, "links 3"]:
    """Row, later row and weight of every link: each pair once."""
    heads = np.repeat(np.arange(distance.shape[0], dtype=np.int32), np.diff(distance.indptr))
    # As float32 an eps close to 1 is 1, and a weight of 0 is no link.
    near = (distance.data <= distance.dtype.type(eps)) & (distance.data < 1)
    kept = np.flatnonzero(near & (heads < distance.indices))
    return np.stack([heads[kept], distance.indices[kept], 1 - distance.data[kept].astype(np.float64)], axis=1)


def _modules(package: Any, links: Float64[ndarray, "links 3"], rows: int) -> Int64[ndarray, "rows"]:
    """The module of every row, -1 where it has no link."""
    options = package.Options(
        two_level=True, flow_model="undirected", seed=_SEED, num_trials=_TRIALS, num_threads=1, silent=True
    )
    network = package.Network()
    network.add_links(links)
    result = package.run(network, options=options)
    with TemporaryDirectory() as folder:
        # By a file, because infomap's own lists crash the process once faiss has been imported after it: both are made
        # by SWIG, and share its table of types.
        written = Path(folder, "modules.clu")
        result.write_clu(str(written))
        found = np.loadtxt(written, np.int64, comments="#", usecols=(0, 1), ndmin=2)
    modules = np.full(rows, NOISE, np.int64)
    modules[found[:, 0]] = found[:, 1] - 1  # Infomap counts from 1
    return modules
