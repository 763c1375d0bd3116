"""The order of the folders as data, and what checks a tree of files against it.

    settings <- transport <- rewards <- ... <- commands <- launch

`tests/unit/test_layout.py` checks this repository, and small trees with a planted breach; `docs/architecture.md`
shows the same order. `python -m tests.unit.layout` prints how large every folder is.
"""

import ast
from collections.abc import Iterable, Iterator, Set
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

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
FEWER = {
    "learner": {"settings", "transport", "rewards", "records", "inputs"},
    "cluster": {"settings", "transport", "records"},
}
"""... and these folders only some of them."""
OTHERS = ("tests", "examples", "benchmarks", "docs")
"""Folders that import anything, and that no folder of ORDER imports."""
LIBRARIES = {
    "vllm": ("actors/vllm",),
    "deepspeed": ("learner/deepspeed_backend.py",),
    "ray": ("transport/weight_sources.py", "cluster", "evaluation", "reporting", "controller", "commands"),
}
"""Where a heavy library may be imported: folders, or single files."""


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Return every node of a module: also of its functions and of `if TYPE_CHECKING` blocks."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def files(root: Path, *names: str) -> list[Path]:
    """Return the Python files of these folders and modules, as paths relative to `root`."""
    found = [path for name in names for path in (root / name).rglob("*.py")]
    found += [root / f"{name}.py" for name in names if (root / f"{name}.py").exists()]
    return sorted(path.relative_to(root) for path in found if "__pycache__" not in path.parts)


def imported(found: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the dotted name of each absolute import, `import_module("...")` included."""
    for node in found:
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


def breaches(root: Path) -> set[str]:
    """Return every import that goes against ORDER, or that takes a library to where it does not belong."""
    found = set()
    for folder in (*ORDER, "examples", "docs"):
        barred = set[str]()
        if folder in ORDER:
            below = FEWER.get(folder, {*ORDER[: ORDER.index(folder)]})
            barred = {*ORDER, *OTHERS} - below - {folder}
        for path in files(root, folder):
            for name in imported(nodes(root / path)):
                top = name.split(".")[0]
                if top in barred or not any(path.is_relative_to(place) for place in LIBRARIES.get(top, ("",))):
                    found.add(f"{path} imports {name}")
    return found


def circle(root: Path) -> list[str]:
    """Return modules that import each other in a circle while they are loaded; empty if none do."""
    paths = {_module(path): path for path in files(root, *ORDER)}
    graph = {name: _loaded(root / path, paths.keys()) - {name} for name, path in paths.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _loaded(path: Path, modules: Set[str]) -> set[str]:
    """Return which modules are imported while this one is loaded: outside functions and TYPE_CHECKING."""
    names = imported(_while_loading(ast.parse(path.read_text(encoding="utf-8")).body))
    return {name if name in modules else name.rpartition(".")[0] for name in names} & modules


def _while_loading(found: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in found:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                continue
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"), orelse=orelse):
                yield from _while_loading(orelse)
            case _:
                yield node
                yield from _while_loading(ast.iter_child_nodes(node))


def lines(path: Path) -> int:
    """Return how many lines a file of this repository has."""
    return len((ROOT / path).read_text(encoding="utf-8").splitlines())


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the name and the lines of each function of a file of this repository."""
    for node in nodes(ROOT / path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or 0) - node.lineno + 1


if __name__ == "__main__":
    product = files(ROOT, *ORDER)
    for title, found in [(name, files(ROOT, name)) for name in (*ORDER, *OTHERS)] + [("product", product)]:
        print(f"{title:12} {sum(map(lines, found)):6,} lines in {len(found):3} files")
    print(f"largest file {max((lines(path), str(path)) for path in product)}")
    print(f"largest function {max((n, f'{path}: {name}') for path in product for name, n in functions(path))}")
