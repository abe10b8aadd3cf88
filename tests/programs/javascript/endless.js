//: verdict: timeout
//: seconds: 4
for (;;);
