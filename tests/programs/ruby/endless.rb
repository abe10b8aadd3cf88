#: verdict: timeout
#: seconds: 2
loop {}
