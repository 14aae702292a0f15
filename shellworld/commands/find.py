"""find: walks trees, tests entries, acts on them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from shellworld.commands import Context, FsError, Unsupported, command
from shellworld.commands.find_printf import pieces
from shellworld.commands.find_tests import BY_NAME, Entry, FindError, Test, make_test, plain_test
from shellworld.commands.walking import join, scan
from shellworld.world.inodes import Inode, allows

_GLOBAL = {"-depth", "-d", "-follow", "-daystart", "-maxdepth", "-mindepth", "-regextype"}
_ACTIONS = set(
    "-print -print0 -printf -ls -exec -execdir -ok -okdir -delete -prune -quit -fprint -fprint0 "
    "-fprintf -fls".split()
)
# find takes its operators with a dash in front, too.
_OPERATORS = {f"-{sign}": sign for sign in "()!,"}
_SILENT = {"-prune", "-quit"}  # actions after which -print is still implied


class _Quit(Exception):
    pass


@dataclasses.dataclass
class _Batch:
    """What one -exec ... + collects: the fixed words and the names.

    Attributes:
      directory: where it runs; "" is find's own.
    """

    fixed: list[str]
    names: list[str] = dataclasses.field(default_factory=list)
    directory: str = ""


@dataclasses.dataclass
class _Plan:
    depth_first: bool = False
    shallowest: int = 0
    deepest: int = 1 << 30
    follow: str = "P"
    regextype: str = "emacs"
    acts: bool = False
    status: int = 0
    batches: list[_Batch] = dataclasses.field(default_factory=list)


class _Parser:
    """Parses an expression into one function."""

    def __init__(self, ctx: Context, words: list[str], plan: _Plan):
        self.ctx, self.words, self.plan = ctx, words, plan
        self.at = 0
        self.pruned: set[str] = set()

    def peek(self) -> str | None:
        return _OPERATORS.get(w := self.words[self.at], w) if self.at < len(self.words) else None

    def argument(self, name: str) -> str:
        if self.at >= len(self.words):
            raise FindError(f"missing argument to `{name}'")
        self.at += 1
        return self.words[self.at - 1]

    def parse(self) -> Test:
        if not self.words:
            test: Test = lambda entry: True  # noqa: E731
        else:
            test = self.listed()
            if self.at < len(self.words):
                raise FindError("invalid expression; you have too many ')'")
        if self.plan.acts:
            return test
        out = self.ctx.write

        def with_print(entry: Entry) -> bool:
            if test(entry):
                out(entry.shown + "\n")
            return True

        return with_print

    def listed(self) -> Test:
        left = self.either()
        while self.peek() == ",":
            self.at += 1
            left = _sequence(left, self.either())
        return left

    def either(self) -> Test:
        left = self.both()
        while self.peek() in ("-o", "-or"):
            self.at += 1
            if self.peek() is None:
                raise FindError(
                    "invalid expression; you have used a binary operator '-o' with nothing after "
                    "it."
                )
            left = _either(left, self.both())
        return left

    def both(self) -> Test:
        if self.peek() in ("-o", "-or", "-a", "-and", ",", ")"):
            word = self.peek()
            if word == ")":
                why = (
                    "you have too many ')'"
                    if self.at == 0
                    else "empty parentheses are not allowed."
                )
                raise FindError(f"invalid expression; {why}")
            raise FindError(
                f"invalid expression; you have used a binary operator '{word}' with nothing "
                "before it."
            )
        left = self.unary()
        while self.peek() not in (None, "-o", "-or", ",", ")"):
            if self.peek() in ("-a", "-and"):
                self.at += 1
                if self.peek() is None:
                    raise FindError(
                        "invalid expression; you have used a binary operator '-a' with nothing "
                        "after it."
                    )
            left = _both(left, self.unary())
        return left

    def unary(self) -> Test:
        word = self.words[self.at]
        word = _OPERATORS.get(word, word)
        self.at += 1
        if word in ("!", "-not"):
            if self.peek() is None:
                # As findutils, roughly.
                raise FindError(f"invalid expression; expected an expression after '{word}'")
            inner = self.unary()
            return lambda entry: not inner(entry)
        if word == "(":
            if self.peek() is None:
                raise FindError("invalid expression; expected to find a ')' but didn't see one.")
            inner = self.listed()
            if self.peek() != ")":
                raise FindError(
                    "invalid expression; I was expecting to find a ')' somewhere but did not see "
                    "one."
                )
            self.at += 1
            return inner
        return self.primary(word)

    def primary(self, word: str) -> Test:
        ctx, plan = self.ctx, self.plan
        if not word.startswith("-") or word == "-":
            raise FindError(f"paths must precede expression: `{word}'")
        if word in _GLOBAL:
            return self.option(word)
        test = plain_test(ctx, word)
        if test is not None:
            return self.stated(test) if word == "-empty" else test
        if word in _ACTIONS:
            plan.acts = plan.acts or word not in _SILENT
            return self.action(word)
        known = re.fullmatch(
            r"-(i?name|i?path|i?wholename|i?lname|i?regex|x?type|size|perm|user|group|[ug]id|links|inum|[mca](time|min)|c?newer"
            r"|newer[mc][mc]|newermt|samefile)",
            word,
        )
        if known:
            test = make_test(ctx, word, self.argument(word), plan.regextype, plan.follow != "P")
            assert test is not None  # the names above are those of tests
            return test if BY_NAME.fullmatch(word) else self.stated(test)
        if re.fullmatch(r"-(anewer|newer[aBcm][aBcmt]|used|fstype|context|files0-from)", word):
            raise Unsupported(f"find {word}")
        raise FindError(f"unknown predicate `{word}'")

    def prune(self, entry: Entry) -> bool:
        """Runs -prune, which is always true: what is in the entry is not visited."""
        self.pruned.add(entry.path)
        return True

    def stated(self, test: Test) -> Test:
        """A test that needs stat, which fails for what is hidden."""

        def checked(entry: Entry) -> bool:
            if entry.hidden:
                self.complain(f"'{entry.shown}': Permission denied")
                return False
            return test(entry)

        return checked

    def option(self, word: str) -> Test:
        plan = self.plan
        if word in ("-depth", "-d"):
            plan.depth_first = True
        elif word == "-follow":
            plan.follow = "L"
        elif word == "-daystart":
            raise Unsupported("find -daystart")
        else:
            value = self.argument(word)
            if word == "-regextype":
                plan.regextype = value
            elif not value.isdigit():
                raise FindError(
                    f"Expected a positive decimal integer argument to {word}, but got '{value}'"
                )
            elif word == "-maxdepth":
                plan.deepest = int(value)
            else:
                plan.shallowest = int(value)
        return lambda entry: True

    def action(self, word: str) -> Test:
        ctx = self.ctx
        out = ctx.write
        match word:
            case "-print" | "-print0":
                end = "\n" if word == "-print" else "\0"
                return lambda entry: out(entry.shown + end) is None
            case "-printf":
                return self.printf(pieces(ctx, self.argument(word)))
            case "-exec" | "-execdir":
                return self.exec(word)
            case "-delete":
                self.plan.depth_first = True
                return self.delete
            case "-prune":
                return self.prune
            case "-quit":
                return self.quit
        raise Unsupported(f"find {word}")

    def printf(self, parts: list[str | Callable[[Entry], str]]) -> Test:
        out = self.ctx.write

        def show(entry: Entry) -> bool:
            if entry.hidden:
                raise Unsupported("find -printf of what stat cannot reach")
            out("".join(piece if isinstance(piece, str) else piece(entry) for piece in parts))
            return True

        return show

    def quit(self, entry: Entry) -> bool:
        raise _Quit

    def delete(self, entry: Entry) -> bool:
        if entry.shown == ".":
            return True
        fs, who = self.ctx.fs, self.ctx.who
        try:
            (fs.unlink if entry.node.entries is None else fs.rmdir)(entry.path, who)
        except FsError as error:
            self.complain(f"cannot delete '{entry.shown}': {error.message}")
            return False
        return True

    def complain(self, text: str) -> None:
        self.plan.status = 1
        self.ctx.error(f"find: {text}\n")

    def exec(self, word: str) -> Test:
        """-exec and -execdir, with ; or +."""
        argv: list[str] = []
        while True:
            if self.peek() is None:
                raise FindError(f"missing argument to `{word}'")
            item = self.argument(word)
            if item == ";":
                batch = False
                break
            if item == "+" and argv and argv[-1] == "{}":
                batch = True
                break
            argv.append(item)
        if not argv or (batch and len(argv) < 2):
            raise FindError(f"invalid argument `{';' if not batch else '+'}' to `{word}'")
        if batch and sum("{}" in item for item in argv) > 1:
            raise FindError(f"Only one instance of {{}} is supported with {word} ... +")
        in_directory = word == "-execdir"

        def place(entry: Entry) -> tuple[str, str]:
            """How the entry is named to the command, and the working directory."""
            if not in_directory:
                return entry.shown, ""
            parent = entry.path.rstrip("/").rpartition("/")[0] or "/"
            return "./" + entry.name if entry.name != "/" else "/", parent

        if batch:
            pending = _Batch(argv[:-1])
            self.plan.batches.append(pending)

            def collect(entry: Entry) -> bool:
                shown, directory = place(entry)
                if directory != pending.directory:
                    self.flush(pending)
                    pending.directory = directory
                pending.names.append(shown)
                return True

            return collect

        def run(entry: Entry) -> bool:
            shown, directory = place(entry)
            return self.launch([item.replace("{}", shown) for item in argv], directory) == 0

        return run

    def flush(self, batch: _Batch) -> None:
        """Runs what -exec ... + has collected."""
        if batch.names and self.launch(batch.fixed + batch.names, batch.directory) != 0:
            self.plan.status = 1
        batch.names = []

    def launch(self, argv: list[str], directory: str) -> int:
        ctx = self.ctx
        ctx.tick()
        if ctx.which(argv[0]) is None:
            ctx.error(f"find: '{argv[0]}': No such file or directory\n")
            return 1
        return ctx.run(argv, None, cwd=directory or None)


def _both(left: Test, right: Test) -> Test:
    return lambda entry: left(entry) and right(entry)


def _either(left: Test, right: Test) -> Test:
    return lambda entry: left(entry) or right(entry)


def _sequence(left: Test, right: Test) -> Test:
    def test(entry: Entry) -> bool:
        left(entry)
        return right(entry)

    return test


@command("find")
def find(ctx: Context, argv: list[str]) -> int:
    """Runs find with the usual tests and operators.

    Actions: -exec, -execdir, -delete, -prune, -quit, -print, -print0, -printf.
    """
    plan = _Plan()
    words = argv[1:]
    while words and re.fullmatch(r"-[HLP]|-O\d|-D|--", words[0]):
        if words[0] == "-D":
            raise Unsupported("find -D")
        if words[0][1] in "HLP":
            plan.follow = words[0][1]
        if words.pop(0) == "--":
            break
    if words and words[0] in ("--help", "--version", "-help", "-version"):
        raise Unsupported(f"find {words[0]}")
    count = next(
        (
            i
            for i, w in enumerate(words)
            if (w[:1] == "-" and len(w) > 1) or w in ("(", "!", ")", ",")
        ),
        len(words),
    )
    starts = words[:count] or ["."]
    if {"-delete", "-prune"} <= set(words) and not {"-depth", "-d"} & set(words):
        return ctx.fail(
            "The -delete action automatically turns on -depth, but -prune does nothing when -depth "
            "is in effect.  If you want to carry on anyway, just explicitly use the -depth option."
        )
    parser = _Parser(ctx, words[count:], plan)
    try:
        test = parser.parse()
    except FindError as error:
        return ctx.fail(str(error))
    walker = _Walker(ctx, plan, parser, test)
    try:
        for start in starts:
            walker.start(start)
    except _Quit:
        pass
    for pending in plan.batches:
        parser.flush(pending)
    return plan.status


class _Walker:
    def __init__(self, ctx: Context, plan: _Plan, parser: _Parser, test: Test):
        self.ctx, self.plan, self.parser, self.test = ctx, plan, parser, test

    def start(self, name: str) -> None:
        path = self.ctx.path(name)
        try:
            node = self.node(path, self.plan.follow in ("H", "L"))
        except FsError as error:
            self.parser.complain(f"'{name}': {error.message}")
            return
        self.visit(Entry(name, path, name, node, 0))

    def node(self, path: str, follow: bool) -> Inode:
        fs, who = self.ctx.fs, self.ctx.who
        if follow:
            try:
                return fs.node(path, who)
            except FsError as error:
                if error.code not in ("ENOENT", "ELOOP"):
                    raise
        return fs.node(path, who, False)

    def visit(self, entry: Entry) -> None:
        plan = self.plan
        self.ctx.tick()
        here = plan.shallowest <= entry.depth
        if here and not plan.depth_first:
            self.test(entry)
        if entry.node.entries is not None and entry.depth < plan.deepest:
            if not plan.depth_first and entry.path in self.parser.pruned:
                return
            self.enter(entry)
        if here and plan.depth_first:
            self.test(entry)

    def enter(self, entry: Entry) -> None:
        follow = self.plan.follow == "L"
        try:
            names = scan(self.ctx, entry.path)
        except FsError as error:
            self.parser.complain(f"'{entry.shown}': {error.message}")
            return
        searchable = allows(entry.node, 1, self.ctx.who)
        for name in names:
            path = join(entry.path, name)
            shown = join(entry.shown, name)
            hidden = False
            if follow:
                try:
                    node = self.node(path, True)
                except FsError as error:
                    self.parser.complain(f"'{shown}': {error.message}")
                    continue
            else:
                hidden = not searchable
                found = None if entry.node.entries is None else entry.node.entries.get(name)
                if found is None:  # an action has removed it
                    self.parser.complain(f"'{shown}': No such file or directory")
                    continue
                node = found
            if follow and node.entries is not None and entry.depth > 30:
                raise Unsupported("find -L in a loop")
            self.visit(Entry(shown, path, entry.start, node, entry.depth + 1, hidden))
