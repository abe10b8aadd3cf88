//: verdict: runtime error (exit code 5)
class Program { static int Main() { return 5; } }
