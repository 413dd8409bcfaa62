"""How a process reaches an S3 server that a test started."""

from __future__ import annotations

import os
import secrets

import boto3


def keys() -> tuple[str, str]:
    """An access key and a secret, new every time."""
    return secrets.token_hex(10), secrets.token_hex(20)


def make(url: str, access_key: str, secret_key: str) -> dict[str, str]:
    """The environment, once its bucket (`RUN_BUCKET`) is made."""
    bucket, region = "runs", "us-east-1"
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name=region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
    )
    client.create_bucket(Bucket=bucket)
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_DEFAULT_REGION": region,
        "RUN_BUCKET": bucket,
    }


def without_aws() -> dict[str, str]:
    """This process's environment without its own way to an S3 server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
