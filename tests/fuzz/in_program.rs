//! The fuzz targets of the program, without a fuzzer: see `scripts/fuzz`. The
//! program is no library, so this is among its unit tests.

#[path = "program.rs"]
mod program;
#[path = "target.rs"]
mod target;

#[test]
fn targets_hold_on_seeds_and_near_them() {
    target::try_all(program::TARGETS);
}
