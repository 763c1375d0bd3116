"""Nothing on the event loop waits for Ray's head: its blocking calls are made in threads (`waiting.in_thread`)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ON_THE_LOOP = ("cluster", "controller", "evaluation", "reporting", "records", "commands")
OFF_THE_LOOP = ("commands/chaos", "commands/plan", "commands/submit")
"""Commands of their own: nothing of them runs in a run."""

BLOCKING = {
    *("ray.available_resources", "ray.cluster_resources", "ray.get", "ray.get_actor", "ray.kill", "ray.nodes"),
    *("ray.put", "ray.wait", "ray.remote", "ray.init", "ray.shutdown", "ray.get_runtime_context"),
    *("ray.util.list_named_actors", "ray.util.get_node_ip_address"),
    *("placement_group", "placement_group_table", "remove_placement_group", "request_resources"),
    *("is_autoscaler_v2", "get_actor_table", "group.ready"),
}
"""Calls that ask the head, or may: `ray.remote` registers a class with it. `ray.cancel` tells the worker alone."""

IN_THREAD = {"in_thread", "_ask", "_made"}
"""These make their first argument in a thread."""

COMMON = {*dir(dict), *dir(list), *dir(set)}
"""Methods whose name alone tells nothing."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def calls_in(body: list[ast.stmt]) -> Iterator[tuple[str, int, bool]]:
    """The calls that these statements make by themselves or in a lambda: dotted name, line, whether it is awaited.

    Not those of functions that they define, and not those that are handed to a thread.
    """
    waiting: list[ast.AST] = [*body]
    awaited = {id(node.value) for each in body for node in ast.walk(each) if isinstance(node, ast.Await)}
    while waiting:
        node = waiting.pop()
        if isinstance(node, Function | ast.ClassDef):
            continue
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            yield name, node.lineno, id(node) in awaited
            if name in IN_THREAD:
                waiting += node.args[1:]
                continue
        waiting += ast.iter_child_nodes(node)


def imports_of(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Names that a module imports from another one: by name, (file, name there)."""
    return {
        alias.asname or alias.name: (f"{node.module.replace('.', '/')}.py", alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def blocking_calls(trees: dict[str, ast.Module]) -> list[str]:
    """Each call in a coroutine that leads to one of `BLOCKING` through plain functions.

    A function is looked up in its module or where that imports it from, a method of another object by its name.
    """
    functions = [(f, each) for f, tree in trees.items() for each in ast.walk(tree) if isinstance(each, Function)]
    called = {id(each): [*calls_in(each.body)] for _, each in functions}
    classes = [each for tree in trees.values() for each in ast.walk(tree) if isinstance(each, ast.ClassDef)]
    methods = {id(each) for made in classes for each in made.body}
    imports = {file: imports_of(tree) for file, tree in trees.items()}
    found, found_methods = set[tuple[str, str]](), set[str]()

    def is_blocking(file: str, call: str, _line: int, is_awaited: bool) -> bool:
        first, _, last = call.rpartition(".")
        if call in BLOCKING:
            return True
        if first in ("", "self"):
            return (file, last) in found or imports[file].get(last, ("", "")) in found
        return not is_awaited and last not in COMMON and last in found_methods

    size = -1
    while len(found) > size:
        size = len(found)
        for file, each in functions:
            if isinstance(each, ast.FunctionDef) and any(is_blocking(file, *call) for call in called[id(each)]):
                found.add((file, each.name))
                found_methods |= {each.name} if id(each) in methods else set()
    return [
        f"{file}:{call[1]}: {each.name} calls {call[0]}"
        for file, each in functions
        if isinstance(each, ast.AsyncFunctionDef)
        for call in called[id(each)]
        if is_blocking(file, *call)
    ]


def test_no_coroutine_makes_a_call_that_waits_for_the_head() -> None:
    files = (file.relative_to(ROOT) for folder in ON_THE_LOOP for file in sorted((ROOT / folder).rglob("*.py")))
    names = (str(file) for file in files if str(file.parent) not in OFF_THE_LOOP)
    assert blocking_calls({name: ast.parse((ROOT / name).read_text()) for name in names}) == []


@pytest.mark.parametrize(
    "text",
    [
        "async def loop():\n    ray.nodes()",
        "def free(self):\n    remove_placement_group(group)\nasync def loop(self):\n    self.free()",
        "def a():\n    ray.nodes()\ndef b():\n    a()\nasync def loop():\n    await wait(what=lambda: b())",
        "class A:\n    def free(self):\n        ray.kill(self.a)\nasync def loop(a):\n    a.free()",
        "async def loop():\n    await group.ready()",
    ],
)
def test_such_a_call_is_found_through_functions_and_lambdas(text: str) -> None:
    [found] = blocking_calls({"module": ast.parse(text)})
    assert found.startswith("module:")


@pytest.mark.parametrize(
    "text",
    [
        "async def loop():\n    await in_thread(ray.nodes, timeout_s=1.0, what='nodes')",
        "async def loop():\n    await in_thread(lambda: ray.kill(actor), timeout_s=1.0, what='the end')",
        "def main():\n    ray.nodes()",
    ],
)
def test_a_call_in_a_thread_or_off_the_loop_is_none(text: str) -> None:
    assert blocking_calls({"module": ast.parse(text)}) == []
