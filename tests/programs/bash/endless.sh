#: verdict: timeout
#: seconds: 2
while :; do :; done
