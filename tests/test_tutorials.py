"""The tutorials run from top to bottom, and what they show is what they printed."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
SIZES = {
    "from_make_to_a_trained_policy": {"iterations": 1},
    "your_own_credit_method": {"iterations": 1, "num_texts": 32},
    "your_own_reward_model": {"iterations": 1, "num_examples": 100},
}


def read(name):
    return nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)


def index_of_parameters(notebook):
    """Position of the one cell with the tag "parameters"."""
    (index,) = [
        i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])
    ]
    return index


def test_every_tutorial_is_tested():
    assert {path.stem for path in TUTORIALS.glob("*.ipynb")} == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_a_tutorial_runs(name, tmp_path):
    notebook = read(name)
    at = index_of_parameters(notebook)
    assigned: dict = {}
    exec(notebook.cells[at].source, assigned)
    assert set(SIZES[name]) == set(assigned) - {"__builtins__"}
    small = "\n".join(f"{name} = {value}" for name, value in SIZES[name].items())
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(small))
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()


@pytest.mark.parametrize("name", SIZES)
def test_a_tutorial_was_run_from_top_to_bottom_and_stays_small(name):
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert (TUTORIALS / f"{name}.ipynb").stat().st_size < 150_000
