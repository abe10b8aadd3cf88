#!/bin/busybox sh
# First process of the lab: modules, the host's root below an overlay, then init (init.rs).
# Every path in the lab is the path outside, and every write stays in memory, but for $LAB_OUT.
export PATH=/bin
fail() { echo "lab: boot failed: $*"; exec poweroff -f; }

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
. /lab/parameters

while read -r module; do
    insmod "/lab/modules/$module.ko" || echo "lab: module $module did not load"
done < /lab/modules/order

mkdir -p /host /upper /root
mount -t 9p -o "trans=virtio,version=9p2000.L,msize=1048576,cache=loose,ro" host /host ||
    fail "the host's root"
mount -t tmpfs -o mode=755,size=75% upper /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/host,upperdir=/upper/files,workdir=/upper/work root /root ||
    fail "the overlay"

mount -o move /proc /root/proc
mount -o move /sys /root/sys
mount -o move /dev /root/dev
mount -t cgroup2 -o nsdelegate cgroup2 /root/sys/fs/cgroup
mount -t debugfs debugfs /root/sys/kernel/debug 2>/dev/null
mkdir -p /root/dev/pts /root/dev/shm /root/run
mount -t devpts -o mode=620,ptmxmode=666 devpts /root/dev/pts
mount -t tmpfs -o mode=1777 shm /root/dev/shm
mount -t tmpfs -o mode=755 run /root/run
ln -s /proc/self/fd /root/dev/fd
ln -s fd/0 /root/dev/stdin
ln -s fd/1 /root/dev/stdout
ln -s fd/2 /root/dev/stderr
chmod 666 /root/dev/kvm /root/dev/net/tun /root/dev/vhost-vsock 2>/dev/null
ip link set lo up
hostname lab

[ -z "$LAB_TMP" ] || mount -t tmpfs -o mode=1777 tmp /root/tmp
mkdir -p "/root$LAB_OUT"
mount -t 9p -o "trans=virtio,version=9p2000.L,msize=1048576,cache=mmap" out "/root$LAB_OUT" ||
    fail "the results directory"
# Not from the host's target directory: a rebuild there must not pull it from under the lab.
cp /lab/init /root/run/lab-init || fail "copying init"
if [ -e /lab/guard.pl ]; then
    cp /lab/guard.pl /root/run/lab-guard.pl
    mount -t tracefs tracefs /root/sys/kernel/tracing
    PATH=/usr/bin:/bin chroot /root perl /run/lab-guard.pl > /root/run/lab-warnings 2>&1 < /dev/null ||
        echo "lab: QEMU may break VMs in here: there is no guard against it" >> /root/run/lab-warnings
fi
exec switch_root /root /run/lab-init lab-init
