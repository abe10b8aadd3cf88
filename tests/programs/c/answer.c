//: verdict: success
//: stdin: 7
//: stdout: 42 1.414
#include <math.h>
#include <stdio.h>

int main(void) {
    int n;
    scanf("%d", &n);
    printf("%d %.3f\n", 6 * n, sqrt(2));
}
