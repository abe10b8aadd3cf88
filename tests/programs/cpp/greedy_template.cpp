//: verdict: compilation-error
// Its compiler would go on for long, but for its own limit of how deep templates go.
template <int N> struct Deep { static const int value = Deep<N + 1>::value; };
int main() { return Deep<0>::value; }
