//! Sets the linker options of the program.

fn main() {
    // Makes the address of an instruction equal to its offset in the file. Some versions of `perf`
    // confuse the two, and a probe in the middle of an instruction crashes the daemon.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,separate-code");
    println!("cargo::rerun-if-changed=build.rs");
}
