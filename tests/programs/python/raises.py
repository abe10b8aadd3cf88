#: verdict: runtime error (exit code 1)
#: stdout: before
#: on stderr: raises.py", line 7, in <module>
#: on stderr: ZeroDivisionError: division by zero
print("before")

1 / 0
