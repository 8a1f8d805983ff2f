"""A server that speaks S3 on this machine, with one bucket, and how it is reached."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

BUCKET = "gracl"


def listening() -> socket.socket:
    """A free port of this machine, held from now on; who asks there waits for the server."""
    place = socket.create_server(("127.0.0.1", 0))
    place.set_inheritable(False)
    return place


def reached_at(place: socket.socket) -> dict[str, str]:
    """The environment of whoever is to find the server: s3fs, pyarrow and boto3 all read these."""
    return {
        "AWS_ENDPOINT_URL": endpoint(place),
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def endpoint(place: socket.socket) -> str:
    """The server's address."""
    host, port = place.getsockname()
    return f"http://{host}:{port}"


@contextmanager
def serving(place: socket.socket) -> Iterator[None]:
    """The server, in a thread of this process. s3fs keeps its clients, and with them the address of another server."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from s3fs import S3FileSystem
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log(self, *_: object) -> None:
            pass

    host, port = place.getsockname()
    application = DomainDispatcherApplication(create_backend_app)
    server = make_server(host, port, application, threaded=True, request_handler=Silent, fd=place.fileno())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    S3FileSystem.clear_instance_cache()
    try:
        keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=endpoint(place), **keys).create_bucket(Bucket=BUCKET)
        yield
    finally:
        server.shutdown()
        thread.join(10)
        S3FileSystem.clear_instance_cache()
