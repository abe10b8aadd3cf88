#: verdict: timeout
#: seconds: 2
# It ends, and what it has started does not.
import os
import time

if os.fork() == 0:
    os.setsid()
    time.sleep(1000)
