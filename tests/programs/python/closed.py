#: verdict: timeout
#: seconds: 2
#: nothing on stdout
# It closes its streams, and lives on.
import os
import time

os.closerange(0, 3)
time.sleep(1000)
