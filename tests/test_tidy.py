"""Rules of this repository that no linter checks. The lists of exceptions only shrink."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "aioflow").rglob("*.py"))
BACKENDS = sorted((ROOT / "backends").rglob("*.py"))
QUERIES = sorted((ROOT / "backends").rglob("*.sql"))
PRODUCT = CORE + BACKENDS
TESTS = sorted((ROOT / "tests").rglob("*.py"))
OTHERS = sorted(path for folder in ("examples", "benchmarks") for path in (ROOT / folder).rglob("*.py"))

LONGEST_FILE = 350
LONGEST_FUNCTION = 70
#: How far a listed length may exceed the real one, so that not every edit has to change the list.
SLACK = 10

#: file -> lines
LONG_FILES: dict[str, int] = {}
#: file::function -> lines
LONG_FUNCTIONS: dict[str, int] = {}

VAGUE_NAMES = {"base", "common", "helpers", "misc", "types", "utils"}

#: Every task needs an owner that ends it and reports its errors.
MAY_CREATE_TASKS = {
    "aioflow/tasks.py": "the set that owns, reports and ends every task of the engine",
    "aioflow/testing/simloop.py": "a loop: it makes the tasks that are asked of it",
    "backends/aioflow_postgres/database.py": "operations that run to their end whoever leaves; close() waits for them",
    "backends/aioflow_postgres/ear.py": "the one that listens, which close() ends",
}

#: Modules whose functions need no docstring.
UNDESCRIBED = {
    "aioflow/shapes.py": "members of protocols, read by type checkers alone; the classes are described",
}

CLOCK = "aioflow/clock.py"

#: Other modules that may read time or sleep.
MAY_TELL_TIME = {
    "aioflow/tasks.py": "the loop's time: its patience is that of asyncio.wait, which counts in it too",
    "aioflow/testing/simloop.py": "a loop, whose time is virtual",
}

#: Tests that pause in real time.
MAY_PAUSE = {
    "tests/support.py": "wait_until, for all others",
    "tests/wire.py": "a slow wire is slow",
}


def none(problems: Iterable[str]) -> None:
    """Fail with the problems, a line each."""
    if found := list(problems):
        pytest.fail("\n".join(found), pytrace=False)


@cache
def source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(source(path), str(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def dotted(node: ast.AST) -> str:
    """The dotted name of an expression, such as ``asyncio.sleep``; calls and subscripts in it are left out."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            return f"{dotted(value)}.{attr}"
        case ast.Call(func=function):
            return dotted(function)
        case _:
            return "?"


def calls(path: Path) -> Iterator[tuple[str, str, ast.Call]]:
    """Every call in a file: its place, the called name with imports resolved, and the node."""
    imported = dict(imports(path))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            first, *rest = dotted(node.func).split(".")
            yield f"{name_of(path)}:{node.lineno}", ".".join([imported.get(first, first), *rest]), node


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Every name that a file imports, with the full name of what it refers to."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name, alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions and methods with their qualified names, without those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from functions(child, f"{prefix}{child.name}.")
        else:
            yield from functions(child, prefix)


def over(found: dict[str, int], limit: int, exceptions: dict[str, int]) -> list[str]:
    """Problems: what is longer than allowed, and exceptions that are no longer needed."""
    problems = [
        f"{name} has {lines} lines, {exceptions.get(name, limit)} are allowed"
        for name, lines in found.items()
        if lines > exceptions.get(name, limit)
    ]
    for name, allowed in exceptions.items():
        lines = found.get(name, 0)
        if lines <= limit:
            problems.append(f"{name} needs no exception any more: remove it")
        elif allowed - lines > SLACK:
            problems.append(f"{name} has {lines} lines, its exception can be lowered from {allowed}")
    return problems


def test_files_are_short() -> None:
    """A file of the product has at most about 350 lines."""
    none(over({name_of(path): source(path).count("\n") for path in PRODUCT}, LONGEST_FILE, LONG_FILES))


def test_functions_are_short() -> None:
    """A function of the product has at most about 70 lines."""
    found = {
        f"{name_of(path)}::{name}": (function.end_lineno or 0) - function.lineno + 1
        for path in PRODUCT
        for name, function in functions(tree(path))
    }
    none(over(found, LONGEST_FUNCTION, LONG_FUNCTIONS))


def test_modules_are_named_after_what_they_hold() -> None:
    """No module is called utils, common or the like."""
    none(name_of(path) for path in PRODUCT + TESTS if path.stem.strip("_") in VAGUE_NAMES)


def test_test_files_are_collected() -> None:
    """A file with tests has a name that starts with ``test_``, so that it is collected."""
    strays = [
        name_of(path)
        for path in TESTS
        if not path.name.startswith("test_") and any(name.startswith("test_") for name, _ in functions(tree(path)))
    ]
    none(strays)


def test_tests_say_what_they_prove() -> None:
    """The docstring of every test is one sentence."""
    wrong = []
    for path in TESTS:
        for name, function in functions(tree(path)):
            if not name.rpartition(".")[2].startswith("test_"):
                continue
            sentence = ast.get_docstring(function) or ""
            if not sentence.endswith((".", "?")) or re.search(r"[.?!]\s+[A-Z]|\n\n", sentence):
                wrong.append(f"{name_of(path)}::{name}: {sentence or 'no docstring'}")
    none(wrong)


def test_what_is_public_is_described() -> None:
    """Every public module, class and function of the core has a docstring."""
    missing = []
    for path in CORE:
        if not ast.get_docstring(tree(path)) and source(path).strip():
            missing.append(name_of(path))
        named: list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]
        named = [(node.name, node) for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
        if name_of(path) not in UNDESCRIBED:
            named += functions(tree(path))
        missing += [
            f"{name_of(path)}::{name}"
            for name, node in named
            if not any(part.startswith("_") for part in name.split("."))
            and not ast.get_docstring(node)
            and not {"overload", "override"}
            & {dotted(decorator).rpartition(".")[2] for decorator in node.decorator_list}
        ]
    none(missing)


def test_tasks_have_an_owner() -> None:
    """Tasks are created only by the modules listed as their owners."""
    creators = {
        name_of(path)
        for path in PRODUCT
        for _, called, _ in calls(path)
        if called.rpartition(".")[2] in {"create_task", "ensure_future"}
    }
    assert creators == set(MAY_CREATE_TASKS)


#: Modules that may iterate over a set: where the order has no effect, or is always the same.
MAY_WALK_SETS = {
    "aioflow/tasks.py": "of tasks, which all get the same; those of a simulation hash by a number",
}


def sets_of(path: Path) -> set[str]:
    """The names and attributes that a file declares as sets."""
    return {
        dotted(node.target)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.AnnAssign) and re.match(r"(frozen)?set\b", ast.unparse(node.annotation))
    }


def is_set(node: ast.AST, named: set[str]) -> bool:
    """Whether an expression is known to be a set."""
    match node:
        case ast.Set() | ast.SetComp():
            return True
        case ast.Call(func=ast.Name(id="set" | "frozenset")):
            return True
        case ast.Call(func=ast.Attribute(value=value, attr="union" | "difference" | "intersection")):
            return is_set(value, named)
        case ast.BinOp(left=left, right=right):
            return is_set(left, named) or is_set(right, named)
        case ast.Name() | ast.Attribute():
            return dotted(node) in named
        case _:
            return False


def walks(path: Path) -> Iterator[tuple[int, ast.expr]]:
    """What a file iterates over, and in which line."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            yield node.iter.lineno, node.iter
        elif isinstance(node, ast.Call) and dotted(node.func) in {
            "list",
            "tuple",
            "iter",
            "next",
            "enumerate",
            "dict.fromkeys",
        }:
            yield from ((node.lineno, argument) for argument in node.args[:1])


def test_sets_are_not_walked() -> None:
    """The core does not iterate over sets, whose order differs between processes: sort them, or use a dict."""
    found = {
        f"{name_of(path)}:{line} {ast.unparse(walked)}"
        for path in CORE
        for line, walked in walks(path)
        if is_set(walked, sets_of(path)) and "/testing/conformance" not in name_of(path)
    }
    none(sorted(where for where in found if where.partition(":")[0] not in MAY_WALK_SETS))
    assert {where.partition(":")[0] for where in found} == set(MAY_WALK_SETS)


def test_nothing_hangs_on_addresses() -> None:
    """No module of the core calls ``id()``, whose result differs between processes."""
    none(where for path in CORE for where, called, _ in calls(path) if called == "id")


def test_only_the_clock_tells_time() -> None:
    """Only clock.py and the listed modules read a clock or sleep."""
    readers = re.compile(
        r"time\.\w+|(asyncio|anyio|trio)\.sleep(_until)?|anyio\.current_time|.*loop\.time|"
        r"(datetime\.)?(datetime|date)\.(now|utcnow|today)"
    )
    found = {where for path in PRODUCT for where, called, _ in calls(path) if readers.fullmatch(called)}
    assert {where.partition(":")[0] for where in found} == {CLOCK, *MAY_TELL_TIME}, sorted(found)


#: Modules whose SQL may read the server's time.
MAY_ASK_THE_TIME = {"backends/aioflow_postgres/timing.py": "it measures how far the server's clock is ahead"}


def test_sql_does_not_tell_time() -> None:
    """The SQL of stores gets the time as a parameter, so that tests can move it."""
    readers = re.compile(
        r"\bCURRENT_(TIME|DATE|TIMESTAMP)\b|\b(NOW|CLOCK_TIMESTAMP|UNIXEPOCH|JULIANDAY)\(|'now'", re.IGNORECASE
    )
    found = [name_of(path) for path in QUERIES if readers.search(source(path))]
    found += [
        f"{name_of(path)}:{node.lineno} {node.value!r}"
        for path in BACKENDS
        if name_of(path) not in MAY_ASK_THE_TIME
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and readers.search(node.value)
    ]
    none(found)


def test_sqlite_is_given_no_numbered_parameters() -> None:
    """No SQL for SQLite uses numbered parameters like ``?1``, which Python 3.12.0 to 3.12.3 deprecate for sequences."""
    found = [
        f"{name_of(path)}:{node.lineno} {node.value!r}"
        for path in BACKENDS
        if "aioflow_sqlite" in path.parts
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"\?\d", node.value)
    ]
    none(found)


def test_tests_do_not_sleep() -> None:
    """Tests move a virtual clock or use ``wait_until``; only ``sleep(0)``, which yields to other tasks, is allowed."""
    sleeps = {"asyncio.sleep", "anyio.sleep", "time.sleep"}
    found = {
        where
        for path in TESTS
        for where, called, call in calls(path)
        if called in sleeps and not (call.args and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0)
    }
    assert {where.partition(":")[0] for where in found} == set(MAY_PAUSE), sorted(found)


def test_nobody_imports_the_source_root() -> None:
    """No file imports ``backends.…``, which would be a second copy of a store's classes."""
    found = [
        f"{name_of(path)}: {target}"
        for path in PRODUCT + TESTS + OTHERS
        for _, target in imports(path)
        if target.partition(".")[0] == "backends"
    ]
    none(found)


def comments(path: Path) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source(path)).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_what_is_ignored_has_a_name() -> None:
    """``type: ignore``, ``noqa`` and ``pyright: ignore`` name the rule that they suppress."""
    nameless = re.compile(r"#\s*(type:\s*ignore(?!\[)|noqa(?!:\s*[A-Z]+\d)|pyright:\s*ignore(?!\[))")
    found = [
        f"{name_of(path)}:{line} {comment}"
        for path in PRODUCT + TESTS + OTHERS
        for line, comment in comments(path)
        if nameless.search(comment)
    ]
    none(found)


def test_the_product_knows_no_machine() -> None:
    """The product contains no absolute path of a particular machine."""
    paths = re.compile(r"(?<![\w.])(?:/(?:home|opt|root|tmp|Users|usr|var|work)/|[A-Z]:\\)")
    none(name_of(path) for path in PRODUCT + QUERIES if paths.search(source(path)))


def test_the_map_is_the_house() -> None:
    """CONTRIBUTING.md lists the layers that import-linter checks, in the same order, lowest first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = {contract["id"]: contract for contract in project["tool"]["importlinter"]["contracts"]}
    layers = [re.findall(r"\w+", layer) for layer in reversed(contracts["layers"]["layers"])]
    fence = re.search(
        r"^```\n(run_errors .*?)^```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert fence
    drawn = [line.partition("  ")[0].split() for line in fence[1].splitlines() if not line.startswith(" ")]
    assert drawn == layers


def test_the_rules_find_what_they_look_for() -> None:
    """The lists of files that the rules read are not empty, so that a moved folder is noticed."""
    assert CORE
    assert BACKENDS
    assert name_of(Path(__file__)) in {name_of(path) for path in TESTS}
    assert CLOCK in {name_of(path) for path in CORE}
