"""A simulated file system that refuses and grants as Linux does.

It has owners, mode bits, ACLs, links and logical times. Paths are absolute strings; each method
takes the credentials `who` and raises FsError with the kernel's error. Nothing here touches the
machine's own files.
"""

from __future__ import annotations

from shellworld.interpreter.result import LimitExceeded, Limits, Unsupported
from shellworld.world.acl import Acl, inherit
from shellworld.world.inodes import FsError, Inode, Kind, Stat, allows, size_of
from shellworld.world.journal import Attributes, Journal, attributes, snapshot
from shellworld.world.tree import EPOCH, NOBODY, is_system
from shellworld.world.users import ROOT, Credentials

__all__ = ["FileSystem", "FsError", "Inode", "Kind", "Stat", "allows", "size_of"]


class FileSystem:
    """An inode tree.

    Attributes:
      clock: the time that changes are stamped with, in seconds since the epoch.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        root: Inode | None = None,
        count: int = 1,
        clock: int = EPOCH,
    ):
        """Begins with a tree that is there already, or with an empty root directory.

        Args:
          limits: how large files and the whole may become.
          root: a tree of `count` inodes; None makes an empty one.
          clock: the time at first.
        """
        self.limits = limits or Limits()
        self.clock = clock
        self.journal = Journal()
        self._count = count
        self._number = count  # the last that an inode got; none is given twice
        self.root = root or Inode("directory", 0o755, 0, 0, "", clock, 2)

    # -- looking up --------------------------------------------------------------------

    def walk(
        self, path: str, who: Credentials, follow: bool = True
    ) -> tuple[Inode, str, Inode | None]:
        """Follows a path to its last component.

        Returns:
          The directory that holds it, its name there ("" for a directory itself), and what is
          there or None.

        Raises:
          FsError: ENOENT for a missing directory on the way, ENOTDIR, EACCES without search
            permission, ELOOP.
        """
        if not path:
            raise FsError("ENOENT")
        if len(path) > 4095:
            raise FsError("ENAMETOOLONG")
        node = self.root
        rest = path.split("/")
        rest.reverse()
        slash = path.endswith("/")
        links = 0
        while rest:
            name = rest.pop()
            if name == "" or name == ".":
                if node.entries is None:
                    raise FsError("ENOTDIR")
                if name and not allows(node, 1, who):
                    raise FsError("EACCES")
                continue
            entries = node.entries
            if entries is None:
                raise FsError("ENOTDIR")
            if not allows(node, 1, who):
                raise FsError("EACCES")
            if name == "..":
                node = node.parent
                continue
            child = entries.get(name)
            last = not rest or (slash and not any(rest))
            if child is None:
                if len(name) > 63 and size_of(name) > 255:
                    raise FsError("ENAMETOOLONG")
                if not last:
                    self._missing(node, name)
                return node, name, None
            if child.kind == "symlink" and (not last or follow or slash):
                links += 1
                if links > 40:
                    raise FsError("ELOOP")
                target = child.content
                if target.startswith("/"):
                    node = self.root
                slash = slash or (last and target.endswith("/"))
                rest.extend(reversed(target.split("/")))
                continue
            if last:
                if slash and child.entries is None:
                    raise FsError("ENOTDIR")
                return node, name, child
            node = child
        return node.parent, "", node

    def _missing(self, directory: Inode, name: str) -> None:
        """Raises the error for a name that is not there.

        It is ENOENT, or Unsupported where a real machine may well have it.
        """
        path = f"{self.path_of(directory).rstrip('/')}/{name}"
        if is_system(path):
            raise Unsupported("path " + path)
        raise FsError("ENOENT")

    def node(self, path: str, who: Credentials, follow: bool = True) -> Inode:
        """What is at the path, or an FsError."""
        parent, name, node = self.walk(path, who, follow)
        if node is None:
            self._missing(parent, name)
        return node  # type: ignore[return-value]

    def path_of(self, directory: Inode) -> str:
        """The canonical path of a directory."""
        names: list[str] = []
        while directory is not self.root:
            names.append(directory.name)
            directory = directory.parent
        return "/" + "/".join(reversed(names))

    def resolve(self, path: str, who: Credentials = ROOT, missing: bool = False) -> str:
        """Returns the canonical path: no symlinks, "." or "..".

        Args:
          missing: the last component need not exist.
        """
        parent, name, node = self.walk(path, who)
        if node is None and not missing:
            self._missing(parent, name)
        if node is not None and node.entries is not None:
            return self.path_of(node)
        directory = self.path_of(parent)
        return directory + name if directory == "/" else f"{directory}/{name}"

    def stat(self, path: str, who: Credentials = ROOT, follow: bool = True) -> Stat:
        """Returns what the kernel tells of a path; of a symlink itself without `follow`."""
        return self.stat_node(self.node(path, who, follow))

    def stat_node(self, node: Inode) -> Stat:
        """Returns what the kernel tells of an inode; a directory's size is as tmpfs has it."""
        # A directory is as large as on tmpfs.
        size = 40 + 20 * len(node.entries) if node.entries is not None else size_of(node.content)
        return Stat(
            node.kind,
            node.mode,
            node.uid,
            node.gid,
            size,
            node.nlink,
            node.mtime,
            node.ctime,
            node.ino,
            node.acl is not None or node.default is not None,
        )

    def find(self, path: str, who: Credentials = ROOT, follow: bool = True) -> Inode | None:
        """What is at the path, or None if it cannot be reached."""
        try:
            return self.node(path, who, follow)
        except FsError:
            return None

    def exists(self, path: str, who: Credentials = ROOT, follow: bool = True) -> bool:
        """Whether there is something at a path."""
        return self.find(path, who, follow) is not None

    def is_dir(self, path: str, who: Credentials = ROOT) -> bool:
        """Whether a path leads to a directory."""
        node = self.find(path, who)
        return node is not None and node.kind == "directory"

    def is_file(self, path: str, who: Credentials = ROOT) -> bool:
        """Whether a path leads to a regular file."""
        node = self.find(path, who)
        return node is not None and node.kind == "file"

    def listdir(self, path: str, who: Credentials) -> list[str]:
        """Names in a directory, sorted by code point, without "." and ".."."""
        node = self.node(path, who)
        if node.entries is None:
            raise FsError("ENOTDIR")
        if not allows(node, 4, who):
            raise FsError("EACCES")
        if is_system(path := self.path_of(node)):
            raise Unsupported("listing " + path)
        return sorted(node.entries)

    def readlink(self, path: str, who: Credentials) -> str:
        """Returns where a symlink points; EINVAL if it is none."""
        node = self.node(path, who, follow=False)
        if node.kind != "symlink":
            raise FsError("EINVAL")
        return node.content

    # -- contents ----------------------------------------------------------------------

    def open_read(self, path: str, who: Credentials) -> Inode:
        """The file to read from (a directory opens too: reading it fails with EISDIR)."""
        node = self.node(path, who)
        if not allows(node, 4, who):
            raise FsError("EACCES")
        return node

    def read_text(self, path: str, who: Credentials) -> str:
        """Returns the content of a file; EISDIR for a directory."""
        node = self.open_read(path, who)
        if node.entries is not None:
            raise FsError("EISDIR")
        return node.content

    def open_write(
        self,
        path: str,
        who: Credentials,
        append: bool = False,
        mode: int = 0o666,
        exclusive: bool = False,
    ) -> Inode:
        """Opens for writing as O_CREAT with O_TRUNC or O_APPEND (and O_EXCL) does."""
        parent, name, node = self.walk(path, who)
        if node is None:
            if path.endswith("/"):
                raise FsError("EISDIR")
            return self.create(parent, name, "file", mode, who)
        if exclusive:
            raise FsError("EEXIST")
        if node.entries is not None:
            raise FsError("EISDIR")
        if not allows(node, 2, who):
            raise FsError("EACCES")
        if node.kind == "file":
            self.journal.touch(self._place(parent, name), node)
        if not append and node.kind == "file":
            node.content = ""
            self._touched(node, who)
        return node

    def write_text(
        self, path: str, text: str, who: Credentials, append: bool = False, mode: int = 0o666
    ) -> None:
        """Writes a whole file, or appends to it; `mode` is a new file's before the umask."""
        node = self.open_write(path, who, append, mode)
        self.write_node(node, text, None if append else 0, who)

    def write_node(self, node: Inode, text: str, at: int | None, who: Credentials = ROOT) -> int:
        """Writes into an open file and returns the offset behind it.

        Args:
          at: the offset in characters; None is the end.
        """
        if node.kind == "device" or not text:
            return at or 0
        old = node.content
        if at is None or at == len(old):
            node.content = old + text
        elif at == 0 and len(text) >= len(old) and old.isascii():
            node.content = text
        elif old.isascii() and text.isascii():
            node.content = old[:at].ljust(at, "\0") + text + old[at + len(text) :]
        else:
            raw, new = (t.encode("utf-8", "surrogateescape") for t in (old, text))
            start = len(old[:at].encode("utf-8", "surrogateescape")) + max(at - len(old), 0)
            raw = raw[:start].ljust(start, b"\0") + new + raw[start + len(new) :]
            node.content = raw.decode("utf-8", "surrogateescape")
        if len(node.content) > self.limits.file:
            node.content = old
            raise LimitExceeded("file size", 137)
        self._touched(node, who)
        return len(node.content) if at is None else at + len(text)

    def _touched(self, node: Inode, who: Credentials) -> None:
        """After a write: new times, and set-id bits are lost unless root wrote."""
        node.mtime = node.ctime = self.clock
        if who.uid != 0 and node.mode & 0o6000:
            node.mode &= ~0o4000 & (~0o2000 if node.mode & 0o010 else ~0)

    # -- making and removing -----------------------------------------------------------

    def create(
        self, parent: Inode, name: str, kind: Kind, mode: int, who: Credentials, content: str = ""
    ) -> Inode:
        """A new inode in a directory; its mode from the umask or the directory's default ACL."""
        if parent.entries is None:
            raise FsError("ENOTDIR")
        if not allows(parent, 3, who):
            raise FsError("EACCES")
        if is_system(place := self.path_of(parent)):
            raise Unsupported("changing " + place)
        self._count += 1
        self._number += 1
        if self._count > self.limits.files:
            raise LimitExceeded("file count", 137)
        self.journal.touch(self._place(parent, name), None)
        gid = parent.gid if parent.mode & 0o2000 else who.gid
        node = Inode(kind, 0o777, who.uid, gid, content, self.clock, self._number)
        if kind == "symlink":
            pass
        elif parent.default is not None:
            node.mode, node.acl = inherit(parent.default, mode)
        else:
            node.mode = mode & ~who.umask
        self.attach(parent, name, node)
        if kind == "directory":
            node.default = parent.default
            node.mode |= parent.mode & 0o2000
        parent.mtime = parent.ctime = self.clock
        return node

    def attach(self, parent: Inode, name: str, node: Inode) -> None:
        """Enters an inode into a directory, unchecked."""
        parent.entries[name] = node  # type: ignore[index]
        if node.entries is not None:
            node.parent = parent
            node.name = name
            parent.nlink += 1

    def _place(self, parent: Inode, name: str) -> str:
        """The canonical path of a name in a directory ("" for the directory itself)."""
        place = self.path_of(parent)
        return f"{place.rstrip('/')}/{name}" if name else place

    def touch(self, path: str, follow: bool = True) -> None:
        """Notes in the journal that what is at a path is about to get other attributes."""
        parent, name, node = self.walk(path, ROOT, follow)
        if node is not None and not name:
            parent = node
        if node is not None and node.entries is None and node.nlink > 1:
            self._note_others()
        self.journal.touch(self._place(parent, name), node)

    def _note_others(self) -> None:
        """Notes the attributes of all paths, before something concerns more than it names."""
        if self.journal.others is None:
            self.journal.others = snapshot(self.root)

    def changes(self) -> list[tuple[str, Attributes, Attributes]]:
        """Returns what the journal's line changed, by path.

        Returns:
          (path, attributes before, attributes now) of paths that stand before and now, with the
          same kind and other attributes; sorted.
        """
        before: dict[str, Attributes | None] = {**(self.journal.others or {}), **self.journal.line}
        now = None if self.journal.others is None else snapshot(self.root)
        found = []
        for path, old in sorted(before.items()):
            if old is None or is_system(path):
                continue
            new = self._attributes(path) if now is None else now.get(path)
            if new is not None and new != old and new[0] == old[0]:
                found.append((path, old, new))
        return found

    def _attributes(self, path: str) -> Attributes | None:
        """Attributes of what is at a canonical path; None if the path leads elsewhere now."""
        try:
            parent, name, node = self.walk(path, ROOT, follow=False)
        except FsError:
            return None
        if node is None or self._place(parent if name else node, name) != path:
            return None
        return attributes(node)

    def _detach(self, parent: Inode, name: str) -> None:
        node = parent.entries.pop(name)  # type: ignore[union-attr]
        self.journal.touch(self._place(parent, name), node)
        node.ctime = parent.mtime = parent.ctime = self.clock
        if node.entries is not None:
            parent.nlink -= 1
        else:
            node.nlink -= 1
            self._count -= node.nlink == 0

    def _new(self, path: str, who: Credentials) -> tuple[Inode, str]:
        """Directory and name for something that must not exist yet."""
        parent, name, node = self.walk(path, who, follow=False)
        if node is not None:
            raise FsError("EEXIST")
        return parent, name

    def mkdir(self, path: str, who: Credentials, mode: int = 0o777) -> None:
        """Makes a directory; `mode` is its own before the umask."""
        parent, name = self._new(path, who)
        self.create(parent, name, "directory", mode, who)

    def symlink(self, target: str, path: str, who: Credentials) -> None:
        """Makes a symlink at `path` that points to `target`."""
        if not target:
            raise FsError("ENOENT")
        parent, name = self._new(path, who)
        if path.endswith("/"):
            raise FsError("ENOENT")
        self.create(parent, name, "symlink", 0o777, who, target)

    def link(self, source: str, path: str, who: Credentials, follow: bool = False) -> None:
        """Makes a hard link.

        It is refused for directories, and for others' files that one may not write, as Debian
        is set up.
        """
        node = self.node(source, who, follow)
        parent, name = self._new(path, who)
        if not allows(parent, 3, who):
            raise FsError("EACCES")
        if node.entries is not None:
            raise FsError("EPERM")
        safe = (
            node.kind == "file"
            and not node.mode & 0o4000
            and node.mode & 0o2010 != 0o2010
            and allows(node, 6, who)
        )
        if who.uid not in (0, node.uid) and not safe:
            raise FsError("EPERM")
        self.journal.touch(self._place(parent, name), None)
        self.attach(parent, name, node)
        node.nlink += 1
        node.ctime = parent.mtime = parent.ctime = self.clock

    def _may_remove(self, parent: Inode, node: Inode, who: Credentials) -> None:
        if not allows(parent, 3, who):
            raise FsError("EACCES")
        if parent.mode & 0o1000 and who.uid not in (0, node.uid, parent.uid):
            raise FsError("EPERM")

    def _entry(self, path: str, who: Credentials) -> tuple[Inode, str, Inode]:
        """Finds something that is to be removed or moved: its directory, its name and its inode.

        A symlink is found itself, never what it leads to.
        """
        bare = path.rstrip("/") or path
        parent, name, node = self.walk(bare, who, follow=False)
        if node is None:
            self._missing(parent, name)
        assert node is not None
        if bare != path and node.entries is None:
            raise FsError("ENOTDIR")
        return parent, name, node

    def unlink(self, path: str, who: Credentials) -> None:
        """Removes a file, symlink or device."""
        parent, name, node = self._entry(path, who)
        if node.entries is not None and not name:
            raise FsError("EISDIR")
        self._may_remove(parent, node, who)
        if node.entries is not None:
            raise FsError("EISDIR")
        self._detach(parent, name)

    def rmdir(self, path: str, who: Credentials) -> None:
        """Removes an empty directory."""
        last = path.rstrip("/").rpartition("/")[2]
        parent, name, node = self._entry(path, who)
        if last == ".":
            raise FsError("EINVAL")
        if last == "..":
            raise FsError("ENOTEMPTY")
        if node is self.root:
            raise FsError("EBUSY")
        self._may_remove(parent, node, who)
        if node.entries is None:
            raise FsError("ENOTDIR")
        if node.entries:
            raise FsError("ENOTEMPTY")
        self._detach(parent, name)
        self._count -= 1

    def rename(self, source: str, target: str, who: Credentials) -> None:
        """Moves an entry; replaces what is at the target if the kinds allow it."""
        parent, name, node = self._entry(source, who)
        to_parent, to_name, old = self.walk(target.rstrip("/") or target, who, follow=False)
        if not name or (old is not None and not to_name):
            raise FsError("EBUSY")
        if old is node:
            return
        self._may_remove(parent, node, who)
        if old is not None:
            self._may_remove(to_parent, old, who)
        elif not allows(to_parent, 3, who):
            raise FsError("EACCES")
        if node.entries is not None:
            above = to_parent
            while above is not self.root:
                if above is node:
                    raise FsError("EINVAL")
                above = above.parent
            if old is not None and old.entries is None:
                raise FsError("ENOTDIR")
            if old is not None and old.entries:
                raise FsError("ENOTEMPTY")
            if parent is not to_parent and not allows(node, 2, who):
                raise FsError("EACCES")
        elif old is not None and old.entries is not None:
            raise FsError("EISDIR")
        elif old is None and target.endswith("/"):
            raise FsError("ENOTDIR")
        if old is not None:
            self._detach(to_parent, to_name)
        if node.entries is not None:
            self._note_others()
        self.journal.touch(self._place(parent, name), node)
        self.journal.touch(self._place(to_parent, to_name), old)
        parent.entries.pop(name)  # type: ignore[union-attr]
        parent.nlink -= node.entries is not None
        self.attach(to_parent, to_name, node)
        node.ctime = parent.mtime = parent.ctime = to_parent.mtime = to_parent.ctime = self.clock

    # -- pipes by name -----------------------------------------------------------------

    def open_pipe(self, text: str, who: Credentials) -> tuple[str, Inode]:
        """A nameless file under /dev/fd, and its path, until `close_pipe`."""
        directory = self.root.entries["dev"].entries["fd"]  # type: ignore[index]
        name = str(63 - len(directory.entries))  # type: ignore[arg-type]
        node = Inode("file", 0o600, who.uid, who.gid, text, self.clock, 0)
        self.attach(directory, name, node)
        return "/dev/fd/" + name, node

    def close_pipe(self, path: str) -> None:
        """Takes the name of a process substitution out of /dev/fd."""
        open_files = self.node("/dev/fd", ROOT).entries
        assert open_files is not None  # it is a directory
        open_files.pop(path.rpartition("/")[2], None)

    # -- attributes --------------------------------------------------------------------

    def chmod(self, path: str, mode: int, who: Credentials) -> None:
        """Sets the 12 permission bits of what the path leads to.

        With an ACL, the middle triple is its mask.
        """
        self.chmod_node(self.node(path, who), mode, who, path)

    def chmod_node(self, node: Inode, mode: int, who: Credentials, path: str) -> None:
        """As `chmod`, for an inode that was found at `path`."""
        if who.uid not in (0, node.uid):
            raise FsError("EPERM")
        self.touch(path)
        if who.uid != 0 and node.gid not in who.groups:
            mode &= ~0o2000
        node.mode = mode & 0o7777
        node.ctime = self.clock

    def chown(
        self, path: str, uid: int | None, gid: int | None, who: Credentials, follow: bool = True
    ) -> None:
        """Changes owner and group; None leaves one as it is.

        Raises:
          FsError: EINVAL for numbers beyond those that a tree can hold; EPERM.
        """
        node = self.node(path, who, follow)
        if max(uid or 0, gid or 0) > NOBODY:
            raise FsError("EINVAL")
        if who.uid != 0:
            if who.uid != node.uid and (uid is not None or gid is not None):
                raise FsError("EPERM")
            if uid not in (None, node.uid) or (
                gid not in (None, node.gid) and gid not in who.groups
            ):
                raise FsError("EPERM")
        self.touch(path, follow)
        if node.kind == "file":
            node.mode &= ~0o4000 & (~0o2000 if node.mode & 0o010 else ~0)
        node.uid = node.uid if uid is None else uid
        node.gid = node.gid if gid is None else gid
        node.ctime = self.clock

    def set_acl(
        self, path: str, mode: int, acl: Acl | None, default: Acl | None, who: Credentials
    ) -> None:
        """Sets mode, access ACL and default ACL together; only directories may have a default."""
        node = self.node(path, who)
        if who.uid not in (0, node.uid):
            raise FsError("EPERM")
        if default is not None and node.entries is None:
            raise FsError("EACCES")
        for part in (acl, default):
            if part and any(number > NOBODY for number, _ in (*part.users, *part.groups)):
                raise FsError("EINVAL")
        self.chmod_node(node, mode, who, path)
        node.acl = acl
        node.default = default

    def utime(self, path: str, mtime: int | None, who: Credentials, follow: bool = True) -> None:
        """Sets the modification time (None: now, for which write permission is enough)."""
        node = self.node(path, who, follow)
        if who.uid not in (0, node.uid):
            if mtime is not None:
                raise FsError("EPERM")
            if not allows(node, 2, who):
                raise FsError("EACCES")
        node.mtime = self.clock if mtime is None else mtime
        node.ctime = self.clock
