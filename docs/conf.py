"""The documentation site: ``sphinx-build -W --keep-going -n -b html docs build/site``, with the extra ``docs``.

The pages are Markdown that a code-hosting site shows as well. Only ``index.rst`` and ``api.rst`` are for Sphinx alone.
"""

import re
from importlib import metadata

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

project = "ipc_twisted"
author = "ipc_twisted contributors"
copyright = author
release = version = metadata.version(project)

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["README.md"]  # index.rst includes it
html_theme = "furo"
html_title = f"{project} {release}"
html_theme_options = {"top_of_page_buttons": []}  # no edit or view button: they need the address of a repository
html_copy_source = False
smartquotes_action = "D"  # dashes, but no quotes: values are quoted as they are typed

# Markdown: headings get the anchors that a code-hosting site gives them, and tests/test_docs.py checks.
myst_heading_anchors = 6

# API: the order of the source, and what a reader calls.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "separated"

nitpick_ignore_regex = [
    # Names of Python, Twisted and msgspec, whose documents are elsewhere; and what no application names.
    (r"py:.*", r"(?!ipc_twisted)\w+\..*"),
    (r"py:.*", r"CancelledError|CannotListenError|Clock|Deferred|IListeningPort"),
    (r"py:.*", r"ipc_twisted\.(core|protocol|dialling|factory)\..*"),
    (r"py:.*", r"AGE_BOUNDS|Handler|HasStatistics|KeySource|ipc_twisted\.metrics\.HasStatistics"),
    (r"py:attr", r"client_received|server_received"),  # listed as variables, which are no targets
]


def leave_the_site(text: str) -> str:
    """A link to a file of the repository outside this folder becomes its name: the site does not have the file."""
    named = re.sub(r"\[([^]]+)\]\(\.\./\1\)", r"`\1` (in the repository)", text)
    return re.sub(r"\[([^]]+)\]\(\.\./([^)]+)\)", r"\1 (in the repository: `\2`)", named)


def setup(app: Sphinx) -> None:
    def source_read(app: Sphinx, name: str, content: list[str]) -> None:
        content[0] = leave_the_site(content[0])

    app.connect("source-read", source_read)
    for language in ("mermaid", "vector"):  # no lexer knows them: shown as they are
        app.add_lexer(language, TextLexer)
