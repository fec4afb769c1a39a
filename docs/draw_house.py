"""Draw the house from its imports: `python docs/draw_house.py` writes docs/house.svg.

What reads the imports is also what `tests/test_house.py` holds the import rule with.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "transfermpl"
API = "__init__"  # of the root

# From the ground up: a file imports from its own folder, and from what stands on a lower floor.
FLOORS = (
    ("utils",),
    ("base",),
    ("args",),
    ("images",),
    ("data", "backbones"),
    ("models", "visualization"),
    ("reports",),
    ("features",),
    ("learning",),
    ("train",),
    ("algorithms",),
    ("runs",),
    ("deploy",),
    ("comparison", "inspection", "search"),
    ("optuna_search",),
    ("MPL", API),
)
FLOOR = {group: floor for floor, groups in enumerate(FLOORS) for group in groups}
BESIDE = ("tests", "benchmarks", "docs", "build")  # of the package's folder, but not of the package


@dataclass(frozen=True)
class Import:
    """One name that a module takes from another one of the package; `types_only` stands below `if TYPE_CHECKING`."""

    source: str
    target: str
    name: str | None
    types_only: bool


def group_of(module: str) -> str:
    """The folder that a module lies in, or the file at the top level."""
    return module.split(".")[0]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the package by its name below it: `utils`, `runs.run`; a folder's `__init__` is `runs`."""
    found = {path.stem: path for path in root.glob("*.py")}
    for path in root.glob("*/*.py"):
        folder = path.parent.name
        if folder not in BESIDE and not folder.startswith("."):
            found[folder if path.stem == "__init__" else f"{folder}.{path.stem}"] = path
    return dict(sorted(found.items()))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(module: str, path: Path, known: Mapping[str, Path]) -> Iterator[Import]:
    """What a module imports from the package, inside functions as well."""
    tree = tree_of(path)
    # The place that a relative import starts from, without the package's own name.
    parts = module.split(".") if path.stem == "__init__" and module != API else module.split(".")[:-1]
    for_types = {id(node) for block in ast.walk(tree) if _is_for_types(block) for node in ast.walk(block)}
    for node in ast.walk(tree):
        types_only = id(node) in for_types
        if isinstance(node, ast.ImportFrom):
            base = _base(node, parts)
            for alias in node.names if base is not None else ():
                inner = ".".join(filter(None, (base, alias.name)))
                if inner in known:
                    yield Import(module, inner, None, types_only)
                else:
                    yield Import(module, base or API, alias.name, types_only)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    yield Import(module, alias.name.partition(".")[2] or API, None, types_only)


def _base(node: ast.ImportFrom, parts: Sequence[str]) -> str | None:
    """The module below the package that `from ... import` names; None for one of another package."""
    if node.level:
        return ".".join([*parts[: len(parts) + 1 - node.level], *filter(None, [node.module])])
    first, _, rest = (node.module or "").partition(".")
    return rest if first == PACKAGE else None


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@functools.cache
def all_imports(root: Path = ROOT) -> tuple[Import, ...]:
    """Every import inside the package, apart from that of its version."""
    known = modules(root)
    found = [one for module, path in known.items() for one in imports_of(module, path, known)]
    return tuple(one for one in found if (one.target, one.name) != (API, "__version__"))


# --- the picture ------------------------------------------------------------------------------------------------------

MARGIN, LINE, ROW_GAP, GAP, COLUMN = 24, 18, 52, 40, 26  # in px; COLUMN is the longest line of modules, in letters
LETTER, TITLE_LETTER = 7.85, 9.2  # the width of one
THREAD = 8.0  # the room that an arrow takes where it passes a layer
STYLE = """text{font:13px ui-monospace,Menlo,Consolas,monospace;fill:#31405a}
.title{font-size:15px;font-weight:bold;fill:#12213c}
rect{fill:#edf2f9;stroke:#9fb2cf}
path{fill:none;stroke:#5d7499;stroke-width:1.6;marker-end:url(#head)}"""
HEAD = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">
<title>What imports what: an arrow is left out where a longer way says the same</title>
<style>{style}</style>
<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<polygon points="0,0 8,4 0,8" fill="#5d7499"/></marker>
<rect width="100%" height="100%" style="fill:#fff;stroke:none"/>
"""


@dataclass
class Node:
    """A box, or where an arrow passes a layer (`group` is empty). x is its middle; layer 0 is the ground."""

    layer: int
    group: str = ""
    lines: tuple[str, ...] = ()
    x: float = 0.0

    @property
    def width(self) -> float:
        if not self.group:
            return THREAD
        return max(TITLE_LETTER * len(title(self.group)), LETTER * max(map(len, self.lines), default=0)) + 28

    @property
    def height(self) -> float:
        return 36 + LINE * len(self.lines) + (4 if self.lines else 0)


def title(group: str) -> str:
    """How a group is headed: a folder with a slash, a file with its suffix."""
    return f"{group}/" if (ROOT / group).is_dir() else f"{group}.py"


def needed(imports: Sequence[Import]) -> dict[str, set[str]]:
    """Of each group those that it imports from, without those that it reaches through others as well."""
    direct: dict[str, set[str]] = {group: set() for group in FLOOR}
    for one in imports:
        source, target = group_of(one.source), group_of(one.target)
        if FLOOR[target] < FLOOR[source] and not one.types_only:
            direct[source].add(target)
    reached: dict[str, set[str]] = {}
    for group in sorted(FLOOR, key=FLOOR.__getitem__):
        reached[group] = direct[group].union(*(reached[below] for below in direct[group]))
    return {
        group: {below for below in targets if not any(below in reached[other] for other in targets - {below})}
        for group, targets in direct.items()
    }


def layered(below: Mapping[str, set[str]]) -> dict[str, int]:
    """The layer of each group: one above the highest that it imports from."""
    layers: dict[str, int] = {}
    for group in sorted(FLOOR, key=FLOOR.__getitem__):
        layers[group] = 1 + max((layers[other] for other in below[group]), default=-1)
    return layers


def plan(root: Path) -> tuple[list[list[Node]], list[list[Node]]]:
    """The layers of nodes, from the ground, and each arrow as the nodes that it passes, from above."""
    below = needed(all_imports(root))
    inside: dict[str, list[str]] = {group: [] for group in FLOOR}
    for module in modules(root):
        if "." in module:
            inside[group_of(module)].append(module.split(".")[1])
    layer_of = layered(below)
    nodes = {group: Node(layer, group, wrapped(inside[group])) for group, layer in layer_of.items()}
    layers: list[list[Node]] = [[] for _ in range(max(layer_of.values()) + 1)]
    for node in nodes.values():
        layers[node.layer].append(node)
    arrows = []
    for group, targets in below.items():
        for target in sorted(targets):
            passed = [Node(layer) for layer in range(layer_of[group] - 1, layer_of[target], -1)]
            for node in passed:
                layers[node.layer].append(node)
            arrows.append([nodes[group], *passed, nodes[target]])
    return layers, arrows


def wrapped(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with commas, in lines of about COLUMN letters."""
    lines: list[str] = []
    for name in names:
        if lines and len(lines[-1]) + 2 + len(name) <= COLUMN:
            lines[-1] += ", " + name
        else:
            lines.append(name)
    return tuple(lines)


def arrange(layers: Sequence[list[Node]], arrows: Sequence[Sequence[Node]]) -> None:
    """Give every node its x: near those that it is bound to, in an order with few crossings."""
    bound: dict[int, list[Node]] = {}
    for arrow in arrows:
        for upper, lower in zip(arrow, arrow[1:], strict=False):
            bound.setdefault(id(upper), []).append(lower)
            bound.setdefault(id(lower), []).append(upper)
    for layer in layers:
        spread(layer, [0.0] * len(layer))
    for sweep in range(40):
        for layer in layers if sweep % 2 else reversed(layers):
            wishes = [[other.x for other in bound.get(id(node), ())] for node in layer]
            aims = [sum(wish) / len(wish) if wish else node.x for node, wish in zip(layer, wishes, strict=True)]
            order = sorted(range(len(layer)), key=aims.__getitem__) if sweep < 30 else range(len(layer))
            layer[:] = [layer[index] for index in order]
            spread(layer, [aims[index] for index in order])


def spread(layer: Sequence[Node], aims: Sequence[float]) -> None:
    """Put the nodes of a layer at what they aim at, as far as none lies over its neighbour."""
    room = [(a.width + b.width) / 2 + GAP for a, b in zip(layer, layer[1:], strict=False)]
    offsets = [sum(room[:index]) for index in range(len(layer))]
    # Without their own room the aims must not fall: averages of those that do, as isotonic regression takes them.
    blocks: list[list[float]] = []
    for aim, offset in zip(aims, offsets, strict=True):
        blocks.append([aim - offset])
        while len(blocks) > 1 and sum(blocks[-2]) / len(blocks[-2]) > sum(blocks[-1]) / len(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    level = [sum(block) / len(block) for block in blocks for _ in block]
    for node, base, offset in zip(layer, level, offsets, strict=True):
        node.x = base + offset


def draw(root: Path = ROOT) -> str:
    """The picture as SVG."""
    layers, arrows = plan(root)
    arrange(layers, arrows)
    left = min(node.x - node.width / 2 for layer in layers for node in layer) - MARGIN
    right = max(node.x + node.width / 2 for layer in layers for node in layer) + MARGIN
    heights = [max(node.height for node in layer if node.group) for layer in layers]
    # The y of each layer's top; the ground lies at the bottom.
    tops = [MARGIN + sum(heights[layer + 1 :]) + ROW_GAP * (len(layers) - 1 - layer) for layer in range(len(layers))]
    for node in (node for layer in layers for node in layer):
        node.x -= left
    parts = [HEAD.format(width=round(right - left), height=round(tops[0] + heights[0] + MARGIN), style=STYLE)]
    parts += [path_of(arrow, tops, heights) for arrow in arrows]
    parts += [box_of(node, tops[node.layer]) for layer in layers for node in layer if node.group]
    return "".join(parts) + "</svg>\n"


def path_of(arrow: Sequence[Node], tops: Sequence[float], heights: Sequence[float]) -> str:
    """An arrow from the bottom of its first node to the top of its last one, straight through the layers between."""
    first, *passed, last = arrow
    x, y = first.x, tops[first.layer] + heights[first.layer]
    words = [f"M{x:.0f} {tops[first.layer] + first.height:.0f} L{x:.0f} {y:.0f}"]
    for node in [*passed, last]:
        top = tops[node.layer] - (1 if node is last else 0)
        words.append(f"C{x:.0f} {(y + top) / 2:.0f} {node.x:.0f} {(y + top) / 2:.0f} {node.x:.0f} {top:.0f}")
        x, y = node.x, tops[node.layer] + heights[node.layer]
        if node is not last:
            words.append(f"L{x:.0f} {y:.0f}")
    return f'<path d="{" ".join(words)}"/>\n'


def box_of(node: Node, top: float) -> str:
    """A box with its title and its modules."""
    left = node.x - node.width / 2
    text = [f'<text class="title" x="{left + 14:.0f}" y="{top + 23:.0f}">{escape(title(node.group))}</text>\n']
    for index, line in enumerate(node.lines):
        text.append(f'<text x="{left + 14:.0f}" y="{top + 44 + LINE * index:.0f}">{escape(line)}</text>\n')
    size = f'width="{node.width:.0f}" height="{node.height:.0f}"'
    return f'<rect x="{left:.0f}" y="{top:.0f}" {size} rx="6"/>\n' + "".join(text)


if __name__ == "__main__":
    (ROOT / "docs" / "house.svg").write_text(draw(), encoding="utf-8")
