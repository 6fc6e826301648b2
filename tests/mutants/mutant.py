"""Mutants: changes found by symbol and by the names in an expression, not by source text.

A change looks within one symbol for the smallest part (an argument, a list's element, a dictionary's entry, a
value, a condition, a statement) that mentions all the given words: names, attributes, keywords, constants. A
word that is given twice must be mentioned twice. Exactly one part may fit.
"""

import ast
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.workers import ROOT

PACKAGE = "jobhandle_celery"

_LISTS = ("args", "keywords", "elts", "values", "body", "orelse", "finalbody")
_VALUES = ("value", "test")


class NotApplicableError(AssertionError):
    """A mutant does not fit the code any more."""


@dataclass(frozen=True)
class _Part:
    """A place in a tree: a field of a node, or one entry of a field that is a list."""

    owner: ast.AST
    field: str
    index: int | None

    @property
    def node(self) -> ast.AST:
        value = getattr(self.owner, self.field)
        node: ast.AST = value if self.index is None else value[self.index]
        return node

    @property
    def whole(self) -> list[ast.AST]:
        """The node, and the key of a dictionary's entry."""
        key = self.owner.keys[self.index or 0] if isinstance(self.owner, ast.Dict) else None
        return [self.node, *([key] if key is not None else [])]

    def replace(self, nodes: Sequence[ast.AST]) -> None:
        """Put nodes in its place."""
        if self.index is None:
            (node,) = nodes
            setattr(self.owner, self.field, node)
            return
        entries = getattr(self.owner, self.field)
        entries[self.index : self.index + 1] = nodes
        if isinstance(self.owner, ast.Dict) and not nodes:
            del self.owner.keys[self.index]
        if self.field == "body" and not entries:
            entries.append(ast.Pass())


@dataclass(frozen=True)
class Change:
    """A change of the smallest part that mentions these words, within the smallest that mentions others."""

    words: tuple[str, ...]
    within: tuple[str, ...] = ()

    def make(self, symbol: ast.AST) -> None:
        """Change the tree of the symbol.

        Raises:
            NotApplicableError: no part fits, or several do.
        """
        scope = _only(_parts(symbol), self.within).node if self.within else symbol
        self.change(_only(self.candidates(scope), self.words))

    def candidates(self, scope: ast.AST) -> list[_Part]:
        """Return the parts that it may change."""
        return list(_parts(scope))

    def change(self, part: _Part) -> None:
        """Change this part."""
        raise NotImplementedError


class Drop(Change):
    """Leave out an entry: an argument, an element, a guard."""

    def candidates(self, scope: ast.AST) -> list[_Part]:
        """Return the parts that can be left out."""
        return [part for part in _parts(scope) if part.index is not None]

    def change(self, part: _Part) -> None:
        """Leave it out."""
        part.replace([])


class DropStatement(Drop):
    """Leave out a statement."""

    def candidates(self, scope: ast.AST) -> list[_Part]:
        """Return the statements."""
        return [part for part in _parts(scope) if isinstance(part.node, ast.stmt)]


@dataclass(frozen=True)
class Replace(Change):
    """Put an expression in the place of another, which it names `_`."""

    by: str = ""

    def candidates(self, scope: ast.AST) -> list[_Part]:
        """Return the parts that are expressions."""
        return [part for part in _parts(scope) if isinstance(part.node, ast.expr)]

    def change(self, part: _Part) -> None:
        """Put the expression there."""
        part.replace([_Old(part.node).visit(ast.parse(self.by, mode="eval").body)])


class ReplaceStatement(Replace):
    """Put statements in the place of another, which they name `_`."""

    def candidates(self, scope: ast.AST) -> list[_Part]:
        """Return the statements."""
        return [part for part in _parts(scope) if isinstance(part.node, ast.stmt)]

    def change(self, part: _Part) -> None:
        """Put the statements there."""
        part.replace([_Old(part.node).visit(statement) for statement in ast.parse(self.by).body])


@dataclass(frozen=True)
class Mutant:
    """A change of the code, and the tests that are asked first whether they notice."""

    number: int
    reading: str
    symbol: str
    """``module:name``, the module below the package; a folder stands for all its modules."""
    changes: tuple[Change, ...]
    tests: str
    """Arguments of pytest."""

    def make(self) -> tuple[str, str]:
        """Return the path of the module below the root, and its source with the change.

        Raises:
            NotApplicableError: the symbol or the part to change is not there, or not alone.
        """
        path, _ = self._find()
        tree = ast.parse((ROOT / path).read_text())
        symbol = next(node for name, node in _symbols(tree) if self._names(name))
        try:
            for change in self.changes:
                change.make(symbol)
        except NotApplicableError as error:
            raise NotApplicableError(f"mutant {self.number} in {path}, {self.symbol}: {error}") from None
        return path, ast.unparse(ast.fix_missing_locations(tree))

    def _find(self) -> tuple[str, str]:
        place = Path(PACKAGE, *self.symbol.partition(":")[0].split("."))
        files = (
            sorted(path.relative_to(ROOT) for path in (ROOT / place).rglob("*.py"))
            if (ROOT / place).is_dir()
            else [place.with_suffix(".py")]
        )
        found = [
            (str(path), name)
            for path in files
            if (ROOT / path).exists()
            for name in _names_in(path)
            if self._names(name)
        ]
        if len(found) != 1:
            where = ", ".join(f"{path}:{name}" for path, name in found) or "no module of that name"
            raise NotApplicableError(f"mutant {self.number} looks for {self.symbol}: found in {where}")
        return found[0]

    def _names(self, name: str) -> bool:
        return f".{name}".endswith("." + self.symbol.partition(":")[2])


@cache
def _names_in(path: Path) -> list[str]:
    return [name for name, _ in _symbols(ast.parse((ROOT / path).read_text()))]


def _symbols(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Return the functions, classes and constants of a module or class, by their qualified names."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield prefix + child.name, child
                if isinstance(child, ast.ClassDef):
                    yield from _symbols(child, f"{prefix}{child.name}.")
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield prefix + name, child


def _parts(scope: ast.AST) -> Iterator[_Part]:
    for owner in ast.walk(scope):
        for field, value in ast.iter_fields(owner):
            if field in _LISTS and isinstance(value, list):
                yield from (_Part(owner, field, index) for index in range(len(value)))
            elif (
                field in _VALUES
                and isinstance(value, ast.AST)
                and not isinstance(owner, (ast.Attribute, ast.Expr))
            ):
                yield _Part(owner, field, None)


def _only(candidates: Iterator[_Part] | list[_Part], words: tuple[str, ...]) -> _Part:
    """Return the one part that mentions the words, and none within which does."""
    wanted = Counter(words)
    fitting = [
        part for part in candidates if wanted <= Counter(word for node in part.whole for word in _words(node))
    ]
    smallest = [
        part
        for part in fitting
        if not any(
            other.node in list(ast.walk(part.node))[1:] for other in fitting if other.node is not part.node
        )
    ]
    if len(smallest) != 1:
        found = "; ".join(ast.unparse(part.node)[:100] for part in smallest) or "none"
        raise NotApplicableError(f"one part must mention {', '.join(words)}; found {found}")
    return smallest[0]


def _words(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.keyword(arg=str(word)):
                yield word
            case ast.Constant(value=value):
                yield value if isinstance(value, str) else repr(value)


class _Old(ast.NodeTransformer):
    """Puts what was there in the place of `_`."""

    def __init__(self, old: ast.AST) -> None:
        self._old = old

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        """Put a statement there."""
        if isinstance(node.value, ast.Name) and node.value.id == "_" and isinstance(self._old, ast.stmt):
            return self._old
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Put an expression there."""
        return self._old if node.id == "_" else node
