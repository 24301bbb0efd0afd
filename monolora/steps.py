"""Programs of several steps, whose first word says which."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from monolora.errors import InputError, unknown


def run_step(
    argv: list[str],
    program: str,
    steps: Iterable[str],
    description: str | None,
    run: Callable[[str, list[str]], int],
    what: str = "step",
) -> int:
    """Run the step that the first word names, or print the help.

    Args:
        argv: the words of the command line.
        program: as in ``monolora vision``.
        steps: their names.
        description: for ``--help``.
        run: of a step, with the words after it.
        what: a step is called.

    Returns:
        The exit status: the step's own; 0 for ``--help``, 2 without any word.

    Raises:
        InputError: for an unknown step, or none before the flags.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{description}\nFlags: {program} {what.upper()} --help")
        return 0 if argv else 2
    step, *words = argv
    names = list(steps)
    if step.startswith("-"):
        raise InputError(f"Which {what}? It comes before the flags: {program} {' | '.join(names)}.")
    if step not in names:
        raise unknown(what, step, names)
    return run(step, words)
