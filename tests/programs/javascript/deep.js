//: verdict: runtime error (exit code 1)
//: on stderr: RangeError: Maximum call stack size exceeded
const deeper = (n) => deeper(n + 1) + 1;
deeper(0);
