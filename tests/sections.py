"""Parts of documents that are written by programs, between two comments that name them."""

from pathlib import Path


def replaced(document: Path, name: str, content: str) -> str:
    """Return ``document`` with ``content`` as its section ``name``."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    head, found, rest = document.read_text().partition(begin)
    _, closed, tail = rest.partition(end)
    assert found, f"{document} has no section {name}"
    assert closed, f"section {name} of {document} has no end"
    return head + begin + content + end + tail
