#: verdict: limit-exceeded
#: seconds: 60
#: disk MiB: 16
while head -c 1048576 /dev/zero >> /tmp/full; do :; done
sleep 100
