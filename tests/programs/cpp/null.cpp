//: verdict: killed (signal 11)
int main() {
    volatile int *nothing = nullptr;
    return *nothing;
}
