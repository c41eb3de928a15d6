"""What the programs around training share: their command line, and errors as one sentence with an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from jobs.contract import ENV_DATA_DIR, Exit
from jobs.errors import RetryableError, RexError, SpecError
from rexnet.recipe import Recipe, load_recipe, parse_arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """The recipe that was asked for, and what is the program's own: switches, options with a value, plain words."""

    recipe: Recipe
    switches: frozenset[str]
    options: dict[str, str]
    words: list[str] = field(default_factory=list)


def read_command_line(
    arguments: list[str], *, switches: Collection[str], options: Collection[str] = (), words: str = "",
    needs: Collection[str] = (),
) -> CommandLine:  # fmt: skip
    """`--config C --key value ...` with the program's own switches and options, which may be spelt with - or _.

    `words` says what plain words mean, if they are allowed; `needs` are keys of the recipe that must not be empty.
    REX_DATA_DIR counts where no data_dir is named. SpecError on anything else.
    """
    found, chosen, rest, plain = set(), {}, [], []
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if not word.startswith("-"):
            plain.append(word)
        elif name in switches and not equals:
            found.add(name)
        elif name in options:
            if not equals and not queue:
                raise SpecError(f"command line: --{name} has no value", hint=f"say --{name} VALUE")
            chosen[name] = value if equals else queue.pop(0)
        else:
            rest.append(word)
            if not equals and queue and not queue[0].startswith("--"):
                rest.append(queue.pop(0))
    if plain and not words:
        raise SpecError(f"command line: {plain[0]!r} is out of place", hint="say --config NAME and --key value")
    if words and not plain:
        raise SpecError(f"command line: no {words} is named", hint=f"name at least one {words}")
    config, overrides = parse_arguments(rest)
    if ENV_DATA_DIR in os.environ:
        overrides.setdefault("data_dir", os.environ[ENV_DATA_DIR])
    recipe = load_recipe(config, overrides)
    for key in needs:
        if not getattr(recipe, key):
            raise SpecError(f"command line: --{key} is missing", hint=f"say --{key} and a path")
    return CommandLine(recipe=recipe, switches=frozenset(found), options=chosen, words=plain)


def run(program: str, body: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Do it; an error of ours is printed as one sentence, with the exit code of the contract."""
    try:
        return body(arguments)
    except RetryableError as error:
        code = Exit.INFRASTRUCTURE
        message = str(error)
    except RexError as error:  # these programs read and never retry: whatever does not fit was named wrongly
        code = Exit.CONFIG
        message = str(error)
    print(f"rexnet.{program}: {message}", file=sys.stderr, flush=True)
    return code
