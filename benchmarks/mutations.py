"""Change one operator, constant or clause of a module at a time, and print the changes that no test notices.

Python and the SQL in it are changed, in memory only, in a random sample of the places where one can be:

    python benchmarks/mutations.py src/hpopt/search/pruner.py tests/search/test_pruner.py
"""

import argparse
import ast
import importlib.machinery
import io
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Imported once, for all mutants.
import hypothesis  # noqa: F401
import optuna  # noqa: F401
import pytest

from hpopt.postgres import server

# A mutant can loop without end or fill the memory.
CPU_S = 40
MEMORY_BYTES = 8 * 2**30

TOKENS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "is": "is not", "in": "not in",
    "and": "or", "or": "and", "not": "", "if": "if not", "+": "-", "-": "+", "*": "/", "/": "*", "//": "/", "**": "*",
    "min": "max", "max": "min", "any": "all", "all": "any", "True": "False", "False": "True",
    "return": "return None if True else",
}  # fmt: skip
IS_SQL = re.compile(r'"+\s*(select|with|update|insert|delete)\b')
SQL = [
    (r"\band\b", "or"), (r"\bor\b", "and"), (r"\bnot (exists|null|distinct)", r"\1"), (r"\bis null", "is not null"),
    (r" < ", " <= "), (r" <= ", " < "), (r" > ", " >= "), (r" >= ", " > "), (r" < ", " > "), (r" > ", " < "),
    (r"(\b(?:where|and|on|when|or) [^\n]*?) = ", r"\1 <> "), (r" <> ", " = "), (r" \+ ", " - "), (r" - ", " + "),
    (r"\bmin\(", "max("), (r"\bmax\(", "min("), (r"\bavg\(", "max("), (r"\bgreatest\(", "least("),
    (r"\bdistinct (?!from)", ""), (r" desc\b", ""), (r"\border by [^\n]*?(?= limit|\n|\))", ""),
    (r"\bleft join", "join"), (r" filter \(where [^)\n]*\)", ""), (r"\btrue\b", "false"), (r"\bfalse\b", "true"),
    (r"'[a-zA-Z]+'", "'other'"), (r"(?<=[ (])(\d)(?=[ )\n])", r"\1 + 1"),
    (r"\b(?:where|and) [^\n]*(?=\n)", "{keyword} true"),
]  # fmt: skip


def find_mutants(source: str) -> list[tuple[int, str, str]]:
    """Return the line, the change and the source of each mutant."""
    found = []
    for start, end, new in _changes(source):
        mutant = source[:start] + new + source[end:]
        with suppress(SyntaxError):
            compile(mutant, "", "exec")
            line = source[source.rfind("\n", 0, start) + 1 : source.find("\n", start)].strip()
            change = f"{line}  [{source[start:end].strip()} -> {new.strip()}]"
            found.append((source.count("\n", 0, start) + 1, change, mutant))
    return found


def _changes(source: str) -> Iterator[tuple[int, int, str]]:
    """Yield the start and the end of each text that can be changed, and the new text."""
    starts = [0, *(match.end() for match in re.finditer("\n", source))]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        start, end = (starts[row - 1] + column for row, column in (token.start, token.end))
        if token.line.lstrip().startswith("@"):
            continue
        if token.string in TOKENS:
            yield start, end, TOKENS[token.string]
        elif token.type == tokenize.NUMBER:
            yield start, end, f"({token.string} + 1)"
        elif IS_SQL.match(token.string):
            for pattern, new in SQL:
                for match in re.finditer(pattern, token.string):
                    text = match.expand(new).format(keyword=match[0].split()[0])
                    yield start + match.start(), start + match.end(), text
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = ast.get_source_segment(source, node) or ""
            start = starts[node.lineno - 1] + node.col_offset
            yield start, start + len(call), "pass"


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
        os._exit(pytest.main(["-x", "-n", "0", "-p", "no:cacheprovider", *tests]) != 0)
    status = os.waitpid(child, 0)[1]
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return status == 0


@contextmanager
def one_server() -> Iterator[None]:
    """Let the tests of all mutants use one server, in memory as in tests/conftest.py."""
    tempfile.tempdir = "/dev/shm"  # noqa: S108 - tempfile chooses the names in it.
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
    sample = sorted(random.Random(options.seed).sample(mutants, min(options.mutants, len(mutants))))  # noqa: S311
    with one_server():
        if not passes(path, path.read_text(), options.tests):
            sys.exit("the tests fail on the module as it is")
        survivors = [(line, change) for line, change, source in sample if passes(path, source, options.tests)]
    print(*(f"{options.module}:{line}: {change}" for line, change in survivors), sep="\n")
    print(f"{options.module}: {len(sample)} of {len(mutants)} mutants, {len(survivors)} survived")


if __name__ == "__main__":
    main()
