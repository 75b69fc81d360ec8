"""A notebook becomes a page."""

from __future__ import annotations

from making.notebooks import as_markdown

NOTEBOOK = {
    "metadata": {"language_info": {"name": "python"}},
    "cells": [
        {"cell_type": "markdown", "source": ["# First\n", "\n", "Words."]},
        {
            "cell_type": "code",
            "source": "print(1)\n2",
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["1\n"]},
                {"output_type": "execute_result", "data": {"text/plain": ["2"]}},
            ],
        },
        {
            "cell_type": "code",
            "source": "plot()",
            "outputs": [
                {
                    "output_type": "display_data",
                    "data": {"image/png": "iVBO\nRw0=", "text/plain": "x"},
                },
                {"output_type": "display_data", "data": {"text/html": ["<b>a</b>\n", "\n", "b"]}},
            ],
        },
        {"cell_type": "code", "source": "", "outputs": []},
    ],
}


def test_cells_and_outputs_follow_each_other():
    assert as_markdown(NOTEBOOK, "first.ipynb") == (
        "# First\n\n[Download this page as a notebook](first.ipynb)\n\nWords.\n\n"
        "````python\nprint(1)\n2\n````\n\n````text\n1\n````\n\n````text\n2\n````\n\n"
        "````python\nplot()\n````\n\n"
        "![Output of the cell above](data:image/png;base64,iVBORw0=)\n\n<div><b>a</b>b</div>\n"
    )
