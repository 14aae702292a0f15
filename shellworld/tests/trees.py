"""The worlds in which lines of shell are compared.

They are a developer's project, a server shared by several users, and root's own.
"""

from __future__ import annotations

from shellworld.world import tree

_LOG = "".join(
    f"2024-03-{day:02d} {hour:02d}:15:0{day % 10} {level} {what}\n"
    for day, hour, level, what in [
        (1, 8, "INFO", "service started on port 8080"),
        (1, 9, "WARN", "slow query: 1200 ms"),
        (2, 0, "ERROR", "connection refused by db01"),
        (2, 1, "INFO", "retry 1 of 3"),
        (2, 1, "ERROR", "connection refused by db02"),
        (3, 7, "INFO", "user alice logged in"),
        (3, 7, "INFO", "user bob logged in"),
        (4, 12, "DEBUG", "cache size=512"),
        (5, 23, "ERROR", "disk full on /var"),
        (6, 6, "INFO", "service stopped"),
    ]
)
_CSV = """id,name,team,salary
1,alice,red,5200
2,bob,blue,4100
3,carol,red,6100
4,dave,green,3900
5,erin,blue,4700
6,frank,red,5200
"""
_MAIN = """import os
import sys


def main():
    name = os.environ.get("NAME", "world")
    print("hello", name)  # TODO: translate
    return 0


if __name__ == "__main__":
    sys.exit(main())
"""
_CONF = """# server settings
host = localhost
port=8080
debug = true

[paths]
logs=/var/log/app
data = /srv/data
"""
_WORDS = "pear\napple\nfig\nbanana\napple\ncherry\nfig\napple\nDate\nelderberry\n"
_NUMBERS = "10\n9\n2\n33\n1\n100\n2\n-5\n3.5\n"
_HOME = "/home/agent/project"

PROJECT = {
    "users": {
        "agent": {"uid": 1000, "groups": ["staff"], "sudo": True},
        "bob": {"uid": 1001, "groups": ["staff"]},
        "carol": {"uid": 1002},
    },
    "groups": {"staff": 1050, "ops": 1060},
    "cwd": _HOME,
    "paths": {
        path: {"owner": "agent", "group": "agent", **entry}
        if entry.get("type") != "hardlink"
        else entry
        for path, entry in {
            _HOME: {},
            f"{_HOME}/README.md": {
                "content": "# Project\n\nA small *demo*.\n\n## Usage\n\n    python src/main.py\n"
            },
            f"{_HOME}/notes.txt": {
                "content": "buy milk\ncall Bob at 10:30\n\nfix bug #42\nTODO write tests\n"
            },
            f"{_HOME}/words.txt": {"content": _WORDS},
            f"{_HOME}/numbers.txt": {"content": _NUMBERS, "mtime": 1690000000},
            f"{_HOME}/data.csv": {"content": _CSV, "mode": "0640"},
            f"{_HOME}/empty.txt": {"content": "", "mtime": 1600000000},
            f"{_HOME}/no_newline.txt": {"content": "last line has no end"},
            f"{_HOME}/my file.txt": {"content": "name with a space\n"},
            f"{_HOME}/.env": {"content": "SECRET=abc123\nMODE=dev\n", "mode": "0600"},
            f"{_HOME}/src": {},
            f"{_HOME}/src/main.py": {"content": _MAIN},
            f"{_HOME}/src/util.py": {
                "content": "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n"
            },
            f"{_HOME}/src/test_util.py": {
                "content": "from util import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n"
            },
            f"{_HOME}/scripts": {},
            f"{_HOME}/scripts/deploy.sh": {
                "content": '#!/bin/bash\nset -e\necho "deploying $1"\nexit 0\n',
                "mode": "0644",
            },
            f"{_HOME}/scripts/run.sh": {
                "content": '#!/bin/sh\necho running "$@"\nexit 3\n',
                "mode": "0755",
            },
            f"{_HOME}/conf/app.conf": {"content": _CONF, "mode": "0644"},
            f"{_HOME}/conf/old.conf.bak": {
                "content": "port=80\n",
                "mode": "0444",
                "mtime": 1500000000,
            },
            f"{_HOME}/logs/app.log": {"content": _LOG},
            f"{_HOME}/logs/app.log.1": {"content": "old\n", "mtime": 1650000000},
            f"{_HOME}/build": {},
            f"{_HOME}/build/out.o": {"content": "x" * 3000},
            f"{_HOME}/build/tmp": {},
            f"{_HOME}/current": {"target": "src"},
            f"{_HOME}/link.txt": {"target": "notes.txt"},
            f"{_HOME}/dangling": {"target": "nowhere/at/all"},
            f"{_HOME}/hard.txt": {"type": "hardlink", "target": f"{_HOME}/words.txt"},
            "/srv/shared": {"owner": "root", "group": "staff", "mode": "2775"},
            "/srv/shared/plan.txt": {
                "content": "phase one\nphase two\n",
                "owner": "bob",
                "group": "staff",
                "mode": "0664",
            },
            "/srv/shared/locked.txt": {
                "content": "locked\n",
                "owner": "root",
                "group": "root",
                "mode": "0600",
            },
            "/opt/tool/bin/tool": {
                "content": "#!/bin/bash\necho tool 1.2\n",
                "owner": "root",
                "group": "root",
                "mode": "0755",
            },
        }.items()
    },
}

SERVER = {
    "users": {
        "agent": {"uid": 1000, "groups": ["dev"]},
        "alice": {"uid": 1001, "groups": ["dev", "web"]},
        "bob": {"uid": 1002, "groups": ["web"]},
        "www": {"uid": 33, "group": "www", "home": "/var/www"},
    },
    "groups": {"dev": 2000, "web": 2001, "www": 33, "audit": 2002},
    "cwd": "/srv/app",
    "umask": "0027",
    "paths": {
        "/srv/app": {"owner": "agent", "group": "dev", "mode": "2775"},
        "/srv/app/app.py": {
            "content": "print('app')\n",
            "owner": "agent",
            "group": "dev",
            "mode": "0664",
        },
        "/srv/app/config.yml": {
            "content": "db: prod\nuser: app\npassword: hunter2\n",
            "owner": "agent",
            "group": "dev",
            "mode": "0640",
        },
        "/srv/app/start.sh": {
            "content": "#!/bin/bash\necho started\n",
            "owner": "agent",
            "group": "dev",
            "mode": "0640",
        },
        "/srv/app/alice.txt": {
            "content": "by alice\n",
            "owner": "alice",
            "group": "dev",
            "mode": "0644",
        },
        "/srv/app/team.txt": {
            "content": "for the team\n",
            "owner": "alice",
            "group": "dev",
            "mode": "0664",
        },
        "/srv/app/private.key": {
            "content": "KEY\n",
            "owner": "root",
            "group": "root",
            "mode": "0600",
        },
        "/srv/app/report.csv": {
            "content": "a;b\n1;2\n",
            "owner": "agent",
            "group": "dev",
            "mode": "0640",
            "acl": ["user:bob:r--", "group:audit:r--", "mask::r--"],
        },
        "/srv/app/for_me.txt": {
            "content": "acl lets agent read\n",
            "owner": "alice",
            "group": "web",
            "mode": "0600",
            "acl": ["user:agent:rw-"],
        },
        "/srv/app/masked.txt": {
            "content": "mask hides it\n",
            "owner": "alice",
            "group": "web",
            "mode": "0600",
            "acl": ["user:agent:rw-", "mask::---"],
        },
        "/srv/app/inbox": {
            "owner": "agent",
            "group": "dev",
            "mode": "0770",
            "acl": [
                "user:bob:rwx",
                "default:user::rwx",
                "default:user:bob:rw-",
                "default:group::r-x",
                "default:other::---",
            ],
        },
        "/srv/app/inbox/one.txt": {
            "content": "1\n",
            "owner": "bob",
            "group": "web",
            "mode": "0644",
        },
        "/srv/app/logs": {"owner": "www", "group": "dev", "mode": "0750"},
        "/srv/app/logs/access.log": {
            "content": "GET / 200\nGET /x 404\nPOST /y 500\n",
            "owner": "www",
            "group": "dev",
            "mode": "0640",
        },
        "/srv/app/logs/secret.log": {
            "content": "s\n",
            "owner": "www",
            "group": "www",
            "mode": "0600",
        },
        "/srv/app/closed": {"owner": "alice", "group": "web", "mode": "0700"},
        "/srv/app/closed/inside.txt": {
            "content": "in\n",
            "owner": "alice",
            "group": "web",
            "mode": "0644",
        },
        "/srv/app/noexec": {"owner": "agent", "group": "dev", "mode": "0644"},
        "/srv/app/noexec/f": {"content": "f\n", "owner": "agent", "group": "dev"},
        "/srv/app/drop": {"owner": "agent", "group": "dev", "mode": "1777"},
        "/srv/app/drop/alice": {"content": "a\n", "owner": "alice", "group": "dev", "mode": "0666"},
        "/srv/app/drop/mine": {"content": "m\n", "owner": "agent", "group": "dev", "mode": "0666"},
        "/srv/app/bin": {"owner": "agent", "group": "dev"},
        "/srv/app/bin/tool": {
            "content": "#!/bin/bash\necho tool\n",
            "owner": "agent",
            "group": "dev",
            "mode": "4755",
        },
        "/srv/app/bin/a.sh": {
            "content": "#!/bin/bash\necho a\n",
            "owner": "agent",
            "group": "dev",
            "mode": "0644",
        },
        "/srv/app/bin/b.sh": {
            "content": "echo b\n",
            "owner": "agent",
            "group": "dev",
            "mode": "0600",
        },
        "/var/www/index.html": {
            "content": "<h1>hi</h1>\n",
            "owner": "www",
            "group": "www",
            "mode": "0644",
        },
        "/etc/app.conf": {"content": "level=1\n", "mode": "0644"},
        "/etc/shadow": {"content": "root:!:\n", "mode": "0000"},
    },
}

ROOT = {
    "user": "root",
    "users": {
        "alice": {"uid": 1001, "groups": ["staff"]},
        "bob": {"uid": 1002},
        "www": {"uid": 33, "group": "www", "home": "/var/www"},
    },
    "groups": {"staff": 50, "www": 33, "ops": 700},
    "cwd": "/srv",
    "paths": {
        "/srv/site": {"owner": "www", "group": "www", "mode": "0755"},
        "/srv/site/index.html": {
            "content": "<h1>hi</h1>\n",
            "owner": "www",
            "group": "www",
            "mode": "0644",
        },
        "/srv/site/upload": {"owner": "alice", "group": "staff", "mode": "0700"},
        "/srv/site/upload/a.txt": {
            "content": "a\n",
            "owner": "alice",
            "group": "staff",
            "mode": "0600",
        },
        "/srv/site/upload/b.txt": {
            "content": "b\n",
            "owner": "bob",
            "group": "bob",
            "mode": "0640",
        },
        "/srv/site/link": {"target": "index.html", "owner": "alice", "group": "staff"},
        "/srv/backup.sh": {"content": "#!/bin/bash\necho backup\n", "mode": "0644"},
        "/srv/suid": {"content": "x\n", "mode": "6755"},
        "/srv/acl.txt": {
            "content": "acl\n",
            "owner": "alice",
            "group": "staff",
            "mode": "0640",
            "acl": ["user:bob:rw-"],
        },
        "/srv/team": {"owner": "root", "group": "staff", "mode": "2770"},
        "/srv/team/t.txt": {"content": "t\n", "owner": "root", "group": "staff", "mode": "0660"},
    },
}

TREES = {
    name: tree.normalise(value)
    for name, value in (("project", PROJECT), ("server", SERVER), ("root", ROOT))
}
