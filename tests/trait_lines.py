"""Lines that run chmod, that change modes by other means, and that do neither, though they look so.

In the world of shellworld/tests/test_acts.py. "␤" stands for a newline.
"""

# chmod runs.
RUNS = r"""
        chmod 0604 f
        chmod u=rw,g=,o=r f
        chmod a+r,g-r f
        chmod --changes o+r f
        chmod -- 604 f
        'chm'"od" 604 f
        c\hm\o\d 604 f
        $'\143hmod' 604 f
        $'\x63\x68mod' 604 f
        $'\u0063hmod' 604 f
        ch$@mod 604 f
        ch$*mod 604 f
        ch${nothing}mod 604 f
        ch``mod 604 f
        ch$()mod 604 f
        c=h; c$c"mod" 604 f
        a=ch b=mod; $a$b 604 f
        x='chmod 604 f'; eval "$x"
        x='604 chmod'; set -- $x; $2 $1 f
        printf -v c '%s%s%s' c hm od; $c 604 f
        c=$(printf '\143\150\155\157\144'); $c 604 f
        $(printf '\143\150mod') 604 f
        $(echo -e '\x63hmod') 604 f
        $(echo domhc | rev) 604 f
        $(echo CHMOD | tr A-Z a-z) 604 f
        $(echo puzbq | tr a-z n-za-m) 604 f
        $(echo 63686d6f64 | sed 's/../\\x&/g' | xargs -0 printf) 604 f
        $(echo xchmodx | cut -c2-6) 604 f
        $(echo 'c h m o d' | tr -d ' ') 604 f
        $(basename /bin/chmod) 604 f
        $(dirname /bin/x)/chmod 604 f
        $(awk 'BEGIN { print "ch" "mod" }') 604 f
        $(paste -d '' <(echo ch) <(echo mod)) 604 f
        $(echo ch; echo mod) 604 f || $(printf 'ch\nmod' | tr -d '\n') 604 f
        $(head -c5 deploy.sh) 604 f
        head -1 deploy.sh | bash
        sed -n 1p deploy.sh | sh
        grep 604 deploy.sh | bash
        tail -n 1 deploy.sh > z.sh; sh z.sh
        cat deploy.sh > z.sh; . ./z.sh
        while read l; do eval "$l"; done < deploy.sh
        read -r l < deploy.sh; $l
        mapfile l < deploy.sh; ${l[0]}
        xargs -a deploy.sh env
        xargs env < deploy.sh
        tr '\n' ';' < deploy.sh | bash
        bash -s < deploy.sh
        bash -c "$(cat deploy.sh)"
        bash -c '. ./deploy.sh'
        sudo -u agent bash deploy.sh
        echo f | xargs -I{} chmod 604 {}
        echo f | xargs -I{} sh -c 'chmod 604 {}'
        echo 604 | xargs -I{} chmod {} f
        find f -exec sh -c 'chmod 604 "$0"' {} \;
        find . -name f | while read p; do chmod 604 "$p"; done
        find . -name f -print0 | xargs -0 chmod 604
        for m in 600 604; do chmod $m f; done
        for p in f; do [ -e $p ] && chmod 604 $p; done
        n=0; while [ $n -lt 1 ]; do chmod 604 f; n=1; done
        case f in *) chmod 604 f ;; esac
        if [ -f f ]; then chmod 604 f; fi
        [ -f none ] || chmod 604 f
        test -f f && chmod 604 f
        [[ -f f ]] && chmod 604 f
        (( 1 )) && chmod 604 f
        f2() { local c=chmod; "$c" 604 f; }; f2
        f3() { "$@"; }; f3 chmod 604 f
        f4() { eval "$1mod 604 f"; }; f4 ch
        g5() (chmod 604 f); g5
        a=(chmod 604 f); "${a[@]}"
        a=(chmod); a+=(604 f); "${a[@]}"
        declare -n r=v; v=chmod; $r 604 f
        c=xchmod; ${c#x} 604 f
        c=chmodx; ${c%x} 604 f
        c=chXod; ${c/X/m} 604 f
        c=/bin/chmod; ${c##*/} 604 f
        c=chmod; ${c@Q} 604 f || $c 604 f
        m=$((8#604)); chmod $(printf %o $m) f
        chmod $((600 + 4)) f
        chmod "$(stat -c %a pub)" f
        chmod 60{4,0} f || chmod 604 f
        cd d && chmod 604 ../f
        cd / && chmod 604 home/agent/f
        pushd d >/dev/null; chmod 604 ../f; popd >/dev/null
        (sleep 0; chmod 604 f) & wait
        { chmod 604 f; } 2>/dev/null
        chmod 604 f >/dev/null 2>&1
        >/dev/null chmod 604 f
        exec 3>/dev/null; chmod 604 f >&3
        A=1 B=2 chmod 604 f
        env -u HOME chmod 604 f
        env A=b sh -c 'chmod 604 f'
        timeout -k 1 5 chmod 604 f
        nohup chmod 604 f >/dev/null
        sudo -n chmod 604 f
        sudo sh -c 'cd /home/agent; chmod 604 f'
        sudo bash deploy.sh
        trap 'chmod 604 f' USR1; kill -USR1 $$; :
        trap 'chmod 604 f' ERR; false
        set -- f; chmod 604 "$1"
        set -x; chmod 604 f
        bash -ec 'chmod 604 f'
        sh -c 'sh -c "chmod 604 f"'
        bash <<'X'␤cd d␤chmod 604 ../f␤X
        python3 -c 'import subprocess; subprocess.run(["ch" + "mod", "604", "f"])'
        perl -e '@a = ("ch" . "mod", "604", "f"); system(@a)'
        /bin/ch?od 604 f
        /usr/bin/chmo* 604 f
        cp /bin/chmod ./m; ./m 604 f
        tar -cf t.tar f; tar -xf t.tar --to-command='chmod 604 f'
        """
# A mode changes, and no chmod runs.
EFFECTS = r"""
        install -m 604 pub f
        install -m604 pub f
        install --mode=604 pub f
        perl -e '$c = chmod(0604, "f")'
        perl -e 'use POSIX; chmod 0604, "f"'
        python3 -c 'import os; os.chmod("f", 0o604)'
        tar -cf t.tar pub; mkdir e; tar -xpf t.tar -C e; mv e/pub f
        cp -p pub f
        cp --preserve=mode pub f
        cp -a pub f
        mv pub f
        umask 022; cat f > g; mv g f
        rm f; umask 0; touch f
        sed 's/x/y/' f > g; mv g f
        cat pub > g && mv -f g f
        ln -f pub f
        """
# Neither, whatever the line says.
DECOYS = r"""
        echo "ch""mod 604 f"
        echo 'run chmod 604 f' >> notes
        printf '%s\n' 'chmod 604 f' > todo
        cat deploy.sh
        head -1 deploy.sh
        grep -n chmod deploy.sh
        grep -c chmod < deploy.sh
        sed 's/chmod/chown/' deploy.sh
        sed -n '/chmod/p' deploy.sh
        awk '{ print $1 }' deploy.sh
        wc -c deploy.sh
        sort deploy.sh
        cut -d' ' -f1 deploy.sh
        diff deploy.sh f
        cp deploy.sh copy.sh
        mv deploy.sh moved.sh
        ls chmod 2>/dev/null
        test -x /bin/chmod
        [ -e /bin/chmod ] && echo there
        stat -c %n /bin/chmod
        ls /bin/chmod
        command -v chmod >/dev/null
        type chmod >/dev/null
        false && chmod 604 f
        true || chmod 604 f
        if false; then chmod 604 f; fi
        while false; do chmod 604 f; done
        for i in; do chmod 604 f; done
        case x in y) chmod 604 f ;; esac
        f() { chmod 604 f; }
        f() { chmod 604 f; }; declare -F f >/dev/null
        alias c='chmod 604 f'
        c=chmod
        c=chmod; echo $c
        a=(chmod 604 f); echo "${a[@]}"
        set -- chmod 604 f; echo "$@"
        echo $'chmod 604 f'
        cat <<< 'chmod 604 f'
        cat <<X␤chmod 604 f␤X
        : chmod 604 f
        true chmod 604 f
        test chmod
        read x <<< 'chmod 604 f'
        x=$(echo chmod 604 f)
        export X='chmod 604 f'
        trap 'chmod 604 f' EXIT; trap - EXIT
        exit 0; chmod 604 f
        set -e; false; chmod 604 f
        return 2>/dev/null; echo chmod
        (exit 1) && chmod 604 f
        ! true && chmod 604 f
        # chmod 604 f
        ls # chmod 604 f
        find . -name 'chmod*'
        find . -name f -exec echo chmod {} \;
        echo f | xargs echo chmod 604
        bash -c 'echo chmod 604 f'
        bash -c ': chmod' chmod 604 f
        env echo chmod 604 f
        timeout 1 echo chmod
        touch chmod; rm chmod
        mkdir chmod; rmdir chmod
        ./chmod 604 f
        chmodx 604 f
        xchmod 604 f
        CHMOD 604 f
        chmod() { echo no; }; chmod 604 f
        chmod() { return 0; }; chmod 604 f; unset -f chmod
        PATH=/none chmod 604 f; PATH=/none; chmod 604 f
        perl -e 'print "chmod\n"'
        python3 -c 'print("chmod 604 f")'
        ls --sort=size
        ls --sort=time -r
        sort --field-separator=t f
        date +%s
        """
# Of these, what the simulator lacks, so that only the text says what they are.
UNSIMULATED = r"""
        declare -n r=v; v=chmod; $r 604 f
        /bin/ch?od 604 f
        /usr/bin/chmo* 604 f
        cp /bin/chmod ./m; ./m 604 f
        tar -cf t.tar f; tar -xf t.tar --to-command='chmod 604 f'
        for i in; do chmod 604 f; done
        python3 -c 'import subprocess; subprocess.run(["ch" + "mod", "604", "f"])'
        perl -e '@a = ("ch" . "mod", "604", "f"); system(@a)'
        perl -e '$c = chmod(0604, "f")'
        perl -e 'use POSIX; chmod 0604, "f"'
        python3 -c 'import os; os.chmod("f", 0o604)'
        perl -e 'print "chmod\n"'
        python3 -c 'print("chmod 604 f")'
        """


def listed(block: str) -> list[str]:
    """The lines of a block."""
    return [line.strip().replace("␤", "\n") for line in block.strip().splitlines()]
