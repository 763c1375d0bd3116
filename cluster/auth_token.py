"""The token of a Ray cluster that we start: a file that only its user can read, from the moment it exists."""

import os
import secrets
from pathlib import Path


def ensure_token(path: str | None = None) -> Path:
    """Make the file of the token if there is none, with mode 0600, and return it; by default Ray's own.

    Ray would make it readable for everyone. A file that others can read is closed to them; its token stays.
    """
    token = Path(path).expanduser() if path else Path.home() / ".ray" / "auth_token"
    token.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not token.exists():
        _create(token)
    if token.stat().st_mode & 0o077:
        token.chmod(0o600)
    return token


def _create(token: Path) -> None:
    """Write the whole file beside its place and link it there: of several processes, one makes the token."""
    part = token.with_name(f".{token.name}.{secrets.token_hex(8)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        os.link(part, token)
    except FileExistsError:  # another process was faster
        return
    finally:
        part.unlink()
