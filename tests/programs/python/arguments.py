#: verdict: success
#: argument: one
#: argument: two words
#: variable: COLOUR=red
#: stdin: first
#: stdin: second
#: stdout: ['one', 'two words'] red
#: stdout: ['first', 'second']
import os
import sys

print(sys.argv[1:], os.environ["COLOUR"])
print(sys.stdin.read().split())
