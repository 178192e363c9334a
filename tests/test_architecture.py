"""A room imports only rooms above it; the rooms that serve --help import no torch; a name means one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import hnerv

ROOT = Path(__file__).parents[1]
TIERS = (
    "errors files",
    "storage",
    "geometry timeline tables",
    "losses schedule metrics motion quantise vmaf",
    "viz",
    "config",
    "presets",
    "command",
    "model",
    "rate data",
    "tracking",
    "runs",
    "evaluation",
    "training",
    "codec",
    "search",
    "report",
    "fleet",
    "flags",
    "api",
    "cli",
    "train_patch_dual eval",
)
ROOMS = [room for tier in TIERS for room in tier.split()]
assert len(ROOMS) == len(set(ROOMS))
LIGHT = [
    *("errors", "files", "geometry", "timeline", "losses", "schedule", "config", "presets", "flags", "command"),
    *("data/__init__", "data/chunks", "training/__init__", "training/arguments", "training/signals"),
]
EXCEPTIONS = {
    ("losses", "metrics"),
}  # imported where it is used, so that the table of losses needs no torch
REPEATED = {
    "main": "entry points of the commands",
    "add_arguments": "contract of the modules of hnerv.cli",
    "run": "contract of the modules of hnerv.cli",
}
"""Public names that several modules may define, and the reason."""
FILES = [*sorted((ROOT / "hnerv").rglob("*.py")), ROOT / "train_patch_dual.py", ROOT / "eval.py"]
LIBRARIES = {"torch", "torchvision", "numpy", "open_clip", "av", "decord", "PIL", "matplotlib", "tensorboard", "tqdm"}


def room_of(path: Path) -> str:
    """'' for hnerv/__init__.py, which every room may read; it reads those that it exports when they are used."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return (parts[1] if parts[0] == "hnerv" else parts[0]).removesuffix("__init__")


def imports_of(tree: ast.AST) -> list[str]:
    """Dotted names, everywhere in the tree: 'a.b' for `import a.b`, 'a.b' and 'a.b.c' for `from a.b import c`."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def rooms_read(tree: ast.AST) -> set[str]:
    parts = [name.split(".") for name in imports_of(tree)]
    names = {name[1] for name in parts if name[0] == "hnerv" and len(name) > 1} - {"__version__"}
    return {"api" if name in hnerv.__all__ else name for name in names}


def top_level(tree: ast.Module) -> ast.Module:
    """The statements that run at import: no function bodies, nothing under `if TYPE_CHECKING`."""

    class Prune(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        visit_AsyncFunctionDef = visit_FunctionDef

        def visit_If(self, node):
            return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node

    return Prune().visit(tree)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path):
    room, read = room_of(path), rooms_read(ast.parse(path.read_text(encoding="utf-8")))
    assert read <= set(ROOMS), f"unknown rooms {read - set(ROOMS)}: give them a place in this test's list"
    if not room:
        assert read == {"api", "errors"} and not rooms_read(top_level(ast.parse(path.read_text(encoding="utf-8"))))
        return
    upward = {name for name in read if ROOMS.index(name) > ROOMS.index(room) and (room, name) not in EXCEPTIONS}
    assert not upward, f"{room} imports {sorted(upward)}, which come after it"


def test_every_room_is_listed_and_exists():
    assert {room_of(path) for path in FILES} - {""} == set(ROOMS)


@pytest.mark.parametrize("pair", sorted(EXCEPTIONS))
def test_exceptions_are_lazy(pair):
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in FILES if room_of(path) == pair[0]]
    assert any(pair[1] in rooms_read(tree) for tree in trees)
    assert not any(pair[1] in rooms_read(top_level(tree)) for tree in trees)


def light(tree: ast.Module) -> bool:
    """Whether it imports no module of the package but those of LIGHT."""
    names = {name.removeprefix("hnerv.").replace(".", "/") for name in imports_of(tree) if name.startswith("hnerv.")}
    return all(any(name == room or name.startswith(f"{room}/") for room in LIGHT) for name in names - {"__version__"})


@pytest.mark.parametrize("room", ["__init__", *LIGHT])
def test_the_rooms_that_serve_help_import_nothing_heavy(room):
    tree = top_level(ast.parse((ROOT / "hnerv" / f"{room}.py").read_text(encoding="utf-8")))
    assert not {name.split(".")[0] for name in imports_of(tree)} & LIBRARIES
    assert light(tree)


@pytest.mark.parametrize("script", ["train_patch_dual.py", "eval.py"])
def test_the_scripts_import_only_light_rooms_before_they_have_parsed(script):
    tree = top_level(ast.parse((ROOT / script).read_text(encoding="utf-8")))
    assert not {name.split(".")[0] for name in imports_of(tree)} & LIBRARIES
    assert light(tree)


def test_an_arrow_that_points_up_is_seen():
    tree = ast.parse("def f():\n    from hnerv.model import build\n    import hnerv.training.trainer\n")
    assert rooms_read(tree) == {"model", "training"}
    assert rooms_read(ast.parse("from hnerv import model, __version__")) == {"model"}
    assert not rooms_read(top_level(tree))


def defined_names(tree: ast.Module) -> list[str]:
    """Classes and functions at the top of a module that other modules can import: no leading underscore."""
    kinds = ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def test_a_public_name_is_defined_once():
    places = defaultdict(list)
    for path in FILES:
        for name in defined_names(ast.parse(path.read_text(encoding="utf-8"))):
            places[name].append(str(path.relative_to(ROOT)))
    repeated = {name: paths for name, paths in places.items() if len(paths) > 1 and name not in REPEATED}
    assert repeated == {}, "rename all but one, or add a reason to REPEATED"
    assert all(len(places[name]) > 1 for name in REPEATED), "REPEATED names a single definition"
