#!/bin/sh
# Install the Debian packages that tests against foreign programs and the kernel's NAT need, where that is possible:
# as root, with apt-get. What cannot be installed is named, and its tests skip with the reason; that is no failure.
set -u

# program:package
wanted="turnserver:coturn turnutils_stunclient:coturn tshark:tshark stun:stun-client ip:iproute2 nft:nftables iptables:iptables nginx:nginx systemd-analyze:systemd"
# packages that bring no program
libraries="gir1.2-nice-0.1 python3-gi"

PATH=$PATH:/usr/sbin:/sbin
missing=""
for pair in $wanted; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || case " $missing " in
        *" ${pair##*:} "*) ;;
        *) missing="${missing:+$missing }${pair##*:}" ;;
    esac
done
for package in $libraries; do
    dpkg-query -s "$package" >/dev/null 2>&1 || missing="${missing:+$missing }$package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "not installed: $missing (as root on Debian, make installs them); their tests will be skipped"
    exit 0
fi

failed=.cache/debian-failed
if [ -e "$failed" ] && [ -z "$(find "$failed" -mmin +60)" ]; then
    echo "not installed: $missing (apt-get failed within the last hour; remove $failed to try again)"
    exit 0
fi

echo "installing Debian packages: $missing"
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # start no service that a package brings
mkdir -p .cache
# shellcheck disable=SC2086  # a list of words
if { apt-get -qq update && apt-get -qq install --no-install-recommends -y $missing; } >.cache/debian.log 2>&1; then
    rm -f "$failed"
else
    touch "$failed"
    echo "apt-get failed, see .cache/debian.log; the tests that need $missing will be skipped"
fi
