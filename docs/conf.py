"""How `make docs` builds these pages: Sphinx, with MyST for Markdown and API pages from docstrings."""

import re

from uld_jax.version import __version__

project = "uld_jax"
author = "the uld_jax authors"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "uld_jax"

autodoc_default_options = {"members": True, "member-order": "bysource", "undoc-members": False}
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_use_ivar = True


_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Example|Examples):$")


def _plain(app, what, name, obj, options, lines):
    """Turns a docstring's Markdown into what Sphinx reads: `code` to literals, and no other markup."""
    del app, what, name, obj, options
    lines[:] = _escaped("\n".join(_spaced(lines))).split("\n")


def _escaped(text):
    """The text with literals for `code`, and with every character escaped that means something else to Sphinx."""
    parts = re.split(r"(``.*?``|`[^`]+`)", text, flags=re.DOTALL)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = f"``{part.strip('`').strip()}``"
        else:
            parts[i] = re.sub(r"([*|\\])|(?<=\w)(_)(?!\w)", r"\\\1\2", part)
    return "".join(parts)


def _spaced(lines):
    """The lines with an empty one wherever the indentation changes, except between the items of a section."""
    out, items, last = [], (0,), 0
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if line and depth == 0:
            section = _SECTION.match(line)
            items = (
                (0, 2, 4) if section and section[1] in ("Args", "Attributes", "Raises") else (0, 2) if section else (0,)
            )
        if line and depth != last and not {depth, last} <= set(items):
            out.append("")
        out.append(line)
        last = depth if line else last
    return out


def setup(app):
    """Registers the hook, before napoleon reads the sections of a docstring."""
    app.connect("autodoc-process-docstring", _plain, priority=400)
