"""What tests assert is evaluated and need not be true, where nothing is computed.

For plugins of pytest, which is run with ``--assert=plain``.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType

TESTS = Path(__file__).parent


def install() -> None:
    """From here on every file of tests that is imported is `Evaluated`."""
    sys.meta_path.insert(0, Finder)


class Evaluated(ast.NodeTransformer):
    """What a test asserts is evaluated, for the launches in it, and need not be true."""

    def visit_Assert(self, node: ast.Assert) -> ast.Expr:
        return ast.copy_location(ast.Expr(node.test), node)


class Loader(SourceFileLoader):
    """Loads a file with its assertions `Evaluated`, and so never from bytecode."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = Evaluated().visit(ast.parse(self.get_data(path), path))
        return compile(tree, path, "exec", dont_inherit=True)


class Finder:
    """Gives every file of tests to `Loader`."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, _: object = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.origin is None or TESTS not in Path(spec.origin).parents:
            return None
        spec.loader = Loader(name, spec.origin)
        return spec
