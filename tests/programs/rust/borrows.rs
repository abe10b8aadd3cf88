//: verdict: compilation-error
//: nothing on stdout
//: on stderr: error[E0382]
fn main() {
    let text = String::from("moved");
    drop(text);
    println!("{text}");
}
