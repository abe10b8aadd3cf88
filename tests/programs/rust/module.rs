//: verdict: success
//: file: shapes.rs
//: stdout: 12
mod shapes;

fn main() {
    println!("{}", shapes::area(3, 4));
}
