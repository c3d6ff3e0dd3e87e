#!/usr/bin/env bash
# Proves that a clone and one command are enough on a Debian 12 that nobody has touched.
#
#   tools/fresh.sh [--user] [--no-tun] [--no-loop] FOLDER COMMAND...      for example: tools/fresh.sh /var/tmp/fresh make demo
#
# Makes a minimal system below FOLDER (kept as FOLDER/base for the next time), with only make, git, ca-certificates and,
# with --user, sudo in it; clones the last commit of this checkout into it; and runs the command there, in namespaces of
# its own for mounts and processes: nothing is left mounted or running. The first process inside is no init, there is
# neither /dev/kvm nor systemd, with --no-tun no tap device, and with --no-loop no loop devices: as in many a container.
# Needs root, debootstrap and a package mirror; apt's sources, pip's settings and authorities are taken from this machine.
set -euo pipefail
user=root tun=yes loop=yes
while [[ "${1:-}" == --* ]]; do
  case "$1" in
    --user) user=somebody ;;
    --no-tun) tun=no ;;
    --no-loop) loop=no ;;
    *) sed -n '4,4p' "$0" >&2; exit 2 ;;
  esac
  shift
done
[ $# -ge 2 ] || { sed -n '4,4p' "$0" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "fresh: needs root" >&2; exit 1; }
checkout=$(cd "$(dirname "$0")/.." && pwd)
folder=$1; shift
base=$folder/base root=$folder/root-$$
mkdir -p "$folder"

inside() {  # ROOT USER COMMAND: run it in the system below ROOT
  unshare --mount --pid --fork --ipc --uts --kill-child bash -c '
    set -e
    root=$1 user=$2 command=$3 tun=$4 loop=$5
    mount --make-rprivate /
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    mount -t tmpfs tmpfs "$root/dev"
    for name in null zero full random urandom tty; do touch "$root/dev/$name"; mount --bind "/dev/$name" "$root/dev/$name"; done
    if [ "$tun" = yes ]; then mkdir "$root/dev/net"; mknod -m 666 "$root/dev/net/tun" c 10 200; fi
    if [ "$loop" = yes ]; then
      mknod -m 600 "$root/dev/loop-control" c 10 237
      for number in $(seq 0 31); do mknod -m 600 "$root/dev/loop$number" b 7 "$number"; done
    fi
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"; ln -s /proc/self/fd "$root/dev/fd"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"; mkdir -m 1777 "$root/run/lock"
    exec chroot "$root" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb \
      su "$user" -s /bin/bash -c "cd; $command"
  ' fresh "$1" "$2" "$3" "$tun" "$loop"
}

if [ ! -e "$base/.complete" ]; then
  rm -rf "$base"
  debootstrap --variant=minbase bookworm "$base" >"$folder/debootstrap.log"
  cp /etc/resolv.conf /etc/hosts "$base/etc/"
  for path in /etc/apt/sources.list.d /etc/apt/sources.list /etc/apt/apt.conf.d/99* /etc/pip.conf; do
    [ ! -e "$path" ] || cp -rT "$path" "$base$path"
  done
  cp -rT /usr/local/share/ca-certificates "$base/usr/local/share/ca-certificates"
  inside "$base" root "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    make git ca-certificates && update-ca-certificates && rm -rf /var/lib/apt/lists/*" >"$folder/base.log" 2>&1
  touch "$base/.complete"
fi

trap 'rm -rf --one-file-system "$root"' EXIT
cp -a --reflink=auto "$base" "$root"
git clone -q --bare "$checkout" "$root/srv/second-site.git"
chmod -R a+rX "$root/srv"
if [ "$user" != root ]; then
  inside "$root" root "apt-get update -qq && apt-get install -y -qq --no-install-recommends sudo && useradd -m $user \
    && echo '$user ALL=(ALL) NOPASSWD:ALL' >/etc/sudoers.d/$user && rm -rf /var/lib/apt/lists/*" >"$folder/user.log" 2>&1
fi
inside "$root" "$user" "git config --global safe.directory '*' && git clone -q /srv/second-site.git second-site && cd second-site && $*" </dev/null
