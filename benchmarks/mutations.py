"""Change one operator, constant or clause of a module at a time, and list the changes that no test notices.

Python and the SQL in it are changed, in memory only, in a random sample of the places where one can be:

    python benchmarks/mutations.py src/hpopt/search/pruner.py tests/search/test_pruner.py
"""

import argparse
import ast
import copy
import importlib.machinery
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import shorten

# Imported once, for all mutants.
import hypothesis  # noqa: F401
import optuna  # noqa: F401
import pytest
import scipy.stats  # noqa: F401
import sqlalchemy  # noqa: F401

from hpopt.postgres import server

# An endless loop of a mutant must end, and must not take the memory of the machine.
TEST_TIMEOUT_S = 30
MUTANT_TIMEOUT_S = 200
CPU_S = 30
MEMORY_BYTES = 8 * 2**30

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Pow: ast.Mult,
}  # fmt: skip
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}
IS_SQL = re.compile(r"\s*(select|with|update|insert|delete)\b")
SQL = [
    (r"\band\b", "or"), (r"\bor\b", "and"), (r" < ", " <= "), (r" <= ", " < "), (r" < ", " > "), (r" > ", " >= "),
    (r" >= ", " > "), (r" = (?=[a-z.]*\w+[ )\n])", " <> "), (r" <> ", " = "), (r"\bis null", "is not null"),
    (r"\bis not null", "is null"), (r"\bnot exists", "exists"), (r"\bnot (?!exists|null|distinct)", ""),
    (r"\bmin\(", "max("), (r"\bmax\(", "min("), (r"\bavg\(", "max("), (r"\bgreatest\(", "least("),
    (r"\bdistinct (?!from)", ""), (r" desc\b", ""), (r"\border by [^\n]*?(?= limit|\n|\))", ""),
    (r"\bleft join", "join"),
    (r"\bunion\b", "union all"), (r"\bfor (no key )?update\b[^\n]*", ""), (r" \+ ", " - "), (r" - ", " + "),
    (r" \* ", " / "), (r"\btrue\b", "false"), (r"\bfalse\b", "true"), (r"(?<=[ (])0(?=[ )\n])", "1"),
    (r"(?<=[ (])1(?=[ )\n])", "2"), (r"'[a-zA-Z]+'", "'other'"), (r" filter \(where [^)\n]*\)", ""),
    (r"\bnow\(\)(?!-)", "'-infinity'"), (r"\bconflict [^\n]*do nothing", ""),
]  # fmt: skip


def find_mutants(source: str) -> list[tuple[int, str, str, str]]:
    """Return the line, the old text, the new text and the whole source of each mutant."""
    starts = [0]  # The text is ASCII, where columns are characters.
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node, text in _changes(ast.parse(source)):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        old = source[start:end]
        if text is not None:
            found.append((node.lineno, old, text, source[:start] + text + source[end:]))
            continue
        for pattern, new in SQL:
            for match in re.finditer(pattern, old):
                sql = old[: match.start()] + new + old[match.end() :]
                around = old[old.rfind("\n", 0, match.start()) + 1 : old.find("\n", match.end())].strip()
                line = node.lineno + old.count("\n", 0, match.start())
                found.append((line, around, f"{match[0]} -> {new}", source[:start] + sql + source[end:]))
    return found


def _changes(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str | None]]:
    """Yield each node that can be changed with its new text, and each SQL statement with None."""
    for each in _changed(node):
        yield node, f"({ast.unparse(each)})" if isinstance(each, ast.expr) else ast.unparse(each)
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and IS_SQL.match(node.value):
        yield node, None
    for field, value in ast.iter_fields(node):
        if field not in {"annotation", "returns", "decorator_list"}:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                    yield from _changes(child)


def _changed(node: ast.AST) -> Iterator[ast.AST]:  # noqa: C901 - one branch a kind of node.
    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                yield _with(node, ops=[*ops[:i], COMPARISONS[type(op)](), *ops[i + 1 :]])
        case ast.BinOp(op=op) if type(op) in ARITHMETIC:
            yield _with(node, op=ARITHMETIC[type(op)]())
        case ast.BoolOp(op=op):
            yield _with(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1)
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Call(func=ast.Name(id=name)) if name in FUNCTIONS:
            yield _with(node, func=ast.Name(FUNCTIONS[name]))
        case ast.IfExp(body=body, orelse=orelse):
            yield _with(node, body=orelse, orelse=body)
        case ast.ListComp(generators=[first]) | ast.GeneratorExp(generators=[first]) if first.ifs:
            yield _with(node, generators=[_with(first, ifs=[])])


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def passes(path: Path, source: str, tests: list[str]) -> bool:
    """Return whether the tests pass, in a process of their own, with a module of this source."""
    child = os.fork()
    if child == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        original = importlib.machinery.SourceFileLoader.get_code

        def get_code(loader: importlib.machinery.SourceFileLoader, name: str) -> object:
            is_mutant = Path(loader.path).resolve() == path
            return compile(source, loader.path, "exec") if is_mutant else original(loader, name)

        importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[assignment, method-assign]
        options = ["-x", "-n", "0", "-p", "no:cacheprovider", f"--timeout={TEST_TIMEOUT_S}"]
        os._exit(pytest.main([*options, *tests]) != 0)
    deadline = time.monotonic() + MUTANT_TIMEOUT_S
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0


@contextmanager
def one_server() -> Iterator[None]:
    """Let the tests of all mutants use one server."""
    # As tests/conftest.py.
    if os.access("/dev/shm", os.W_OK):  # noqa: S108 - tempfile chooses the names in it.
        tempfile.tempdir = "/dev/shm"  # noqa: S108 - as above.
    run = os.environ["PYTEST_XDIST_TESTRUNUID"] = f"mutations-{os.getpid()}"
    home = Path(tempfile.gettempdir(), f"hpopt-tests-{run}")
    server.SETTINGS["fsync"] = "off"
    with server.use(home):
        server.start(home)
        yield
    server.stop_if_unused(home)
    shutil.rmtree(home)


def main() -> None:
    """Check that the tests pass, run them on each mutant of the sample, and print the survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", type=Path)
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--mutants", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    path = options.module.resolve()
    mutants = find_mutants(path.read_text())
    sample = random.Random(options.seed).sample(mutants, min(options.mutants, len(mutants)))  # noqa: S311
    survivors = 0
    with one_server():
        if not passes(path, path.read_text(), options.tests):
            sys.exit("the tests fail on the module as it is")
        for line, old, new, source in sorted(sample):
            if passes(path, source, options.tests):
                survivors += 1
                print(f"{options.module}:{line}: {shorten(old, 120)}  =>  {shorten(new, 120)}", flush=True)
    print(f"{options.module}: {len(sample)} of {len(mutants)} mutants, {survivors} survived")


if __name__ == "__main__":
    main()
