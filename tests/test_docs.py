"""The documents say what the code does: their tables, vectors, programs and commands are held to the package.

``python -m tests.test_docs`` writes the tables that are made from the code anew.

Before a fenced block a page may say, in an HTML comment: ``setup: NAME`` (CI runs it), ``file: NAME`` (save it),
``prints`` (what the program or command before it prints), ``not run: REASON``.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

import ipc_twisted
from ipc_twisted import Category, ConfigError, ExecutionIPCConfig, Keyring, SecureEnvelope, cli
from ipc_twisted.connection_file import ConnectionInfo
from ipc_twisted.core.codec import (
    MAX_REJECTIONS,
    Close,
    Receipt,
    canonical_payload,
    serialize_close,
    serialize_receipt,
)
from ipc_twisted.core.connection import TRANSITIONS, State
from ipc_twisted.core.envelope import FIELD_RULES, MAX_HEADER_BYTES
from ipc_twisted.core.framing import FRAME_OVERHEAD, MIN_LENGTH
from ipc_twisted.core.handshake import ClientHandshake, Endpoint, Limits, ServerHandshake
from ipc_twisted.core.key_schedule import KEY_ID_BYTES, Prk, lp, transcript
from ipc_twisted.core.signing import MacKey
from ipc_twisted.tap import Options
from tests.test_architecture import LAYERS, LEVEL, MODULES
from tests.twistd_child import TwistdChild

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ipc_twisted"
DOCS = ROOT / "docs"
TIMEOUT_SECONDS = 60
READ_KEYS_AGAIN = 'kill -HUP "$(cat twistd.pid)"'
FILE_COMMANDS = {"cat", "cp"}
TEST_RUNNERS = {"pytest": "pytest", "trial": "twisted.trial"}

if not PACKAGE.is_dir():
    pytest.skip("a wheel has no documents: they are tested in the checkout", allow_module_level=True)

PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))}
each_page = pytest.mark.parametrize("page", PAGES)
FOLLOWED = [page for page in PAGES if page != "docs/tutorial.md"]
"""The tutorial is followed by tests/test_tutorial.py, in an environment of its own."""
each_page_that_is_followed = pytest.mark.parametrize("page", FOLLOWED)


class Block(NamedTuple):
    """A fenced block; ``says`` is the comment right before it."""

    says: str
    language: str
    content: str


def read(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    found = re.findall(r"^(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)
    return [Block(*parts) for parts in found]


def prose(text: str) -> str:
    """Without fenced blocks, and in one line."""
    return " ".join(re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL).split())


def section(page: str, heading: str) -> str:
    """What is under a heading, up to the next of its level."""
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^\1 |\Z)", read(page), re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no heading {heading!r}"
    return found[2]


def table(text: str, *columns: str) -> list[list[str]]:
    """The rows of the only table in ``text`` that has these columns."""
    found = [
        [[cell.strip() for cell in line[1:-1].split("|")] for line in lines.splitlines()]
        for lines in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    ]
    ((_, _, *rows),) = (rows for rows in found if rows[0] == list(columns))
    assert all(len(row) == len(columns) for row in rows)
    return rows


def sources() -> dict[str, ast.Module]:
    """The package's modules, by path in it."""
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py"
    }


# --- all pages --------------------------------------------------------------------------------------------------------


def groups_of_the_index() -> dict[str, list[str]]:
    """The pages of each group, in their order, as docs/README.md lists them."""
    groups = re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", read("docs/README.md"), re.MULTILINE | re.DOTALL)
    return {heading: re.findall(r"^\| \[.+?\]\((.+?)\)", text, re.MULTILINE) for heading, text in groups}


def test_every_page_is_in_the_index() -> None:
    listed = [name for names in groups_of_the_index().values() for name in names]
    pages = [path.name for path in (*DOCS.glob("*.md"), DOCS / "api.rst") if path.name != "README.md"]
    assert sorted(listed) == sorted(pages)


def test_the_site_has_the_groups_of_the_index() -> None:
    trees = re.findall(
        r"^\.\. toctree::\n   :caption: (.+)\n   :hidden:\n\n((?:   .+\n)+)",
        (DOCS / "index.rst").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    of_site = {caption: names.split() for caption, names in trees}
    assert of_site == {heading: [Path(name).stem for name in names] for heading, names in groups_of_the_index().items()}


def test_the_api_has_every_public_name() -> None:
    listed = re.findall(
        r"^\.\. auto\w+:: (?:ipc_twisted\.)?(\w+)", (DOCS / "api.rst").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(ipc_twisted.__all__) <= set(listed)


def test_only_the_page_for_it_says_what_is_left_for_later() -> None:
    assert [page for page in PAGES if re.search(r"\blater phases?\b|\bphase \d", prose(read(page)))] == []
    rows = table(read("docs/status.md"), "part", "is there", "left")
    assert all(all(cells) for cells in rows)


@each_page
def test_internal_links_resolve(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", read(page)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (PAGES[page].parent / name).resolve() if name else PAGES[page]
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings]
            assert anchor in slugs, link


@each_page
def test_no_page_names_paths_or_tools_of_one_machine(page: str) -> None:
    assert not re.findall(r"/work\b|/tmp\b|/root\b|/home\b|\bfarm\b|pyenv", read(page))


@each_page
def test_every_block_is_of_a_language_that_is_tested_or_shown(page: str) -> None:
    assert {block.language for block in blocks(page)} <= {"python", "sh", "toml", "json", "text", "vector", "mermaid"}
    assert 2 * len(blocks(page)) == len(re.findall(r"^\s*```", read(page), re.MULTILINE))


# --- what is made from the code ---------------------------------------------------------------------------------------


def imports(tree: ast.Module) -> tuple[set[str], set[str]]:
    """The modules of the package that are imported, and packages from outside the standard library."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in within if (ROOT / (name.replace(".", "/") + ".py")).is_file()}
            names |= modules or {node.module}
    ours = {name.removeprefix("ipc_twisted.") for name in names if name.startswith("ipc_twisted")}
    others = {name.split(".")[0] for name in names} - {"ipc_twisted"} - sys.stdlib_module_names
    return ours, others


def code_list(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "–"


def module_rows(rows: list[list[str]]) -> list[list[str]]:
    trees = sources()
    return [[module, what, *map(code_list, imports(trees[module.strip("`")]))] for module, what, *_ in rows]


def mark_arguments(mark: str, *nodes: ast.AST) -> list[str]:
    """What ``pytest.mark.contract(...)`` and its like are given within some nodes."""
    within = [inner for node in nodes for inner in ast.walk(node)]
    calls = [n for n in within if isinstance(n, ast.Call) and ast.unparse(n.func) == f"pytest.mark.{mark}"]
    return [str(argument.value) for call in calls for argument in call.args if isinstance(argument, ast.Constant)]


def marked_tests(mark: str) -> dict[str, list[str]]:
    """The tests that carry a mark, by what it is given."""
    found: dict[str, list[str]] = defaultdict(list)
    tests = ROOT / "tests"
    for path in sorted(tests.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        holders: list[ast.Module | ast.ClassDef] = [tree]
        holders += [node for node in tree.body if isinstance(node, ast.ClassDef)]
        counted = 0
        for holder in holders:
            of_class = mark_arguments(mark, *holder.decorator_list) if isinstance(holder, ast.ClassDef) else []
            counted += len(of_class)
            for node in holder.body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
                    own = mark_arguments(mark, *node.decorator_list)
                    counted += len(own)
                    for case in dict.fromkeys(own + of_class):
                        found[case].append(f"`{path.relative_to(tests).as_posix()}::{node.name}`")
        assert counted == len(mark_arguments(mark, tree)), f"{path.name} has {mark} marks that are not at a test"
    return found


def contract_rows(rows: list[list[str]]) -> list[list[str]]:
    tests = marked_tests("contract")
    return [[case, what, "<br>".join(tests[case])] for case, what, _ in rows]


def attack_rows(rows: list[list[str]]) -> list[list[str]]:
    tests = marked_tests("attack")
    return [[number, what, beside, "<br>".join(tests[number])] for number, what, beside, _ in rows]


class Generated(NamedTuple):
    """A table that is made from the code: where it is, and what its rows are made to be."""

    page: str
    columns: tuple[str, ...]
    make: Callable[[list[list[str]]], list[list[str]]]


GENERATED = {
    "modules": Generated(
        "docs/design.md", ("module", "what it holds", "imports, ours", "imports, others"), module_rows
    ),
    "contract cases": Generated("docs/security-profile.md", ("case", "what must hold", "tests"), contract_rows),
    "attacks": Generated(
        "docs/security-profile.md", ("attack", "what must happen", "beside the tests", "tests"), attack_rows
    ),
}


def generated(name: str) -> tuple[str, str]:
    """The page, and how it would be if this table of its were made now."""
    page, columns, make = GENERATED[name]
    text = read(page)
    before, start, rest = text.partition(f"<!-- generated: {name} -->\n")
    old, end, after = rest.partition("<!-- end -->\n")
    head = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"
    new = "".join(f"| {' | '.join(row)} |\n" for row in make(table(old, *columns)))
    return text, "".join((before, start, head, new, end, after))


@pytest.mark.parametrize("name", GENERATED)
def test_the_generated_tables_are_those_of_the_code(name: str) -> None:
    is_now, would_be = generated(name)
    assert is_now == would_be, "run: python -m tests.test_docs"


# --- design -----------------------------------------------------------------------------------------------------------


def test_every_module_is_listed_and_imports_only_what_is_above_it() -> None:
    trees = sources()
    rows = table(read("docs/design.md"), *GENERATED["modules"].columns)
    modules = [module.strip("`") for module, *_ in rows]
    assert set(modules) == trees.keys()
    above: set[str] = set()
    for module in modules:
        ours, _ = imports(trees[module])
        assert ours <= above, module
        above.add(module.removesuffix(".py").replace("/", "."))


def test_the_states_are_those_of_the_code() -> None:
    rows = table(read("docs/design.md"), "state", "what is read and written")
    assert [state.strip("`") for state, *_ in rows] == [state.value for state in State]


def diagram() -> tuple[str, str]:
    """The page with the states, and how it would be if its diagram were made now."""
    lines = ["stateDiagram-v2", "    [*] --> handshake"]
    for state, following in TRANSITIONS.items():
        lines += [f"    {state.value} --> {to.value}: {upon.replace(';', ',')}" for to, upon in following.items()]
        lines += [] if following else [f"    {state.value} --> [*]"]
    text = read("docs/design.md")
    before, start, rest = text.partition("<!-- generated: states -->\n")
    _, end, after = rest.partition("<!-- end -->\n")
    return text, "".join((before, start, "```mermaid\n", *(f"{line}\n" for line in lines), "```\n", end, after))


def test_the_state_diagram_is_that_of_the_code() -> None:
    is_now, would_be = diagram()
    assert is_now == would_be, "run: python -m tests.test_docs"


LAYERS_SVG = DOCS / "images" / "layers.svg"
BOX, ROW, ACROSS = 140, 44, 6
"""Width of a module in the picture, height of a row, and modules in a row; pixels."""


def layers_svg() -> str:
    """The layers as a picture, the lowest at the bottom: of ``LAYERS``, which the imports are held to."""
    above = {name for name in MODULES if name not in LEVEL}
    rows: list[list[str]] = []
    for layer in (*LAYERS, above):
        names = sorted(layer - {"core"})
        rows += [names[start : start + ACROSS] for start in range(0, len(names), ACROSS)]
    width, height = BOX * ACROSS + 40, ROW * len(rows) + 40
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="ui-monospace, monospace" font-size="12" text-anchor="middle" role="img">',
        "  <title>The modules in layers: each imports from those below it only</title>",
        f'  <rect width="{width}" height="{height}" rx="8" fill="#fff"/>',
    ]
    for number, names in enumerate(reversed(rows)):
        for place, name in enumerate(names):
            x = (width - BOX * len(names)) // 2 + BOX * place
            y = 20 + ROW * number
            fill, stroke = ("#fef3c7", "#b45309") if name.startswith("core.") else ("#eef2ff", "#4338ca")
            shown = "ipc_twisted" if name == "__init__" else name
            lines += [
                f'  <rect x="{x + 4}" y="{y}" width="{BOX - 8}" height="{ROW - 10}" rx="5" '
                f'fill="{fill}" stroke="{stroke}"/>',
                f'  <text x="{x + BOX // 2}" y="{y + 22}" fill="#1f2937">{shown}</text>',
            ]
    return "\n".join([*lines, "</svg>", ""])


def test_the_picture_of_the_layers_is_that_of_the_code() -> None:
    assert LAYERS_SVG.read_text(encoding="utf-8") == layers_svg(), "run: python -m tests.test_docs"


def help_of(*arguments: str) -> str:
    """What ``ipc-twisted ... --help`` prints on a terminal of a fixed width."""
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(shown):
        patch.setenv("COLUMNS", "86")
        with pytest.raises(SystemExit):
            cli.main([*arguments, "--help"])
    return shown.getvalue()


def command_names() -> list[str]:
    return re.findall(r"^ {4}([a-z]\w+)", help_of(), re.MULTILINE)


def command_line() -> tuple[str, str]:
    """The page with what each command prints for ``--help``, and how it would be if that were made now."""
    made = "".join(f"\n## `ipc-twisted {name}`\n\n```text\n{help_of(name)}```\n" for name in command_names())
    text = read("docs/command-line.md")
    before, start, rest = text.partition("<!-- generated: help -->\n")
    _, end, after = rest.partition("<!-- end -->\n")
    return text, "".join((before, start, made.removeprefix("\n"), end, after))


def test_the_help_of_the_commands_is_that_of_the_code() -> None:
    is_now, would_be = command_line()
    assert is_now == would_be, "run: python -m tests.test_docs"


# --- security profile -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sentence",
    [
        "Root and processes of the same uid are out of scope.",
        "Payloads are signed, not encrypted.",
        "Containers that share a key can be relayed",
        "Any key holder can be any client.",
        "It can be the server if it takes the port. It can exhaust the replay guard and memory.",
        "`headers`, `trace_id` and `reply_to` are no identity.",
        "Key holders together can make a server hold `limits.max_inflight_bytes` × `limits.max_connections`.",
        "***Accepted* means handed over, not done.**",
        "The queue dies with its process.",
        "A fixed port can be taken while the server is down.** Clients then fail closed.",
        "The `sig` of a received envelope means nothing after its connection.",
        "No passphrases.",
        "Port forwards, NAT and `socat` break by design.",
    ],
)
def test_the_security_profile_says_plainly(sentence: str) -> None:
    assert sentence in prose(section("docs/security-profile.md", "What you must know"))


def test_every_control_has_its_module() -> None:
    for *_, where in table(read("docs/security-profile.md"), "control", "what it does", "where"):
        assert (ROOT / where.strip("`")).is_file(), where


def test_every_contract_case_has_a_test_and_no_test_names_another() -> None:
    rows = table(read("docs/security-profile.md"), *GENERATED["contract cases"].columns)
    assert {case for case, *_ in rows} == marked_tests("contract").keys()


ATTACKS = 42
"""Entries of the catalogue of faults and attacks."""


def test_every_attack_of_the_catalogue_is_there_with_what_must_happen_and_a_test_or_a_reason() -> None:
    rows = table(read("docs/security-profile.md"), *GENERATED["attacks"].columns)
    assert [number for number, *_ in rows] == [str(number) for number in range(1, ATTACKS + 1)]
    assert marked_tests("attack").keys() <= {number for number, *_ in rows}
    for number, what, beside, tests in rows:
        assert len(what) > 40, number
        assert tests or beside.startswith("no test: "), number


def test_what_the_table_of_attacks_names_beside_the_tests_is_there() -> None:
    for number, _, beside, _ in table(read("docs/security-profile.md"), *GENERATED["attacks"].columns):
        for module in re.findall(r"`python -m ([\w.]+)", beside):
            place = ROOT / module.replace(".", "/")
            assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), number
        for name in re.findall(r"`((?:tests|\.ci)/[\w./]+)`", beside):
            assert (ROOT / name).exists(), number


# --- configuration ----------------------------------------------------------------------------------------------------


def settings(struct: type[msgspec.Struct], under: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each key as a path, with its default."""
    for field in msgspec.structs.fields(struct):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from settings(field.type, (*under, field.name))
        else:
            yield (*under, field.name), field.default


def rule(path: tuple[str, ...]) -> str:
    """What the error for a wrong value says it must be."""
    mapping: dict[str, Any] = {"allowed_kinds": ["job.run"]}
    holder = mapping
    for name in path[:-1]:
        holder = holder.setdefault(name, {})
    holder[path[-1]] = {}
    with pytest.raises(ConfigError) as raised:
        ExecutionIPCConfig.from_mapping(mapping)
    (problem,) = raised.value.problems
    return problem.partition("must be ")[2].removesuffix(", not {}")


def test_the_table_of_keys_has_each_with_its_default_and_rule() -> None:
    rows = table(read("docs/configuration.md"), "key", "default", "rule", "what it is")
    expected = []
    for path, default in settings(ExecutionIPCConfig):
        shown = "–" if default in (None, msgspec.NODEFAULT) else f"`{default}`"
        expected.append([f"`{'.'.join(path)}`", shown, rule(path)])
    assert sorted(row[:3] for row in rows) == sorted(expected)


def test_every_limit_does_something() -> None:
    used = {node.attr for tree in sources().values() for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    rows = table(read("docs/configuration.md"), "key", "default", "rule", "what it is")
    for key, *_ in rows:
        name = key.strip("`")
        assert name.rpartition(".")[2] in used or not name.startswith("limits."), name


def test_the_examples_are_good_configurations() -> None:
    (toml,) = (block.content for block in blocks("docs/configuration.md") if block.language == "toml")
    whole = tomllib.loads(toml)
    assert ExecutionIPCConfig.from_mapping(whole) == ExecutionIPCConfig.from_mapping({"allowed_kinds": ["job.run"]})
    section = whole["runtime"]["platform"]["execution_ipc"]
    written = {(name,) for name in section} | {(name, inner) for name in ("auth", "limits") for inner in section[name]}
    known = {path for path, _ in settings(ExecutionIPCConfig)}
    assert written - {("auth",), ("limits",)} == known - {("auth", "key_file")}
    example, _ = (json.loads(block.content) for block in blocks("docs/configuration.md") if block.language == "json")
    config = ExecutionIPCConfig.from_mapping(example)
    assert (config.auth.secret_mode, config.limits.max_inflight) == ("static", 64)


def test_the_connection_file_is_that_of_the_code() -> None:
    page = "docs/configuration.md"
    rows = table(section(page, "Connection file"), "field", "value")
    assert tuple(field.strip("`") for field, _ in rows) == ConnectionInfo.__struct_fields__
    _, example = (block.content for block in blocks(page) if block.language == "json")
    msgspec.json.decode(example, type=ConnectionInfo)


def test_the_key_file_of_the_example_is_read(tmp_path: Path) -> None:
    (content,) = (block.content for block in blocks("docs/configuration.md") if block.says == "file: execution.key")
    path = tmp_path / "execution.key"
    path.touch(mode=0o600)
    path.write_text(content)
    assert Keyring.from_file(path).current


def test_the_options_of_twistd_ipc_are_those_of_the_code() -> None:
    rows = table(read("docs/configuration.md"), "option", "default", "what it is")
    options = [(f"`--{name}`", default) for name, _, default, _ in Options.optParameters]
    expected = [[option, "–" if default is None else f"`{default}`"] for option, default in options]
    assert [row[:2] for row in rows] == expected


# --- categories -------------------------------------------------------------------------------------------------------

PLACES = ("Handshake", "Record", "Envelope", "Connection", "Local")
CATEGORY_COLUMNS = ("category", "where", "what ends", "who is told", "what to do")


def categories(place: str) -> dict[str, list[str]]:
    rows = table(section("docs/categories.md", place), *CATEGORY_COLUMNS)
    return {category.strip("`"): rest for category, *rest in rows}


def test_every_category_is_explained_and_no_other() -> None:
    listed = [categories(place) for place in PLACES]
    assert {category for place in listed for category in place} == set(Category)
    assert all(all(cells) for place in listed for cells in place.values())


def test_every_category_occurs_in_the_package() -> None:
    used = {
        node.attr
        for module, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "Category" and module != "errors.py"
    }
    used.add(Category.CONFIG_INVALID.name)  # every ConfigError; errors.py itself says so
    assert {category.name for category in Category} <= used


@pytest.mark.parametrize("name", ["handshake_reject", "records_reject"])
def test_the_frozen_cases_end_where_the_page_says(name: str) -> None:
    cases = json.loads((ROOT / "tests" / "vectors" / f"{name}.json").read_text(encoding="utf-8"))["cases"]
    for case in cases:
        place = "Handshake" if name == "handshake_reject" else "Record" if case["ends_connection"] else "Envelope"
        assert case["category"] in categories(place), case["id"]


# --- wire protocol ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vector() -> dict[str, str]:
    """The frozen vector as the page has it."""
    text = "".join(block.content for block in blocks("docs/wire-protocol.md") if block.language == "vector")
    joined = re.sub(r"\n +", "", text)
    return dict(re.findall(r"^(\S+) +=\s+(.+)$", joined, re.MULTILINE))


def address(text: str) -> tuple[str, int]:
    host, port = text.split(":")
    return host, int(port)


def limits(text: str) -> Limits:
    max_payload_bytes, ttl_seconds, messages, bytes_ = map(int, text.split())
    return Limits(max_payload_bytes, ttl_seconds, messages, bytes_)


def test_the_handshake_of_the_page_is_that_of_the_package(vector: dict[str, str]) -> None:
    raw = {name: bytes.fromhex(vector[name]) for name in ("secret", "PRK", "nonce_c", "nonce_s", "instance", "key_id")}
    service, prk = vector["service"], Prk(raw["secret"])
    endpoint = Endpoint(*address(vector["server"]), *address(vector["client"]))
    client = ClientHandshake(prk, service, limits(vector["limits_c"]), endpoint, raw["nonce_c"])
    server = ServerHandshake(
        {raw["key_id"]: prk}, service, limits(vector["limits_s"]), raw["instance"], endpoint, raw["nonce_s"]
    )
    m1 = client.start()
    m2, _ = server.receive(m1)
    m3, _ = client.receive(m2)
    assert server.receive(m3) == (b"", b"")
    assert [message[4:].hex() for message in (m1, m2, m3)] == [vector["M1"], vector["M2"], vector["M3"]]
    assert transcript(service, endpoint.packed(), m1[4:], m2[4:68]).hex() == vector["th"]
    info = b"ipc_twisted/1 key id\0" + lp(service.encode())
    assert HKDFExpand(SHA256(), KEY_ID_BYTES, info).derive(raw["PRK"]) == prk.key_id(service) == raw["key_id"]
    assert server.outcome is not None
    for name, key in (("k_c2s", server.outcome.receive_key), ("k_s2c", server.outcome.send_key)):
        assert MacKey(bytes.fromhex(vector[name])).sign(b"same key, same tag") == key.sign(b"same key, same tag"), name


def test_the_records_of_the_page_are_those_of_the_package(vector: dict[str, str]) -> None:
    envelope = SecureEnvelope(
        ts=1_763_900_000,
        nonce="000102030405060708090a0b",
        kind="job.run",
        trace_id="trace-1",
        target=["parse", "score"],
        headers={"content-type": "text/plain", "a": "b"},
        payload_bytes=b"hello",
    )
    receipt = Receipt(3, [(1, Category.EXPIRED), (2, Category.KIND_NOT_ALLOWED)], 1_028, 67_109_500)
    close = Close(Category.PAYLOAD_TOO_LARGE, 3, [], 4)
    for name, key, body in (
        ("envelope", "k_c2s", canonical_payload(envelope, 0)),
        ("receipt", "k_s2c", serialize_receipt(receipt, 0)),
        ("close", "k_s2c", serialize_close(close, 1)),
    ):
        sig = MacKey(bytes.fromhex(vector[key])).sign(body)
        assert (len(sig + body).to_bytes(4, "big") + sig + body).hex() == vector[name], name


def test_the_labels_of_the_page_are_those_of_its_program() -> None:
    """The program is run below, so a wrong label cannot hide in a formula either."""
    of_page = blocks("docs/wire-protocol.md")
    formulas = "".join(block.content for block in of_page if block.language == "text")
    (program,) = (block.content for block in of_page if block.language == "python")
    for label in re.findall(r'"(.+?)"', formulas):
        assert f'b"{label}' in program, label


def test_the_bounds_of_the_page_are_those_of_the_package() -> None:
    text = read("docs/wire-protocol.md")
    assert f"{MIN_LENGTH} ≤ length ≤ {MIN_LENGTH} + {MAX_HEADER_BYTES:,} + max_payload_bytes" in text
    assert f"at most {MAX_REJECTIONS:,} rejections" in text
    assert f"`max_payload_bytes` and {FRAME_OVERHEAD}." in read("docs/configuration.md")


def test_the_fields_of_the_page_are_those_of_the_package() -> None:
    rows = table(read("docs/wire-protocol.md"), "field", "rule")
    assert {field.strip("`"): rule for field, rule in rows} == {name: rule for name, (_, rule) in FIELD_RULES.items()}


# --- Python -----------------------------------------------------------------------------------------------------------


def test_the_fields_of_an_envelope_are_those_of_the_code() -> None:
    rows = table(section("docs/python.md", "What a handler gets"), "field", "what it is")
    assert tuple(field.strip("`") for field, _ in rows) == SecureEnvelope.__struct_fields__


# --- programs and commands --------------------------------------------------------------------------------------------


def commands(block: Block) -> list[str]:
    return block.content.replace("\\\n", " ").splitlines()


def split(command: str) -> tuple[dict[str, str], str, list[str]]:
    """The variables that are set before it, the program, its arguments."""
    words = shlex.split(os.path.expandvars(command))
    variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z]+=", word))
    program, *arguments = words[len(variables) :]
    return variables, program, arguments


def help_of_benchmarks() -> str:
    from benchmarks.__main__ import _parser

    return _parser().format_help()


def known_options(program: str, arguments: list[str]) -> set[str]:
    if "ipc_twisted.cli" in arguments:  # under a profiler
        return known_options("ipc-twisted", arguments[arguments.index("ipc_twisted.cli") + 1 :])
    if arguments[:2] == ["-m", "benchmarks"]:
        return set(re.findall(r"--[a-z-]+", help_of_benchmarks()))
    if program in {*TEST_RUNNERS, *FILE_COMMANDS, "kill", "pip"}:
        return set()
    if program == "ipc-twisted":
        return set(re.findall(r"--[a-z-]+", help_of(arguments[0])))
    assert program == "twistd"
    return {"--nodaemon"} | {f"--{name.rstrip('=')}" for name in Options().longOpt}


@each_page_that_is_followed
def test_the_options_in_commands_exist(page: str) -> None:
    for block in blocks(page):
        if block.language != "sh" or block.says.startswith(("setup: ", "not run: needs root")):
            continue
        for command in commands(block):
            _, program, arguments = split(command)
            given = {word.split("=")[0] for word in arguments if word.startswith("--")}
            assert given <= known_options(program, arguments), command


def test_the_readme_names_every_command() -> None:
    rows = table(read("README.md"), "command", "what it does")
    assert [command.strip("`").split()[1] for command, _ in rows] == command_names()


def test_the_first_program_of_the_readme_is_short() -> None:
    program = next(block.content for block in blocks("README.md") if block.language == "python")
    assert len(program.splitlines()) <= 20


class Follower:
    """Does what a page says, in the order of the page, in one folder, with at most one server at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printed = ""
        self.server: TwistdChild | None = None

    def follow(self, block: Block) -> None:
        if block.says.startswith("file: "):
            (self.folder / block.says.removeprefix("file: ")).write_text(block.content)
        elif block.says == "prints":
            assert self.printed.strip() == block.content.strip()
        elif block.says.startswith(("setup: ", "not run: ")):
            pass
        elif block.language == "python":
            if self.server is None:
                self.serve()
            self.run("-c", block.content)
        elif block.language == "sh":
            for command in commands(block):
                self.type(command)

    def type(self, command: str) -> None:
        variables, program, arguments = split(command)
        if program == "ipc-twisted":
            self.run("-m", "ipc_twisted.cli", *arguments)
            return
        if program in TEST_RUNNERS:  # -P: as the command itself, which does not look in the current folder
            self.run("-P", "-m", TEST_RUNNERS[program], *arguments, **variables)
            return
        if program in FILE_COMMANDS:
            subprocess.run(["sh", "-e", "-c", command], cwd=self.folder, check=True, timeout=TIMEOUT_SECONDS)
            return
        if command == READ_KEYS_AGAIN:
            self.reload_keys()
            return
        assert (program, arguments[:2]) == ("twistd", ["--nodaemon", "ipc"]), command
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            self.serve(*arguments[2:])

    def serve(self, *options: str) -> None:
        self.stop()
        # -P: as in a terminal, the current folder is not looked into unless PYTHONPATH says so.
        self.server = TwistdChild(*options, handler=None, folder=self.folder, python=("-P",))
        self.server.__enter__()

    def reload_keys(self) -> None:
        assert self.server is not None
        changed = r"the keys were changed"
        times = 1 + len(re.findall(changed, self.server.log))
        self.server.signal(signal.SIGHUP)
        self.server.wait_for(changed, times=times)

    def run(self, *arguments: str, **variables: str) -> None:
        environment = {**os.environ, **variables, "XDG_RUNTIME_DIR": str(self.folder)}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [variables.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.printed = done.stdout

    def stop(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None


@each_page_that_is_followed
def test_the_programs_and_commands_of_a_page_work(page: str, runtime_folder: Path) -> None:
    follower = Follower(runtime_folder)
    try:
        for block in blocks(page):
            follower.follow(block)
    finally:
        follower.stop()


if __name__ == "__main__":
    for written, (where, *_) in GENERATED.items():
        PAGES[where].write_text(generated(written)[1], encoding="utf-8")
    PAGES["docs/design.md"].write_text(diagram()[1], encoding="utf-8")
    PAGES["docs/command-line.md"].write_text(command_line()[1], encoding="utf-8")
    LAYERS_SVG.write_text(layers_svg(), encoding="utf-8")
