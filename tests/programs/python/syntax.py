#: verdict: runtime error (exit code 1)
#: nothing on stdout
#: on stderr: SyntaxError
print("never"
