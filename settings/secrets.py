"""Refuses settings that hold a secret: the whole configuration is written to the run folder and shown to others.

Settings that take a value from the environment are judged as they are resolved: by the variable that is read,
however its name came about, and by the value. Nothing here says a value: only its key.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

SECRET_WORD = re.compile(r"secret|passw(or)?d|passphrase|credential|api_?key|access_?key|private_?key|auth_?key")
TOKEN = re.compile(r"(^|_)(token|bearer|authorization)$")
TEXT_TOKEN = re.compile(
    r"^(bos|eos|pad|unk|sep|cls|mask|image|audio|video|stop|start|end|think|special|extra)_token$"
)
"""Tokens that a chat template takes are texts."""
LOGIN_IN_URL = re.compile(r"(?<=[A-Za-z0-9+.-])://[^/\s@]+@")
SECRET_IN_URL = re.compile(r"://\S*[?&]([a-z_-]*(token|key|secret|password|signature)|sig)=", re.IGNORECASE)
KNOWN_SHAPE = re.compile(
    r"\b(hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[A-Z0-9]{16})\b"
)
MIN_SECRET, MIN_SECRET_INSIDE = 8, 16
"""Values of variables named like a secret's that count as one: as a whole text, and as a part of it."""

ADVICE = "set it as an environment variable on the nodes instead"


def refuse_secrets(values: Mapping[Any, Any], own_names: Collection[str]) -> None:
    """ValueError naming the first key that looks like a secret's, or whose text does, but for `own_names`."""
    known = _secrets_of_environment()
    for key, value in leaves(values):
        if value is None or isinstance(value, bool):
            continue
        if key.rpartition(".")[2] not in own_names and is_secret_name(key):
            raise ValueError(
                f"{key} looks like a secret, which every reader of the run folder would see; {ADVICE}"
            )
        if is_secret_text(key):
            section = key.partition(".")[0]
            where = "the settings" if is_secret_text(section) else section
            raise ValueError(f"a key of {where} holds a login, a key or a token; {ADVICE}")
        if is_secret_text(text := str(value)):
            raise ValueError(f"{key} holds a login, a key or a token, which would be written down; {ADVICE}")
        for name, secret in known.items():
            if text == secret or (len(secret) >= MIN_SECRET_INSIDE and secret in text):
                raise ValueError(_taken_text(key, name))


@contextmanager
def refusing_secret_variables() -> Iterator[None]:
    """ValueError naming key and variable if what is resolved meanwhile reads a variable with a secret's name."""
    refused: list[str] = []

    def read(name: Any, *default: Any) -> Any:
        if is_secret_name(str(name)):
            refused.append(str(name))
            raise KeyError(name)
        return oc.env(name, *default)

    OmegaConf.register_resolver("oc.env", read, replace=True, annotation_validation="off")
    try:
        yield
    except OmegaConfBaseException as error:
        if refused:
            raise ValueError(_taken_text(error.full_key or "configuration", refused[0])) from None
        raise
    finally:
        OmegaConf.register_resolver("oc.env", oc.env, replace=True, annotation_validation="off")


def _taken_text(key: str, name: str) -> str:
    return f"{key} takes {name} from the environment, and its value would be written down; leave it there"


def _secrets_of_environment() -> dict[str, str]:
    """Values of variables that are named like a secret's, by name; paths are not meant, nor short words."""
    found = {name: value for name, value in os.environ.items() if is_secret_name(name)}
    return {name: value for name, value in found.items() if len(value) >= MIN_SECRET and value[0] != "/"}


def is_secret_name(key: str) -> bool:
    """Whether a dotted key, or the name of an environment variable, is like that of a secret."""
    parts = [re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", part).lower().replace("-", "_") for part in key.split(".")]
    is_token = TOKEN.search(parts[-1]) is not None and TEXT_TOKEN.fullmatch(parts[-1]) is None
    return is_token or any(SECRET_WORD.search(part) for part in parts)


def is_secret_text(text: str) -> bool:
    """Whether a text holds a login, or a key or token of a known shape."""
    return any(each.search(text) for each in (LOGIN_IN_URL, SECRET_IN_URL, KNOWN_SHAPE))


def leaves(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values that are neither mappings nor lists."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list):
        for index, value in enumerate(values):
            yield from leaves(value, f"{key}.{index}")
    else:
        yield key, values
