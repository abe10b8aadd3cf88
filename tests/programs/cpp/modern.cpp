//: verdict: success
//: stdin: 5 3 9 1
//: stdout: 1 9 25 81
//: stdout: 3
#include <algorithm>
#include <concepts>
#include <iostream>
#include <ranges>
#include <span>
#include <vector>

template <std::integral T> T largest_gap(std::span<const T> sorted) {
    T gap = 0;
    for (std::size_t i = 1; i < sorted.size(); ++i) gap = std::max(gap, sorted[i] - sorted[i - 1]);
    return gap;
}

int main() {
    std::vector<int> numbers;
    for (int number; std::cin >> number;) numbers.push_back(number);
    std::ranges::sort(numbers);
    const char *between = "";
    for (int square : numbers | std::views::transform([](int n) { return n * n; })) {
        std::cout << between << square;
        between = " ";
    }
    std::cout << '\n' << largest_gap<int>(numbers) - 1 << '\n';
}
