//: verdict: runtime error (exit code 101)
//: on stderr: index out of bounds: the len is 3 but the index is 3
fn main() {
    let numbers = vec![1, 2, 3];
    println!("{}", numbers[std::env::args().count() + 2]);
}
