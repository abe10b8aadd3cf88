//: verdict: success
//: stdout: 42
fn main() {
    println!("{}", 6 * 7);
}
