//: verdict: success
//: file: shapes.cc
//: file: shapes.h
//: argument: 3
//: stdout: 12
#include <cstdlib>
#include <iostream>

#include "shapes.h"

int main(int, char **arguments) { std::cout << area(std::atoi(arguments[1]), 4) << '\n'; }
