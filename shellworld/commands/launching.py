"""Commands that run another command and change little of it: timeout, nice, nohup, setsid."""

from __future__ import annotations

import re

from shellworld.commands import Context, Unsupported, command
from shellworld.commands.options import UsageError, parse_options, quoted, usage

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+\.?\d*|\.\d+)([smhd]?)")


def _run(ctx: Context, argv: list[str], failure: int) -> int:
    """Runs the command with this one's input; complains if there is none of that name."""
    if ctx.which(argv[0]) is None:
        what = "failed to run command" if failure else ""
        ctx.error(
            f"{ctx.name}: {what + ' ' if what else ''}{quoted(argv[0])}: No such file or "
            "directory\n"
        )
        return 127
    return ctx.run(argv, None)


def _duration(text: str) -> float | None:
    match = _DURATION.fullmatch(text)
    return float(match[1]) * _SECONDS[match[2]] if match else None


@command("timeout")
def timeout(ctx: Context, argv: list[str]) -> int:
    """timeout: of all commands only sleep takes time here."""
    try:
        options, operands = parse_options(
            argv,
            "k:s:v",
            "kill-after=k: signal=s: verbose=v preserve-status=p foreground=f",
            permute=False,
        )
    except UsageError as error:
        return usage(ctx, str(error), 125)
    if len(operands) < 2:
        return usage(ctx, "missing operand", 125)
    limit = _duration(operands[0])
    if limit is None or any(key == "k" and _duration(value) is None for key, value in options):
        return usage(ctx, f"invalid time interval {quoted(operands[0])}", 125)
    name, *rest = operands[1:]
    if name.rpartition("/")[2] == "sleep" and limit:
        waits = [wait for word in rest if (wait := _duration(word)) is not None]
        if waits and len(waits) == len(rest) and sum(waits) >= limit:
            if any(key in ("p", "s") for key, _ in options):
                raise Unsupported("timeout with signals")
            return 124
    return _run(ctx, operands[1:], 1)


@command("nice")
def nice(ctx: Context, argv: list[str]) -> int:
    """nice: -n, and the number alone."""
    words = list(argv)
    if len(words) > 1 and re.fullmatch(r"-{1,2}\d+", words[1]):
        words[1] = "-n" + words[1][1:]  # the old form
    try:
        options, operands = parse_options(words, "n:", "adjustment=n:", permute=False)
    except UsageError as error:
        return usage(ctx, str(error), 125)
    if any(not re.fullmatch(r"[-+]?\d+", value) for _, value in options):
        return ctx.fail(f"invalid adjustment {quoted(options[-1][1])}", 125)
    if not operands:
        if options:
            return usage(ctx, "a command must be given with an adjustment", 125)
        ctx.write(f"{ctx.shell.world.niceness}\n")
        return 0
    world = ctx.shell.world
    before = world.niceness
    after = min(before + int(options[-1][1] if options else 10), 19)
    if after < before:
        ctx.error(f"{ctx.name}: cannot set niceness: Permission denied\n")
    world.niceness = max(before, after)
    try:
        return _run(ctx, operands, 0)
    finally:
        world.niceness = before


@command("nohup")
def nohup(ctx: Context, argv: list[str]) -> int:
    """nohup: without a terminal it only runs the command."""
    words = argv[2:] if argv[1:2] == ["--"] else argv[1:]
    if words and words[0] in ("--help", "--version"):
        raise Unsupported(f"nohup {words[0]}")
    if not words:
        return usage(ctx, "missing operand", 125)
    if words[0].startswith("-"):
        return usage(ctx, f"invalid option -- '{words[0][1:2]}'", 125)
    return _run(ctx, words, 1)


@command("setsid")
def setsid(ctx: Context, argv: list[str]) -> int:
    """setsid: a session of its own makes no difference here."""
    try:
        options, operands = parse_options(argv, "cfw", "ctty=c fork=f wait=w", permute=False)
    except UsageError as error:
        return usage(ctx, str(error))
    if any(key in "cf" for key, _ in options):
        raise Unsupported("setsid in the background")
    if not operands:
        return usage(ctx, "no command specified")
    return _run(ctx, operands, 0)
