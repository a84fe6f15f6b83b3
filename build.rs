//! How the program is linked.

fn main() {
    // So that an instruction's address is its offset in the file, too: some versions of `perf`
    // take one for the other, and a probe in the midst of an instruction ends the daemon.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,separate-code");
    println!("cargo::rerun-if-changed=build.rs");
}
