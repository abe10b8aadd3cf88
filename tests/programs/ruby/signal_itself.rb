#: verdict: killed (signal 9)
Process.kill(:KILL, Process.pid)
sleep
