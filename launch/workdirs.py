"""Where results land: a folder that all machines see, and how it is brought onto them."""

from __future__ import annotations

import dataclasses
import re

from subtransfer.runtime.errors import UserError

MOUNT = "/mnt/subtransfer"  # where a bucket, a share or a volume appears on a machine


@dataclasses.dataclass(frozen=True)
class Workdir:
    """A remote workdir.

    Attributes:
      kind: "gs" (a bucket, by gcsfuse), "nfs" (a share), "volume" (a Kubernetes volume) or "path"
        (there already).
      source: the bucket, HOST:/EXPORT, or the volume's name; "" of a path.
      folder: the folder in it; of a path, the path.
    """

    kind: str
    source: str
    folder: str

    @property
    def path(self) -> str:
        """The workdir on the machines."""
        return self.folder if self.kind == "path" else f"{MOUNT}/{self.folder}".rstrip("/")

    @property
    def shared(self) -> bool:
        """Whether several jobs may use it at once.

        gcsfuse shows a file to other machines only when it is closed, so that two could claim the
        same stage.
        """
        return self.kind != "gs"


def parse(text: str) -> Workdir:
    """Reads gs://BUCKET/FOLDER, nfs://HOST/EXPORT/FOLDER, volume://NAME/FOLDER or an absolute path.

    Raises:
      UserError: it is none of these.
    """
    scheme, separator, rest = text.partition("://")
    rest = rest.rstrip("/")
    if not separator:
        if not text.startswith("/"):
            raise UserError(
                f"--workdir={text} is not the same folder on every machine: give an absolute path "
                "or a URL."
            )
        return Workdir("path", "", text.rstrip("/") or "/")
    source, _, folder = rest.partition("/")
    if (
        not re.fullmatch(r"[\w.:-]+", source)
        or not re.fullmatch(r"[\w./=,@+-]*", folder)
        or ".." in folder.split("/")
    ):
        raise UserError(
            f"--workdir={text} cannot be read: write gs://BUCKET/FOLDER, "
            "nfs://HOST/EXPORT/FOLDER or volume://NAME."
        )
    if scheme in ("gs", "volume"):
        return Workdir(scheme, source, folder)
    if scheme == "nfs":
        export, _, inside = folder.partition("/")
        if not export:
            raise UserError(f"--workdir={text} names no export: write nfs://HOST/EXPORT/FOLDER.")
        return Workdir("nfs", f"{source}:/{export}", inside)
    raise UserError(
        f"--workdir={text}: {scheme}:// is not known; gs://, nfs://, volume:// and absolute paths "
        "are."
    )


def mount_nfs(workdir: Workdir) -> str:
    """Returns shell lines that mount a share, on Debian or Ubuntu."""
    # What is known of a file is asked anew after 3 seconds: claims of other machines are seen soon.
    return f"""sudo apt-get -q update
sudo apt-get -q install -y nfs-common
sudo mkdir -p {MOUNT}
mountpoint -q {MOUNT} || sudo mount -t nfs -o rw,hard,noatime,actimeo=3 {workdir.source} {MOUNT}
sudo mkdir -p {workdir.path}
sudo chown "$(id -u)" {workdir.path}"""


def mount_bucket(workdir: Workdir) -> str:
    """Returns shell lines that mount a bucket with gcsfuse, on Debian or Ubuntu."""
    return f"""packages=https://packages.cloud.google.com/apt
key=/usr/share/keyrings/cloud.google.asc
curl -fsS "$packages/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
line="deb [signed-by=$key] $packages gcsfuse-$(lsb_release -c -s) main"
echo "$line" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
sudo apt-get -q update
sudo apt-get -q install -y gcsfuse
sudo mkdir -p {MOUNT}
sudo chown "$(id -u)" {MOUNT}
mountpoint -q {MOUNT} || gcsfuse --implicit-dirs --rename-dir-limit=10000 \\
  --metadata-cache-ttl-secs=5 {workdir.source} {MOUNT}"""
