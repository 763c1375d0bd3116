"""The page of the commands and their options, from the argument parser."""

import argparse
from collections.abc import Iterator

from commands.parser import build_parser
from docs.generate.configuration_pages import NOTE

INTRODUCTION = f"""{NOTE}
# Commands

`python launch.py COMMAND --help` prints the same. Commands with `--config` also take every
[setting](configuration.md) as an option.

| exit code | meaning |
|---|---|
| 0 | finished |
| 1 | failed |
| 2 | bad input: one line names the field, nothing was started |
| 3 | drained and resumable |
"""


def command_page() -> str:
    """Every command with its options, defaults and help."""
    return INTRODUCTION + "".join(_command(name, command) for name, command in commands().items())


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, by name."""
    parser = build_parser(None)
    found = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    rows = "\n".join(_rows(parser))
    text = (parser.description or "").strip()
    return f"\n## {name}\n\n{text[:1].upper()}{text[1:]}.\n\n| option | default | |\n|---|---|---|\n{rows}\n"


def _rows(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = ", ".join(f"`{option}`" for option in action.option_strings) or f"`{action.dest}`"
        values = " or ".join(f"`{choice}`" for choice in action.choices or ())
        if not values and action.nargs != 0:
            values = f"`{action.metavar or action.dest.upper()}`"
        default = "required" if action.required else f"`{action.default}`"
        if action.nargs == 0 or action.default in (None, argparse.SUPPRESS):
            default = "required" if action.required else ""
        text = (action.help or "").replace("%%", "%")
        yield f"| {name} {values} | {default} | {text} |".replace("  ", " ")
