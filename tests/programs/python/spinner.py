#: verdict: timeout
#: processor seconds: 1
while True:
    pass
