"""tar: archives in GNU format, the same bytes as the real ones."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator

from shellworld.commands import Context, FsError, Unsupported, command
from shellworld.commands.gzip import MAGIC, BadGzip, compress, decompress, raw, text_of_bytes
from shellworld.commands.modes import format_mode
from shellworld.commands.options import Options, UsageError, parse_options, usage
from shellworld.commands.times import strftime
from shellworld.commands.walking import join, scan
from shellworld.language.pattern import matches
from shellworld.world.filesystem import Inode

_SHORT = "cxtruAdf:vzjJaC:pkOhPmT:X:wWSsUoBb:"
_LONG = """create=c extract=x get=x list=t append=r update=u file=f: verbose=v gzip=z
gunzip=z bzip2=j xz=J auto-compress=a directory=C: preserve-permissions=p same-permissions=p
keep-old-files=k to-stdout=O dereference=h absolute-names=P touch=m exclude=exclude:
strip-components=strip: overwrite=overwrite no-same-owner=o"""
_TYPES = {"0": "file", "\0": "file", "1": "hardlink", "2": "symlink", "5": "directory"}


@dataclasses.dataclass
class Member:
    """One entry of an archive; `link` is the target of a symlink or hard link."""

    name: str
    kind: str
    mode: int
    uid: int
    gid: int
    user: str
    group: str
    mtime: int
    data: bytes = b""
    link: str = ""


def pack(members: list[Member]) -> bytes:
    """The archive of these members."""
    out = []
    for member in members:
        name, link = raw(member.name), raw(member.link)
        if len(name) > 100 or len(link) > 100:
            raise Unsupported("tar with names above 100 bytes")
        letter = {"file": "0", "hardlink": "1", "symlink": "2", "directory": "5"}[member.kind]
        head = name.ljust(100, b"\0") + b"%07o\0%07o\0%07o\0" % (
            member.mode,
            member.uid,
            member.gid,
        )
        head += b"%011o\0%011o\0" % (len(member.data), member.mtime)
        tail = letter.encode() + link.ljust(100, b"\0") + b"ustar  \0"
        tail += raw(member.user).ljust(32, b"\0") + raw(member.group).ljust(32, b"\0")
        # The checksum is taken with blanks in its own place.
        block = head + b" " * 8 + tail
        block = (head + b"%06o\0 " % sum(block) + tail).ljust(512, b"\0")
        out += [block, member.data.ljust(-(-len(member.data) // 512) * 512, b"\0")]
    data = b"".join(out) + bytes(1024)
    # GNU tar writes records of 20 blocks, the last one filled up.
    return data.ljust(-(-len(data) // 10240) * 10240, b"\0")


def _field(block: bytes, start: int, size: int) -> str:
    return text_of_bytes(block[start : start + size].split(b"\0")[0])


def unpack(data: bytes) -> list[Member] | None:
    """The members of an archive, or None if it is none."""
    members, at = [], 0
    while at + 512 <= len(data) and any(data[at : at + 512]):
        block = data[at : at + 512]
        if block[257:262] != b"ustar":
            return None
        kind = _TYPES.get(chr(block[156]))
        if kind is None:
            raise Unsupported("tar with members of that kind")
        places = ((100, 8), (108, 8), (116, 8), (124, 12), (136, 12))
        mode, uid, gid, size, mtime = (
            int(_field(block, start, size).strip() or "0", 8) for start, size in places
        )
        at += 512
        content = data[at : at + size]
        at += -(-size // 512) * 512
        names = _field(block, 0, 100), _field(block, 265, 32), _field(block, 297, 32)
        members.append(
            Member(
                names[0],
                kind,
                mode,
                uid,
                gid,
                names[1],
                names[2],
                mtime,
                content,
                _field(block, 157, 100),
            )
        )
    return members if members or (len(data) >= 512 and not any(data)) else None


@command("tar")
def tar(ctx: Context, argv: list[str]) -> int:
    """Packs, unpacks and lists archives: -c, -x, -t.

    Options: -f, -v, -z, -C, -p, -k, -O, -h, -P, -m, --exclude, --strip-components.
    """
    words = argv[1:]
    if words and not words[0].startswith("-"):  # the old form: letters, then their arguments
        letters, rest, expanded = words[0], words[1:], []
        for letter in letters:
            expanded.append(f"-{letter}")
            if letter in "fCTXb":
                if not rest:
                    return usage(ctx, f"Old option '{letter}' requires an argument.", 2)
                expanded.append(rest.pop(0))
        words = expanded + rest
    try:
        options, names = parse_options(["tar", *words], _SHORT, _LONG)
    except UsageError as error:
        return usage(
            ctx,
            str(error),
            64 if "unrecognized" in str(error) or "invalid option" in str(error) else 2,
        )
    places = [i for i, word in enumerate(words) if word.startswith(("-C", "--directory"))]
    if len(places) > 1 or (places and names and places[0] > words.index(names[0])):
        raise Unsupported("tar with several -C")
    tar = _Tar(ctx, options)
    excludes = [i for i, word in enumerate(words) if word.startswith("--exclude")]
    if "c" in tar.flags and names and excludes and excludes[-1] > words.index(names[0]):
        if excludes[0] < len(words) - 1 - words[::-1].index(names[-1]):
            raise Unsupported("tar with --exclude between names")
        tar.idle, tar.excluded = tar.excluded, []
    return tar.run(names)


class _Tar:
    """One run of tar."""

    def __init__(self, ctx: Context, options: Options):
        self.ctx = ctx
        self.flags = {key for key, _ in options}
        values = dict(options)
        unknown = self.flags - set("cxtfvzCpkOhPmao") - {"exclude", "strip", "overwrite"}
        if unknown:
            raise Unsupported(f"tar -{unknown.pop()}")
        self.archive = values.get("f", "-")
        self.base = ctx.path(values.get("C", "."))
        self.excluded = [value for key, value in options if key == "exclude"]
        self.strip = int(values["strip"]) if values.get("strip", "").isdigit() else 0
        self.compressed = "z" in self.flags
        if "a" in self.flags and "c" in self.flags:
            if self.archive.endswith((".bz2", ".xz", ".zst", ".tbz", ".txz", ".Z", ".lz")):
                raise Unsupported("tar -a with this suffix")
            self.compressed = self.compressed or self.archive.endswith((".gz", ".tgz", ".taz"))
        self.idle: list[str] = []  # --exclude behind the names, which then has no effect
        self.status = 0
        self.removed: set[str] = set()
        self.width = 19

    def complain(self, text: str, status: int = 2) -> None:
        self.status = max(self.status, status)
        self.ctx.error(f"tar: {text}\n")

    def run(self, names: list[str]) -> int:
        modes = self.flags & {"c", "x", "t"}
        if len(modes) != 1:
            wrong = "You may not specify more than one" if modes else "You must specify one of the"
            return usage(
                self.ctx,
                f"{wrong} '-Acdtrux', '--delete' or '--test-label' option{'s' * (not modes)}",
                2,
            )
        if not self.ctx.fs.is_dir(self.base, self.ctx.who):
            if "c" in self.flags and self.archive != "-":
                # The archive has been opened by then.
                with contextlib.suppress(FsError):
                    self.ctx.fs.write_text(self.ctx.path(self.archive), "", self.ctx.who)
            self.complain(f"{self.base}: Cannot open: No such file or directory")
            self.ctx.error("tar: Error is not recoverable: exiting now\n")
            return 2
        done = self.create(names) if "c" in self.flags else self.read(names)
        if self.idle:
            self.complain(
                "The following options were used after any non-optional arguments in archive "
                "create or update mode.  "
                "These options are positional and affect only arguments that follow them.  "
                "Please, rearrange them properly."
            )
            for pattern in self.idle:
                self.complain(f"--exclude '{pattern}' has no effect")
        if not done:
            self.ctx.error("tar: Error is not recoverable: exiting now\n")
            return 2
        if self.status == 2:
            self.ctx.error("tar: Exiting with failure status due to previous errors\n")
        return self.status

    def excludes(self, name: str) -> bool:
        parts = name.rstrip("/").split("/")
        ends = ["/".join(parts[i:]) for i in range(len(parts))]
        pairs = itertools.product(ends, self.excluded)
        return any(matches(end, pattern) for end, pattern in pairs)

    # -- creating ----------------------------------------------------------------------

    def create(self, names: list[str]) -> bool:
        ctx, fs = self.ctx, self.ctx.fs
        if not names:
            ctx.error(
                "tar: Cowardly refusing to create an empty archive\nTry 'tar --help' for more "
                "information.\n"
            )
            self.status = 2
            return True
        path = ctx.path(self.archive)
        if self.archive != "-":
            try:
                fs.write_text(path, "", ctx.who)
            except FsError as error:
                self.complain(f"{self.archive}: Cannot open: {error.message}")
                return False
        archive = fs.find(path, ctx.who) if self.archive != "-" else None
        self.links: dict[int, str] = {}
        members: list[Member] = []
        for name in names:
            source = name if name[0] == "/" else join(self.base, name)
            members += self.walk(name, source, archive)
        data = pack(members)
        data = compress(data) if self.compressed else data
        if self.archive == "-":
            ctx.write(text_of_bytes(data))
        elif self.archive != "/dev/null":
            fs.write_text(path, text_of_bytes(data), ctx.who)
        return True

    def member_name(self, name: str) -> str:
        """The name without a leading slash or .., with the notice that it goes."""
        if "P" in self.flags:
            return name
        short = name.lstrip("/")
        while short.startswith("../") or "/../" in short:
            short = short.split("../", 1)[1]
        prefix = name[: len(name) - len(short)]
        if prefix and prefix not in self.removed:
            self.removed.add(prefix)
            self.complain(f"Removing leading `{prefix}' from member names", 0)
        return short

    def walk(self, name: str, path: str, archive: Inode | None) -> Iterator[Member]:
        ctx, fs = self.ctx, self.ctx.fs
        ctx.tick()
        if self.excludes(name):
            return
        try:
            node = fs.node(path, ctx.who, "h" in self.flags)
            if node is archive:
                self.complain(f"{name}: file is the archive; not dumped", 0)
                return
            content = fs.read_text(path, ctx.who) if node.kind == "file" else ""
        except FsError as error:
            verb = "open" if error.code == "EACCES" and fs.find(path, ctx.who) else "stat"
            self.complain(f"{name}: Cannot {verb}: {error.message}")
            return
        if node.kind == "device":
            raise Unsupported("tar of devices")
        directory = node.entries is not None
        shown = name.rstrip("/") + "/" if directory else name
        users = ctx.users
        member = Member(
            self.member_name(shown),
            node.kind,
            node.mode,
            node.uid,
            node.gid,
            users.user_name(node.uid) if users.user(node.uid) else "",
            group if not (group := users.group_name(node.gid)).isdigit() else "",
            node.mtime,
        )
        if node.kind == "symlink":
            member.link = node.content
        elif node.kind == "file" and node.nlink > 1 and node.ino in self.links:
            member.kind, member.link = "hardlink", self.links[node.ino]
        elif node.kind == "file":
            member.data = raw(content)
            self.links[node.ino] = member.name
        names: list[str] = []
        if directory:
            try:
                names = scan(ctx, path)
            except FsError as error:
                self.complain(f"{name}: Cannot open: {error.message}")
        if "v" in self.flags:
            (ctx.error if self.archive == "-" else ctx.write)(shown + "\n")
        yield member
        for entry in names:
            yield from self.walk(join(shown, entry), join(path, entry), archive)

    # -- reading -----------------------------------------------------------------------

    def read(self, names: list[str]) -> bool:
        ctx = self.ctx
        try:
            text = (
                ctx.stdin
                if self.archive == "-"
                else ctx.fs.read_text(ctx.path(self.archive), ctx.who)
            )
        except FsError as error:
            self.complain(
                f"{self.archive}: Cannot {'read' if error.code == 'EISDIR' else 'open'}: "
                f"{error.message}"
            )
            return False
        data = raw(text)
        if data.startswith(MAGIC) and (self.archive != "-" or self.compressed):
            try:
                data = decompress(data, 4 * ctx.fs.limits.file)
            except BadGzip:
                data = b"x" * 512
        elif self.compressed:
            ctx.error("\ngzip: stdin: not in gzip format\ntar: Child returned status 1\n")
            return False
        elif data.startswith((b"BZh", b"\xfd7zXZ")):
            raise Unsupported("tar of such archives")
        members = unpack(data)
        if members is None:
            self.complain("This does not look like a tar archive")
            return True
        found: set[str] = set()
        self.times: list[tuple[Inode, int, int]] = []
        for member in members:
            ctx.tick()
            if names:
                wanted = [
                    n
                    for n in names
                    if (member.name.rstrip("/") + "/").startswith(n.rstrip("/") + "/")
                ]
                found.update(wanted)
                if not wanted:
                    continue
            if self.excludes(member.name):
                continue
            if "t" in self.flags:
                ctx.write((self.listing(member) if "v" in self.flags else member.name) + "\n")
            else:
                self.extract(member)
        # Directories get mode and time last: what is put into them would change the time, and
        # the mode might not allow it.
        for node, mode, mtime in reversed(self.times):
            node.mode, node.mtime = mode, mtime
        for name in names:
            if name not in found:
                self.complain(f"{name}: Not found in archive")
        return True

    def listing(self, member: Member) -> str:
        mode = format_mode(member.mode, {"hardlink": "file"}.get(member.kind, member.kind))
        mode = "h" + mode[1:] if member.kind == "hardlink" else mode
        owner = f"{member.user or member.uid}/{member.group or member.gid}"
        size = str(len(member.data))
        pad = len(owner) + 1 + len(size)
        # The columns of a listing grow with the longest so far, and never shrink.
        self.width = max(self.width, pad)
        suffix = {"symlink": f" -> {member.link}", "hardlink": f" link to {member.link}"}.get(
            member.kind, ""
        )
        when = strftime("%Y-%m-%d %H:%M", member.mtime)
        size = size.rjust(self.width - pad + len(size))
        return f"{mode} {owner} {size} {when} {member.name}{suffix}"

    def extract(self, member: Member) -> None:
        ctx, fs, who = self.ctx, self.ctx.fs, self.ctx.who
        name = self.member_name(member.name)
        if self.strip:
            parts = [part for part in name.split("/") if part]
            if len(parts) <= self.strip:
                return
            name = "/".join(parts[self.strip :]) + ("/" if name.endswith("/") else "")
        if "v" in self.flags:
            (ctx.error if "O" in self.flags else ctx.write)(member.name + "\n")
        if "O" in self.flags:
            if member.kind == "file":
                ctx.write(text_of_bytes(member.data))
            return
        path = join(self.base, name.rstrip("/")) if not name.startswith("/") else name
        try:
            self.parents(path)
            old = fs.find(path, who, False)
            if member.kind == "directory":
                if old is None or old.kind != "directory":
                    fs.mkdir(path, who, 0o700)
            elif old is not None:
                if "k" in self.flags:
                    self.complain(f"{name}: Cannot open: File exists")
                    return
                if old.kind == "directory":
                    self.complain(f"{name}: Cannot open: File exists")
                    return
                fs.unlink(path, who)
            if member.kind == "symlink":
                fs.symlink(member.link, path, who)
            elif member.kind == "hardlink":
                fs.link(join(self.base, self.member_name(member.link)), path, who)
                return
            elif member.kind == "file":
                fs.write_text(path, text_of_bytes(member.data), who, mode=0o600)
        except FsError as error:
            verb = {"directory": "mkdir", "file": "open"}.get(
                member.kind, f"create {member.kind} to '{member.link}'"
            )
            self.complain(f"{name.rstrip('/')}: Cannot {verb}: {error.message}")
            return
        node = fs.node(path, who, False)
        if who.uid == 0 and "o" not in self.flags:
            uid, gid = ctx.users.uid(member.user), ctx.users.gid(member.group)
            node.uid = member.uid if uid is None else uid
            node.gid = member.gid if gid is None else gid
        mtime = node.mtime if "m" in self.flags else member.mtime
        if member.kind == "symlink":
            node.mtime = mtime
            return
        keep = who.uid == 0 or "p" in self.flags
        mode = member.mode if keep else member.mode & 0o777 & ~who.umask
        if member.kind == "directory":
            fs.touch(path)
            node.mode = mode | 0o700
            self.times.append((node, mode, mtime))
        else:
            node.mode, node.mtime = mode, mtime

    def parents(self, path: str) -> None:
        """Makes the directories above a path."""
        fs, who = self.ctx.fs, self.ctx.who
        parts = path.split("/")
        for i in range(2, len(parts)):
            above = "/".join(parts[:i])
            if not fs.exists(above, who):
                fs.mkdir(above, who)
