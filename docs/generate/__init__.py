"""The generated pages of `docs/reference/`, and the hooks of the site.

In: settings, parser and registries. Out: Markdown pages; a test compares them with the files.
Start with `write_reference.py`.
"""
