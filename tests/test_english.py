"""The English of the sources: docstrings, comments, help texts and messages."""

import ast
import io
import itertools
import re
import tokenize
from collections.abc import Iterator

import pytest

from tests.test_docs import HOUSE_WORDS, ROOT, SENTENCE_WORDS, sentences, words

ROOMS = ("xception_jax", "launch", "benchmarks", "configs")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
HEADINGS = "Args|Returns|Raises|Yields|Attributes|Example"
# Where an entry begins: `name: ...`, `name (type): ...`, `- ...`.
ENTRY = re.compile(r"\s*(?:[-*] |[`*\w.,| /]+(?:\([^()]*\))?: )")
CODE = re.compile(r"\s*(?:python|xception|pip|>>>|\$) ")
TABLE = re.compile(r"\S {3,}\S")  # columns that spaces align


def prose(text: str) -> str:
    """The text of a block with each piece of code as one word."""
    return re.sub(r"``?[^`]+``?", "CODE", " ".join(text.split()))


def paragraphs(docstring: str) -> Iterator[str]:
    """The paragraphs and entries of a docstring."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        if CODE.match(paragraph) or TABLE.search(paragraph):
            continue
        block: list[str] = []
        for line in paragraph.splitlines():
            heading = re.fullmatch(rf"\s*({HEADINGS}):", line)
            if block and (heading or ENTRY.match(line)):
                yield prose("\n".join(block))
                block = []
            if not heading:
                block.append(line)
        if block:
            yield prose("\n".join(block))


def comments(source: str) -> Iterator[str]:
    """The comments; lines of comment below each other are one, code between them ends it."""
    block, last = [], (0, 0)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith(("#!", "# type:")):
            line, column = token.start
            if block and (line - 1, column) != last:
                yield prose("\n".join(block))
                block = []
            block.append(token.string.lstrip("#: "))
            last = (line, column)
    if block:
        yield prose("\n".join(block))


def literal(node: ast.AST) -> str | None:
    """The text of a string; "X" stands for each value that is formatted into it."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(literal(part) or "X" for part in parts)
    return None


def docstrings_and_messages(tree: ast.AST) -> tuple[list[str], list[str]]:
    """The blocks of the docstrings, and the other strings of three words or more."""
    docstrings, messages = [], []

    def visit(node: ast.AST) -> None:
        text = literal(node)
        if text is not None:
            if len(words(text)) >= 3:
                messages.append(prose(text))
            return
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    docstrings.extend(paragraphs(text))
                case _:
                    visit(child)

    visit(tree)
    return docstrings, messages


def unusual_words(text: str) -> Iterator[str]:
    for unusual, usual in HOUSE_WORDS.items():
        if re.search(rf"\b({unusual})\b", text, re.IGNORECASE):
            yield f"{usual}: {text}"
    if re.search(r"\b([a-z]+) \1\b", text):
        yield f"twice: {text}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sources_are_plain_english(path):
    source = path.read_text(encoding="utf-8")
    docstrings, messages = docstrings_and_messages(ast.parse(source))
    read = [*docstrings, *comments(source)]
    faults = [
        f"{len(words(sentence))} words: {sentence}"
        for sentence in itertools.chain.from_iterable(map(sentences, read))
        if len(words(sentence)) > SENTENCE_WORDS
    ]
    faults += itertools.chain.from_iterable(map(unusual_words, [*read, *messages]))
    assert not faults, "\n".join(faults)


def test_what_is_read_of_a_source():
    source = '''"""First. Second `a b`
line.

    Args:
        one: Of an entry,
            continued.
        two (x): Another.
    """

# A comment
# of two lines.
x = 1  # beside code
# alone
FIELD = f"a message about {x} there"
short = "two words"
'''
    assert docstrings_and_messages(ast.parse(source)) == (
        ["First. Second CODE line.", "one: Of an entry, continued.", "two (x): Another."],
        ["a message about X there"],
    )
    assert list(comments(source)) == ["A comment of two lines.", "beside code", "alone"]
    assert list(unusual_words("it lies there anew, but not in a class that that is")) == [
        "is stored: it lies there anew, but not in a class that that is",
        "again: it lies there anew, but not in a class that that is",
        "twice: it lies there anew, but not in a class that that is",
    ]
