//: verdict: runtime error (exit code 1)
//: on stderr: Error: on purpose
throw new Error("on purpose");
