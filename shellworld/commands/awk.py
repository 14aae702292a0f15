"""awk, as mawk 1.3.4."""

from __future__ import annotations

from shellworld.commands import Context, FsError, Unsupported, command
from shellworld.commands.awk_compiler import Compiler
from shellworld.commands.awk_lexer import AwkError, unescape
from shellworld.commands.awk_parser import Parser
from shellworld.commands.awk_runtime import AwkFailure, Runtime
from shellworld.commands.awk_values import Array, Field
from shellworld.commands.options import UsageError, parse_options, to_bytes


@command("awk", "mawk")
def awk(ctx: Context, argv: list[str]) -> int:
    """Runs awk: -F, -v, -f and the language of mawk.

    It lacks rand, srand, systime, strftime and mktime.
    """
    try:
        options, operands = parse_options(argv, "F:v:f:W:h", "version=V help=h", permute=False)
    except UsageError as error:
        return ctx.fail(str(error), 2)
    if not options and not operands:
        ctx.error("Usage: mawk [Options] [Program] [file ...]\n")
        return 0
    runtime = Runtime(ctx)
    sources = []
    try:
        for key, value in options:
            if key == "F":
                runtime.variables["FS"] = unescape(to_bytes(value))
            elif key == "v":
                name, equals, text = to_bytes(value).partition("=")
                if not equals or not name.isidentifier():
                    return ctx.fail(f"improper assignment: -v {value}", 2)
                runtime.assign_argument(name, text)
            elif key == "f":
                sources.append(runtime.read_file(to_bytes(value)))
            else:
                raise Unsupported(f"awk -{key}")
        if not sources:
            if not operands:
                return ctx.fail("no program given", 2)
            if operands[0] == "-":
                raise Unsupported("awk -")
            sources.append(to_bytes(operands.pop(0)))
        runtime.arguments = [to_bytes(operand) for operand in operands]
        given = Array()
        for at, text in enumerate(["awk", *runtime.arguments]):
            given[given.use(float(at), "%d")] = Field(text)
        runtime.variables |= {"ARGV": given, "ARGC": float(len(given))}
        program = "\n".join(sources)
        if "ARGV" in program and (
            "ARGV[" in program.replace(" ", "") and "]=" in program.replace(" ", "")
        ):
            raise Unsupported("awk that changes ARGV")
        compiler = Compiler(Parser(program), runtime)
        return compiler.run()
    except AwkError as error:
        line = "\n".join(sources).count("\n") + 2 if error.at_end else 1
        ctx.error(f"awk: line {line}: {error}\n")
    except (AwkFailure, FsError) as error:
        runtime.flush()
        ctx.error(f"awk: {error}\n")
        for name in list(runtime.files):
            if runtime.modes.get(name) != "|":
                runtime.close(name)
    except RecursionError as error:
        raise Unsupported("awk program of this depth") from error
    return 2
