"""Which names a run may have: its name is that of a folder, of an actor, and part of what other tools store."""

import re

MAX_LENGTH = 100
ALLOWED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
RESERVED = {"con", "prn", "aux", "nul"} | {f"{name}{number}" for name in ("com", "lpt") for number in range(1, 10)}
"""Names of devices, with any ending, where run folders are shared with Windows."""


def checked_run_name(name: str, field: str = "run_name") -> str:
    """Return the name; ValueError naming `field` if it could lead out of the runs' folder, or is not portable."""
    if not ALLOWED.fullmatch(name):
        raise ValueError(
            f"{field} must be letters, digits, '.', '_' and '-', the first a letter or digit, got {name[:80]!r}"
        )
    if len(name) > MAX_LENGTH:
        raise ValueError(f"{field} must have at most {MAX_LENGTH} characters, got {len(name)}")
    if name.endswith("."):
        raise ValueError(f"{field} must not end in a dot, got {name!r} (nearest valid: {name.rstrip('.')})")
    if name.partition(".")[0].lower() in RESERVED:
        raise ValueError(f"{field} must not be the name of a device, got {name!r} (nearest valid: run-{name})")
    return name
