#!/usr/bin/env bash
# Installs what Second Site needs on Debian 12: distribution packages (with sudo where we are not root) and a virtual
# environment that sees the distribution's libvirt and libnbd bindings. With "test" also what only the tests need, with "bench" the benchmarks' peers, too.
# Can be run again; does nothing when nothing is missing. It starts no daemon and makes no account.
set -euo pipefail
cd "$(dirname "$0")/.."
for_what=${1:-demo}

packages=(
  python3 python3-venv python3-libvirt python3-libnbd   # the bindings exist only as distribution packages
  libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients  # programs alone: no unit, no account, nothing starts
  qemu-system-x86 qemu-utils                            # hypervisor and image tools
  dnsmasq-base iptables iproute2                        # isolated networks of the lab
  busybox-static e2fsprogs gcc libc6-dev                # the lab's guest is built on the spot
  ca-certificates
)
test_packages=(
  postgresql           # the store is tested on it, too; the tests run their own server
  libnbd-bin cpio      # nbdcopy as a peer of our NBD server; cpio reads what our initramfs writer wrote
  python3-gssapi krb5-kdc krb5-admin-server krb5-user   # replication with Kerberos; the tests run their own KDC
)
bench_packages=(
  virtnbdbackup        # the peer of our cycles
)
quiet_units=(krb5-kdc krb5-admin-server)   # the tests need the programs alone: these neither start now nor at boot
case "$for_what" in
  demo) ;;
  test) packages+=("${test_packages[@]}") ;;
  bench) packages+=("${test_packages[@]}" "${bench_packages[@]}") ;;
  *) echo "usage: tools/setup.sh [demo|test|bench]" >&2; exit 2 ;;
esac

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; return; fi
  command -v sudo >/dev/null || { echo "setup: run this as root once, or install sudo: packages are missing: ${missing[*]-}" >&2; exit 1; }
  sudo "$@"
}

said=$(mktemp)
no_cluster= no_start=
clean_up() {
  rm -f "$said"
  [ -z "$no_cluster" ] || as_root rm -f "$no_cluster"
  [ -z "$no_start" ] || as_root rm -f "$no_start"
}
trap clean_up EXIT
quietly() { "$@" >"$said" 2>&1 </dev/null || { tail -n 60 "$said" >&2; echo "setup: failed: $*" >&2; exit 1; }; }
installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

command -v dpkg-query >/dev/null && command -v apt-get >/dev/null \
  || { echo "setup: this is not Debian; install by hand: ${packages[*]}" >&2; exit 1; }

missing=()
for package in "${packages[@]}"; do installed "$package" || missing+=("$package"); done
if [ ${#missing[@]} -gt 0 ]; then
  echo "setup: installing ${missing[*]}"
  quietly as_root apt-get update -q
  if [[ " ${missing[*]} " == *" postgresql "* ]]; then
    # The tests run a server of their own: the package shall not make and start one on this machine.
    no_cluster=/etc/postgresql-common/createcluster.d/secondsite-setup.conf
    as_root mkdir -p "${no_cluster%/*}"
    echo "create_main_cluster = false" | as_root tee "$no_cluster" >/dev/null
  fi
  quiet=()
  for unit in "${quiet_units[@]}"; do [[ " ${missing[*]} " != *" $unit "* ]] || quiet+=("$unit"); done
  if [ ${#quiet[@]} -gt 0 ] && [ ! -e /usr/sbin/policy-rc.d ]; then
    # Debian's own way to say that an installation starts nothing, with systemd and without; gone when we end. A machine that
    # has such a policy keeps its own: the KDC could not start anyway, it has no database.
    no_start=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$no_start" >/dev/null
    as_root chmod 755 "$no_start"
  fi
  quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
  for unit in "${quiet[@]}"; do
    # Only what we have just installed: who had a KDC before keeps it. No mask: it would outlive us and surprise whoever wants a KDC.
    quietly as_root env DPKG_MAINTSCRIPT_PACKAGE="$unit" deb-systemd-helper disable "$unit.service"   # with systemd or without
    quietly as_root update-rc.d "$unit" disable
  done
elif ! apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1; then
  quietly as_root apt-get update -q   # the lab's guest takes its kernel from the package lists
fi

# A virtual environment that was left half made, or that was moved (its scripts name the old place), is made anew.
usable() { [[ "$(grep '^command = ' .venv/pyvenv.cfg)" == *" $PWD/.venv" ]] && .venv/bin/python -m pip --version; }
stamp=.venv/.setup-stamp
wanted=$(cat requirements.lock pyproject.toml | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || ! usable >/dev/null 2>&1; then
  echo "setup: virtual environment"
  usable >/dev/null 2>&1 || { rm -rf .venv; /usr/bin/python3 -m venv --system-site-packages "$PWD/.venv"; }
  pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --root-user-action ignore)
  "${pip[@]}" -r requirements.lock
  "${pip[@]}" --no-deps --editable .
  echo "$wanted" > "$stamp"
fi
.venv/bin/python -c 'import libvirt, nbd, numpy, blake3' \
  || { echo "setup: the distribution's libvirt or libnbd binding is not visible in .venv" >&2; exit 1; }
[ "$for_what" = demo ] || .venv/bin/python -c 'import gssapi' \
  || { echo "setup: the distribution's gssapi binding is not visible in .venv" >&2; exit 1; }
