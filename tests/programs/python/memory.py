#: verdict: memory-exceeded
#: memory MiB: 64
hoard = []
while True:
    hoard.append(bytearray(1 << 20))
