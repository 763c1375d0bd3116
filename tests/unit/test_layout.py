"""The layout of the code base: who imports whom, where heavy libraries may appear, how large a file may grow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = (
    "settings",
    "transport",
    "rewards",
    "records",
    "inputs",
    "actors",
    "learner",
    "cluster",
    "evaluation",
    "reporting",
    "controller",
    "commands",
    "launch",
)
"""From the ground up: a folder imports those before it, ..."""
ONLY = {
    "learner": {"settings", "transport", "rewards", "records", "inputs"},
    "cluster": {"settings", "transport", "records"},
}
"""... and these folders fewer."""
MAX_LINES = 403
BROAD = {"Exception", "BaseException"}


def files(*folders: str) -> list[Path]:
    """Return the Python files below these folders of the repository, as paths relative to it."""
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts)


PRODUCT = [*files(*ORDER[:-1]), Path("launch.py"), *files("examples", "docs")]
EVERY_FILE = [*PRODUCT, *files("tests")]


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Return every node of a module: also of its functions and of `if TYPE_CHECKING` blocks."""
    return list(ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))))


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted name of each absolute import, `import_module("...")` included."""
    for node in nodes(path):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=module, level=0, names=names):
                yield from (f"{module}.{name.name}" for name in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def importers(library: str) -> set[str]:
    """Return the files outside tests/ that import this library."""
    return {str(path) for path in PRODUCT if any(name.split(".")[0] == library for name in imports(path))}


def is_swallowing(node: ast.AST) -> bool:
    match node:
        case ast.ExceptHandler(body=[ast.Pass() | ast.Expr(value=ast.Constant())]):
            return True
        case ast.Call(func=ast.Name(id="suppress") | ast.Attribute(attr="suppress"), args=args):
            return any(ast.unparse(arg) in BROAD for arg in args)
    return False


@pytest.mark.parametrize("package", ORDER[:-1])
def test_imports_go_one_way(package: str) -> None:
    allowed = ONLY.get(package, {*ORDER[: ORDER.index(package)]}) | {package}
    forbidden = {*ORDER, "tests", "examples", "benchmarks", "docs"} - allowed
    offenders = {
        f"{path} imports {name}"
        for path in files(package)
        for name in imports(path)
        if name.split(".")[0] in forbidden
    }
    assert offenders == set()


def test_nothing_imports_launch() -> None:
    assert importers("launch") == set()


def test_vllm_is_imported_only_under_actors_vllm() -> None:
    assert {path for path in importers("vllm") if not path.startswith("actors/vllm/")} == set()


def test_deepspeed_is_imported_only_in_its_backend() -> None:
    assert importers("deepspeed") == {"learner/deepspeed_backend.py"}


def test_ray_remote_is_applied_in_one_file_only() -> None:
    offenders = {
        str(path)
        for path in PRODUCT
        if "ray.remote" in imports(path)
        or any(isinstance(node, ast.Attribute) and ast.unparse(node) == "ray.remote" for node in nodes(path))
    }
    assert offenders == {"cluster/ray_actors.py"}


def test_no_file_is_longer_than_the_limit() -> None:
    lines = {str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in EVERY_FILE}
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}


def test_no_error_is_swallowed() -> None:
    offenders = {
        f"{path}: {ast.unparse(node)}" for path in EVERY_FILE for node in nodes(path) if is_swallowing(node)
    }
    assert offenders == set()


def test_there_is_no_drawer_module() -> None:
    drawers = {"utils", "util", "common", "helpers", "misc"}
    assert {str(path) for path in EVERY_FILE if drawers & {path.stem, *path.parts}} == set()


def test_source_is_ascii() -> None:
    assert {str(path) for path in EVERY_FILE if not (ROOT / path).read_bytes().isascii()} == set()


def test_configuration_imports_without_the_heavy_libraries() -> None:
    heavy = ["torch", "vllm", "ray", "transformers", "deepspeed"]
    program = f"import sys, settings.run, settings.load; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_what_eval_checks_before_ray_starts_does_not_import_ray() -> None:
    """Ray reads its environment when it is imported: authentication must be chosen before."""
    program = "import sys, commands.evaluate, inputs.inputs; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr
