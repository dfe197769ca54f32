#!/bin/sh
# Runs as root in the machine that makes the base image: the root is the essential packages' files (read-only) with a blank disk over
# them; installs every package with dpkg, tidies up, and writes the result as a tar archive to the output disk.
#
# What it says to the host are lines that start with "viv-build:"; the last one is "viv-build: complete".
set -eu
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true DEBCONF_NOWARNINGS=yes LC_ALL=C.UTF-8 HOME=/root
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export SOURCE_DATE_EPOCH=@EPOCH@
umask 022
log=/run/viv-build.log
input=/run/viv-input

fail() {
  echo "viv-build: failed $1"
  tail -n 40 $log 2>/dev/null || true
  exit 1
}

prepare() {
  mkdir -p $input
  mount -t erofs -o ro /dev/disk/by-id/virtio-viv-input $input
  mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates /var/lib/dpkg/triggers /var/cache/apt/archives/partial /var/log /tmp
  chmod 1777 /tmp
  [ -e /var/lib/dpkg/status ] || : > /var/lib/dpkg/status
  [ -e /etc/passwd ] || cp /usr/share/base-passwd/passwd.master /etc/passwd
  [ -e /etc/group ] || cp /usr/share/base-passwd/group.master /etc/group
  [ -e /usr/bin/awk ] || ln -s mawk /usr/bin/awk
  # Nobody reads manuals in a sandbox; licences stay.
  mkdir -p /etc/dpkg/dpkg.cfg.d
  cat > /etc/dpkg/dpkg.cfg.d/vivarium <<'END'
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/lintian/*
path-exclude=/usr/bin/*lto-dump*
END
  # No service starts while packages are installed.
  printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
  chmod 755 /usr/sbin/policy-rc.d
}

# Runs dpkg and tells the host of every package it turns to.
run_dpkg() {
  rm -f /run/dpkg.failed
  { dpkg --force-unsafe-io --force-depends --force-confnew --no-triggers --status-fd 3 "$@" 3>&1 >>$log 2>&1 </dev/null ||
    : > /run/dpkg.failed; } | while IFS=' ' read -r kind action name _; do
    case "$kind $action" in
      "processing: install:" | "processing: upgrade:") echo "viv-build: unpacking ${name%%:*}" ;;
      "processing: configure:") echo "viv-build: configuring ${name%%:*}" ;;
      "status: "*) ;;
    esac
  done
  [ ! -e /run/dpkg.failed ] || fail "dpkg"
}

install_packages() {
  cd $input/debs
  # shellcheck disable=SC2046 # one word a package is what is meant
  run_dpkg --unpack $(cat $input/stage1)
  run_dpkg --configure -a
  # shellcheck disable=SC2046
  run_dpkg --unpack $(cat $input/install)
  run_dpkg --configure -a
  cd /
  echo "viv-build: running triggers"
  dpkg --force-unsafe-io --triggers-only -a >>$log 2>&1 </dev/null || fail "dpkg triggers"
  # --force-depends was for the order only: in the end everything is as it should be.
  [ -z "$(dpkg --audit)" ] || fail "audit: $(dpkg --audit)"
  echo "viv-build: indexing modules"
  for modules in /usr/lib/modules/*; do depmod -a "${modules##*/}"; done
}

add_user() {
  getent group docker >/dev/null || groupadd --system docker
  useradd --uid 1000 --user-group --create-home --shell /bin/bash --groups sudo,docker --comment Agent agent
  echo 'agent ALL=(ALL:ALL) NOPASSWD: ALL' > /etc/sudoers.d/agent
  chmod 440 /etc/sudoers.d/agent
}

configure_system() {
  rm -f /etc/apt/sources.list
  cat > /etc/apt/sources.list.d/debian.sources <<'END'
Types: deb
URIs: http://deb.debian.org/debian
Suites: trixie trixie-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: trixie-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp
END
  printf 'APT::Install-Recommends "false";\nAcquire::Languages "none";\n' > /etc/apt/apt.conf.d/90vivarium
  printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' > /etc/hosts
  echo vivarium > /etc/hostname
  rm -f /etc/resolv.conf
  printf 'nameserver 198.18.0.1\n' > /etc/resolv.conf
  : > /etc/machine-id
  # Packages with alternatives (Java) link their manuals into these, and fail to install where they are not.
  for section in 1 2 3 4 5 6 7 8; do mkdir -p /usr/share/man/man$section; done
  echo 'LANG=C.UTF-8' > /etc/default/locale
  ln -sf /usr/share/zoneinfo/Etc/UTC /etc/localtime
  # Without systemd nobody opens ICMP sockets to ordinary users.
  setcap cap_net_raw+ep /usr/bin/ping
}

tidy() {
  rm -f /usr/sbin/policy-rc.d /etc/ssh/ssh_host_* /var/lib/dpkg/*-old /var/cache/ldconfig/aux-cache /etc/*- /root/.bash_history
  rm -f /var/cache/debconf/*-old /var/cache/apt/*.bin
  rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb /tmp/* /var/tmp/*
  find /var/log -type f -delete
}

write_result() {
  echo "viv-build: packing"
  mkdir -p /run/viv-root
  # A bind mount shows the root without what is mounted in it.
  mount --bind / /run/viv-root
  tar --create --file=/dev/disk/by-id/virtio-viv-output --directory=/run/viv-root --blocking-factor=512 \
    --format=posix --pax-option=delete=atime,delete=ctime --xattrs --xattrs-include='*' --xattrs-exclude='trusted.overlay.*' \
    --numeric-owner --sort=name \
    --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' --exclude='./run/*' --exclude='./lost+found' . 2>>$log || fail "tar"
  sync
}

prepare || fail "preparing"
install_packages
add_user >>$log 2>&1 || fail "adding the user"
configure_system || fail "configuring the system"
tidy || fail "tidying up"
write_result
echo "viv-build: complete"
