"""Sphinx's settings: `make docs` builds the documentation from these pages and the docstrings."""

from __future__ import annotations

from airflow_mediation_provider import __version__

project = "airflow-mediation-provider"
author = "the contributors"
release = version = __version__
root_doc = "docs/index"
# The root of the repository is the source, so that a link works in a clone and here alike.
include_patterns = ["*.md", "docs/**.md", "docs/reference/*.rst"]
extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 100

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["tables.css"]
html_title = f"Zuora Mediation in Airflow {release}"
html_copy_source = html_show_sourcelink = html_show_copyright = False
html_last_updated_fmt = None
