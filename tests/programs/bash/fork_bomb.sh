#: verdict: limit-exceeded
#: seconds: 30
#: processes: 40
# Each starts two of itself.
bomb() { bomb | bomb & }
bomb
sleep 100
