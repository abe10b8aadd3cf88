#: verdict: success
#: stdout: 1000 1000
#: stdout: cannot write /etc/passwd
#: stdout: went on
# It is an unprivileged user, and the agent is not its to end.
import os

print(os.getuid(), os.geteuid())
try:
    open("/etc/passwd", "a")
except PermissionError:
    print("cannot write /etc/passwd")
try:
    os.kill(1, 9)
except PermissionError:
    pass
print("went on")
