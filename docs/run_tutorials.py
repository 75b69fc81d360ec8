"""Run the tutorials from top to bottom, and store what they print and draw.

python docs/run_tutorials.py

What goes to stderr, such as warnings and progress bars, is not stored.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parent / "tutorials"


def main() -> None:
    """Run all of them."""
    for path in sorted(TUTORIALS.glob("*.ipynb")):
        print(path.name, flush=True)
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(
                notebook,
                timeout=1800,
                kernel_name="python3",
                coalesce_streams=True,
                record_timing=False,
                resources={"metadata": {"path": folder}},
            ).execute()
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
        notebook.metadata.language_info = {"name": "python"}  # without the version that ran it
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
