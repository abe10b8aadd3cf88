#: verdict: timeout
#: seconds: 5
while :; do :; done
