import json
import re

import pytest

from notebooks import FOLDER, NOTEBOOKS, executed

EVERY = pytest.mark.parametrize("name", NOTEBOOKS)


def cells(name):
    return json.loads((FOLDER / name).read_text())["cells"]


def code(name):
    return [cell for cell in cells(name) if cell["cell_type"] == "code"]


def test_there_are_five():
    assert [name[0] for name in NOTEBOOKS] == ["1", "2", "3", "4", "5"]


@EVERY
def test_committed_outputs_are_whole_small_and_of_no_machine(name):
    text = (FOLDER / name).read_text()
    assert len(text) < 500_000
    assert not re.search(r"/(home|tmp|root|work|Users)/", text)
    outputs = [output for cell in code(name) for output in cell["outputs"]]
    assert outputs
    assert "error" not in {output["output_type"] for output in outputs}
    assert not [output for output in outputs if output.get("name") == "stderr"]
    counts = [cell["execution_count"] for cell in code(name)]
    assert counts == list(range(1, len(counts) + 1))
    assert not any(cell["metadata"] for cell in cells(name))


@EVERY
def test_conclusions_are_asserted(name):
    assert sum("assert " in "".join(cell["source"]) for cell in code(name)) >= 4


@pytest.mark.slow
@EVERY
def test_it_runs_from_top_to_bottom(name):
    pytest.importorskip("nbclient", reason="pip install 'rankscope[notebooks]'")
    pytest.importorskip("ipykernel", reason="pip install 'rankscope[notebooks]'")
    found = [o for cell in executed(name).cells for o in cell.get("outputs", ())]
    kinds = {kind for output in found for kind in output.get("data", {})}
    # The fourth has no figure.
    assert "text/html" in kinds
    assert "image/png" in kinds or name.startswith("4")
