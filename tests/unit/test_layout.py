"""The layout of the code base: who imports whom, where heavy libraries may appear, how large things may grow."""

import ast
import re
from pathlib import Path

import pytest

from tests.unit.layout import FEWER, ORDER, ROOT, breaches, circle, files, functions, imported, lines, nodes

MAX_LINES_OF_A_FILE = 400
MAX_LINES_OF_A_FUNCTION = 60
SMALL, MAX_SMALL_FILES = 50, 15
BROAD = {"Exception", "BaseException"}
PRODUCT = files(ROOT, *ORDER)
EVERY_FILE = [*PRODUCT, *files(ROOT, "examples", "docs", "tests")]


def is_swallowing(node: ast.AST) -> bool:
    match node:
        case ast.ExceptHandler(body=[ast.Pass() | ast.Expr(value=ast.Constant())]):
            return True
        case ast.Call(func=ast.Name(id="suppress") | ast.Attribute(attr="suppress"), args=args):
            return any(ast.unparse(arg) in BROAD for arg in args)
    return False


def test_imports_go_one_way_and_heavy_libraries_stay_in_their_place() -> None:
    assert breaches(ROOT) == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(ROOT) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("settings/run.py", "import transport.weights"),
        ("cluster/pool.py", "from actors.engine import Engine"),
        ("actors/engine.py", "def f():\n    from learner import rank"),
        ("learner/rank.py", "if TYPE_CHECKING:\n    from actors import engine"),
        ("inputs/rows.py", 'import_module("controller.slots")'),
        ("commands/train.py", "import launch"),
        ("transport/notes.py", "import tests.unit.layout"),
        ("learner/loss.py", "import deepspeed"),
        ("actors/engine.py", "from vllm import LLM"),
        ("inputs/prompts.py", "import ray"),
    ],
)
def test_a_planted_breach_is_found(path: str, line: str, tmp_path: Path) -> None:
    planted = tmp_path / path
    planted.parent.mkdir()
    planted.write_text(f"import torch\n{line}\n")
    assert len(breaches(tmp_path)) == 1


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    texts = {
        "__init__": "",
        "a": "from settings import b",
        "b": "try:\n    import settings.c\nexcept ImportError:\n    raise",
        "c": "def f():\n    import settings.a\nif TYPE_CHECKING:\n    import settings.a",
    }
    (tmp_path / "settings").mkdir()
    for name, text in texts.items():
        (tmp_path / "settings" / f"{name}.py").write_text(text)
    assert circle(tmp_path) == []
    (tmp_path / "settings" / "c.py").write_text("from settings.a import x")
    assert {*circle(tmp_path)} == {"settings.a", "settings.b", "settings.c"}


def test_the_page_of_the_architecture_shows_the_same_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `([a-z]+)(?:/|\.py)` \|.*\| (.+) \|$", page, re.MULTILINE)
    assert tuple(folder for folder, _ in rows) == ORDER
    for place, (folder, said) in enumerate(rows):
        below = {*ORDER[:place]}
        if said.startswith("all above"):
            below -= {*re.findall(r"`(\w+)`", said)}
        else:
            below = {*re.findall(r"`(\w+)`", said)}
        assert below == FEWER.get(folder, {*ORDER[:place]}), folder


def test_ray_remote_is_applied_in_one_file_only() -> None:
    found = {
        str(path)
        for path in PRODUCT
        if "ray.remote" in imported(nodes(ROOT / path))
        or any(
            isinstance(node, ast.Attribute) and ast.unparse(node) == "ray.remote" for node in nodes(ROOT / path)
        )
    }
    assert found == {"cluster/ray_actors.py"}


def test_no_file_and_no_function_grows_beyond_what_one_can_read() -> None:
    long = {str(path): lines(path) for path in EVERY_FILE if lines(path) > MAX_LINES_OF_A_FILE}
    for path in EVERY_FILE:
        over = {name: length for name, length in functions(path) if length > MAX_LINES_OF_A_FUNCTION}
        long |= {f"{path}: {name}": length for name, length in over.items()}
    assert long == {}


def test_few_files_are_too_small_for_a_name_of_their_own() -> None:
    small = {str(path) for path in PRODUCT if path.name != "__init__.py" and lines(path) < SMALL}
    assert len(small) <= MAX_SMALL_FILES, sorted(small)


def test_every_package_has_a_door_sign_of_at_most_ten_lines() -> None:
    signs = {
        str(path): (ast.get_docstring(ast.parse((ROOT / path).read_text())) or "").splitlines()
        for path in PRODUCT
        if path.name == "__init__.py"
    }
    assert {path for path, sign in signs.items() if not 3 <= len(sign) <= 10} == set()


def test_no_error_is_swallowed() -> None:
    found = {
        f"{path}: {ast.unparse(node)}" for path in EVERY_FILE for node in nodes(ROOT / path) if is_swallowing(node)
    }
    assert found == set()


def test_there_is_no_drawer_module() -> None:
    drawers = {"utils", "util", "common", "helpers", "misc"}
    assert {str(path) for path in EVERY_FILE if drawers & {path.stem, *path.parts}} == set()


def test_source_is_ascii() -> None:
    assert {str(path) for path in EVERY_FILE if not (ROOT / path).read_bytes().isascii()} == set()
