"""What an installation promises: to pip, to ``twistd`` and to type checkers."""

import re
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["twisted/__init__.py", "twisted/plugins/__init__.py"])
def test_no_file_of_ours_shadows_twisted_or_hides_the_plugin(name: str) -> None:
    """The first would break every import of Twisted; the second would drop the plugin without a word."""
    assert not (ROOT / name).exists()


def test_twistd_finds_the_plugin_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "twisted", "--help"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60).stdout
    assert re.search(r"^ +ipc +A secure local", shown, re.MULTILINE)


def test_the_plugin_is_lazy(tmp_path: Path) -> None:
    """Every ``twistd``, whatever it runs, reads the plugin."""
    code = "import sys; from twisted.plugins import ipc_twisted_plugin; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "ipc_twisted" not in shown.stdout.split()


def test_the_command_is_installed() -> None:
    (command,) = metadata.entry_points(group="console_scripts", name="ipc-twisted")
    assert command.value == "ipc_twisted.cli:main"
    assert callable(command.load())


def test_the_installed_extras_are_those_of_setup_cfg() -> None:
    extras = metadata.metadata("ipc_twisted").get_all("Provides-Extra") or ()
    assert set(extras) == {"bench", "browser", "dev", "docs", "example", "fuzz", "metrics", "test"}


def test_every_requirement_has_a_floor() -> None:
    """CI installs exactly the floors once, so a requirement without one would never be tried at its oldest."""
    requirements = [Requirement(line) for line in metadata.requires("ipc_twisted") or ()]
    assert {r.name.lower() for r in requirements if not r.marker} == {"cryptography", "msgspec", "twisted"}
    for requirement in requirements:
        if requirement.name != "ipc_twisted":
            assert [s.operator for s in requirement.specifier].count(">=") == 1, requirement


def test_the_types_are_shipped() -> None:
    assert resources.files("ipc_twisted").joinpath("py.typed").is_file()
