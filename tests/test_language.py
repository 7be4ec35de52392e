"""No text of the package uses the constructions that made readers stop. `tests/messages.py` prints all texts."""

import re

import messages
import pytest

NOUNS = "checkpoint|class|config|device|field|file|folder|gpu|key|metadata|model|module|name|number|option|path"
NOUNS += "|run|step|tpu"
ODD = {
    "is no X": rf"(?<!there )\b(is|are|was|were) no (\w+ )?({NOUNS})s?\b",
    "none": r"(?<!there )\b(is|are) (?-i:none)( of|\b(?= *[.,;:)]|$))",
    "told": r"\b(is|are|was|were|be|has|have) (not )?told\b|\btells? (what|which|how|why|whether|that|it|them)\b",
    "said": r"\b(be|is|are|was) (not )?said\b|\bsays? (how|what|which|whether|nothing)\b|\bsay the same\b",
    "without a word": r"\bwithout a word\b",
    "leave away": r"\bleave[sd]? (\w+ )?away\b|\bleft away\b",
    "go on": r"\b(go|goes|going|gone|went) on\b",
    "anew": r"\banew\b",
    "behind": r"\bbehind the (@|sign|name|digit|point|comma|app|last|first|own)",
    "that there are": r"\bthat there (is|are)\b|\b(is|are) there already\b",
    "of which": r"\bof which\b|\bin which there\b|\bto which (it|they)\b",
    "which it is": r"\b(what|which|who|whose) (it|this) (is|was)\b",
}
OPENINGS = {"What", "Whether", "Where", "Which", "How", "That", "Those", "Why", "As", "Of", "Who", "Whose", "When"}
HAND_WRITTEN = [
    path.relative_to(messages.ROOT)
    for pattern in ("*.md", "docs/**/*.md", "conf/**/*.yaml", "examples/**/*.*")
    for path in sorted(messages.ROOT.glob(pattern))
    if "__pycache__" not in path.parts
]


def odd(text: str) -> list[str]:
    """Names of the constructions in a text, and "opening" for a docstring that opens with a question word."""
    return [name for name, pattern in ODD.items() if re.search(pattern, " ".join(text.split()), re.IGNORECASE)]


@pytest.mark.parametrize("kind", [messages.messages, messages.docstrings])
def test_no_text_uses_an_odd_construction(kind):
    assert not [f"{odd(text.text)} {text}" for text in kind() if odd(text.text)]


def test_docstrings_open_with_a_verb_or_a_noun():
    first = {text: text.text.split()[0].strip("`*,.:") for text in messages.docstrings() if text.opens}
    assert not [str(text) for text, word in first.items() if word in OPENINGS]


@pytest.mark.parametrize("path", HAND_WRITTEN, ids=str)
def test_no_page_uses_an_odd_construction(path):
    lines = (messages.ROOT / path).read_text(encoding="utf-8").splitlines()
    assert not [f"{path}:{number}: {odd(line)} {line}" for number, line in enumerate(lines, 1) if odd(line)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("memory is not told by devices of the kind cpu", ["told"]),
        ("says how a sweep is run, and this is none.", ["none", "said"]),
        ("'x' behind the @ is no step", ["is no X", "behind"]),
        ("which Shape this is, is not said", ["said"]),
        ("cannot be said here: expected 1e-06", ["said"]),
        ("ended without a word", ["without a word"]),
        ("expected a step number after '@', got 'x'", []),
        ("there is no checkpoint at step 3; steps: 1, 2", []),
    ],
)
def test_the_constructions_are_found(text, expected):
    assert odd(text) == expected
