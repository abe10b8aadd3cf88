//: verdict: timeout
//: seconds: 2
int main() {
    for (volatile int i = 0;; i = i + 1);
}
