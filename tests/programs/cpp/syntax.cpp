//: verdict: compilation-error
//: nothing on stdout
//: on stderr: syntax.cpp:4:21: error:
int main() { return }
