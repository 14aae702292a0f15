"""Names of programs that a Debian machine may well have and that are not simulated.

They are those of the packages that Debian 12 calls required, important or standard, and some that
are often installed. Not to find one of these here says nothing of a real machine, so it is called
unsupported.
"""

KNOWN = frozenset(
    """
    7z 7za accessdb add-shell addgroup addpart adduser agetty ant apropos apt apt-cache apt-cdrom
    apt-config apt-get apt-key apt-mark aptitude ar arch arp arpd as at awk b2sum badblocks base32
    base64 basenc bashbug batch bc blkdiscard blkid blkzone blockdev brew bridge browse bsdtar
    bunzip2 busctl busybox bwrap bzcat bzcmp bzdiff bzegrep bzexe bzfgrep bzgrep bzip2 bzip2recover
    bzless bzmore c++ c99 cal capsh captoinfo cargo catman cc chacl chage chattr chcon chcpu chfn
    chgpasswd chmem choom chpasswd chroot chrt chsh cksum clang clear clear_console cmake cmp col
    colrm column comm compgen composer compress conda convert corelist cpan cpgr cpio cpp cppw cron
    crontab csplit ctrlaltdel ctstat curl cut dash dbus-send dc dcb dd deb deb-systemd-helper
    deb-systemd-invoke debconf debconf-apt-progress debconf-communicate debconf-copydb
    debconf-escape debconf-set-selections debconf-show debugfs delgroup delpart deluser devlink
    dialog diff diff3 dig dir dircolors dmesg dnsdomainname doas docker docker-compose domainname
    dos2unix dosfsck dotnet dpkg dpkg-deb dpkg-divert dpkg-fsys-usrunmess dpkg-maintscript-helper
    dpkg-preconfigure dpkg-query dpkg-realpath dpkg-reconfigure dpkg-split dpkg-statoverride
    dpkg-trigger dumpe2fs e2freefrag e2fsck e2image e2label e2mmpstatus e2scrub e2scrub_all e2undo
    e4crypt e4defrag ed editor egrep eject elinks emacs enc2xs encguess env envsubst eqn ethtool ex
    exiftool expand expect expiry expr factor faillock faillog fakeroot faketime fallocate fdisk
    ffmpeg ffprobe fgrep file filefrag fincore find findfs findmnt firewall-cmd flock fmt fold free
    fsck fsck.cramfs fsck.ext2 fsck.ext3 fsck.ext4 fsck.minix fsfreeze fstab-decode fstrim ftp fuser
    g++ gawk gcc gdb gem genl geqn getcap getconf getent getfattr getopt getpcaps gettext gettext.sh
    getty ghc git gmake gnome-terminal go gpasswd gpg gpgv gpic gradle groff grog grops grotty
    groupadd groupdel groupmems groupmod grpck grpconv grpunconv gs gtbl gunzip gzexe gzip h2ph h2xs
    halt hardlink hd head helm helpztags hexdump hg host hostid hostname hostnamectl htop hwclock
    i386 iconv iconvconfig identify ifconfig infocmp infotocap init inotifywait installkernel
    instmodsh invoke-rc.d ionice ip ipcmk ipcrm ipcs ipmaddr iptables iptunnel ischroot isosize java
    javac join journalctl jq json_pp kernel-install kill killall killall5 kmod kubectl last lastb
    lastlog latex lcf ld ld.so ldattach ldconfig ldd less lessecho lessfile lesskey lesspipe lexgrog
    lftp libnetcfg link linux32 linux64 ln lnstat locale locale-gen localectl localedef locate
    logger login loginctl logname logrotate logsave look losetup lsattr lsb_release lsblk lscpu lsfd
    lsipc lsirq lslocks lslogins lsmem lsmod lsns lsof lspci lsusb lua lynx lz4 lzcat lzma lzmainfo
    m4 mail make man man-recode mandb manpath mawk mc mcookie md5sum md5sum.textutils mencoder mesg
    mii-tool mke2fs mkfifo mkfs mkfs.bfs mkfs.cramfs mkfs.ext2 mkfs.ext3 mkfs.ext4 mkfs.minix
    mkhomedir_helper mklost+found mknod mkswap modprobe mongo mongosh more mount mountpoint mplayer
    mvn mysql mysqladmin mysqldump mysqlimport namei nameif nano nawk nc ncat neqn netcat netstat
    networkctl newgidmap newgrp newuidmap newusers nft ngettext nginx nice ninja nisdomainname nl nm
    nmap node nohup nologin npm nproc npx nroff nsenter nslookup nstat numfmt nvidia-smi objdump
    octave od openssl pager pam-auth-update pam_getenv pam_namespace_helper pam_timestamp_check
    partx passwd paste patch pathchk pdflatex pdftotext perl perlbug perldoc perlivp perlthanks
    pg_dump pgrep php phpunit pic pico piconv pidof pidwait pinentry ping ping6 pinky pip pip3
    pipenv pivot_root pkexec pkill pl2pm pldd plipconfig pmap pod2html pod2man pod2text pod2usage
    podchecker podman poetry popd poweroff pr preconv prename printenv prlimit prove ps psql pstree
    ptar ptardiff ptargrep ptx pushd pwck pwconv pwdx pwhistory_helper pwunconv pytest python
    python3 python3.11 R rails rake ranlib rar rarp rbash rcp rdma readelf readlink readprofile
    reboot redis-cli remove-shell rename rename.ul renice reset resize2fs resizepart restorecon rev
    rgrep rlogin rm rmdir rmt-tar route routel rpm Rscript rsh rsync rtacct rtcwake rtmon rtstat
    ruby run-parts runcon runlevel runuser rustc rview rvim sandbox savelog sbt scala scons scp
    screen script scriptlive scriptreplay sdiff sed select-editor semanage sensible-browser
    sensible-editor sensible-pager seq service sestatus setarch setcap setenforce setfattr setpriv
    setsid setterm sftp sg sha1sum sha224sum sha256sum sha384sum sha512sum shadowconfig shasum shred
    shuf shutdown size skill slabtop slattach slogin snap snice soelim sort sox splain split sqlite3
    ss ssh ssh-add ssh-agent ssh-argv0 ssh-copy-id ssh-keygen ssh-keyscan sshd start-stop-daemon
    stdbuf strace streamzip strings strip stty su sudo sudoedit sudoreplay sulogin sum svn swaplabel
    swapoff swapon swift switch_root sync sysctl systemctl systemd systemd-analyze
    systemd-ask-password systemd-cat systemd-cgls systemd-cgtop systemd-creds systemd-cryptenroll
    systemd-delta systemd-detect-virt systemd-escape systemd-firstboot systemd-id128 systemd-inhibit
    systemd-machine-id-setup systemd-mount systemd-notify systemd-path systemd-repart systemd-run
    systemd-socket-activate systemd-stdio-bridge systemd-sysext systemd-sysusers systemd-tmpfiles
    systemd-tty-ask-password-agent systemd-umount tabs tac tail tailf tarcat taskset tbl tc tcpdump
    tee telinit telnet tempfile terraform tic tidy time timedatectl timeout tipc tload tmux toe top
    tput tr traceroute tree troff truncate tsc tset tshark tsort tty tune2fs tzselect ucf ucfq ucfr
    uclampset udevadm ufw ulimit umount uname uncompress unexpand uniq unix_chkpwd unix_update
    unlink unlzma unrar unshare unxz unzip update-alternatives update-ca-certificates update-locale
    update-passwd update-rc.d update-shells uptime useradd userdel usermod users utmpdump uuidgen
    vagrant validlocale vdir vdpa vi view vigr vim vim.basic vim.tiny vimdiff vipw virtualenv visudo
    vmstat w wall watch wc wdctl wget whatis whereis which.debianutils whiptail who whois wipefs
    wkhtmltopdf write write.ul x86_64 xargs xclip xdg-open xmllint xsltproc xsubpp xterm xxd xz
    xzcat xzcmp xzdiff xzegrep xzfgrep xzgrep xzless xzmore yarn yes ypdomainname yq yum zcat zcmp
    zdiff zdump zegrep zfgrep zforce zgrep zic zip zipdetails zless zmore znew zramctl zsh zstd
    """.split()
)
