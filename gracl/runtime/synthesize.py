"""synthesize(config): a synthetic world drawn into a raw folder."""

import time
from typing import Any

from gracl.config import SynthesizeConfig
from gracl.errors import ConfigError, expected
from gracl.images import storage
from gracl.images.synthetic import write_world
from gracl.runtime.terminal import say


def synthesize(config: SynthesizeConfig) -> dict[str, Any]:
    """Draws the world; the same settings draw the same pictures, however many processes do it.

    Returns:
        Folder, pictures by folder of the layout, seconds.

    Raises:
        ConfigError: a remote folder, or one that holds something.
    """
    if not storage.is_local(config.out):
        raise ConfigError(expected("a local folder", config.out, "draw to disk, then ingest to the store"))
    if storage.names_in(config.out):
        raise ConfigError(expected("an empty or new folder", config.out, "choose another out=, or empty it"))
    started = time.perf_counter()
    options = config.options()
    pictures = write_world(storage.local_path(options.pop("out")), **options)
    say(f"drew {sum(pictures.values())} pictures in {config.out}")
    return {
        "out": storage.absolute(config.out),
        "pictures": pictures,
        "seconds": round(time.perf_counter() - started, 2),
    }
