"""Every command in the documents is right: its options exist, its settings are valid, and its --dry-run works."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

import launch
from commands.checks import load_checked
from commands.compare.plan import CompareConfig, plan_runs
from commands.parser import SETTINGS, build_parser
from settings.exit_codes import FINISHED
from settings.load import load_settings
from tests.unit.documented_commands import DOCUMENTS, ROOT, Command, commands

COMMANDS = commands()
WITH_SETTINGS = {"train", "submit", "eval", "compare", "plan", "preflight"}
MODELS = ROOT / "examples" / "arithmetic" / "models"
TARGETS = set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
FOREIGN = {"ray", "export", "tensorboard", "docker", "kubectl", "helm", "curl", "hf"}
FOREIGN |= {"ray_node.sh", "systemctl", "sbatch", "scancel", "prometheus", "promtool", "fetch_validators.sh"}
"""Programs that are not ours, or that start nodes: they stand in blocks that say what they need."""

LAUNCHED = [command for command in COMMANDS if command.arguments]
DRY = [
    command
    for command in LAUNCHED
    if command.arguments[0] in ("train", "compare") and not command.needs and "--help" not in command.arguments
]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_is_one_that_there_is(command: Command) -> None:
    program = Path(command.words[0]).name
    if command.arguments:
        build_parser(None).parse_known_args(_without_help(command.arguments))
    elif program == "make":
        assert [word for word in command.words[1:] if "=" not in word and word not in TARGETS] == []
    elif program == "python" and command.words[1] == "-m":
        assert importlib.util.find_spec(command.words[2])
    elif program == "python":
        text = (ROOT / command.words[1]).read_text()
        missing = [word for word in command.words[2:] if word.startswith("--") and not _is_option(word, text)]
        assert missing == []
    else:
        assert program in FOREIGN, f"{command}: unknown to this test"
        assert command.needs, f"{command}: say what it needs, <!-- needs: cluster --> before its block"


def _is_option(word: str, text: str) -> bool:
    """True if a script names the option; pytest and hypothesis read some of their own."""
    name = word.partition("=")[0]
    return f'"{name}"' in text or f'"{name.removeprefix("--")}"' in text


@pytest.mark.parametrize("command", LAUNCHED, ids=str)
def test_the_settings_of_every_command_are_valid(command: Command) -> None:
    arguments, options = build_parser(None).parse_known_args(_without_help(command.arguments))
    if command.arguments[0] not in WITH_SETTINGS:
        check_remote(command, options)
        return
    model = SETTINGS.get(command.arguments[0])
    if model is None:
        if getattr(arguments, "config", None):
            load_checked(arguments.config, options)
        return
    settings = load_settings(model, arguments.config, options)
    if isinstance(settings, CompareConfig):
        assert plan_runs(settings)


def check_remote(command: Command, options: list[str]) -> None:
    """A command for a live run takes nothing more, but for the pools that `scale` takes."""
    if command.arguments[0] == "scale":
        from commands.remote import read_counts

        assert read_counts(options)
    else:
        assert options == []
    assert command.needs, f"{command}: say what it needs, <!-- needs: run --> before its block"


@pytest.mark.parametrize("command", DRY, ids=str)
def test_every_command_that_needs_nothing_passes_its_dry_run(
    command: Command, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dropped = {"--resume", "--resume=auto", "--dry-run"}
    arguments = [word for word in command.arguments if word not in dropped]
    if arguments[0] == "train":
        arguments += ["--runs-path", str(tmp_path)]
        arguments += ["--data.train_path", str(data), "--evaluation.data_path", str(data)]
    else:
        arguments += ["--runs_path", str(tmp_path), "--output_path", str(tmp_path / "results")]
    assert launch.main([*arguments, "--dry-run"]) == FINISHED
    assert capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [data]


def test_evaluating_an_export_passes_its_dry_run(data: Path, tmp_path: Path) -> None:
    found = [command for command in LAUNCHED if command.arguments[0] == "eval" and not command.needs]
    assert found
    for command in found:
        assert "--config" in command.arguments, f"{command}: say that it needs the network, or a configuration"
        arguments = [str(MODELS / "student") if "export" in word else word for word in command.arguments]
        arguments += ["--runs-path", str(tmp_path / "runs"), "--evaluation.data_path", str(data)]
        assert launch.main([*arguments, "--dry-run"]) == FINISHED


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_stand_in_blocks_where_they_are_checked(document: Path) -> None:
    outside = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"^ {4,}(?:\S*/)?(?:python|make|ray) .*", outside, re.MULTILINE) == []


def test_there_are_commands_of_every_kind() -> None:
    assert {command.arguments[0] for command in LAUNCHED} >= {
        *("train", "eval", "compare", "plan", "scale", "status", "stop", "chaos"),
    }
    assert len(DRY) >= 8
    assert shutil.which("make")


def _without_help(arguments: list[str]) -> list[str]:
    return [word for word in arguments if word != "--help"]
