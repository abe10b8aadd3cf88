//: verdict: killed (signal 6)
//: on stderr: terminate called after throwing an instance of 'std::out_of_range'
#include <vector>

int main() { return std::vector<int>{1}.at(1); }
