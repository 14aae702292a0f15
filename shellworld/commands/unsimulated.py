"""Options that real programs have and that are not simulated.

To meet one is no mistake of who typed it. Options that a program's own table names and refuses are
not repeated here.
"""

from __future__ import annotations

UNSIMULATED = {
    name: frozenset(options.split())
    for name, options in {
        "cksum": "debug ignore-missing quiet status strict tag warn zero l",
        "column": """
            fillrows json keep-empty-lines table-columns table-columns-limit table-header-repeat
            table-hide table-name table-noextreme table-noheadings table-order table-right
            table-truncate table-wrap tree tree-id tree-parent V
        """,
        "cp": "context copy-contents Z",
        "date": "debug resolution",
        "diff": """
            changed-group-format ifdef ignore-file-name-case new-group-format
            no-ignore-file-name-case old-group-format palette starting-file
            suppress-blank-empty tabsize unchanged-group-format v
        """,
        "env": "block-signal default-signal ignore-signal list-signal-handling",
        "file": """
            apple checking-printout compile debug exclude exclude-quiet extension files-from
            keep-going list magic-file mime-encoding no-buffer no-pad no-sandbox parameter
            preserve-date print0 raw separator special-files uncompress uncompress-noreport 0 C
            F N P S Z c d e f k l m n p r s v z
        """,
        "getfacl": "one-file-system h v",
        "gzip": "license",
        "hd": """
            color format format-file one-byte-char one-byte-octal two-bytes-decimal
            two-bytes-hex two-bytes-octal V h
        """,
        "hexdump": """
            color format format-file one-byte-char one-byte-octal two-bytes-decimal
            two-bytes-hex two-bytes-octal V h
        """,
        "ls": "dereference-command-line-symlink-to-dir",
        "mv": "context Z",
        "od": "endian strings traditional B D F H I L O X e",
        "setfacl": "h v",
        "setsid": "V h",
        "strings": "data include-all-whitespace output-separator target unicode T U V d h s v w",
        "su": "fast group pty session-command supp-group whitelist-environment P V h w",
        "tail": "max-unchanged-stats",
        "tar": """
            acls add-file after-date anchored atime-preserve backup block-number blocking-factor
            catenate check-device check-links checkpoint checkpoint-action clamp-mtime compare
            compress concatenate confirmation delay-directory-restore delete diff
            exclude-backups exclude-caches exclude-caches-all exclude-caches-under exclude-from
            exclude-ignore exclude-ignore-recursive exclude-tag exclude-tag-all
            exclude-tag-under exclude-vcs exclude-vcs-ignores files-from force-local format
            full-time group group-map hard-dereference hole-detection ignore-case
            ignore-command-error ignore-failed-read ignore-zeros incremental index-file
            info-script interactive keep-directory-symlink keep-newer-files label level
            listed-incremental lzip lzma lzop mode mtime multi-volume new-volume-script newer
            newer-mtime no-acls no-anchored no-auto-compress no-check-device
            no-delay-directory-restore no-ignore-case no-ignore-command-error no-null
            no-overwrite-dir no-quote-chars no-recursion no-same-permissions no-seek no-selinux
            no-unquote no-verbatim-files-from no-wildcards no-wildcards-match-slash no-xattrs
            null numeric-owner occurrence old-archive one-file-system one-top-level
            overwrite-dir owner owner-map pax-option portability posix preserve-order
            quote-chars quoting-style read-full-records record-size recursion recursive-unlink
            remove-files restrict rmt-command rsh-command same-order same-owner seek selinux
            show-defaults show-omitted-dirs show-snapshot-field-ranges show-stored-names
            show-transformed-names skip-old-files sort sparse sparse-version starting-file
            suffix tape-length test-label to-command totals transform uncompress ungzip
            unlink-first unquote usage use-compress-program utc verbatim-files-from verify
            volno-file warning wildcards wildcards-match-slash xattrs xattrs-exclude
            xattrs-include xform zstd F G H I K L M N R V Z g i l n
        """,
        "tree": """
            device du fflinks filelimit filesfirst fromfile gitfile gitignore hintro houtro
            ignore-case info infofile inodes matchdirs metafirst nolinks prune si sort timefmt A
            H I J N P Q R S T U X c l o q r t v x
        """,
        "xxd": "t",
    }.items()
}
