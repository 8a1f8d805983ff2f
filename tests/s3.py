"""A server that speaks S3 on this machine, with one bucket, and how it is reached."""

from collections.abc import Iterator
from contextlib import contextmanager

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "gracl"


@contextmanager
def open_server() -> Iterator[ThreadedMotoServer]:
    """The server in a thread of this process, at a free port."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        where = reached_by(server)
        keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=where["AWS_ENDPOINT_URL"], **keys).create_bucket(Bucket=BUCKET)
        yield server
    finally:
        server.stop()


def reached_by(server: ThreadedMotoServer) -> dict[str, str]:
    """The environment of whoever is to find it: s3fs, pyarrow and boto3 all read these."""
    host, port = server.get_host_and_port()
    return {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
