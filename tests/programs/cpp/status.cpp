//: verdict: runtime error (exit code 42)
int main() { return 42; }
