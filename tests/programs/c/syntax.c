//: verdict: compilation-error
//: on stderr: syntax.c:3:25:
int main(void) { return undeclared; }
