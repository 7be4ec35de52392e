"""Tab completion for bash, zsh and fish: `xlstm-hydra -sc install=SHELL` prints a script, which asks for completions
with `xlstm-hydra -sc query=SHELL`.

The command line is in the environment variables COMP_LINE and COMP_POINT, as Hydra expects it. Hydra itself would
compose the config for every answer; these answers need neither Hydra nor JAX.
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
"""Characters that a shell does not read as text."""


def main(arguments: Sequence[str]) -> None:
    """Print the script or the completions that the arguments ask for. An error while completing prints nothing, because
    it would be printed into the line that is typed."""
    action, _, shell = next((text for text in arguments if "=" in text), "").partition("=")
    if action == "query":
        with suppress(Exception):
            print("".join(f"{text}\n" for text in query(shell, os.environ)), end="")
    elif shell in _SCRIPTS and action in ("install", "uninstall"):
        print((_SCRIPTS if action == "install" else _REMOVAL)[shell], end="")
    else:
        _refuse(" ".join(text for text in arguments if not text.startswith("-")))


def _refuse(typed: str) -> NoReturn:
    from xlstm_hydra.problems import ConfigError, Problem, either  # not loaded for a completion

    from ._messages import command

    with command("xlstm-hydra"):
        text = f"expected {either(f'install={shell}' for shell in _SCRIPTS)}"
        raise ConfigError([Problem({"-sc": typed}, text)])


def query(shell: str, environ: Mapping[str, str]) -> list[str]:
    """Return the completions of the word at the cursor, in the form that our script for the shell expects.

    Args:
        shell: bash, zsh or fish.
        environ: COMP_LINE with the command line, and optionally COMP_POINT, the position of the cursor. For bash, also
            COMP_WORDBREAKS: only the part of the word after the last of these characters is replaced.
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
    """True if no space may follow a completion, because more can be typed there."""
    is_run = os.path.isdir(os.path.join(os.path.expanduser(re.sub(r"^[\w.-]*=", "", text)), "checkpoints"))
    return text.endswith(("=", ".", "/")) or is_run or (is_sweep and "=" in text)


def _for_bash(texts: Iterable[str], typed: Typed, breaks: str) -> Iterable[str]:
    """Completions without the part that bash does not replace, and with special characters escaped."""
    if typed.quote:
        return (text.rstrip()[len(typed.word) - len(typed.quoted) :] for text in texts)
    last = max((typed.word.rfind(mark) for mark in breaks if not mark.isspace()), default=-1)
    kept = last + (typed.word[last : last + 1] not in ("@", "$"))  # bash replaces these two marks as well
    return (_SPECIAL.sub(r"\\\1", text.rstrip()[kept:]) + text[len(text.rstrip()) :] for text in texts)


@dataclass(frozen=True)
class Typed:
    """A command line up to the cursor."""

    before: list[str]
    """Words before the word at the cursor, without quotes."""

    word: str
    """The word at the cursor, without quotes."""

    quote: str = ""
    """Quotation mark that is still open at the cursor."""

    quoted: str = ""
    """Part of the word after that mark."""


def _typed(line: str) -> Typed:
    """Split a command line as a shell does, except that a quotation may be open at its end."""
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
"""Script for each shell."""

_REMOVAL = {
    "bash": f"complete -r {_NAMES}\nunset -f _xlstm_hydra\n",
    "zsh": f"compdef -d {_NAMES}\nunfunction _xlstm_hydra\n",
    "fish": f"for name in {_NAMES}\n    complete -e -c $name\nend\nfunctions -e _xlstm_hydra\n",
}
