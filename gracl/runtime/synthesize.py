"""synthesize(config): a synthetic world drawn into a raw folder."""

import time
from typing import Any

from gracl.config import SynthesizeConfig
from gracl.errors import ConfigError, expected
from gracl.images import storage
from gracl.images.synthetic import write_world
from gracl.locks import holding
from gracl.runtime.progress import say


def synthesize(config: SynthesizeConfig) -> dict[str, Any]:
    """Draws the world; the same settings draw the same pictures, however many processes do it.

    Returns:
        Folder, pictures by folder of the layout, seconds.

    Raises:
        ConfigError: a remote folder, one that holds something, or one that another process is drawing to.
    """
    if not storage.is_local(config.out):
        raise ConfigError(expected("a local folder", config.out, "draw to disk, then ingest to the store"))
    started = time.perf_counter()
    options = config.options()
    place = storage.local_path(options.pop("out"))
    # Beside the folder, which appears by rename when all is drawn.
    with holding(str(place.with_name(f".{place.name}.drawn")), f"the world in {place}"):
        if storage.names_in(config.out):
            raise ConfigError(expected("an empty or new folder", config.out, "choose another out=, or empty it"))
        pictures = write_world(place, **options)
    say(f"drew {sum(pictures.values())} pictures in {config.out}")
    return {
        "out": storage.absolute(config.out),
        "pictures": pictures,
        "seconds": round(time.perf_counter() - started, 2),
    }
