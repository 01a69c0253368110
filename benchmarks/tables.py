"""Tables in documents that are made from kept results, between two marks."""

from __future__ import annotations


def with_table(document: str, name: str, table: str) -> str:
    """Return a document with the table between the marks of `name` made anew.

    Raises:
        ValueError: the document has no such marks.
    """
    begin, end = f"<!-- {name}: written by benchmarks/{name}.py -->", f"<!-- /{name} -->"
    before, mark, rest = document.partition(begin)
    _, close, after = rest.partition(end)
    if not mark or not close:
        raise ValueError(f"the document has no marks {begin} and {end}")
    return f"{before}{begin}\n{table}\n{end}{after}"
