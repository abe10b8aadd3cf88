#: verdict: runtime error (exit code 1)
#: on stderr: RecursionError
def deeper(n):
    return deeper(n + 1)


deeper(0)
