"""The site that `make docs` builds: the book and the guides."""

project = "CustomTransformer"
copyright = "the authors of CustomTransformer"
extensions = ["myst_parser", "book.site"]
exclude_patterns = ["_site"]
myst_heading_anchors = 4  # as on GitHub, so that links to headings work in both places
html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_copy_source = False
html_show_sphinx = False
