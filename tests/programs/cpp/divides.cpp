//: verdict: killed (signal 8)
int main(int count, char **) {
    volatile int zero = count - 1;
    return 1000 / zero;
}
