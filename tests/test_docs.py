"""The documents: short sentences, lines that fit, links that lead somewhere, the house's words."""

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
POLICIES = [ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CODE_OF_CONDUCT", "SECURITY")]
DOCUMENTS = [README, *POLICIES, *sorted((ROOT / "docs").glob("*.md"))]
COLUMNS, SENTENCE_WORDS, README_LINES = 120, 35, 150
GENERATED = re.compile(r"<!-- table: .*?<!-- end -->", re.DOTALL)

# Words that a reader has to look up, and usual ones for them.
HOUSE_WORDS = {
    r"guess(es|ed)?": "prediction",
    r"mend(s|ed)?": "fix",
    r"lies": "is stored",
    r"anew": "again",
    r"whoever": "each",
    r"besides": "also",
    r"likewise": "the same",
    r"lest": "so that ... not",
    r"wherefore|(where|there)(of|by|in|upon)|[ht]hither|(wh|th)ence": "simpler words",
    r"(who|what|which)soever": "any",
    r"so (many|few|much) that": "the number",
    r"that which": "what, or the noun",
    r"(of|from) these the": "the first of these",
    r"(is|are|was|were) to be": "must be, or the future",
    r"but for": "except",
    r"what there is to": "the noun",
    r"knows? (nothing|anything) of": "does not depend on",
    r"tells? of": "reports",
    r"upon": "on",
    r"nought|naught|aught|amiss": "nothing, wrong",
}


@functools.cache
def blocks(path: Path) -> list[Token]:
    """Each paragraph, item, heading and cell of a document by itself; no code, no made tables."""
    text = GENERATED.sub("", path.read_text(encoding="utf-8"))
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    return [token for token in tokens if token.type == "inline"]


def prose(block: Token) -> str:
    """What one reads of it: a piece of code is one word, a link is its text."""

    def word(child: Token) -> str:
        match child.type:
            case "text":
                return child.content
            case "code_inline":
                return "CODE"
            case "softbreak" | "hardbreak":
                return " "
        return ""

    return "".join(word(child) for child in block.children or [])


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])[\"')]*\s+", text.strip())


def words(text: str) -> list[str]:
    return [word for word in text.split() if re.search(r"\w", word)]


@functools.cache
def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    text = path.read_text(encoding="utf-8")
    tokens = MarkdownIt("commonmark").parse(text)
    made: list[str] = []
    for before, token in itertools.pairwise(tokens):
        if before.type == "heading_open":
            title = "".join(child.content for child in token.children or [])
            made.append(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-"))
    return {
        name if not made[:i].count(name) else f"{name}-{made[:i].count(name)}"
        for i, name in enumerate(made)
    }


def links(path: Path) -> list[str]:
    """Where a document's links and images lead."""
    return [
        str(child.attrs[key])
        for block in blocks(path)
        for child in block.children or []
        for key in ("href", "src")
        if key in child.attrs
    ]


def target(path: Path, link: str) -> Path:
    """The file that a relative link leads to."""
    name = link.partition("#")[0]
    return (path.parent / name).resolve() if name else path


def is_relative(link: str) -> bool:
    return not re.match(r"[a-z]+:", link)


by_name = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


@by_name
def test_sentences_are_short(path):
    long = [
        f"{len(words(sentence))}: {sentence}"
        for block in blocks(path)
        for sentence in sentences(prose(block))
        if len(words(sentence)) > SENTENCE_WORDS
    ]
    assert not long, "\n".join(long)


def too_long(lines: Sequence[str]) -> Iterator[str]:
    """The lines of prose that do not fit; tables and code cannot be wrapped."""
    code = False
    for line in lines:
        if line.lstrip().startswith("```"):
            code = not code
        if not code and len(line) > COLUMNS and not line.startswith(("|", "<!--")):
            yield line


@by_name
def test_prose_is_wrapped(path):
    text = GENERATED.sub("", path.read_text(encoding="utf-8"))
    assert not list(too_long(text.splitlines()))


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= README_LINES


@by_name
def test_links_lead_somewhere(path):
    for link in filter(is_relative, links(path)):
        file = target(path, link)
        assert file.is_relative_to(ROOT), link
        assert file.exists(), link
        _, hash_mark, anchor = link.partition("#")
        if hash_mark and file.suffix == ".md":
            assert anchor in anchors(file), link


def test_the_readme_leads_to_every_page():
    reached, todo = set(), [README]
    while todo:
        path = todo.pop()
        if path.suffix == ".md" and path not in reached:
            reached.add(path)
            todo += [target(path, link) for link in filter(is_relative, links(path))]
    assert not set(DOCUMENTS) - reached


@by_name
def test_words_are_the_fields(path):
    for block in blocks(path):
        text = prose(block)
        for unusual, usual in HOUSE_WORDS.items():
            assert not re.search(rf"\b({unusual})\b", text, re.IGNORECASE), f"{usual}: {text}"
        assert not re.search(r"\b([a-z]+) \1\b", text), text


@by_name
def test_no_placeholder_is_left(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if re.fullmatch(r"[@_A-Z]+", line)]


def test_sentences_and_words_of_markdown(tmp_path):
    path = tmp_path / "a.md"
    path.write_text(
        "# One *title*\n\n"
        "A [link with text](b.md#c) is `one piece of code`. Then\nanother line.\n\n"
        "| a cell | two. Three |\n|---|---|\n| x | y |\n\n- item\n\n```sh\nno prose\n```\n"
        "<!-- table: t -->\nno prose\n<!-- end -->\n",
        encoding="utf-8",
    )
    found = [sentence for block in blocks(path) for sentence in sentences(prose(block))]
    assert found == [
        "One title", "A link with text is CODE.", "Then another line.", "a cell", "two.", "Three",
        "x", "y", "item",
    ]  # fmt: skip
    assert words("one - two, CODE") == ["one", "two,", "CODE"]
    assert anchors(path) == {"one-title"}
    assert links(path) == ["b.md#c"]
