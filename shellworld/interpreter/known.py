"""Names of programs that a Debian machine may well have and that are not simulated.

Not to find one of these here says nothing of a real machine, so it is called unsupported.
"""

KNOWN = frozenset(
    """
    add-shell addgroup adduser agetty apropos apt apt-cache apt-get apt-key apt-mark aptitude ar
    arch arp as at awk b2sum badblocks base32 base64 basenc batch bc blkid blockdev browse
    bsdtar bunzip2 busctl busybox bwrap bzcat bzdiff bzgrep bzip2 c++ c99 cal capsh cc chacl
    chage chattr chcon chcpu chfn chgpasswd chmem chpasswd chroot chrt chsh cksum clang clear
    cmake cmp col colrm column comm compgen cpio cpp cron crontab csplit curl cut dash dbus-send
    dc dd deb debugfs delgroup deluser dialog diff diff3 dig dir dircolors dmesg dnsdomainname
    doas docker docker-compose dos2unix dosfsck dpkg dpkg-deb dpkg-query dumpe2fs e2fsck e2label
    ed egrep eject elinks emacs env envsubst ethtool ex expand expect expiry expr factor faillog
    fakeroot faketime fallocate fdisk fgrep file filefrag find findmnt firewall-cmd flock fmt
    fold free fsck ftp fuser g++ gawk gcc gdb getcap getconf getent getfattr getopt getpcaps git
    gmake go gpasswd gpg gpgv groff groupadd groupdel groupmems groupmod grpck grpconv gunzip
    gzexe gzip halt hd head helm hexdump host hostid hostname hostnamectl htop hwclock iconv
    ifconfig infocmp init inotifywait ionice ip ipcmk ipcrm ipcs iptables java javac join
    journalctl jq kill killall killall5 kmod kubectl last lastb lastlog ld ldconfig ldd less
    link ln locale localectl localedef locate logger login loginctl logname logrotate logsave
    look losetup lsattr lsb_release lsblk lscpu lsipc lslocks lslogins lsmem lsmod lsns lsof
    lspci lsusb lynx lz4 lzcat lzma m4 mail make man mandb mawk mc md5sum mesg mkfifo mkfs
    mkfs.ext4 mknod mkswap modprobe more mount mountpoint mysql namei nano nawk nc ncat netcat
    netstat newgidmap newgrp newuidmap newusers nft nginx nice nl nm nmap node nohup nologin npm
    nproc npx nsenter nslookup numfmt objdump od openssl passwd paste patch pathchk perl pgrep
    php pico pidof pinentry ping ping6 pinky pip pip3 pivot_root pkexec pkill pmap podman popd
    poweroff pr prename printenv prlimit ps psql pstree ptx pushd pwck pwconv pwdx python
    python3 python3.11 ranlib rbash readelf readlink reboot rename renice reset resize2fs
    restorecon rev rgrep rm rmdir rpm rsync ruby run-parts runcon runuser rustc rview rvim
    sandbox savelog scp screen script sdiff sed select-editor semanage seq service sestatus
    setarch setcap setenforce setfattr setpriv setsid sftp sg sha1sum sha224sum sha256sum
    sha384sum sha512sum shasum shred shuf shutdown size slabtop snap sort split sqlite3 ss ssh
    ssh-add ssh-agent ssh-copy-id ssh-keygen sshd stdbuf strace strings strip stty su sudo
    sudoedit sulogin sum swapoff swapon sync sysctl systemctl systemd-run tac tail tailf taskset
    tcpdump tee telnet tic timedatectl timeout tload tmux top tput tr traceroute tree truncate
    tset tsort tty tune2fs tzselect udevadm ufw ulimit uname unexpand uniq unlink unlzma unshare
    unxz unzip update-alternatives update-rc.d uptime useradd userdel usermod users utmpdump
    uuidgen vdir vi view vigr vim vimdiff vipw visudo vmstat w wall watch wc wget whatis whereis
    whiptail who whois write xargs xxd xz xzcat yarn yes yq yum zcat zcmp zdiff zgrep zip zless
    zsh zstd
    """.split()
)
