//: verdict: runtime error (exit code 7)
process.exitCode = 7;
