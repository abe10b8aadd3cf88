#: verdict: timeout
#: seconds: 5
#: stdout: on
print("on", flush=True)
while True:
    pass
