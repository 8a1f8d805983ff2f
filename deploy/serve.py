"""Serves a model and an index over HTTP, with a page to drop a picture on; docs/use.md has the ways and limits.

python deploy/serve.py index=index
python deploy/serve.py checkpoint=epoch-0010 index=index port=8000 replicas=2

On a cluster that serves already, with the same settings but for host and port, which are the cluster's:
serve run deploy.serve:app index=/data/index
"""

from typing import Any

from gracl.cli import door, load_config
from gracl.errors import ConfigError, expected
from gracl.uses import ServeConfig


def app(arguments: dict[str, str]) -> Any:
    """The application for `serve run` and for the `args` of a Serve config file.

    Raises:
        ConfigError, GraclError: as the command.
    """
    from gracl.runtime.service.deployments import application, settle  # the command's help need not wait for torch

    config = load_config(ServeConfig, [f"{name}={value}" for name, value in arguments.items()])
    unused = sorted({"host", "port"} & config.model_fields_set)
    if unused:
        do = "set them in http_options of Ray Serve"
        raise ConfigError(expected("no host and port: the cluster has its own", ", ".join(unused), do))
    return application(settle(config))


if __name__ == "__main__":
    door(ServeConfig, "gracl.runtime.serving:serve", __doc__ or "")
