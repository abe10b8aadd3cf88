//: verdict: compilation-error
//: on stderr: /etc/shadow
// A compiler reads no more than the program may.
#include "/etc/shadow"
int main() {}
