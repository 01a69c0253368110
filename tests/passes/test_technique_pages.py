"""The Python examples of the techniques' pages run as they stand, on a small network."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.test_docs import ROOT, blocks

from armlet.metrics import Scorer
from armlet.progress import Silent

PAGES = [page for page in sorted((ROOT / "docs" / "techniques").glob("*.md")) if page.stem != "index"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_python_example_of_a_page_runs(
    page: Path, tiny_network, context, splits, tmp_path, capsys
) -> None:
    examples = blocks(page, "python")
    assert examples
    for example in examples:
        network = tiny_network("fnn") if "Term(" in example else tiny_network(channels=[8, 12])
        given = {
            "network": network,
            "context": context(network),
            "trained": network,
            "smaller": tiny_network("fnn"),
            "splits": splits,
            "scorer": Scorer(splits.task),
            "folder": tmp_path / "work",
            "progress": Silent(),
        }
        exec(compile(example, str(page), "exec"), given)
        assert {"record", "run"} & given.keys()
        assert capsys.readouterr().out or "run" in given
