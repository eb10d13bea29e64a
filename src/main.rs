//! The `vexfs` program: everything it does is in [`vexfs::cli`].

fn main() -> std::process::ExitCode {
    vexfs::cli::main()
}
