#: verdict: success
#: stdout: 42
print(6 * 7)
