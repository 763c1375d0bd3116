"""Looks the pinned packages up in a database of known vulnerabilities, and checks the pins themselves.

    make audit                       # both; asks the package index (or `--service osv`: OSV)
    make audit ARGS=--offline        # the pins alone

Exit codes: 0 all was audited and nothing found, 1 something was found, 2 it could not be audited.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
FILES = ("cpu.txt", "gpu.txt")
KNOWN_BAD = FOLDER / "known_bad.txt"
TOOL = "pip-audit==2.10.1"
TOOL_ENVIRONMENT = FOLDER.parent / ".audit"
PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+_-]+)( --hash=sha256:[0-9a-f]{64})*")
CLEAN, FOUND, UNKNOWN = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Check, print what was found, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offline", action="store_true", help="ask no service: check the pins alone")
    parser.add_argument("--service", choices=["pypi", "osv"], default="pypi")
    arguments = parser.parse_args(argv)
    pins = {name: read_pins(FOLDER / name) for name in FILES}
    mistakes = [f"{name}: {line}" for name in FILES for line in mistakes_of(FOLDER / name, known_bad())]
    print("\n".join(mistakes) or f"{sum(map(len, pins.values()))} pins are exact, and none is known to be bad")
    if mistakes:
        return FOUND
    if arguments.offline:
        print("no service was asked for advisories")
        return CLEAN
    return look_up(sorted({pin for name in FILES for pin in pins[name]}), arguments.service)


def read_pins(path: Path) -> list[str]:
    """`name==version` of every requirement of a file that is a pin; a local version (`+cpu`) is left out."""
    found = (PIN.fullmatch(line) for line in _requirements(path))
    return [f"{match[1]}=={match[2].partition('+')[0]}" for match in found if match]


def mistakes_of(path: Path, bad: Sequence[str]) -> Iterator[str]:
    """What is wrong with a file's pins: not exact, there twice, without the hash others have, known as bad."""
    lines = list(_requirements(path))
    some_have_hashes = any("--hash" in line for line in lines)
    names: set[str] = set()
    for line in lines:
        match = PIN.fullmatch(line)
        if match is None:
            yield f"{line!r} is not pinned as name==version"
            continue
        name = normal(match[1])
        if name in names:
            yield f"{name} is there twice"
        names.add(name)
        if some_have_hashes and "--hash" not in line:
            yield f"{name} has no hash, others have"
        if f"{name}=={match[2].partition('+')[0]}" in bad:
            yield f"{name}=={match[2]} is in {KNOWN_BAD.name}"


def known_bad() -> list[str]:
    """The pins that must not be used, whatever the services say."""
    return [f"{normal(line.partition('==')[0])}=={line.partition('==')[2]}" for line in _requirements(KNOWN_BAD)]


def normal(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def look_up(pins: Sequence[str], service: str) -> int:
    """Ask the service about all pins, with pip-audit in an environment of its own."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")
        by_version = _sets_of_distinct_names(pins)
        results = []
        for each in by_version:
            requirements.write_text("\n".join(each) + "\n")
            command = [str(_tool()), "--requirement", str(requirements), "--no-deps", "--disable-pip"]
            command += ["--vulnerability-service", service, "--format", "json", "--progress-spinner", "off"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=900)
            if not done.stdout.strip():
                reason = (done.stderr.strip() or "no reason").splitlines()[-1]
                print(f"not audited: {service} gave no answer: {reason}")
                return UNKNOWN
            results += json.loads(done.stdout)["dependencies"]
    return report(results, service)


def report(results: Sequence[dict[str, object]], service: str) -> int:
    """Print vulnerabilities and what was not audited; a package that was not looked up is no clean one."""
    vulnerable = [each for each in results if each.get("vulns")]
    skipped = [each for each in results if "skip_reason" in each]
    for each in vulnerable:
        advisories: list[dict[str, object]] = each["vulns"]  # pyright: ignore[reportAssignmentType]
        for advisory in advisories:
            print(f"{each['name']}=={each['version']}: {advisory['id']}, fixed in {advisory['fix_versions']}")
    if skipped:
        print(
            f"not audited: {service} knows nothing of {len(skipped)} of {len(results)} packages, or was not there"
        )
        print("first reason:", skipped[0]["skip_reason"])
    if vulnerable:
        return FOUND
    if skipped:
        return UNKNOWN
    print(f"{service} knows no vulnerability of {len(results)} packages")
    return CLEAN


def _requirements(path: Path) -> Iterator[str]:
    text = path.read_text().replace("\\\n", " ")
    lines = (re.sub(r"\s+", " ", line.partition("#")[0]).strip() for line in text.splitlines())
    return (line for line in lines if line)


def _sets_of_distinct_names(pins: Sequence[str]) -> list[list[str]]:
    """The pins as sets in which no package is there in two versions."""
    sets: list[dict[str, str]] = []
    for pin in pins:
        name = normal(pin.partition("==")[0])
        free = next((each for each in sets if name not in each), None)
        if free is None:
            sets.append(free := {})
        free[name] = pin
    return [list(each.values()) for each in sets]


def _tool() -> Path:
    """pip-audit, which is installed at its first use: none of its packages enters .venv."""
    tool = TOOL_ENVIRONMENT / "bin" / "pip-audit"
    if not tool.exists():
        venv.create(TOOL_ENVIRONMENT, with_pip=True, clear=True)
        pip = [str(TOOL_ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "-qq", "--no-input", TOOL]
        if subprocess.run(pip).returncode:
            print(f"not audited: {TOOL} could not be installed")
            sys.exit(UNKNOWN)
    return tool


if __name__ == "__main__":
    sys.exit(main())
