//: verdict: success
//: stdout: 42
#include <iostream>

int main() { std::cout << 6 * 7 << std::endl; }
