"""What holds the parts apart: who may import whom, and habits that a reviewer would have to look for."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ipc_twisted

PACKAGE = Path(ipc_twisted.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
CORE = [path for path in FILES if path.parent.name == "core"]
TREES = {path: ast.parse(path.read_text(), str(path)) for path in FILES}


def name_of(path: Path) -> str:
    """``core.codec``; the package itself is ``__init__``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): path for path in FILES}

LAYERS: list[set[str]] = [
    # Lowest first: a module imports from lower layers only, and from none of its own.
    {"errors", "core", "nonces"},
    {"core.envelope", "core.signing", "core.flow", "core.replay", "deadline", "log_limit", "systemd"},
    {"core.codec", "core.key_schedule", "core.framing"},
    {"core.verifier", "core.outbox", "keys"},
    {"core.handshake", "core.resend", "delivery"},
    {"core.connection", "config", "origin"},
    {"connection_file", "peer_watch"},
    {"protocol"},
    {"draining", "handlers", "strangers"},
    {"factory"},
    {"dialling", "statistics"},
    {"client_service", "endpoints"},
    {"metrics", "metrics_export", "service"},
    {"embed", "testing"},
    {"__init__"},
]
LEVEL = {module: level for level, layer in enumerate(LAYERS) for module in layer}
ABOVE = len(LAYERS)
"""Commands, plugins, demonstrations, support for tests: these import what they like, and none of the above imports
them."""


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in the file, inside functions too; names from a module as its parts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> set[str]:
    """The modules of the package that a file imports."""
    found = set()
    for imported in imports(TREES[path]):
        if imported == "ipc_twisted":
            continue  # its names follow, each with its own module or as one of __init__
        if imported.startswith("ipc_twisted."):
            inner = imported.removeprefix("ipc_twisted.")
            found |= {inner} if inner in MODULES else set()
            if "." not in inner and inner not in MODULES:
                found.add("__init__")
    return found - {name_of(path)}


def test_every_module_that_others_are_made_of_has_its_layer() -> None:
    assert LEVEL.keys() <= MODULES.keys(), "a module has gone"
    assert {name for name in MODULES if name.startswith("core")} <= LEVEL.keys()


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_from_lower_layers_only(name: str) -> None:
    """One way, nothing back: what a layer promises it promises without those above it."""
    own = LEVEL.get(name, ABOVE)
    wrong = {imported for imported in ours(MODULES[name]) if LEVEL.get(imported, ABOVE) >= own and own != ABOVE}
    assert wrong == set()


def test_no_import_leads_back() -> None:
    list(TopologicalSorter({name: ours(path) for name, path in MODULES.items()}).static_order())


ALLOWED_IN_CORE = {
    "__future__",
    "collections",
    "cryptography",
    "enum",
    "functools",
    "hashlib",
    "heapq",
    "ipaddress",
    "ipc_twisted",
    "itertools",
    "msgspec",
    "struct",
    "typing",
}
FORBIDDEN_CALLS = {"open", "print", "input", "eval", "exec", "compile", "__import__", "globals", "breakpoint"}


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_does_no_io_and_has_no_clock_and_no_randomness(path: Path) -> None:
    """Neither at the top of a file nor inside a function: all of it is handed in."""
    assert {imported.partition(".")[0] for imported in imports(TREES[path])} <= ALLOWED_IN_CORE
    called = {
        node.func.id for node in ast.walk(TREES[path]) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & FORBIDDEN_CALLS


def test_nothing_of_the_core_knows_the_rest_but_errors() -> None:
    for path in CORE:
        assert {name for name in ours(path) if not name.startswith("core")} <= {"errors"}, path


def test_the_core_loads_without_twisted() -> None:
    """As it would in a program that has another event loop, or none."""
    code = """
import sys, types, pathlib
package = types.ModuleType("ipc_twisted")
package.__path__ = [sys.argv[1]]
sys.modules["ipc_twisted"] = package
before = set(sys.modules)
import ipc_twisted.core.connection
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
wrong = loaded & {"twisted", "asyncio", "socket", "selectors", "ssl", "zope"}
print(*sorted(wrong))
"""
    command = [sys.executable, "-I", "-c", code, str(PACKAGE)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


# Habits


def nodes(kind: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, kind):
                yield f"{name_of(path)}:{getattr(node, 'lineno', 0)}", node


def names_in(node: ast.AST) -> set[str]:
    found = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    return found | {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}


@pytest.mark.attack(41)
def test_no_check_is_an_assert() -> None:
    """``python -O`` leaves them out."""
    assert [where for where, _ in nodes(ast.Assert)] == []


@pytest.mark.attack(41)
def test_nothing_depends_on_debug() -> None:
    assert [where for where, node in nodes(ast.Name) if isinstance(node, ast.Name) and node.id == "__debug__"] == []


TAG = re.compile(r"(^|_)(tag|sig|signature|mac|hmac|digest|hexdigest|finalize)(s|_|$)", re.IGNORECASE)


def compared(node: ast.Compare) -> Iterator[str]:
    """The names on both sides of ``==`` and ``!=``, of what is called too; ``len(tag)`` is no tag."""
    if any(isinstance(operator, ast.Eq | ast.NotEq) for operator in node.ops):
        for side in (node.left, *node.comparators):
            inner = side.func if isinstance(side, ast.Call) else side
            if isinstance(inner, ast.Name):
                yield inner.id
            elif isinstance(inner, ast.Attribute):
                yield inner.attr


def compares_a_tag(node: ast.AST) -> bool:
    return isinstance(node, ast.Compare) and any(TAG.search(name) for name in compared(node))


def test_no_tag_is_compared_with_an_operator() -> None:
    """It would stop at the first byte that differs, and the time tells where."""
    assert [where for where, node in nodes(ast.Compare) if compares_a_tag(node)] == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("tag == other", True),
        ("x != m2.sig", True),
        ("mac.finalize() == x", True),
        ("tag_s == x", True),
        ("stage == 1", False),
        ("len(tag) == 32", False),
    ],
)
def test_the_search_for_such_comparisons_finds_them(code: str, found: bool) -> None:
    assert any(compares_a_tag(node) for node in ast.walk(ast.parse(code))) is found


SECRETS = {"secret", "okm", "prk", "prks", "_raw", "_prk", "_prks", "tag", "key", "keys", "content"}


def logs(node: ast.Call) -> bool:
    """A call of a logger, or of what passes its arguments on to one."""
    called = node.func
    if not isinstance(called, ast.Attribute):
        return False
    return called.attr == "_say" or (isinstance(called.value, ast.Name) and called.value.id in {"_log", "log"})


def shown(node: ast.AST) -> list[ast.expr]:
    """The expressions that a node makes into text that others read."""
    if isinstance(node, ast.FormattedValue):
        return [node.value]
    if isinstance(node, ast.Call) and logs(node):
        return [*node.args, *(keyword.value for keyword in node.keywords)]
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        return [argument for argument in node.exc.args if isinstance(argument, ast.Name)]
    return []


def test_no_text_is_made_of_a_secret() -> None:
    """Not in an f-string, not as a field of a log line, not as an argument of an exception. Its length may be."""
    wrong = []
    for where, node in nodes(ast.AST):
        for expression in shown(node):
            length = isinstance(expression, ast.Call) and names_in(expression.func) == {"len"}
            if not length and names_in(expression) & SECRETS:
                wrong.append(where)
    assert wrong == []


def test_no_log_line_is_an_f_string() -> None:
    """A peer's text within the format itself would be read as fields, and none of it would be escaped."""
    wrong = []
    for where, node in nodes(ast.Call):
        if isinstance(node, ast.Call) and logs(node) and any(isinstance(a, ast.JoinedStr) for a in node.args):
            wrong.append(where)
    assert wrong == []


def test_nothing_is_unpickled() -> None:
    """Payloads are opaque; neither they nor anything else are ever turned into objects."""
    unsafe = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "yaml"}
    found = {imported for tree in TREES.values() for imported in imports(tree)}
    assert not {name.partition(".")[0] for name in found} & unsafe


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_reactor_is_an_argument(path: Path) -> None:
    """Never imported when a module is: that would install one."""
    at_module_level = [node for node in TREES[path].body if isinstance(node, ast.Import | ast.ImportFrom)]
    found = {imported for node in at_module_level for imported in imports(node)}
    assert "twisted.internet.reactor" not in found
