"""Settings of checkpoints: when, how many, where."""

from typing import Self
from urllib.parse import urlsplit

from pydantic import model_validator

from settings.engine import NonNegative, Positive, Section


class CheckpointConfig(Section):
    """When checkpoints are written, how many are kept, and where."""

    every_steps: NonNegative = 50
    """Checkpoint every this many steps; 0 only at the end and on shutdown."""
    keep: Positive = 2
    """Newest checkpoints kept."""
    asynchronous: bool = True
    """Train on while a checkpoint is written, from a copy of the learner's state in host memory; false writes it
    while training waits, and needs memory for a copy of one file at a time."""
    retry_steps: Positive = 10
    """After a checkpoint that a full disk did not take, try again after so many steps, or when the next is due."""
    path: str | None = None
    """Folder or fsspec URL (`s3://bucket/folder`, `gs://...`) under which checkpoints are kept, in a sub-folder
    with the name of the run; by default `checkpoints` in the run folder. For a URL they are written in the run
    folder first and removed there once they are uploaded. Credentials come from where the storage's own tools
    look for them."""

    @model_validator(mode="after")
    def _path_is_usable(self) -> Self:
        if self.path is not None:
            check_location(self.path)
        return self

    @property
    def url(self) -> str | None:
        """The path if it is a URL."""
        return self.path if self.path is not None and "://" in self.path else None


def check_location(path: str) -> None:
    """Raise ValueError if checkpoints cannot be kept there; its text repeats no credentials."""
    if not path.strip():
        raise ValueError("checkpoint.path must not be empty (nearest valid: null)")
    scheme, has_scheme, rest = path.partition("://")
    if not has_scheme:
        return
    parts = urlsplit(path)
    is_account = scheme in ("abfs", "abfss", "az") and ":" not in parts.netloc  # container@account
    if parts.query or ("@" in parts.netloc and not is_account):
        raise ValueError(
            f"checkpoint.path must not hold credentials, got a {scheme}:// URL with some: it is written to "
            f"config.yaml (nearest valid: {scheme}://{parts.netloc.rpartition('@')[2]}{parts.path})"
        )
    if not rest.strip("/"):
        raise ValueError(f"checkpoint.path must name a folder, got {path!r}")
    if scheme == "memory":
        raise ValueError("checkpoint.path must outlive the run, got a memory:// URL (nearest valid: null)")
    _check_protocol(scheme)


def _check_protocol(scheme: str) -> None:
    from fsspec import available_protocols, get_filesystem_class

    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        raise ValueError(f"checkpoint.path: {scheme}:// needs a package that is missing: {error}") from error
    except ValueError as error:
        import difflib

        close = difflib.get_close_matches(scheme, available_protocols(), n=1, cutoff=0.5)
        nearest = f" (nearest valid: {close[0]}://)" if close else ""
        raise ValueError(f"checkpoint.path: unknown protocol {scheme}://{nearest}") from error
