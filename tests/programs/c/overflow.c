//: verdict: killed (signal 11)
#include <stdio.h>
#include <string.h>

int main(int count, char **arguments) {
    char small[4];
    strcpy(small, count > 5 ? arguments[5] : "far too long for it");
    puts(small);
}
