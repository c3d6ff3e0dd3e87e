#!/usr/bin/env bash
# Installs what Second Site needs on Debian 12: distribution packages (with sudo where we are not root) and a virtual
# environment that sees the distribution's libvirt and libnbd bindings. Can be run again; does nothing when nothing changed.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
  python3 python3-venv python3-libvirt python3-libnbd   # the bindings exist only as distribution packages
  libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils   # hypervisor and image tools
  dnsmasq-base iptables iproute2                        # isolated networks of the lab
  busybox-static cpio kmod e2fsprogs gcc libc6-dev      # the lab's guest is built on the spot
  postgresql libnbd-bin                                 # tests and benchmarks
  make git ca-certificates
)

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing=()
for package in "${packages[@]}"; do installed "$package" || missing+=("$package"); done
if [ ${#missing[@]} -gt 0 ]; then
  echo "setup: installing ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
elif ! apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1; then
  as_root apt-get update -qq   # the lab's guest takes its kernel from the package lists
fi

stamp=.venv/.setup-stamp
wanted=$(cat requirements.lock pyproject.toml | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  echo "setup: virtual environment"
  [ -x .venv/bin/python ] || /usr/bin/python3 -m venv --system-site-packages .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
  echo "$wanted" > "$stamp"
fi
.venv/bin/python -c 'import libvirt, nbd, numpy, blake3' \
  || { echo "setup: the distribution's libvirt or libnbd binding is not visible in .venv" >&2; exit 1; }
