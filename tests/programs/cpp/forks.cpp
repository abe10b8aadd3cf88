//: verdict: limit-exceeded
//: seconds: 20
//: processes: 32
#include <unistd.h>

int main() {
    for (;;) fork();
}
