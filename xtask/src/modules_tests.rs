use super::*;

fn module(directory: &Path, name: &str, depends: &str) {
    let object = format!("\u{7f}ELF\0license=GPL\0depends={depends}\0name=x\0");
    fs::write(directory.join(format!("{name}.ko")), object).unwrap();
}

#[test]
fn dependencies_come_first_and_once() {
    let directory = std::env::temp_dir().join(format!("ember-modules-{}", std::process::id()));
    fs::create_dir_all(directory.join("a/b")).unwrap();
    module(&directory, "kvm-amd", "kvm,ccp");
    module(&directory.join("a"), "kvm", "irqbypass");
    module(&directory.join("a/b"), "irqbypass", "");
    module(&directory, "ccp", "");
    let order = in_load_order(&directory, &["kvm", "kvm_amd", "built-in"]);
    fs::remove_dir_all(&directory).unwrap();
    let names: Vec<_> = order
        .unwrap()
        .into_iter()
        .map(|module| module.name)
        .collect();
    assert_eq!(names, ["irqbypass", "kvm", "ccp", "kvm_amd"]);
}
