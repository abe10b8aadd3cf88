#: verdict: timeout
#: seconds: 2
#: stdout: on
print("on", flush=True)
while True:
    pass
