"""The floors of the package: a module imports only from the floors below its own."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import pytest

from tests.modules import import_graph, module_name, package_modules

FLOORS = [  # from the ground up
    ["textgym.errors", "textgym.memory", "textgym.registration"],
    [
        "textgym",
        "textgym.checks",
        "textgym.locking",
        "textgym.rendering",
        "textgym.reviews",
        "textgym.planted",
        "textgym.exact",
    ],
    ["textgym.tables"],
    ["textgym.prompts"],
    ["textgym.models"],
    ["textgym.credit"],
    ["textgym.envs", "textgym.agents"],
    ["textgym.wrappers"],
    ["textgym.plotting", "textgym.samples", "textgym.reward_training"],
    ["textgym.demo", "textgym.benchmark"],
    ["textgym.cli"],
    ["textgym.__main__"],
]
ROOMS = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
GRAPH = import_graph(dict(package_modules()))


def room_of(module):
    """A module's room: the first two parts of its name, so all of a package is one room."""
    return ".".join(module.split(".")[:2])


def find_circle(graph):
    """Names of modules that import each other in a circle; empty if there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("module", GRAPH)
def test_imports_point_downwards(module):
    room = room_of(module)
    assert room in ROOMS, f"{module} is on no floor"
    others = {target for target in GRAPH[module] if room_of(target) != room}
    assert [target for target in others if ROOMS[room_of(target)] >= ROOMS[room]] == []


def test_no_modules_import_each_other_in_a_circle():
    assert find_circle(GRAPH) == []


def test_every_room_of_the_floors_exists():
    assert {room_of(module) for module in GRAPH} == set(ROOMS)


@pytest.mark.parametrize(
    "circle",
    [
        ["import house.b", "import house.a"],
        ["from house.b import x", "from house import a"],
        ["from .b import x", "from . import a"],
        ["if TYPE_CHECKING:\n    from .b import X", "from .a import Y"],
        ["def late():\n    from .b import x", "from .a import y"],
        ["from house import x", ""],  # the package itself imports a
    ],
)
def test_a_circle_is_found_however_it_is_imported(tmp_path, circle):
    sources = {"__init__": "from house.a import x", "a": circle[0], "b": circle[1]}
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
    modules = {module_name(path, tmp_path, "house"): path for path in tmp_path.glob("*.py")}
    assert find_circle(import_graph(modules)) != []
    (tmp_path / "a.py").write_text("from os import path")
    assert find_circle(import_graph(modules)) == []
