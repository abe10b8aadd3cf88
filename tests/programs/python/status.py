#: verdict: runtime error (exit code 3)
#: on stderr: three
import sys

print("three", file=sys.stderr)
sys.exit(3)
