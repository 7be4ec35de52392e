"""The messages on the page about troubleshooting are messages of the package."""

import re

import messages
import pages
import pytest

PAGE = pages.ROOT / "docs/troubleshooting.md"
WORDS = 2
"""A sentence with fewer words outside its braces could be any message."""
QUOTED = [line for block in pages.blocks(PAGE, "text") for line in block.text.splitlines()]


def sentences(text):
    """The sentences of a message, without the full stops."""
    return [part.strip(" .;") for part in re.split(r"(?<=[.;]) ", " ".join(text.split()))]


def pattern(sentence):
    """A regular expression for a sentence of the package: parts in braces or `%s` vary. None: it is too short."""
    literals = re.split(r"\{.*?\}|%[sd]", sentence)
    return re.compile(".*".join(map(re.escape, literals))) if len(" ".join(literals).split()) >= WORDS else None


KNOWN = {pattern(sentence) for text in messages.messages() for sentence in sentences(text.text)} - {None}


def exists(sentence):
    return any(known.search(f" {sentence} ") for known in KNOWN)


@pytest.mark.parametrize("line", QUOTED)
def test_every_quoted_message_exists(line):
    for sentence in sentences(line.replace("...", "…")):
        assert exists(sentence), sentence


def test_every_heading_is_in_the_message_below_it():
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^### ([^\n]*)\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(found) == len(re.findall(r"^### ", text, re.MULTILINE))
    for heading, below in found:
        assert re.search(".*".join(map(re.escape, heading.split("..."))), below), heading


def test_a_message_that_does_not_exist_is_found():
    assert exists("SIGTERM: the run saves and stops after this step")
    assert not exists("SIGTERM: the run saves and stops at this step")
