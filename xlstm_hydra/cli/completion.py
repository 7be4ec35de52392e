"""Tab completion for bash, zsh and fish. `xlstm-hydra -sc install=SHELL` prints a shell script, which runs
`xlstm-hydra -sc query=SHELL` to get completions.

As in Hydra, the command line is passed in the environment variables COMP_LINE and COMP_POINT. Hydra's own completion
would compose the config each time; this module imports neither Hydra nor JAX.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from ._complete_word import metadata_completions, word_completions

_SPECIAL = re.compile(r"([^\w%+=:,./~@-])")
"""A character that must be escaped in a shell."""


def main(arguments: Sequence[str]) -> None:
    """Print a script for `install=SHELL` or `uninstall=SHELL`, or completions for `query=SHELL`. Completion errors are
    not printed, because they would appear in the command line that the user is typing."""
    action, _, shell = next((text for text in arguments if "=" in text), "").partition("=")
    if action == "query":
        with suppress(Exception):
            print("".join(f"{text}\n" for text in query(shell, os.environ)), end="")
    elif shell in _SCRIPTS and action in ("install", "uninstall"):
        print((_SCRIPTS if action == "install" else _REMOVAL)[shell], end="")
    else:
        _refuse(" ".join(text for text in arguments if not text.startswith("-")))


def _refuse(typed: str) -> NoReturn:
    from xlstm_hydra.problems import ConfigError, Problem, either  # not imported for completions

    from ._messages import command

    with command("xlstm-hydra"):
        text = f"expected {either(f'install={shell}' for shell in _SCRIPTS)}"
        raise ConfigError([Problem({"-sc": typed}, text)])


def query(shell: str, environ: Mapping[str, str]) -> list[str]:
    """Return the completions of the word at the cursor, in the format that the script for this shell expects.

    Args:
        shell: bash, zsh or fish.
        environ: environment variables. COMP_LINE: the command line. COMP_POINT: position of the cursor (default: end of
            the line). COMP_WORDBREAKS: for bash, which only replaces the text after the last of these characters.
    """
    line = environ.get("COMP_LINE", "")
    typed = _typed(line[: int(environ.get("COMP_POINT") or len(line))])
    name, *before = typed.before
    complete = metadata_completions if os.path.basename(name) == "xlstm-metadata" else word_completions
    found = list(dict.fromkeys(complete(before, typed.word)))
    if shell == "fish":
        return found
    is_sweep = bool({"-m", "--multirun"} & {*before})
    texts = [text if _continues(text, is_sweep) else f"{text} " for text in found]
    return texts if shell == "zsh" else [*_for_bash(texts, typed, environ.get("COMP_WORDBREAKS", ""))]


def _continues(text: str, is_sweep: bool) -> bool:
    """True if the user may continue a completion, so that no space must be added after it."""
    is_run = os.path.isdir(os.path.join(os.path.expanduser(re.sub(r"^[\w.-]*=", "", text)), "checkpoints"))
    return text.endswith(("=", ".", "/")) or is_run or (is_sweep and "=" in text)


def _for_bash(texts: Iterable[str], typed: Typed, breaks: str) -> Iterable[str]:
    """Return completions without the start of the word that bash keeps, and with special characters escaped."""
    if typed.quote:
        return (text.rstrip()[len(typed.word) - len(typed.quoted) :] for text in texts)
    last = max((typed.word.rfind(mark) for mark in breaks if not mark.isspace()), default=-1)
    kept = last + (typed.word[last : last + 1] not in ("@", "$"))  # bash also replaces these two characters
    return (_SPECIAL.sub(r"\\\1", text.rstrip()[kept:]) + text[len(text.rstrip()) :] for text in texts)


@dataclass(frozen=True)
class Typed:
    """A command line up to the cursor, split into words."""

    before: list[str]
    """Words before the word at the cursor, without quotes."""

    word: str
    """The word at the cursor, without quotes."""

    quote: str = ""
    """Quotation mark that is still open at the cursor. Empty: no open quotation."""

    quoted: str = ""
    """Part of the word after the open quotation mark."""


def _typed(line: str) -> Typed:
    """Split a command line into words as a shell does, except that the last quotation may be unclosed."""
    words, quote, quoted = [""], "", ""
    letters = iter(line)
    for letter in letters:
        if letter == quote:
            quote = ""
        elif not quote and letter in "'\"":
            quote, quoted = letter, ""
        elif not quote and letter.isspace():
            words += [""] if words[-1] else []
        else:
            text = next(letters, "") if letter == "\\" and quote != "'" else letter
            words[-1], quoted = words[-1] + text, quoted + text
    return Typed(words[:-1], words[-1], quote, quoted if quote else "")


_NAMES = "xlstm-hydra xlstm-metadata"

_SCRIPTS = {
    "bash": f"""\
_xlstm_hydra() {{
    local program=${{1/#\\~\\//$HOME/}} text
    COMPREPLY=()
    while IFS= read -r text; do
        COMPREPLY+=("$text")
    done < <(COMP_LINE=$COMP_LINE COMP_POINT=$COMP_POINT COMP_WORDBREAKS=$COMP_WORDBREAKS \\
        "${{program%xlstm-*}}xlstm-hydra" -sc query=bash 2>/dev/null)
}}
complete -o nospace -F _xlstm_hydra {_NAMES}
""",
    "zsh": f"""\
(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit; }}
_xlstm_hydra() {{
    local program=${{words[1]/#\\~\\//$HOME/}}
    local -a found=(${{(f)"$(COMP_LINE="${{(j: :)words[1,CURRENT-1]}} $PREFIX" COMP_POINT= \\
        ${{program%xlstm-*}}xlstm-hydra -sc query=zsh 2>/dev/null)"}})
    compadd -S '' -- ${{found:#* }}
    compadd -S ' ' -- ${{${{(M)found:#* }}% }}
}}
compdef _xlstm_hydra {_NAMES}
""",
    "fish": f"""\
function _xlstm_hydra
    set -lx COMP_LINE (commandline -cp | string collect)
    set -lx COMP_POINT
    set -l program (string replace -r '^~/' $HOME/ -- (commandline -po)[1])
    set program (string replace -r 'xlstm-[a-z]+$' xlstm-hydra -- $program)
    $program -sc query=fish 2>/dev/null
end
for name in {_NAMES}
    complete -c $name -f -a '(_xlstm_hydra)'
end
""",
}
"""Script that sets up tab completion, by shell."""

_REMOVAL = {
    "bash": f"complete -r {_NAMES}\nunset -f _xlstm_hydra\n",
    "zsh": f"compdef -d {_NAMES}\nunfunction _xlstm_hydra\n",
    "fish": f"for name in {_NAMES}\n    complete -e -c $name\nend\nfunctions -e _xlstm_hydra\n",
}
