//: verdict: compilation-error
//: on stderr: syntax.c:4:
int main(void) { return undeclared; }
