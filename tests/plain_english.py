"""The phrases that docstrings, comments, messages and documents avoid, and their plain forms.

`python -m tests.plain_english [PATH…]` lists every place that has one, by default in all files.
"""

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
THIS_FILE = "tests/plain_english.py"

# Each pattern is matched without regard to case, in one line of prose.
PLAIN_FORMS = {
    r"\b(is|are|was|were|be) no\b(?! (longer|more than|less than|later than))": "is not a …",
    r"\b(whatever|whoever|whomever|whichever|wherever)\b": "name the noun: 'any value'",
    r"\b(somebody|someone)\b": "'another user', 'another process', 'another transaction'",
    r"\bnobody\b": "'no user', 'no worker', 'no process'",
    r"\b(those|ones?) (that|which|who)\b": "repeat the noun: 'runs that …'",
    r"\ball that\b": "name the noun: 'everything that', 'all runs that …'",
    r"\bwhat\b(?! to\b)(?![^.!]*\?)": "name the noun: 'the value that …'",
    r"(^|[.;:] +)who\b(?![^.!]*\?)": "name the person or the process: 'The user who …'",
    r"\bthe likes? of\b": "'a similar …', 'another …'",
    r"\bwhere (it|one|there|nothing|none|that|they|this|these|no)\b": "'if …'",
    r"\b(is|are|has|have|be) (?-i:none)\b(?! of)": "'is not a …', 'has no …'",
    r"\bis so already\b": "'is already …'",
    r"\b(is|are|was|were|be|been) told\b(?! apart)|\btold of\b": "'is notified', 'knows'",
    r"\blets? go( of)?\b": "'release', 'free', 'drop'",
    r"\bnothing of\b": "name the noun: 'no part of', 'does not know …'",
    r"\bmay not\b": "'must not' for a rule, 'cannot' or 'might not' for a fact",
    r"\b(lest|whence|thereof|therein|ere|ought|in want of|for want of)\b": "an everyday word",
    r"\bbut for\b": "'except for'",
    r"\bno more\b(?! than)": "'no longer', 'not again'",
}
PATTERNS = {re.compile(pattern, re.IGNORECASE): plain for pattern, plain in PLAIN_FORMS.items()}

BRACES = re.compile(r"\{[^{}]*\}")


class Finding(NamedTuple):
    """One phrase in one line of a tracked file."""

    path: str
    line: int
    phrase: str
    plain: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.phrase!r} → {self.plain}"


def findings(paths: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Yield the phrases in tracked .py and .md files under `paths` (relative to the repository)."""
    listed = subprocess.run(
        ["git", "ls-files", "--", *(paths or ("*.py", "*.md"))],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for path in listed.stdout.splitlines():
        if path.endswith((".py", ".md")) and path != THIS_FILE and "/migrations/" not in path:
            yield from _in_file(path)


def _in_file(path: str) -> Iterator[Finding]:
    text = (ROOT / path).read_text()
    for line, prose in _code_prose(text) if path.endswith(".py") else _document_prose(text):
        for pattern, plain in PATTERNS.items():
            for match in pattern.finditer(prose):
                yield Finding(path, line, match[0].strip(), plain)


def _code_prose(source: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of comments and string literals; names in code are not prose."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], _without_code(token.string.lstrip("# "))
        elif token.type == tokenize.STRING and " " in token.string:  # else it is a key or a name
            for offset, line in enumerate(token.string.splitlines()):
                yield (
                    token.start[0] + offset,
                    # Names in braces of an f-string are code.
                    _without_code(BRACES.sub("…", line.strip().lstrip("rbfu").lstrip("\"'"))),
                )


def _document_prose(text: str) -> Iterator[tuple[int, str]]:
    fenced = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, _without_code(line)


def _without_code(line: str) -> str:
    return re.sub(r"`[^`]*`", "`…`", line)


if __name__ == "__main__":
    for finding in findings(tuple(sys.argv[1:])):
        print(finding)
