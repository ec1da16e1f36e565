"""`polynya credentials`: makes time-limited TURN credentials from a shared secret."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from polynya.core.errors import ConfigurationError
from polynya.turn.server.users import time_limited_name, time_limited_password

from . import common

SECRET_VARIABLE: Final = "POLYNYA_SHARED_SECRET"  # noqa: S105 - a name


def credentials(
    *,
    shared_secret_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with the server's shared secret; the first line counts."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="The server's file, which has the secret.")
    ] = None,
    user: Annotated[str, typer.Option(metavar="NAME", help="The user, which quotas count by.")] = "polynya",
    lifetime: Annotated[
        int, typer.Option(metavar="SECONDS", min=1, max=10 * 365 * 86_400, help="Seconds until they expire.")
    ] = 86_400,
    uri: Annotated[
        list[str] | None,
        typer.Option(metavar="URI", help="Print an entry of WebRTC's iceServers with this URI; repeatable."),
    ] = None,
) -> None:
    """Print time-limited TURN credentials: a user name and its password.

    The shared secret is that of the server: in a file, in the server's
    configuration, or in the environment variable POLYNYA_SHARED_SECRET.
    """
    with common.errors():
        secret = _secret(shared_secret_file, config)
        name = time_limited_name(user, int(time.time()) + lifetime)
    password = time_limited_password(name, secret.encode())
    if uri:
        print(json.dumps({"urls": uri, "username": name, "credential": password}))
    else:
        print(f"username {name}\npassword {password}")


def _secret(file: Path | None, config: Path | None) -> str:
    if file is None and config is None:
        if secret := os.environ.get(SECRET_VARIABLE):
            return secret
        raise ConfigurationError(f"no shared secret: set --shared-secret-file, --config or {SECRET_VARIABLE}")
    try:
        from polynya.serve import settings  # noqa: PLC0415
    except ModuleNotFoundError as error:
        common.need("serve", error)
    secrets = settings.read_secrets(file) if file is not None else settings.shared_secrets(settings.load(config).turn)
    if not secrets:
        raise ConfigurationError(f"{config} has no shared secret: set turn.shared_secrets or turn.shared_secrets_file")
    return secrets[0]
