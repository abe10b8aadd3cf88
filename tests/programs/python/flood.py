#: verdict: output-limit
#: output KiB: 256
while True:
    print("x" * 1000)
