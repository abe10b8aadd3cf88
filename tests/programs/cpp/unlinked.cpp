//: verdict: compilation-error
//: on stderr: undefined reference
int nobody_has_it();
int main() { return nobody_has_it(); }
